"""``spectra analyze`` and ``spectra watch``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from spectra.cli.options import add_command, add_modules, duration, names, tell_bytes_read, workers


def add(commands: Any) -> None:
    """Add `analyze` and `watch` to the commands."""
    command = add_command(
        commands,
        "analyze",
        _analyze,
        "checkpoints to drift rows; only what is new",
        "spectra analyze runs/sorsa",
    )
    command.add_argument(
        "paths",
        nargs="+",
        help="runs, a folder of runs, or folders with checkpoints; or addresses of such",
    )
    _add_options(command)
    command.add_argument("--scheduler", help="address of a Dask scheduler, tcp://…")
    command.add_argument(
        "--dry-run", action="store_true", help="what would be computed, and its time and memory"
    )

    command = add_command(
        commands,
        "watch",
        _watch,
        "follow a folder and analyse each checkpoint when it is complete; Ctrl+C ends it",
        "spectra watch outputs/ --base base-model --out runs/outputs",
    )
    command.add_argument(
        "path",
        help="a run, a folder of runs, or a folder that any trainer writes checkpoints to; it need "
        "not exist yet",
    )
    _add_options(command)
    command.add_argument(
        "--interval",
        type=duration,
        default=0.5,
        metavar="SECONDS",
        help="between two looks at the folder (default: %(default)s)",
    )
    command.add_argument(
        "--idle", type=duration, metavar="MINUTES", help="end after so long without news"
    )
    command.add_argument(
        "--until-finished",
        action="store_true",
        help="end when no run is being recorded any more and all is analysed",
    )
    command.add_argument(
        "--background",
        action="store_true",
        help="lowest priority, one thread, no GPU: for analysis beside a training",
    )


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--base", help="folder, file, address or hub id of the base model")
    command.add_argument(
        "--dequantise",
        action="store_true",
        help="of weights quantised by bitsandbytes, take the numbers that they stand for (for a "
        "base the other choice is --base with the 16-bit model)",
    )
    add_modules(command)
    command.add_argument(
        "--out",
        help="run to write to, a folder of runs for several trainings (default for checkpoints: "
        "runs/NAME)",
    )
    command.add_argument("--values-only", action="store_true", help="no singular vectors, no ΔD")
    command.add_argument(
        "--solver",
        choices=("auto", "low-rank", "gram", "svd"),
        default="auto",
        help="default: the fastest exact one",
    )
    command.add_argument(
        "--precision",
        help="what the weights were rounded to, where the files do not show it, such as q4_0 or "
        "nf4: for the noise floor",
    )
    command.add_argument(
        "--workers", type=workers, help="processes; -1 all cores (default: what is found best)"
    )


def _analyze(options: argparse.Namespace) -> None:
    from spectra.analysis import analyze, estimate

    if options.dry_run:
        print(estimate(options.paths, **_chosen(options)))
        tell_bytes_read(options, sys.stdout)
        return
    drift = analyze(
        options.paths,
        **_chosen(options),
        workers=options.workers,
        scheduler=options.scheduler,
        progress=True,
    )
    steps, layers = drift["step"].nunique(), drift["layer"].nunique()
    failed = int((drift["solver"] == "none").sum())
    print(
        f"{len(drift)} rows: {steps} steps × {layers} layers × {drift['module'].nunique()} modules"
    )
    if failed:
        print(f"{failed} of them could not be decomposed; they are marked solver = none.")
    tell_bytes_read(options, sys.stdout)


def _watch(options: argparse.Namespace) -> None:
    rows = count = 0
    try:
        if options.background:
            from spectra.background import go_to_background

            go_to_background()
        from spectra.analysis import watch

        for done in watch(
            options.path,
            **_chosen(options),
            workers=1 if options.background else options.workers,
            interval=options.interval,
            idle=options.idle,
            until_finished=options.until_finished,
        ):
            count, rows = count + 1, rows + done.rows
            print(
                f"{done.run.name}: step {done.step}, {done.rows} rows in {done.seconds:.1f} s",
                flush=True,
            )
    except KeyboardInterrupt:
        print()
    print(f"Analysed {count} steps: {rows} rows.")


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that `analyze`, `estimate` and `watch` share."""
    return {
        "base": options.base,
        "dequantise": options.dequantise,
        "modules": names(options.modules),
        "out": options.out,
        "values_only": options.values_only,
        "solver": options.solver,
        "precision": options.precision,
    }
