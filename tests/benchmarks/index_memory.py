"""Resident memory of indexing a checkpoint far larger than what is read from it.

Writes sharded checkpoints of holes (their headers are real, their numbers are zeros that take no
disk), and measures in a process of its own what indexing all matrices and reading one adds to the
memory of the interpreter with torch.

With --analyze, one worker analyses checkpoints of square float32 matrices against a base of the
same size instead: all of it is read, most layers are holes in both, and the first have numbers
that are really decomposed. What that takes beside a process that has analysed a tiny checkpoint
must stay below ten times the largest matrix in float64.

    python -m tests.benchmarks.index_memory --gib 1 8 32
    python -m tests.benchmarks.index_memory --analyze --gib 1 8
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

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
_SIDE = 2048
_SQUARE = {"self_attn.q_proj": (_SIDE, _SIDE), "self_attn.v_proj": (_SIDE, _SIDE)}
_REAL_LAYERS = 2

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


_ANALYSE = """
import resource, sys
from spectra.analysis import analyze
base, trained, out = sys.argv[1:]
drift = analyze(trained, base=base, out=out, modules=["q_proj", "v_proj"], workers=1)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
solvers = ", ".join(f"{n} {s}" for s, n in drift["solver"].value_counts().items())
print(f"{peak / 2**10:.0f} {len(drift)} rows ({solvers})")
"""


def main() -> None:
    """Measure for each size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gib", type=float, nargs="+", default=[1, 8, 32])
    parser.add_argument("--analyze", action="store_true", help="analyse instead of index")
    options = parser.parse_args()
    if options.analyze:
        measure_analysis(options.gib)
        return
    for gib in options.gib:
        with tempfile.TemporaryDirectory() as folder:
            size = write_holes(Path(folder), gib)
            result = subprocess.run(
                [sys.executable, "-c", _INDEX, folder], capture_output=True, text=True, check=False
            )
            said = result.stdout.strip() or result.stderr.strip()[-500:]
            print(f"{size / 2**30:.1f} GiB: {said}", flush=True)


def measure_analysis(sizes: list[float]) -> None:
    """Print the peak memory of analysing a checkpoint of each size, and what it must stay below."""
    matrix = 8 * _SIDE**2 / 2**20
    with tempfile.TemporaryDirectory() as folder:
        tiny, _, said = _analyse(Path(folder), 0, {m: (32, 32) for m in _SQUARE})
    print(f"tiny: {said}, {tiny:.0f} MiB: the interpreter", flush=True)
    for gib in sizes:
        with tempfile.TemporaryDirectory() as folder:
            peak, size, said = _analyse(Path(folder), gib, _SQUARE)
        print(
            f"{size / 2**30:.1f} GiB: {said}, {peak:.0f} MiB: {peak - tiny:.0f} beside the "
            f"interpreter's, {(peak - tiny) / matrix:.1f} times the largest matrix in float64",
            flush=True,
        )


def _analyse(
    folder: Path, gib: float, shapes: Mapping[str, tuple[int, int]]
) -> tuple[float, int, str]:
    """Analyse a checkpoint in a process of its own: MiB at its peak, bytes of it, what it did."""
    base, trained = folder / "base", folder / "checkpoint-1"
    for path in (base, trained):
        size = write_holes(path, gib, shapes, "F32", layers=_REAL_LAYERS + 1)
    write_numbers(base, trained, shapes)
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", _ANALYSE, base, trained, folder / "run"],
        capture_output=True,
        text=True,
        env=os.environ | {"SPECTRA_CACHE": str(folder / "cache")},
        check=False,
    )
    if result.returncode:
        raise SystemExit(result.stderr)
    peak, said = result.stdout.strip().split(" ", 1)
    return float(peak), size, f"{said} in {time.perf_counter() - start:.0f} s"


def write_numbers(base: Path, trained: Path, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Fill the first layers, which lie first in the first shard, and move them a little."""
    drawn = np.random.default_rng(0)
    paths = [next(folder.glob("model-00001-of-*.safetensors")) for folder in (base, trained)]
    with paths[0].open("r+b") as before, paths[1].open("r+b") as after:
        for file in (before, after):
            file.seek(int.from_bytes(file.read(8), "little"), os.SEEK_CUR)
        for m, n in list(shapes.values()) * _REAL_LAYERS:
            w = drawn.standard_normal((m, n), np.float32) / np.float32(n**0.5)
            moved = w + drawn.standard_normal((m, n), np.float32) / np.float32(100 * n**0.5)
            before.write(w.tobytes())
            after.write(moved.tobytes())


def write_holes(
    folder: Path,
    gib: float,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    dtype: str = "BF16",
    layers: int = 1,
) -> int:
    """Write layers (a Llama-3-8B's) until there are `gib` and `layers`; returns the bytes."""
    folder.mkdir(exist_ok=True)
    width = {"BF16": 2, "F32": 4}[dtype]
    shards: list[dict[str, dict[str, object]]] = [{}]
    sizes = [0]
    layer = 0
    while sum(sizes) < gib * 2**30 or layer < layers:
        for module, shape in shapes.items():
            size = width * shape[0] * shape[1]
            if sizes[-1] + size > _SHARD:
                shards.append({})
                sizes.append(0)
            shards[-1][f"model.layers.{layer}.{module}.weight"] = {
                "dtype": dtype,
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
