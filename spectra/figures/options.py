"""Which figure has which options, and how each is written on the command line: one table.

`spectra plot` is built from it, and `plot_command` writes with it the command of a figure that is
on the screen; so what a page shows to copy is what the command line reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spectra.figures.comparison import BY
from spectra.figures.spectrum_views import VIEWS
from spectra.figures.style import PRESETS

Kind = Literal["name", "names", "numbers", "number", "pair", "choice", "switch"]
"""What a value is: text, texts, whole numbers, one whole number, two numbers, one of a few texts,
or on and off."""

TABLE = "table"
"""The one that is no picture."""

_MOST_NUMBERS = 10_000_000
_NAME = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,]*?))\s*(,|\Z)', re.DOTALL)


@dataclass(frozen=True)
class Option:
    """One option of a figure.

    Attributes
    ----------
    name : str
        The keyword of the figure's function.
    kind : Kind
    help : str
        What ``--help`` says.
    default : object
        Of the function; None where the figure chooses for itself.
    choices : tuple of str
        Of a choice.
    flag : str
        On the command line; ``--NAME`` where it is empty.
    required : bool
    """

    name: str
    kind: Kind
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    flag: str = ""
    required: bool = False

    @property
    def written(self) -> str:
        """The option as it stands on the command line."""
        return self.flag or "--" + self.name.replace("_", "-")

    def read(self, text: str | bool | int | None) -> Any:
        """Return the value of what the command line holds; `default` where it holds nothing.

        Raises
        ------
        ValueError
            If the text is not such a value.
        """
        if text is None:
            return self.default
        if isinstance(text, str):
            if self.kind == "names":
                return parse_names(text)
            if self.kind == "numbers":
                return parse_numbers(text)
            if self.kind == "pair":
                return _parse_pair(self.written, text)
        return text

    def words(self, value: Any, among: Sequence[int] | None = None) -> list[str]:
        """Return the words that give the option this value; none where it is the default."""
        if value is None or self._same(value, self.default):
            return []
        if self.kind == "switch":
            return [self.written if value else "--no-" + self.written[2:]]
        text = str(value)
        if self.kind == "names":
            text = write_names([value] if isinstance(value, str) else value)
        elif self.kind == "numbers":
            text = write_numbers(value, among)
        elif self.kind == "pair":
            low, high = value
            text = f"{float(low)!r},{float(high)!r}"
        # A value that begins with a dash would be read as an option of its own.
        return [f"{self.written}={text}"] if text.startswith("-") else [self.written, text]

    def _same(self, value: Any, default: Any) -> bool:
        if self.kind == "names" and default is not None:
            return tuple([value] if isinstance(value, str) else value) == tuple(default)
        return bool(value == default) if self.kind != "numbers" else False


@dataclass(frozen=True)
class Figure:
    """A figure of the command line.

    Attributes
    ----------
    name : str
        On the command line.
    help : str
    reads : tuple of str
        The tables whose rows the function takes, in its order: ``"drift"``, ``"spectrum"``,
        ``"training"``.
    options : tuple of Option
    columns : callable
        From a table and the options to the columns that the figure needs of it, beside the
        keys; None for all.
    example : tuple of str
        Words between the figure's name and ``--out``, for ``--help``.
    function : str
        In `spectra.figures`; the name with underscores for dashes where it is empty.
    """

    name: str
    help: str
    reads: tuple[str, ...]
    options: tuple[Option, ...]
    columns: Callable[[str, Mapping[str, Any]], tuple[str, ...] | None]
    example: tuple[str, ...] = ("runs/lora", "runs/sorsa")
    function: str = ""

    @property
    def called(self) -> str:
        """The name of its function in `spectra.figures`."""
        return self.function or self.name.replace("-", "_")

    def option(self, name: str) -> Option:
        """Return an option by its keyword.

        Raises
        ------
        ValueError
            If the figure has none of that name.
        """
        for option in self.options:
            if option.name == name:
                return option
        known = ", ".join(option.name for option in self.options)
        raise ValueError(f"The figure {self.name} has no option {name!r}; it has {known}.")


def needed_columns(
    figure: str, table: str, options: Mapping[str, Any] | None = None
) -> list[str] | None:
    """Return the columns of a table that a figure needs; None for all of them.

    Parameters
    ----------
    figure : str
        One of `FIGURES`.
    table : {"drift", "spectrum", "training"}
    options : mapping, optional
        Of the figure's function; defaults where one is missing.

    Raises
    ------
    ValueError
        If there is no such figure, or it has not such an option.
    """
    described = figure_called(figure)
    given = {option.name: option.default for option in described.options}
    for name, value in (options or {}).items():
        given[described.option(name).name] = value
    columns = described.columns(table, given)
    return None if columns is None else list(dict.fromkeys(("method", *columns)))


def figure_called(name: str) -> Figure:
    """Return the entry of a figure in the table.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in FIGURES:
        raise ValueError(f"There is no figure {name!r}; there are {', '.join(FIGURES)}.")
    return FIGURES[name]


