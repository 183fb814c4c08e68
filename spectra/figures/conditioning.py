"""Condition numbers and orthonormality errors over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from spectra.figures.captions import listed, sentences
from spectra.figures.chart import (
    Axis,
    Band,
    Chart,
    Entry,
    Floats,
    Hover,
    Ink,
    Line,
    Mark,
    Panel,
    Rule,
)
from spectra.figures.drawing import draw
from spectra.figures.export import Backend
from spectra.figures.labels import label_of
from spectra.figures.over_layers import (
    OverLayers,
    Scale,
    band_on,
    centre_of,
    horizontal,
    line_on,
    over_layers,
    value_scale,
)
from spectra.figures.selection import (
    MOST_LINE_POINTS,
    by_run,
    clean,
    module_names,
    module_order,
    select_rows,
    thin_steps,
    thinning_sentence,
)
from spectra.figures.style import dash

COLUMNS = ("kappa", "kappa_p", "kappa_u", "kappa_v", "ortho_u", "ortho_v")
# κ of the whole W_t is thousands, and 1 as good as 0 on its axis.
_BEST_AT_1 = ("kappa_p", "kappa_u", "kappa_v")
# Up to so many lines in a panel, modules are told apart by their dashes; beyond, by panels.
_MOST_LINES = 8
# Bands of more lines cover each other.
_MOST_BANDS = 4
# Panels of one quantity stand in a row, a module each, up to so many.
_MOST_COLUMNS = 4


@dataclass(frozen=True)
class _Curve:
    """One line: a run's module in a column, by their places in the orders of each."""

    run: int
    module: int
    column: str
    over: OverLayers


