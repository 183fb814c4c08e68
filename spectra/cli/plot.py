"""``spectra plot``."""

from __future__ import annotations

import argparse
from typing import Any

from spectra.cli.options import add_command, add_modules, names, numbers


def add(commands: Any) -> None:
    """Add `plot` to the commands."""
    command = add_command(
        commands,
        "plot",
        _plot,
        "one figure; the ending of --out chooses the format",
        "spectra plot trajectory runs/lora runs/sorsa --out figure.pdf",
    )
    command.add_argument("figure", choices=("trajectory", "curves", "training"))
    command.add_argument("runs", nargs="+", help="runs, or folders of runs")
    command.add_argument("--out", required=True, help="FILE.pdf, .svg, .png or .html")
    add_modules(command)
    command.add_argument("--layers", help="such as 0-11 or 3,5,7")
    command.add_argument("--steps", help="such as 0-60 or 0,20,40")
    command.add_argument("--axes", choices=("shared", "free"), default="shared")
    command.add_argument("--column", dest="columns", help="of curves, e.g. kappa; of training, a,b")
    command.add_argument("--overlay", action="store_true", help="curves: runs over one another")
    command.add_argument(
        "--log", action="store_true", default=None, help="curves, training: logarithmic axis"
    )


def _plot(options: argparse.Namespace) -> None:
    from spectra import figures
    from spectra.store import expand_runs, read_runs

    runs = expand_runs(options.runs)
    backend = figures.backend_for(options.out)
    chosen: dict[str, Any] = {
        "modules": names(options.modules),
        "layers": numbers(options.layers),
        "steps": numbers(options.steps),
    }
    if options.figure == "training":
        rows = read_runs(runs, "training")
        if chosen["steps"] is not None:
            rows = rows[rows["step"].isin(chosen["steps"])]
        columns = names(options.columns) or ("loss", "grad_norm")
        figure = figures.training(rows, columns, backend=backend, log=options.log)
    else:
        rows = read_runs(runs, "drift")
        if options.figure == "trajectory":
            figure = figures.trajectory(rows, backend=backend, axes=options.axes, **chosen)
        else:
            column = options.columns or "kappa"
            figure = figures.curves(
                rows, column, backend=backend, overlay=options.overlay, log=options.log, **chosen
            )
    print(f"Wrote {figures.save(figure, options.out)}")