def plot_command(
    figure: str,
    runs: Iterable[Path | str],
    out: Path | str,
    *,
    among: Mapping[str, Sequence[int]] | None = None,
    **options: Any,
) -> list[str]:
    """Return the words of the `spectra plot` command that draws a figure.

    Parameters
    ----------
    figure : str
        One of `FIGURES`, such as ``"trajectory"``.
    runs : iterable of path
        The runs' folders, in the order of the panels; of ``"kappa-ratio"`` in pairs, the
        regularized one first.
    out : path
        The file to write.
    among : mapping of str to sequence of int, optional
        For ``"layers"`` and ``"steps"`` which there are: numbers that are neighbours there are
        written as a range, ``50-200``.
    **options
        As the figure's function takes them; those equal to the default leave no word.

    Returns
    -------
    list of str
        To be joined by `shlex.join`; `spectra.cli.main` takes all but the first.

    Raises
    ------
    ValueError
        If there is no such figure, or it has not such an option.

    Examples
    --------
    >>> plot_command("curves", ["runs/a"], "a.pdf", layers=range(4), overlay=False)
    ['spectra', 'plot', 'curves', 'runs/a', '--layers', '0-3', '--out', 'a.pdf']
    """
    described = figure_called(figure)
    for name in options:
        described.option(name)
    words = ["spectra", "plot", figure, *(_as_path(run) for run in runs)]
    for option in described.options:
        if option.name in options:
            words += option.words(options[option.name], (among or {}).get(option.name))
    return [*words, "--out", _as_path(out)]


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list; one with a comma stands in double quotes."""
    found = []
    at = 0
    while at <= len(text):
        match = _NAME.match(text, at)
        if match is None:
            # What follows a closing quote: take the rest of the piece as it stands.
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            found.append(text[at:end].strip())
            at = end + 1
            continue
        quoted, bare, comma = match.groups()
        if quoted is not None:
            found.append(quoted.replace('""', '"'))
        elif bare:
            found.append(bare)
        at = match.end()
        if not comma:
            break
    return tuple(found)


def write_names(names: Iterable[str]) -> str:
    """Return names as `parse_names` reads them."""
    return ",".join(
        '"' + name.replace('"', '""') + '"'
        if not name or name != name.strip() or re.search('[,"]', name)
        else name
        for name in map(str, names)
    )


def parse_numbers(text: str) -> Sequence[int]:
    """Return the whole numbers of a text such as ``0-11`` or ``3,5,7``, in its order.

    Raises
    ------
    ValueError
        If it is written otherwise, or names more than ten million numbers.
    """
    parts = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", part)
        if match is None:
            raise ValueError(f"A range is written 0-11 or 3,5,7, got {text!r}.")
        first, last = int(match[1]), int(match[2] or match[1])
        parts.append(range(first, last + 1))
    count = sum(map(len, parts))
    if not 0 < count <= _MOST_NUMBERS:
        raise ValueError(
            f"A range is written 0-11 or 3,5,7, the smaller number first, and names at most "
            f"{_MOST_NUMBERS:,} numbers; got {text!r}."
        )
    return parts[0] if len(parts) == 1 else [number for part in parts for number in part]


def write_numbers(values: Iterable[int], among: Sequence[int] | None = None) -> str:
    """Return whole numbers as `parse_numbers` reads them, ranges as short as may be.

    Parameters
    ----------
    values : iterable of int
        At least one, none negative.
    among : sequence of int, optional
        The numbers there are. Values that are neighbours there become one range, though it may
        span numbers that are not there: steps 50, 100 and 150 of a run that was recorded every
        50 steps are ``50-150``. By default neighbours differ by 1.

    Raises
    ------
    ValueError
        If there is no value.

    Examples
    --------
    >>> write_numbers([0, 1, 2, 7])
    '0-2,7'
    >>> write_numbers([50, 100, 150], among=[0, 50, 100, 150, 200])
    '50-150'
    """
    if isinstance(values, range) and values and values.step == 1:
        return _span(values[0], values[-1])
    wanted = sorted({int(value) for value in values})
    if not wanted:
        raise ValueError("There must be at least one number to write, got none.")
    if wanted[0] < 0:
        raise ValueError(f"Numbers must not be negative, got {wanted[0]}.")
    if among is None:
        place = {value: value for value in wanted}
    else:
        there = sorted({int(value) for value in among} | set(wanted))
        place = {value: position for position, value in enumerate(there)}
    spans = [[wanted[0], wanted[0]]]
    for value in wanted[1:]:
        if place[value] == place[spans[-1][1]] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ",".join(_span(first, last) for first, last in spans)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _parse_pair(flag: str, text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise ValueError(f"{flag} takes two numbers, such as 0.1,2.5, got {text!r}.") from error
    if not low <= high:
        raise ValueError(f"{flag} takes the smaller number first, got {text!r}.")
    return low, high


def _as_path(path: Path | str) -> str:
    """Return a path that is not read as an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


