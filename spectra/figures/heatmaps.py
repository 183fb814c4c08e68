"""One column of every layer over the steps, as colours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectra.figures.arrays import without_tails
from spectra.figures.captions import sentences
from spectra.figures.chart import (
    Axis,
    Chart,
    ColourBar,
    Floats,
    Heat,
    Ink,
    Line,
    Map,
    Mark,
    Panel,
    Pick,
)
from spectra.figures.drawing import draw
from spectra.figures.export import Backend
from spectra.figures.labels import LOG_FROM_RATIO, RATIOS, label_of
from spectra.figures.left_out import left_out_sentence
from spectra.figures.noise import floor_column, short
from spectra.figures.selection import (
    MOST_PANELS,
    by_run,
    clean,
    module_names,
    module_order,
    select_rows,
    thin_steps,
    thinning_sentence,
)

MOST_COLUMNS = 60
"""Columns of cells in a panel: more are narrower than they can be told apart."""
MOST_CELLS = 30_000
"""Cells of a figure: a click must find every one."""
# Up to so many steps every column is named; round numbers between them would name none.
_MOST_TICKS = 6


@dataclass(frozen=True)
class _Scale:
    """Limits of the colours, and what the caption says of the cells beyond them."""

    limits: tuple[float, float]
    log: bool
    map: Map
    beyond: str


def heatmap(
    drift: pd.DataFrame,
    column: str = "delta_d",
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Draw one column of drift as colours, layer against step, a panel a run and module.

    Parameters
    ----------
    drift : DataFrame
        Rows of one or more runs: columns run, method, module, step, layer and `column`; and,
        where present, sigma_noise, d_noise.
    column : str
        What to draw, for example ``"delta_sigma"``; in the unit that `LABELS` names.
    modules, layers, steps : iterable, optional
        Draw only these; all by default.
    log : bool, optional
        Logarithmic colours; by default where the middle 90% of the values above 0 span over two
        decades, and for condition numbers where all do.
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    dark : bool
        Colours for a dark background (plotly only).
    preset : str, optional
        Width and fonts of a venue (matplotlib only).

    Returns
    -------
    plotly.graph_objects.Figure or matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is nothing to draw, a column is missing, two runs share a name, there are more
        than 16 panels, or `log` is asked for a column without a value above 0.

    Notes
    -----
    All panels share one scale, from the smallest to the largest value. Where the outermost 0.5%
    of the cells would more than double it, it ends before them; these, infinite values (κ where
    σ_min = 0) and zeros on a logarithmic scale have the colour of that end, and the caption
    counts them. Cells at or below the noise floor of ΔΣ or ΔD are struck through: they
    mean nothing. Where there are more than 60 steps, or 30,000 cells, some of the steps are drawn,
    the last always.
    """
    return draw(
        describe_heatmap(drift, column, modules=modules, layers=layers, steps=steps, log=log),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_heatmap(
    drift: pd.DataFrame,
    column: str = "delta_d",
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
) -> Chart:
    """Turn rows into the chart of `heatmap`, which see."""
    modules = module_names(modules)
    source = floor_column(column)
    rows = select_rows(drift, [column], modules, layers, steps, keep=[source])
    if not pd.api.types.is_numeric_dtype(rows[column]):
        raise ValueError(f"The column {column} holds no numbers, so it has no colours.")
    order = module_order(rows, modules)
    runs = list(by_run(rows, drift))
    parts = [
        (run, title, module, part[part["module"] == module])
        for run, title, part in runs
        for module in order
    ]
    parts = [p for p in parts if not p[3].empty]
    if len(parts) > MOST_PANELS:
        raise ValueError(
            f"{len(runs)} runs × {len(order)} modules would be {len(parts)} panels; more than "
            f"{MOST_PANELS} cannot be read. Choose fewer runs or modules."
        )
    first, last = int(rows["layer"].min()), int(rows["layer"].max())
    columns = min(MOST_COLUMNS, max(1, MOST_CELLS // (len(parts) * (last - first + 1))))
    thinned = [(*p[:3], *_thin(p[3], columns)) for p in parts]
    shown = pd.concat([part for *_, part, _ in thinned])
    scale = _scale(shown[column], log)
    most = max(total for *_, total in thinned)
    y = np.arange(first, last + 1)
    cells = [_cells(part, column, y) for *_, part, _ in thinned]
    nothing = sum(values.size for _, values, _ in cells) - len(shown)
    ends = [_edges(x) for x, *_ in cells]
    across = (min(float(e[0]) for e in ends), max(float(e[-1]) for e in ends))
    at = np.unique(np.concatenate([x for x, *_ in cells]))
    ticks = tuple((float(s), str(int(s))) for s in at) if len(at) <= _MOST_TICKS else ()
    panels, under, known = [], 0, 0
    for (run, title, module, *_), (x, values, below) in zip(thinned, cells, strict=True):
        under += int(below.sum())
        known += int(np.isfinite(values).sum())
        name = f"{title} · {clean(module)}"
        heat = Heat(
            x=x,
            y=y.astype(float),
            values=values,
            symbol=label_of(column).symbol,
            head=name,
            pick=Pick(run, module, tuple(y.tolist()), tuple(x.astype(int).tolist())),
        )
        marks: tuple[Mark, ...] = (heat, *_strikes(x, y, below))
        panels.append(
            Panel(
                title=name,
                x=Axis("step", "step", across, integer=True, ticks=ticks),
                y=Axis("layer", "layer", (first - 0.5, last + 0.5), integer=True),
                marks=marks,
            )
        )
    label = label_of(column)
    whole = bool((shown[column] % 1 == 0).all())
    grid = len(runs) > 1 and 2 <= len(order) <= 4 and len(parts) == len(runs) * len(order)
    return Chart(
        panels=tuple(panels),
        bar=ColourBar(label.axis, scale.map, scale.limits, log=scale.log, integer=whole),
        reading=f"A cell is one layer at one step; its colour is {label.symbol}. {label.reading}",
        caption=sentences(
            label.reading,
            _floor_sentence(shown, column, under, known),
            scale.beyond,
            f"Without a value: {nothing} cells." if nothing else "",
            thinning_sentence("Cells of", min(most, columns), most),
            left_out_sentence(rows, drift, [column]),
        ),
        link_x=True,
        link_y=True,
        columns=len(order) if grid else None,
    )


def _thin(part: pd.DataFrame, most: int) -> tuple[pd.DataFrame, int]:
    """Return the rows of at most `most` steps, and how many steps there are."""
    total = part["step"].nunique()
    if total <= most:
        return part, total
    return part[part["step"].isin(thin_steps(part["step"], 1, most))], total


def _cells(
    part: pd.DataFrame, column: str, y: NDArray[np.int64]
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return the steps, the values as (layers, steps), and which lie at or below their floor."""
    steps, across = np.unique(part["step"].to_numpy(), return_inverse=True)
    up = part["layer"].to_numpy() - y[0]
    values = np.full((len(y), len(steps)), np.nan)
    values[up, across] = part[column].to_numpy(dtype=float)
    floor = np.full(values.shape, np.nan)
    source = floor_column(column)
    if source in part:
        floor[up, across] = part[source].to_numpy(dtype=float)
    # An adapter's floor is 0, and at step 0 nothing has moved: neither is lost in noise.
    return steps.astype(float), values, (floor > 0) & (values <= floor) & (steps > 0)


def _edges(x: Floats) -> Floats:
    """Return where cells meet: half-way between their middles."""
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    half = np.diff(x) / 2
    return np.concatenate([[x[0] - half[0]], x[:-1] + half, [x[-1] + half[-1]]])


def _strikes(x: Floats, y: NDArray[np.int64], below: NDArray[np.bool_]) -> tuple[Line, ...]:
    """Return one mark that strikes through every stretch of cells below the noise floor."""
    if not below.any():
        return ()
    turns = np.diff(np.pad(below, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(turns == 1)
    _, end = np.nonzero(turns == -1)
    edges = _edges(x)
    gap = np.full(len(row), np.nan)
    middle = y[row].astype(float)
    return (
        Line(
            x=np.column_stack([edges[start], edges[end], gap]).ravel()[:-1],
            y=np.column_stack([middle, middle, gap]).ravel()[:-1],
            ink=Ink("text"),
            width=0.6,
            opacity=0.7,
        ),
    )


def _floor_sentence(shown: pd.DataFrame, column: str, under: int, known: int) -> str:
    source = floor_column(column)
    if source not in shown:
        return ""
    floors = shown[source].to_numpy(dtype=float)
    floors = floors[floors > 0]
    if not len(floors):
        return ""
    low, high = short(float(floors.min())), short(float(floors.max()))
    span = low if low == high else f"{low} to {high}"
    own = "" if column in ("delta_sigma", "delta_d") else " of ΔD"
    if not under:
        # At step 0 nothing has moved, and 0 is above no floor.
        which = "Every cell after step 0" if (shown["step"] == 0).any() else "Every cell"
        return f"{which} lies above the noise floor{own} ({span})."
    which = "All cells are" if under == known else f"{under} of {known} cells are"
    return (
        f"{which} struck through: at or below the noise floor{own} of their matrix ({span}), what "
        "rounding for storage alone gives."
    )


def _scale(values: pd.Series, log: bool | None) -> _Scale:
    found = values.to_numpy(dtype=float)
    finite = found[np.isfinite(found)]
    infinite = len(found) - len(finite)
    if not len(finite):
        raise ValueError(
            f"Every chosen value of {values.name} is infinite (a condition number is where "
            "σ_min = 0), so there are no colours to draw."
        )
    positive = finite[finite > 0]
    if log and not len(positive):
        raise ValueError(
            f"Logarithmic colours need values above 0, but {values.name} has none. Use log=False."
        )
    if log is None:
        log = (
            len(positive) > 0
            and finite.min() >= 0
            and _spread(positive, values.name in RATIOS) > LOG_FROM_RATIO
        )
    map_: Map = "size"
    notes = []
    if log:
        low, high = (float(10**v) for v in without_tails(np.log10(positive)))
        if len(positive) < len(finite):
            what = "0" if finite.min() == 0 else "0 or less"
            notes.append(f"{len(finite) - len(positive)} of {what}, in the lowest colour")
        # So that rounding of the logarithm puts no extreme beyond the scale.
        low, high = low * (1 - 1e-9), high * (1 + 1e-9)
        if high / low < 1.01:
            low, high = low / 1.1, high * 1.1
    else:
        low, high = without_tails(finite)
        if low < 0 < high:
            low, high, map_ = -max(-low, high), max(-low, high), "turn"
        elif 0 <= low < 0.5 * high:
            low = 0.0
        if low == high:
            margin = 0.05 * abs(high) or 1.0
            low, high = low - margin * (low != 0), high + margin
    shown = positive if log else finite
    above, below = int((shown > high).sum()), int((shown < low).sum())
    if above:
        notes.append(f"{above} above the scale (up to {short(float(shown.max()))})")
    if below:
        notes.append(f"{below} below it (down to {short(float(shown.min()))})")
    if infinite:
        notes.append(f"{infinite} infinite, in the highest colour")
    beyond = f"Of {len(found)} cells: {'; '.join(notes)}." if notes else ""
    return _Scale((low, high), log, map_, beyond)


def _spread(positive: Floats, whole: bool) -> float:
    """Return the ratio of the largest to the smallest value, of all or of the middle 90%."""
    low, high = (0.0, 1.0) if whole else (0.05, 0.95)
    return float(np.quantile(positive, high) / np.quantile(positive, low))
