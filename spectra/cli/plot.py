"""``spectra plot``: built from the table of figures in `spectra.figures.options`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from spectra.cli.options import add_command

if TYPE_CHECKING:
    import pandas as pd

    from spectra.figures.options import Figure, Option
    from spectra.store import Run


def add(commands: Any) -> None:
    """Add `plot` to the commands."""
    command = add_command(
        commands,
        "plot",
        _plot,
        "one figure; the ending of --out chooses the format",
        "spectra plot trajectory runs/lora runs/sorsa --out figure.pdf",
    )
    command.fill = _add_figures


class _FigureParser(argparse.ArgumentParser):
    """Refuses what the figure does not take in one line, which names the figures that do."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(_unknown(self.prog.split()[-1], rest))
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _add_figures(command: argparse.ArgumentParser) -> None:
    from spectra.figures.options import FIGURES

    kinds = command.add_subparsers(
        required=True, metavar="FIGURE", dest="figure", parser_class=_FigureParser
    )
    for figure in FIGURES.values():
        words = ["spectra", "plot", figure.name, *figure.example, "--out", f"{figure.name}.pdf"]
        parser = kinds.add_parser(
            figure.name,
            help=figure.help,
            description=figure.help,
            epilog=f"Example: {shlex.join(words)}",
            allow_abbrev=False,
        )
        parser.add_argument("runs", nargs="+", metavar="RUNS", help="runs, or folders of runs")
        parser.add_argument("--out", required=True, metavar="FILE", help=_endings(figure))
        for option in figure.options:
            _add_option(parser, option)


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    keywords: dict[str, Any] = {"dest": option.name, "help": option.help}
    if option.kind == "switch":
        # On and off where the default is on, or the figure's own choice.
        both = option.default is not False
        keywords["action"] = argparse.BooleanOptionalAction if both else "store_true"
        keywords["default"] = None
    else:
        keywords["required"] = option.required
        if option.kind == "choice":
            keywords["choices"] = option.choices
        else:
            keywords["metavar"] = option.name.upper()
        if option.kind == "number":
            keywords["type"] = int
    parser.add_argument(option.written, **keywords)


def _endings(figure: Figure) -> str:
    if figure.name == "table":
        return ".tex or .csv"
    return ".pdf, .svg, .pgf or .png for paper, .html for the screen"


def _unknown(name: str, rest: Sequence[str]) -> str:
    from spectra.figures.options import FIGURES

    word = next((w for w in rest if w.startswith("-")), rest[0]).partition("=")[0]
    others = [
        figure.name
        for figure in FIGURES.values()
        if word in {option.written for option in figure.options}
    ]
    has = ", ".join(option.written for option in FIGURES[name].options)
    of_others = f" (an option of {', '.join(others)})" if others else ""
    return f"{name} has no {word}{of_others}; it has --out, {has}"


def _plot(options: argparse.Namespace) -> None:
    from spectra import figures
    from spectra.figures.options import figure_called
    from spectra.store import expand_runs

    figure = figure_called(options.figure)
    chosen = read_options(figure, options)
    backend = figures.backend_for(options.out)
    if "preset" in chosen and backend == "plotly":
        raise ValueError(
            f"--preset is the size of a figure on paper, which {options.out} is not. Write a "
            ".pdf, .svg, .pgf or .png, or leave --preset out."
        )
    runs = expand_runs(options.runs)
    rows: list[Any] = [_read(figure, table, runs, chosen) for table in figure.reads]
    if figure.name == "training" and "steps" in chosen:
        wanted = chosen.pop("steps")
        rows = [table[table["step"].isin(wanted)] for table in rows]
    for option in figure.options:
        if option.name == "column":
            chosen.setdefault("column", option.default)
    draw = getattr(figures, figure.name.replace("-", "_"))
    picture = draw(*rows, backend=backend, **chosen)
    print(f"Wrote {figures.save(picture, options.out)}")


def read_options(figure: Figure, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for, as the figure's function takes it; no defaults.

    Raises
    ------
    ValueError
        If a value cannot be read.
    """
    given = {option: getattr(options, option.name) for option in figure.options}
    return {option.name: option.read(value) for option, value in given.items() if value is not None}


def _read(figure: Figure, table: str, runs: Sequence[Run], chosen: dict[str, Any]) -> pd.DataFrame:
    from spectra.store import read_runs

    return read_runs(runs, table)