# The columns that a figure needs beside the keys and the method.

_FLOORS = ("sigma_noise", "d_noise")


def _of_trajectory(table: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    base = ("sigma_0_mean",) if options["relative"] else ()
    return ("delta_sigma", "delta_d", "kappa", "rows", "cols", *_FLOORS, *base)


def _of_one_column(table: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    return (options["column"], *_FLOORS)


def _of_columns(table: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    return (*options["columns"], *_FLOORS)


def _of_training(table: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    return ("step", *options["columns"], options["against"])


def _of_compare(table: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    if table == "drift":
        return (options["column"], *_FLOORS)
    return tuple(dict.fromkeys(("step", "loss", "tokens", options["column"])))


def _of_spectrum(table: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    return ("sigma", "sigma_change")


def _of_table(table: str, options: Mapping[str, Any]) -> tuple[str, ...] | None:
    return ("delta_sigma", "delta_d", "kappa") if table == "drift" else None


def _everything(table: str, options: Mapping[str, Any]) -> None:
    return None


# The options that several figures share.

_MODULES = Option("modules", "names", "comma-separated names, in the order of their styles")
_LAYERS = Option("layers", "numbers", "such as 0-11 or 3,5,7; all by default")
_STEPS = Option("steps", "numbers", "such as 0-60 or 0,20,40; all by default")
_LOG = Option("log", "switch", "logarithmic axis; by default where the values ask for it")
_ROWS = (_MODULES, _LAYERS, _STEPS)
_LOOK = (
    Option(
        "preset",
        "choice",
        "width and fonts of a venue (PDF, SVG, PGF, PNG); the caption is then printed",
        choices=tuple(PRESETS),
    ),
)


def _column(default: str, meaning: str = "what to draw") -> Option:
    return Option("column", "name", f"{meaning}; {default} by default", default)


def _columns(default: Sequence[str]) -> Option:
    text = f"comma-separated, a panel each; {','.join(default)} by default"
    return Option("columns", "names", text, tuple(default), flag="--column")


_TABLE = (
    Figure(
        "trajectory",
        "ΔD against ΔΣ: where the singular values and vectors of every layer went",
        ("drift",),
        (
            *_ROWS,
            Option("until", "number", "draw up to this step, on the axes of all steps"),
            Option(
                "axes",
                "choice",
                "one range for all panels, or each its own",
                "shared",
                ("shared", "free"),
            ),
            Option("overlay", "switch", "all runs in one panel", False),
            Option("relative", "switch", "ΔΣ divided by the base's mean singular value", False),
            *_LOOK,
        ),
        _of_trajectory,
    ),
    Figure(
        "curves",
        "one column of drift over the steps",
        ("drift",),
        (
            _column("kappa", "column of drift"),
            *_ROWS,
            Option("overlay", "switch", "a panel a module, the runs over one another", False),
            Option("band", "switch", "shade from the smallest to the largest layer", True),
            _LOG,
            *_LOOK,
        ),
        _of_one_column,
        ("runs/lora", "runs/sorsa", "--column", "delta_d", "--layers", "0-11"),
    ),
    Figure(
        "heatmap",
        "one column of drift as colours, layer against step",
        ("drift",),
        (_column("delta_d", "column of drift"), *_ROWS, _LOG, *_LOOK),
        _of_one_column,
        ("runs/lora", "--column", "matched_d"),
    ),
    Figure(
        "matrix",
        "one matrix at one step: its singular values and vectors against the base's",
        ("drift", "spectrum"),
        (
            Option("module", "name", "such as q_proj", required=True),
            Option("layer", "number", "such as 0", required=True),
            Option("step", "number", "one that was analysed", required=True),
            *_LOOK,
        ),
        _everything,
        ("runs/lora", "--module", "q_proj", "--layer", "3", "--step", "80"),
    ),
    Figure(
        "spectrum",
        "the singular values of every layer",
        ("spectrum",),
        (
            Option(
                "view",
                "choice",
                "σ against index, density, cumulative energy, or the share within a range",
                VIEWS[0],
                VIEWS,
            ),
            Option("within", "pair", "LOW,HIGH: the range of the share, in the unit of σ"),
            *_ROWS,
            *_LOOK,
        ),
        _of_spectrum,
        ("runs/lora", "--view", "energy", "--modules", "q_proj"),
    ),
    Figure(
        "conditioning",
        "condition numbers and orthonormality errors over the steps",
        ("drift",),
        (
            _columns(("kappa", "kappa_p", "kappa_u", "kappa_v", "ortho_u", "ortho_v")),
            *_ROWS,
            _LOG,
            *_LOOK,
        ),
        _of_columns,
        ("runs/sorsa-noreg", "runs/sorsa", "--column", "kappa_p,ortho_u"),
    ),
    Figure(
        "kappa-ratio",
        "condition number of a regularized run over that of its unregularized twin (Theorem 5); "
        "RUNS are pairs, the regularized one first, or folders of runs that pair by themselves",
        ("drift",),
        (_column("kappa_p", "condition number"), *_ROWS, *_LOOK),
        _of_one_column,
        ("runs/sorsa", "runs/sorsa-noreg"),
    ),
    Figure(
        "training",
        "what training recorded over the steps",
        ("training",),
        (
            _columns(("loss", "grad_norm")),
            Option("against", "name", "column of the horizontal axis; step by default", "step"),
            _STEPS,
            Option("smooth", "number", "recorded steps in the running mean; 1 for none"),
            _LOG,
            *_LOOK,
        ),
        _of_training,
        ("runs/lora", "runs/sorsa", "--column", "loss,lr"),
    ),
    Figure(
        "compare",
        "methods beside each other: the mean of their seeds with its band",
        ("drift", "training"),
        (
            _column("delta_d", "column of drift or of training"),
            Option("by", "choice", "what the runs are aligned by", BY[0], BY),
            *_ROWS,
            _LOG,
            *_LOOK,
        ),
        _of_compare,
        ("runs/methods", "--column", "delta_sigma", "--by", "loss"),
    ),
    Figure(
        TABLE,
        "where every method ended, with the mean and spread over its seeds: LaTeX or CSV",
        ("drift", "training"),
        (_MODULES, _LAYERS),
        _of_table,
        ("runs/methods",),
        "comparison_table",
    ),
)
FIGURES: dict[str, Figure] = {figure.name: figure for figure in _TABLE}
"""Every figure of `spectra plot`, by its name there."""
