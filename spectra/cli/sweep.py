"""``spectra sweep``."""

from __future__ import annotations

import argparse
from typing import Any

from spectra import load
from spectra.cli.options import add_command, quiet_transformers


def add(commands: Any) -> None:
    """Add `sweep` to the commands."""
    command = add_command(
        commands,
        "sweep",
        _sweep,
        "train and analyse methods × seeds × settings; what is done already is skipped",
        "spectra sweep sweep.yaml --dry-run",
    )
    command.add_argument("file", help="YAML: model, data, out, methods, seeds, settings, grid, …")
    command.add_argument(
        "--dry-run", action="store_true", help="check the file and list the runs; train nothing"
    )
    command.add_argument("--scheduler", help="address of a Dask scheduler, tcp://…")
    command.add_argument("--only", metavar="PATTERN", help="runs with such a name: 'sorsa-*'")


def _sweep(options: argparse.Namespace) -> int:
    planning = load("spectra.training.sweep", "train")
    plan = planning.read_sweep(options.file)
    sweeping = load("spectra.sweep", "train")
    if options.dry_run:
        done = sweeping.finished(plan)
        chosen = sweeping.choose(plan, options.only)
        for run in chosen:
            print(f"{run.name}, done" if run.name in done else run.name)
        print(f"{len(chosen)} runs would be in {plan.out}.")
        return 0
    quiet_transformers()
    runs = sweeping.sweep(options.file, scheduler=options.scheduler, only=options.only)
    table = sweeping.summary(plan.out)
    if not table.empty:
        print(f"\n{sweeping.summary_text(table)}\n")
    failed = [run for run in runs if run.state == "failed"]
    if not failed:
        print(f"Look at it with: spectra dashboard {plan.out}")
        return 0
    names = ", ".join(run.name for run in failed)
    raise RuntimeError(
        f"{len(failed)} of {len(runs)} runs failed: {names}. Where they did is in their "
        f"{sweeping.ERROR_FILE}; the same command tries them again."
    )
