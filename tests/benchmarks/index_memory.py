"""Resident memory of indexing a checkpoint far larger than what is read from it.

Writes sharded checkpoints of holes (their headers are real, their numbers are zeros that take no
disk), and measures in a process of its own what indexing all matrices and reading one adds to the
memory of the interpreter with torch.

    python -m tests.benchmarks.index_memory --gib 1 8 32
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
_SHARD = 4 * 2**30

_INDEX = """
import resource, sys, time
import torch
from checkpoints_index import open_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

before, start = peak(), time.perf_counter()
model = open_model(sys.argv[1])
indexed, seconds = peak(), time.perf_counter() - start
matrix = max(model.matrices, key=lambda m: m.shape[0] * m.shape[1])
dense = model.read(matrix).dense
total = float(dense.sum())
size = dense.numel() * dense.dtype.itemsize / 2**20
print(f"{len(model.matrices)} matrices indexed in {1000 * seconds:.0f} ms, {indexed - before:.1f} "
      f"MiB beside the interpreter's {before:.0f}; one matrix of {size:.0f} MiB read: "
      f"{peak() - before:.0f} MiB")
"""


def main() -> None:
    """Measure for each size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gib", type=float, nargs="+", default=[1, 8, 32])
    for gib in parser.parse_args().gib:
        with tempfile.TemporaryDirectory() as folder:
            size = write_holes(Path(folder), gib)
            result = subprocess.run(
                [sys.executable, "-c", _INDEX, folder], capture_output=True, text=True, check=False
            )
            said = result.stdout.strip() or result.stderr.strip()[-500:]
            print(f"{size / 2**30:.1f} GiB: {said}", flush=True)


def write_holes(folder: Path, gib: float) -> int:
    """Write bfloat16 layers of a Llama-3-8B's shape until there are `gib`; returns the bytes."""
    shards: list[dict[str, dict[str, object]]] = [{}]
    sizes = [0]
    layer = 0
    while sum(sizes) < gib * 2**30:
        for module, shape in SHAPES.items():
            size = 2 * shape[0] * shape[1]
            if sizes[-1] + size > _SHARD:
                shards.append({})
                sizes.append(0)
            shards[-1][f"model.layers.{layer}.{module}.weight"] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": [sizes[-1], sizes[-1] + size],
            }
            sizes[-1] += size
        layer += 1
    weight_map: dict[str, str] = {}
    for number, (header, size) in enumerate(zip(shards, sizes, strict=True), 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + size)
        weight_map |= dict.fromkeys(header, name)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(sizes)


if __name__ == "__main__":
    main()
