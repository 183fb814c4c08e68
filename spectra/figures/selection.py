"""Choosing rows, naming panels and thinning steps: what every description does first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Codes = NDArray[np.int64]

MOST_NUMBERS = 2_000
"""Layer numbers in a figure: more are neither read nor drawn quickly."""
MOST_LINE_POINTS = 20_000
"""Points of a figure's lines; a browser draws these in about a tenth of a second."""

MOST_PANELS = 16
"""More panels than these are too small to be read, on paper as on a screen."""

_LONGEST_NAME = 48
_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"
# Up to this many possible keys a table of them is faster than hashing the ones that occur.
_TABLE_OF_KEYS = 1 << 25


def select_rows(
    drift: pd.DataFrame,
    columns: Iterable[str],
    modules: Iterable[str] | None,
    layers: Iterable[int] | None,
    steps: Iterable[int] | None,
    keep: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Return the drift rows that are asked for and have a value in every one of `columns`.

    Run after run, in the order in which they first stand in `drift`, and ascending in step.

    Parameters
    ----------
    drift : DataFrame
        run, method and module may be categorical, which is faster.
    columns : iterable of str
    modules, layers, steps : iterable, optional
        Only these; all by default.
    keep : iterable of str, optional
        Which other columns to return, where `drift` has them; all by default. Few are faster.

    Raises
    ------
    ValueError
        If a column is missing, nothing is left, or two rows share run, module, layer and step.
    """
    columns = list(columns)
    keys = ["run", "method", "module", "layer", "step"]
    _require(drift, [*keys, *columns])
    if drift.empty:
        raise ValueError(
            "There are no drift rows to draw. Run `spectra analyze RUN` first, then read them "
            "with spectra.analyze(RUN)."
        )
    if keep is not None:
        wanted = dict.fromkeys([*keys, *columns, *keep])
        drift = drift[[c for c in wanted if c in drift.columns]]
    rows = with_known_methods(drift)
    chosen = np.ones(len(rows), dtype=bool)
    places, sizes = {}, {}
    for column, members in (("module", modules), ("layer", layers), ("step", steps)):
        places[column], values = codes(rows[column])
        sizes[column] = len(values)
        if members is not None:
            wanted_values = _members(members)
            # One entry more, for rows without a value: their code is −1.
            chosen &= np.array([*(v in wanted_values for v in values), False])[places[column]]
    if not chosen.any():
        raise ValueError(
            "No drift rows match the chosen modules, layers and steps. The rows hold modules "
            f"{', '.join(sorted(map(str, rows['module'].unique())))}; layers "
            f"{rows['layer'].min()}–{rows['layer'].max()}; steps {rows['step'].min()}–"
            f"{rows['step'].max()}."
        )
    for column in columns:
        chosen &= rows[column].notna().to_numpy()
    if not chosen.any():
        raise ValueError(
            f"The chosen rows have no value of {', '.join(columns)}. Rows analysed with "
            "--values-only have no vectors: run `spectra analyze RUN` without it. Other columns "
            "are empty where the method trains no such factors."
        )
    runs, names = run_codes(rows)
    key = runs
    for column in ("step", "layer", "module"):
        key = key * (sizes[column] + 1) + places[column]
    if not chosen.all():
        rows, runs, key = rows[chosen], runs[chosen], key[chosen]
    twice = _first_twice(key)
    if twice is not None:
        raise ValueError(
            f"Two runs are both called {names[runs[twice]][0]!r}, so their rows cannot be told "
            "apart. Rename one folder, or change the column `run` before drawing."
        )
    step = rows["step"].to_numpy()
    later = (runs[1:] > runs[:-1]) | ((runs[1:] == runs[:-1]) & (step[1:] >= step[:-1]))
    return rows if later.all() else rows.iloc[np.lexsort((step, runs))]


def by_run(rows: pd.DataFrame, order: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (run, title, its rows), in the order in which the runs first stand in `order`.

    The title is the method, and the run's name beside it where two runs share a method; in a
    sweep the name begins with the method and is enough.
    """
    places, present = run_codes(with_known_methods(rows[["run", "method"]]))
    order = with_known_methods(order[["run", "method"]])
    known = {name: i for i, name in enumerate(present)}
    names = [name for name in run_codes(order)[1] if name in known]
    methods = [method for _, method in names]
    # Rows as `select_rows` returns them are one piece a run, which needs no copy.
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    ends = np.append(starts[1:], len(places))
    for run, method in names:
        code, twice = known[run, method], methods.count(method) > 1
        pieces = np.flatnonzero(places[starts] == code)
        if len(pieces) == 1:
            part = rows.iloc[starts[pieces[0]] : ends[pieces[0]]]
        else:
            part = rows[places == code]
        if method == "unknown" or (twice and str(run).startswith(f"{method}-")):
            title = clean(run)
        else:
            title = f"{clean(method)} · {clean(run)}" if twice else clean(method)
        yield str(run), title, part


def module_names(modules: Iterable[str] | None) -> list[str] | None:
    """Return chosen modules as a list that can be read twice; one may come as its name alone."""
    if modules is None:
        return None
    return [modules] if isinstance(modules, str) else list(modules)


def module_order(rows: pd.DataFrame, modules: Iterable[str] | None) -> tuple[str, ...]:
    """Return the modules that occur, as the caller ordered them or else by name."""
    places, values = codes(rows["module"])
    occurs = np.bincount(places[places >= 0], minlength=len(values)) > 0
    present = {v for v, here in zip(values, occurs, strict=True) if here}
    wanted = sorted(present) if modules is None else dict.fromkeys(modules)
    return tuple(m for m in wanted if m in present)


@dataclass(frozen=True)
class Blocks:
    """The rows of one run as arrays of modules × steps × layers.

    Attributes
    ----------
    modules : tuple of str
    steps, layers : array of int64, ascending
    """

    modules: tuple[str, ...]
    steps: NDArray[np.int64]
    layers: NDArray[np.int64]
    _rows: pd.DataFrame
    _places: NDArray[np.int64]

    def of(self, column: str) -> NDArray[np.float64]:
        """Return a column, of shape (modules, steps, layers); NaN where there is no row."""
        block = np.full(len(self.modules) * len(self.steps) * len(self.layers), np.nan)
        block[self._places] = self._rows[column].to_numpy(dtype=float, na_value=np.nan)
        return block.reshape(len(self.modules), len(self.steps), len(self.layers))


def blocks(part: pd.DataFrame, modules: Sequence[str]) -> Blocks:
    """Return the rows of one run, which hold no other modules than these, as arrays."""
    places, values = codes(part["module"])
    order = np.array([modules.index(v) if v in modules else -1 for v in values])
    # Hashing thousands of equal numbers is faster than sorting them.
    step, steps = pd.factorize(part["step"].to_numpy(np.int64), sort=True)
    layer, layers = pd.factorize(part["layer"].to_numpy(np.int64), sort=True)
    at = (order[places] * len(steps) + step) * len(layers) + layer
    return Blocks(tuple(modules), steps, layers, part, at)


def joined(
    x: NDArray[np.float64], y: NDArray[np.float64], *others: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """Return the columns of arrays as one line, with a gap after each.

    Parameters
    ----------
    x, y : array of shape (steps, lines)
        Points without a `y` are left out, so that their neighbours are joined.
    *others : array of that shape
        What goes with the points; its last value is kept in the gap.

    Returns
    -------
    tuple of 1-D arrays
        As many as were given.
    """
    shown = np.isfinite(y)
    some = shown.any(axis=0)
    keep = np.vstack([shown[:, some], np.ones((1, int(some.sum())), dtype=bool)]).T
    lines = []
    for i, values in enumerate((x, y, *others)):
        last = np.full((1, values.shape[1]), np.nan) if i < 2 else values[-1:]
        lines.append(np.vstack([values, last])[:, some].T[keep])
    return tuple(lines)


def thin_steps(steps: Iterable[int], per_step: int, budget: int) -> NDArray[np.int64]:
    """Return the steps to draw so that there are at most `budget` marks, the last among them.

    Parameters
    ----------
    steps : iterable of int
        Of one run; in any order, repeated or not.
    per_step : int
        Marks that a step costs.
    budget : int
        Marks that there may be; a single step is drawn whatever it costs.

    Returns
    -------
    array of int64, ascending
        All steps where they fit; otherwise every n-th of them, counted back from the last.
    """
    distinct = np.unique(np.fromiter(steps, dtype=np.int64))
    return distinct[thin_places(len(distinct), max(1, budget // max(per_step, 1)))]


def thin_places(found: int, most: int) -> NDArray[np.intp]:
    """Return which of `found` things to draw so that they are at most `most`, the last included."""
    if found <= most:
        return np.arange(found)
    # The start is left out rather than the end: a path's beginning is the origin anyway.
    return np.ceil(np.arange(1, most + 1) * found / most).astype(np.intp) - 1


def thinning_sentence(what: str, drawn: int, steps: int) -> str:
    """Return what a caption says where only some of the steps are drawn, e.g. "Numbers at"."""
    if drawn >= steps:
        return ""
    which = "the last" if drawn == 1 else f"{drawn}"
    return f"{what} {which} of {steps} steps{', the last among them' if drawn > 1 else ''}."


def codes(column: pd.Series) -> tuple[Codes, list[Any]]:
    """Return a number for every row, −1 where it has no value, and the values they stand for."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return np.asarray(column.cat.codes, dtype=np.int64), list(column.cat.categories)
    places, values = pd.factorize(column)
    return places.astype(np.int64, copy=False), list(values)


def run_codes(rows: pd.DataFrame) -> tuple[Codes, list[tuple[Any, Any]]]:
    """Return a number for every row and the (run, method) they stand for, as they first occur."""
    (runs, run_names), (methods, method_names) = codes(rows["run"]), codes(rows["method"])
    places, pairs = pd.factorize(runs * len(method_names) + methods)
    names = [
        (run_names[p // len(method_names)], method_names[p % len(method_names)]) for p in pairs
    ]
    return places.astype(np.int64, copy=False), names


def with_known_methods(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the method ``"unknown"`` where they have none."""
    method = rows["method"]
    if not method.isna().any():
        return rows
    if isinstance(method.dtype, pd.CategoricalDtype) and "unknown" not in method.cat.categories:
        method = method.cat.add_categories("unknown")
    return rows.assign(method=method.fillna("unknown"))


def clean(name: object) -> str:
    """Return a name that can stand in a figure: one line, printable, not endless."""
    text = " ".join(str(name).split())
    text = "".join(c if c.isprintable() else _UNPRINTABLE for c in text)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


def _first_twice(key: Codes) -> int | None:
    """Return where a key stands for the second time, None where every one stands once."""
    if key.min() >= 0 and key.max() < _TABLE_OF_KEYS:
        seen = np.zeros(int(key.max()) + 1, dtype=bool)
        seen[key] = True
        if int(seen.sum()) == len(key):
            return None
    twice = pd.Series(key).duplicated().to_numpy()
    return int(twice.argmax()) if twice.any() else None


def _require(rows: pd.DataFrame, columns: list[str]) -> None:
    missing = [c for c in columns if c not in rows.columns]
    if missing:
        raise ValueError(
            f"The rows have no column {', '.join(missing)}; they have "
            f"{', '.join(map(str, rows.columns))}."
        )


def _members(wanted: Iterable[object]) -> Collection[object]:
    if isinstance(wanted, str):
        return {wanted}
    return wanted if isinstance(wanted, range) else set(wanted)