def conditioning(
    drift: pd.DataFrame,
    columns: Sequence[str] = COLUMNS,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Draw condition numbers and orthonormality errors over the steps, a panel a quantity.

    Parameters
    ----------
    drift : DataFrame
        Rows of one or more runs: columns run, method, module, step, layer and `columns`.
    columns : sequence of str
        What to draw: by default κ of the whole W_t, of the trained part W_p and of its factors
        U_p and V_p, and the factors' orthonormality errors. One without any value is left out
        and named in the caption: only some methods train such factors.
    modules, layers, steps : iterable, optional
        Draw only these; all by default.
    log : bool, optional
        Logarithmic vertical axes; by default for condition numbers that span over two decades.
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
        If there is nothing to draw, a column is missing or no number, two runs share a name, or
        `log` is asked for a column without a value above 0.

    Notes
    -----
    A line is the median over the layers for condition numbers, where one nearly singular layer
    would carry a mean, and the mean for orthonormality errors. An infinite κ (σ_min = 0) counts
    as the largest in the median; where half of the layers have one, the line breaks. Modules are
    not averaged: up to eight lines in a panel they differ by their dashes, beyond that they have
    panels of their own. Bands, from the smallest to the largest layer, are drawn up to four lines.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Eq. 8 and Section 5.
    """
    return draw(
        describe_conditioning(drift, columns, modules=modules, layers=layers, steps=steps, log=log),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_conditioning(
    drift: pd.DataFrame,
    columns: Sequence[str] = COLUMNS,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
) -> Chart:
    """Turn rows into the chart of `conditioning`, which see."""
    columns = [columns] if isinstance(columns, str) else list(dict.fromkeys(columns))
    modules = module_names(modules)
    rows = select_rows(drift, [], modules, layers, steps, keep=columns)
    filled = _filled(rows, columns)
    order = module_order(rows, modules)
    runs = list(by_run(rows, drift))
    titles = [title for _, title, _ in runs]
    curves, thinning = _curves([part for *_, part in runs], order, filled)
    # All panels alike, so that a dash means one thing: as the fullest of them needs it.
    fullest = max(sum(c.column == column for c in curves) for column in filled)
    split = len(order) > 1 and fullest > _MOST_LINES
    by_dash = len(order) > 1 and not split
    x = horizontal("step", "step", [c.over.steps for c in curves], integer=True)
    panels, notes, shaded = [], [], []
    for column in filled:
        label, of_column = label_of(column), [c for c in curves if c.column == column]
        groups = [of_column]
        if split:
            groups = [[c for c in of_column if c.module == m] for m in range(len(order))]
            groups = [g for g in groups if g]
        bands = max(map(len, groups)) <= _MOST_BANDS
        for group in groups:
            # Of its own range: κ of q_proj can be thousands of times that of v_proj.
            scale = value_scale(column, [v for c in group for v in _extent(c.over, bands)], log)
            y = Axis(label.name or label.symbol, label.symbol, scale.limits, log=scale.log)
            title = f"{label.symbol} · {clean(order[group[0].module])}" if split else label.symbol
            marks = _marks(group, titles, order, scale, bands, by_dash)
            panels.append(Panel(title, x, y, marks))
            notes.append(f"{title}: {scale.below}" if scale.below else "")
        shaded += [label.symbol] if bands else []
    return Chart(
        panels=tuple(panels),
        entries=_entries(curves, titles, order, by_dash),
        reading="κ = 1 is best conditioned; an orthonormality error of 0 is exact.",
        caption=sentences(
            _centre_sentence(filled),
            _shading_sentence(shaded, len(filled)),
            *notes,
            *_missing_sentences(runs, columns, filled),
            _infinite(rows, filled),
            thinning,
        ),
        link_x=True,
        columns=len(order) if split and len(order) <= _MOST_COLUMNS else None,
    )


def _shading_sentence(shaded: Sequence[str], panels: int) -> str:
    """Say what the bands are, and of which quantities where only some have them."""
    if not shaded:
        return ""
    which = "" if len(shaded) == panels else f" ({', '.join(shaded)})"
    return f"Shaded{which}: smallest to largest layer."


def _filled(rows: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Return the columns that some row has a value of."""
    missing = [c for c in columns if c not in rows]
    if missing or not columns:
        raise ValueError(
            f"The rows have no column {', '.join(missing) or 'to draw'}. Of conditioning they can "
            f"have {', '.join(COLUMNS)}."
        )
    for column in columns:
        if not pd.api.types.is_numeric_dtype(rows[column]):
            raise ValueError(f"The column {column} holds no numbers, so it has no curve.")
    filled = [c for c in columns if rows[c].notna().any()]
    if not filled:
        raise ValueError(
            f"The chosen rows have no value of {', '.join(columns)}. κ_p, κ_u, κ_v and the "
            "orthonormality errors are of SORSA's trained factors, which other methods do not "
            "have; choose kappa, the condition number of W_t, which every analysed run has."
        )
    return filled


def _curves(
    parts: Sequence[pd.DataFrame], order: Sequence[str], columns: Sequence[str]
) -> tuple[list[_Curve], str]:
    """Return every line, thinned to what a figure may hold, and what the caption says of that."""
    # A line and, with its band, two sides.
    per_step = 3 * len(parts) * len(order) * len(columns)
    curves, thinning = [], ""
    for i, part in enumerate(parts):
        present = part["step"].unique()
        kept = thin_steps(present, per_step, MOST_LINE_POINTS)
        if len(kept) < len(present):
            part = part[part["step"].isin(kept)]
            thinning = thinning or thinning_sentence("Points", len(kept), len(present))
        for m, module in enumerate(order):
            of_module = part[part["module"] == module]
            for column in columns:
                known = of_module[of_module[column].notna()]
                if not known.empty:
                    curves.append(_Curve(i, m, column, over_layers(known, column)))
    return curves, thinning


def _extent(over: OverLayers, bands: bool) -> Iterator[Floats]:
    yield over.centre
    if bands:
        yield from (over.low, over.high)


def _marks(
    curves: Sequence[_Curve],
    titles: Sequence[str],
    order: Sequence[str],
    scale: Scale,
    bands: bool,
    by_dash: bool,
) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    if curves[0].column in _BEST_AT_1 and scale.limits[0] < 1 < scale.limits[1]:
        marks.append(Rule(y=1.0))
    if bands:
        marks += [
            Band(
                c.over.steps,
                *band_on(c.over.low, c.over.high, scale),
                Ink("run", c.run),
                entry=_key(c.run),
            )
            for c in curves
        ]
    for c in curves:
        marks.append(
            Line(
                c.over.steps,
                line_on(c.over.centre, scale),
                Ink("run", c.run),
                width=1.6,
                dash=dash(c.module if by_dash else c.run),
                entry=_key(c.run),
                hover=Hover(
                    f"{titles[c.run]} · {clean(order[c.module])}",
                    (("smallest layer", c.over.low), ("largest layer", c.over.high)),
                ),
            )
        )
    return tuple(marks)


def _entries(
    curves: Sequence[_Curve], titles: Sequence[str], order: Sequence[str], by_dash: bool
) -> tuple[Entry, ...]:
    drawn = sorted({c.run for c in curves})
    runs = [
        Entry(_key(i), titles[i], Ink("run", i), "solid" if by_dash else dash(i)) for i in drawn
    ]
    if by_dash:
        modules = sorted({c.module for c in curves})
        runs += [Entry(f"module{m}", clean(order[m]), Ink("text"), dash(m)) for m in modules]
    return tuple(runs)


def _key(run: int) -> str:
    return f"run{run}"


def _centre_sentence(columns: Sequence[str]) -> str:
    centres = {centre_of(column) for column in columns}
    if len(centres) == 1:
        return f"Lines: {centres.pop()} over the layers."
    return "Lines: median over the layers for κ, mean for orthonormality errors."


def _missing_sentences(
    runs: Sequence[tuple[str, str, pd.DataFrame]], columns: Sequence[str], filled: Sequence[str]
) -> Iterator[str]:
    """Say which runs have no value of which columns; alike columns in one sentence."""
    if empty := [label_of(c).symbol for c in columns if c not in filled]:
        yield f"No chosen run has {', '.join(empty)}."
    lacking: dict[tuple[str, ...], list[str]] = {}
    for column in filled:
        without = tuple(title for _, title, part in runs if part[column].isna().all())
        if without:
            lacking.setdefault(without, []).append(label_of(column).symbol)
    for titles, symbols in lacking.items():
        yield f"Without {', '.join(symbols)}: {listed(titles)}."


def _infinite(rows: pd.DataFrame, columns: Sequence[str]) -> str:
    counts = {
        c: int(np.isinf(rows[c].to_numpy(dtype=float, na_value=np.nan)).sum()) for c in columns
    }
    found = [f"{n} of {label_of(c).symbol}" for c, n in counts.items() if n]
    if not found:
        return ""
    return (
        f"Infinite (σ_min = 0): {', '.join(found)}; in the median they count as the largest, and a "
        "line breaks where half of the layers are."
    )
