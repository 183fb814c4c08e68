"""Peak memory of analysing a checkpoint with one worker, which must not grow with the model.

Writes a synthetic base and one trained checkpoint (whole weights, bfloat16) of LAYERS layers with a
q_proj of 4096×4096 and a v_proj of 1024×4096, and analyses it in a process of its own. All layers
have the same base, so that it is decomposed once; what is held at a time is the same.

    python -m tests.benchmarks.memory --layers 32 64     # 20 minutes on 2 cores, 20 GB of disk
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.helpers import gaussian

SHAPES = {"q_proj": (4096, 4096), "v_proj": (1024, 4096)}

_ANALYSE = """
import sys
from pathlib import Path
from spectra.analysis import analyze
base, trained, out = sys.argv[1:]
drift = analyze(trained, base=base, out=out, workers=1)
# Not ru_maxrss, which starts from the peak of the process that has started this one.
status = Path("/proc/self/status").read_text().splitlines()
peak = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**20
print(f"{len(drift)} rows, solvers {sorted(set(drift['solver']))}, peak {peak:.2f} GiB")
"""


def main() -> None:
    """Measure for each number of layers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[32, 64])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for layers in options.layers:
            root = Path(folder) / str(layers)
            base, trained = root / "base", root / "checkpoint-1"
            write_checkpoint(base, layers, drift=0.0)
            write_checkpoint(trained, layers, drift=0.05)
            start = time.perf_counter()
            result = subprocess.run(
                [sys.executable, "-c", _ANALYSE, base, trained, root / "run"],
                capture_output=True,
                text=True,
                env=os.environ | {"SPECTRA_CACHE": str(Path(folder) / "cache")},
                check=False,
            )
            said = result.stdout.strip() or result.stderr.strip()[-500:]
            print(f"{layers} layers: {said}, {time.perf_counter() - start:.0f} s", flush=True)
            for path in (base, trained):
                (path / "model.safetensors").unlink()


def write_checkpoint(folder: Path, layers: int, drift: float) -> None:
    """Write a model folder; the same weights in every layer, apart by `drift` from the base's."""
    folder.mkdir(parents=True)
    weights = {}
    for module, (m, n) in SHAPES.items():
        w = gaussian(m, n) / n**0.5
        if drift:
            w += drift * gaussian(m, n, 1) / n**0.5
        weights[module] = w.to(torch.bfloat16)
    tensors = {
        f"model.layers.{layer}.self_attn.{module}.weight": w.clone()
        for layer in range(layers)
        for module, w in weights.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
