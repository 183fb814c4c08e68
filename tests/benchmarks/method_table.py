"""Markdown tables of some runs: where they ended and what they, recording and analysis cost.

    python tests/benchmarks/method_table.py runs/lora runs/sorsa … [--time]
    python tests/benchmarks/method_table.py runs/methods/* --compare [--steps runs/timed/*]

With --time, every run is analysed once more, from scratch, in a copy. With --compare, the table is
one row a method: what it trains and costs, its losses and perplexities, and its mean drift; with
--steps, seconds and memory are those of other runs, of the same methods. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from checkpoints_index.snapshots import BASE_FILE
from spectra.analysis import analyze
from spectra.figures import final_values
from spectra.store import Run

QUANTITIES = ("delta_sigma", "delta_d")
MODULES = ("q_proj", "v_proj")


def main() -> None:
    """Print the tables of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--time", action="store_true", help="analyse copies from scratch, timed")
    parser.add_argument("--compare", action="store_true", help="one row a method")
    parser.add_argument("--steps", nargs="*", type=Path, default=[], help="timed runs")
    options = parser.parse_args()
    runs = [Run(path) for path in options.runs if Run(path).exists()]
    for run in runs:
        analyze(run.path)
    if options.compare:
        _compare(runs, [Run(path) for path in options.steps if Run(path).exists()])
        return

    print("| run | loss | ΔΣ q_proj | ΔΣ v_proj | ΔD q_proj | ΔD v_proj | align q | align v |")
    print("| --- " * 8 + "|")
    for run in runs:
        print(f"| {' | '.join([run.name, *_drift_cells(run)])} |")
    print("\n| run | s/step | bytes a snapshot | snapshots | base | analysis, s | matrices |")
    print("| --- " * 7 + "|")
    for run in runs:
        print(f"| {' | '.join([run.name, *_cost_cells(run, options.time)])} |")


def _compare(runs: list[Run], timed: list[Run]) -> None:
    costs = {r.read_settings()["method"]: r.read_settings()["cost"] for r in [*runs, *timed]}
    head = "method | trained | s/step | memory, GiB | loss | held-out loss | other perplexity"
    print(f"| {head} | ΔΣ | ΔD | matched ΔD | κ_t/κ_0 |")
    print("| --- " * 11 + "|")
    for run in runs:
        described = run.read_settings()
        cost, drift, rows = costs[described["method"]], run.read_drift(), run.read_training()
        measured = rows.dropna(subset=["perplexity"])
        held_out, other = np.log(measured["perplexity"]), measured["perplexity_other"]
        end = drift[drift["step"] == drift["step"].max()]
        start = drift[drift["step"] == 0].set_index(["layer", "module"])["kappa"]
        growth = (end.set_index(["layer", "module"])["kappa"] / start).median()
        cells = [
            described["method"],
            f"{described['cost']['trainable_parameters']:,}",
            f"{cost['seconds_per_step']:.2f}",
            f"{cost['peak_memory'] / 2**30:.2f}",
            f"{rows['loss'].dropna().iloc[:5].mean():.3f} → {rows['loss'].iloc[-5:].mean():.3f}",
            f"{held_out.iloc[0]:.3f} → {held_out.iloc[-1]:.3f}",
            f"{other.iloc[0]:.2f} → {other.iloc[-1]:.2f}",
            *(f"{float(end[q].mean()):.2e}" for q in (*QUANTITIES, "matched_d")),
            f"{growth:.4f}",
        ]
        print(f"| {' | '.join(cells)} |")


def _drift_cells(run: Run) -> list[str]:
    drift, loss = run.read_drift(), run.read_training()["loss"]
    ends = final_values(drift).set_index("module")
    return [
        f"{loss.iloc[:5].mean():.3f} → {loss.iloc[-5:].mean():.3f}",
        *(f"{float(ends[q][m]):.2e}" for q in QUANTITIES for m in MODULES),
        *(f"{layer_alignment(drift[drift['module'] == m]):.2f}" for m in MODULES),
    ]


def _cost_cells(run: Run, timed: bool) -> list[str]:
    snapshots = sorted(run.snapshots_path.glob("step-*.safetensors"))
    seconds, count = _analysis_seconds(run) if timed else (float("nan"), len(run.read_drift()))
    return [
        f"{run.read_training()['seconds'].diff().median():.2f}",
        f"{snapshots[-1].stat().st_size:,}",
        f"{len(snapshots)}",
        f"{(run.snapshots_path / BASE_FILE).stat().st_size:,}",
        f"{seconds:.0f}",
        f"{count}",
    ]


def layer_alignment(drift: pd.DataFrame) -> float:
    """How parallel the layers of one module move in the (ΔΣ, ΔD) plane, from 0 to 1.

    Both quantities are divided by their mean over the layers at the last step. For every pair of
    recorded steps each layer's movement is a direction; their mean resultant length (1 if all
    layers go the same way, about 1/√layers if they are unrelated) is averaged over the steps.
    """
    paths = [
        drift.pivot(index="step", columns="layer", values=c) for c in ("delta_sigma", "delta_d")
    ]
    moves = np.stack([(p / p.iloc[-1].mean()).diff().iloc[1:].to_numpy() for p in paths], axis=-1)
    lengths = np.linalg.norm(moves, axis=-1, keepdims=True)
    directions = np.divide(moves, lengths, out=np.zeros_like(moves), where=lengths > 0)
    return float(np.linalg.norm(directions.mean(axis=1), axis=-1).mean())


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
