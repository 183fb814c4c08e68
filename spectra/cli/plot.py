"""``spectra plot``: built from the table of figures in `spectra.figures.options`."""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
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
    from spectra.figures.options import FIGURES, TABLE

    kinds = command.add_subparsers(
        required=True, metavar="FIGURE", dest="figure", parser_class=_FigureParser
    )
    for figure in FIGURES.values():
        ending = ".tex" if figure.name == TABLE else ".pdf"
        words = ["spectra", "plot", figure.name, *figure.example, "--out", figure.name + ending]
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
    from spectra.figures.options import TABLE

    if figure.name == TABLE:
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
    from spectra.figures.drawing import draw
    from spectra.figures.options import TABLE, figure_called

    figure = figure_called(options.figure)
    chosen = read_options(figure, options)
    _check_ending(figure, options.out, chosen)
    runs, belonging = _find(figure, options.runs)
    rows: list[Any] = [_read(figure, table, runs, chosen) for table in figure.reads]
    _refuse_unknown(figure, chosen, rows)
    if figure.name == TABLE:
        command = figures.plot_command(TABLE, options.runs, options.out, **chosen)
        table = _function(figure)(*rows, **belonging, **chosen)
        print(f"Wrote {figures.write_table(table, options.out, command=shlex.join(command))}")
        return
    if figure.name == "training" and "steps" in chosen:
        wanted = chosen.pop("steps")
        rows = [table[table["step"].isin(wanted)] for table in rows]
    for option in figure.options:
        if option.name == "column":
            chosen.setdefault("column", option.default)
    preset = chosen.pop("preset", None)
    chart = _function(figure, "describe_")(*rows, **belonging, **chosen)
    picture = draw(chart, figures.backend_for(options.out), preset=preset)
    print(f"Wrote {figures.save(picture, options.out)}")
    if preset and chart.caption:
        # A paper sets it itself, so the preset's figure is without it.
        print(f"Caption: {chart.caption}")


def _check_ending(figure: Figure, out: str, chosen: Mapping[str, Any]) -> None:
    """Refuse a file of another kind before anything is read."""
    from spectra.figures import TABLE_ENDINGS, backend_for
    from spectra.figures.options import TABLE

    if figure.name == TABLE:
        if not out.lower().endswith(TABLE_ENDINGS):
            raise ValueError(f"A table is written as .tex or .csv, got {out!r}.")
    elif backend_for(out) == "plotly" and "preset" in chosen:
        raise ValueError(
            f"--preset is the size of a figure on paper, which {out} is not. Write a .pdf, .svg, "
            ".pgf or .png, or leave --preset out."
        )


def read_options(figure: Figure, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for, as the figure's function takes it; no defaults.

    Raises
    ------
    ValueError
        If a value cannot be read.
    """
    given = {option: getattr(options, option.name) for option in figure.options}
    return {option.name: option.read(value) for option, value in given.items() if value is not None}


def _find(figure: Figure, paths: Sequence[str]) -> tuple[dict[str, Run], dict[str, Any]]:
    """Return the runs by their names, and what the figure has to know of how they belong."""
    from spectra.store import Run, expand_runs, group_labels, regularized_pairs, run_names

    given = expand_runs(paths)
    # A run may stand in several pairs; its rows are read once.
    by_path = {run.path.resolve(): run for run in given}
    runs = list(by_path.values())
    found = dict(zip(run_names(runs), runs, strict=True))
    parameters = inspect.signature(_function(figure)).parameters
    if "groups" in parameters:
        return found, {"groups": group_labels(runs)}
    if "pairs" not in parameters:
        return found, {}
    if all(Run(path).exists() for path in paths):
        if len(given) % 2:
            raise ValueError(
                f"{figure.name} takes runs in pairs, the regularized one first: got {len(given)}."
            )
        name_of = {path: name for name, path in zip(found, by_path, strict=True)}
        names = [name_of[run.path.resolve()] for run in given]
        pairs = list(zip(names[::2], names[1::2], strict=True))
    else:
        pairs = regularized_pairs(runs)
    if not pairs:
        raise ValueError(
            f"None of these {len(runs)} runs is a regularized one (sorsa) with a twin "
            "(sorsa-noreg) of the same seed and settings. Name the runs one by one, in pairs, "
            "the regularized one first."
        )
    return found, {"pairs": pairs}


def _function(figure: Figure, what: str = "") -> Callable[..., Any]:
    from spectra import figures

    found: Callable[..., Any] = getattr(figures, what + figure.called)
    return found


def _read(
    figure: Figure, table: str, runs: Mapping[str, Run], chosen: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the rows that the figure needs of a table, each run's under its label."""
    import pandas as pd

    from spectra.figures import needed_columns

    columns = needed_columns(figure.name, table, chosen)
    frames = []
    for label, run in runs.items():
        if table == "training":
            frame = run.read_training()
        elif table == "drift":
            frame = run.read_drift(columns)
        else:
            frame = _read_arrays(figure, run, chosen, columns)
        frames.append(frame.assign(run=label))
    return pd.concat(frames, ignore_index=True)


def _refuse_unknown(
    figure: Figure, chosen: Mapping[str, Any], rows: Sequence[pd.DataFrame]
) -> None:
    """Refuse a column that no table has, and name those there are.

    The figure knows only the columns that were read for it: the one asked for, and the floors.
    """
    from spectra.store import DRIFT_QUANTITIES, TRAINING_QUANTITIES

    column = chosen.get("column")
    if figure.name == "kappa-ratio" or column is None or any(column in table for table in rows):
        return
    known = [*DRIFT_QUANTITIES, *(TRAINING_QUANTITIES if "training" in figure.reads else ())]
    raise ValueError(f"There is no column {column}; {figure.name} draws {', '.join(known)}.")


def _read_arrays(
    figure: Figure, run: Run, chosen: Mapping[str, Any], columns: list[str] | None
) -> pd.DataFrame:
    """Return the arrays of the steps that the figure draws; those of all steps may be gigabytes."""
    from spectra.figures import write_numbers

    keys = run.spectrum.read(["step"])
    present = sorted(set(keys["step"]))
    modules, layers = chosen.get("modules"), chosen.get("layers")
    if figure.name == "matrix":
        steps, modules, layers = [chosen["step"]], [chosen["module"]], [chosen["layer"]]
    else:
        steps = present[-1:]
        if "steps" in chosen:
            steps = [step for step in present if step in chosen["steps"]]
            if chosen.get("view") != "share":
                steps = [*steps[:1], *steps[1:][-1:]]
    rows = run.read_spectrum(steps=steps, modules=modules, layers=layers, columns=columns)
    if rows.empty and present:
        raise ValueError(
            f"{run.path} has no singular values of these modules, layers and steps: it has "
            f"{', '.join(sorted(set(keys['module'])))}; layers {write_numbers(keys['layer'])}; "
            f"steps {write_numbers(present, present)}."
        )
    return rows
