"""Markdown table of some runs: where they ended and what recording and analysis cost.

    python tests/benchmarks/method_table.py runs/lora runs/sorsa …

Analyses every run from scratch in a copy of its snapshots, to time it; nothing is asserted.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from spectra.analysis import analyze
from spectra.figures import final_values
from spectra.store import Run


def main() -> None:
    """Print the table of the runs named on the command line."""
    print(
        "| run | learning rate | loss, first → last 5 steps | s/step | snapshots | analysis "
        "| ΔΣ q_proj | ΔΣ v_proj | ΔD q_proj | ΔD v_proj |"
    )
    print("| --- " * 10 + "|")
    for name in sys.argv[1:]:
        print(_line(Run(name)))


def _line(run: Run) -> str:
    training = run.read_training()
    seconds, count = _analysis_seconds(run)
    analyze(run.path)
    ends = final_values(run.read_drift()).set_index("module")
    snapshots = sorted(run.snapshots_path.glob("step-*.safetensors"))
    size = snapshots[-1].stat().st_size / 2**20
    step_seconds = training["seconds"].diff().median()
    cells = [
        run.name,
        f"{run.read_settings()['settings']['learning_rate']:.0e}",
        f"{training['loss'].iloc[:5].mean():.3f} → {training['loss'].iloc[-5:].mean():.3f}",
        f"{step_seconds:.1f}",
        f"{len(snapshots)} × {size:.2f} MiB",
        f"{seconds:.0f} s ({count} matrices)",
        *(f"{float(ends['delta_sigma'][m]):.2e}" for m in ("q_proj", "v_proj")),
        *(f"{float(ends['delta_d'][m]):.2e}" for m in ("q_proj", "v_proj")),
    ]
    return f"| {' | '.join(cells)} |"


def _analysis_seconds(run: Run) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Run(Path(folder) / run.name)
        shutil.copytree(run.snapshots_path, copy.snapshots_path)
        shutil.copy(run.settings_path, copy.settings_path)
        started = time.perf_counter()
        count = len(analyze(copy.path))
        return time.perf_counter() - started, count


if __name__ == "__main__":
    main()
