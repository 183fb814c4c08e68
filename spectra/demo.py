"""The whole job on what is built in: four methods, from training to figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from spectra import figures
from spectra.analysis import analyze
from spectra.report import write_report
from spectra.store import Run, read_runs
from spectra.training import TrainSettings, table_2
from spectra.training.problems import word_problems
from spectra.training.trainer import train

DEMO_METHODS = ("partial-ft", "lora", "sorsa-noreg", "sorsa")
BUNDLED_MODEL = Path(__file__).parent / "training" / "bundled"

# The paper's rates are for 7 billion parameters and 780 steps of 128 examples. The demo's 80
# steps of 8 on a million parameters need larger ones to move at all; the ratios between the
# methods, and of γ to the learning rate, are the paper's.
_RATE_FACTOR = 50.0
_PROBLEMS = 2000
_SEED = 7

NOTE = (
    "Made by spectra demo on the bundled model: 12 layers, hidden size 96, pre-trained by this "
    "project on generated text and fine-tuned on generated word problems. It shows how the tool "
    "works; its drift says nothing about large models."
)


def demo(out: Path | str, steps: int = 80, say: Callable[[str], None] = print) -> list[Run]:
    """Train the paper's four methods on the bundled model, analyse them and draw the figures.

    Finished parts are kept: a second call after an interruption goes on where the first stopped.

    Parameters
    ----------
    out : Path or str
        Folder for the runs, ``figures/`` and ``report.html``.
    steps : int
        Optimizer steps of each method; at least eight of them, evenly spread, are recorded
        beside step 0, where there are so many.
    say : callable
        Told every result as a line of text.

    Returns
    -------
    list of Run
        The four runs, analysed.

    Raises
    ------
    ValueError
        If `out` holds a demo with another number of steps.
    """
    started = time.monotonic()
    out = Path(out)
    # Matrices this small gain a seventh from a second thread, and lose far more to it when
    # anything else runs on the machine.
    torch.set_num_threads(1)
    problems = [(p["question"], p["answer"]) for p in word_problems(_SEED, _PROBLEMS)]
    say(f"Fine-tuning the bundled model on generated word problems, {steps} steps a method.")
    runs = []
    for method in DEMO_METHODS:
        run = train(BUNDLED_MODEL, problems, out / "runs" / method, demo_settings(method, steps))
        analyze(run.path, progress=True)
        curve = run.read_training()["loss"]
        say(
            f"  {method}: loss {curve.iloc[:5].mean():.3f} to {curve.iloc[-5:].mean():.3f}, "
            f"{time.monotonic() - started:.0f} s since the start"
        )
        runs.append(run)
    drift, training = read_runs(runs, "drift"), read_runs(runs, "training")
    for path in draw_figures(drift, training, out / "figures"):
        say(f"  wrote {path}")
    say(f"  wrote {write_report(runs, out / 'report.html', [NOTE])}")
    say("")
    say(final_table(drift))
    say(f"\nDone in {time.monotonic() - started:.0f} s.")
    return runs


def demo_settings(method: str, steps: int) -> TrainSettings:
    """Return Table 2's settings, scaled to the bundled model."""
    preset = table_2(method)
    every = max(1, steps // 8)
    return table_2(
        method,
        learning_rate=preset.learning_rate * _RATE_FACTOR,
        gamma=preset.gamma * _RATE_FACTOR,
        rank=8,
        batch_size=8,
        micro_batch_size=8,
        max_length=160,
        max_steps=steps,
        every=every,
        save_every=2 * every,
    )


def draw_figures(drift: pd.DataFrame, training: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the trajectory and the training figure as PDF, PNG and HTML; return the files."""
    written = []
    for suffix in (".pdf", ".png", ".html"):
        backend = figures.backend_for(f"figure{suffix}")
        pictures = {
            "trajectory": figures.trajectory(drift, backend=backend),
            "training": figures.training(training, backend=backend),
        }
        for name, picture in pictures.items():
            written.append(figures.save(picture, folder / f"{name}{suffix}"))
    return written


def final_table(drift: pd.DataFrame) -> str:
    """Return mean ΔΣ and ΔD and median κ of every run and module at its last step, as text."""
    table = figures.final_values(drift)[
        ["method", "module", "step", "delta_sigma", "delta_d", "kappa"]
    ]
    table.columns = ["method", "module", "step", "mean ΔΣ", "mean ΔD", "median κ"]
    return table.to_string(index=False, float_format=lambda v: f"{v:.4g}")
