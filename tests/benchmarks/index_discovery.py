"""Time to index many checkpoint folders: the first time, unchanged, and with one new folder.

Writes FOLDERS folders with a tiny safetensors model and a trainer's state each, and indexes them
with an index that is kept on disk. The file cache is warm.

    python -m tests.benchmarks.index_discovery                     # half a minute on 2 cores
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save

from checkpoints_index import IndexStore, build_index


def main() -> None:
    """Write, index, and print the seconds of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folders", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=100, help="folders a training")
    options = parser.parse_args()
    names = [
        f"model.layers.{i}.self_attn.{m}.weight" for i in range(2) for m in ("q_proj", "v_proj")
    ]
    content = save({name: torch.zeros(4, 4) for name in names})
    with tempfile.TemporaryDirectory() as folder:
        root, store = Path(folder, "outputs"), IndexStore(Path(folder, "cache"))
        for i in range(options.folders):
            run, step = divmod(i, options.steps)
            write_checkpoint(root / f"run-{run}" / f"checkpoint-{step + 1}", content)
        measure("first", root, store, options.folders)
        measure("unchanged", root, store, options.folders)
        write_checkpoint(root / "run-0" / f"checkpoint-{options.steps + 1}", content)
        measure("one new folder", root, store, options.folders + 1)
        print(f"kept index: {store.file(root).stat().st_size / 2**20:.1f} MiB")


def write_checkpoint(folder: Path, content: bytes) -> None:
    """Write the least that a trainer leaves."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    state = {"global_step": int(folder.name.rpartition("-")[2])}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def measure(name: str, root: Path, store: IndexStore, expected: int) -> None:
    """Index once, and check that all of it was found."""
    start, busy = time.perf_counter(), time.process_time()
    index = build_index(root, store)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    complete = sum(entry.state == "complete" for entry in index.entries)
    assert complete == expected, (complete, expected)
    print(f"{name}: {seconds:.2f} s ({busy:.2f} s of one core) for {expected} folders", flush=True)


if __name__ == "__main__":
    main()
