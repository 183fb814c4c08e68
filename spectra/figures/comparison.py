"""Methods beside each other: the mean of their seeds with its band."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from spectra.figures.captions import listed, sentences
from spectra.figures.chart import Axis, Band, Chart, Entry, Floats, Hover, Ink, Line, Mark, Panel
from spectra.figures.compared_runs import (
    KEYS,
    Group,
    align,
    form_groups,
    runs_of_drift,
    runs_of_training,
)
from spectra.figures.drawing import draw
from spectra.figures.export import Backend
from spectra.figures.labels import RATIOS, label_of
from spectra.figures.noise import Floor, floor_marks, noise_sentence
from spectra.figures.over_layers import (
    Scale,
    band_on,
    centre_of,
    horizontal,
    line_on,
    value_scale,
)
from spectra.figures.seeds import Spread
from spectra.figures.selection import clean, module_names
from spectra.figures.style import dash

BY = ("step", "tokens", "loss", "seconds")
"""What runs can be aligned by."""


def compare(
    drift: pd.DataFrame,
    training: pd.DataFrame,
    column: str = "delta_d",
    *,
    by: str = "step",
    groups: Mapping[str, str] | None = None,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Draw methods beside each other: the mean over their seeds, with a band.

    Parameters
    ----------
    drift : DataFrame
        Rows of one or more runs: columns run, method, module, step, layer; and, where present,
        sigma_noise, d_noise.
    training : DataFrame
        Concatenated `Run.read_training()`: columns run, method, step; it may be empty where
        `column` is of drift and `by` is ``"step"``.
    column : str
        Of drift (a panel a module) or of training (one panel).
    by : {"step", "tokens", "loss", "seconds"}
        What the runs are aligned by.
    groups : mapping, optional
        The label of each run, by its name: runs of one label are averaged. See
        `spectra.store.group_labels`. A run that is not in it, and every run by default, stands
        alone.
    modules, layers, steps : iterable, optional
        Draw only these; all by default. Of a training column only `steps` means something.
    log : bool, optional
        Logarithmic vertical axis; by default for condition numbers that span over two decades.
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
        If there is nothing to draw, `column` is in neither table, no run has what `by` needs, two
        runs share a name, or an option is unknown.

    Notes
    -----
    A run's value is the mean over its layers, and the median for condition numbers. Seeds are
    averaged as far as all of a group reach; a seed without a record at a place is interpolated
    between its neighbours. The band is one standard deviation of the sample to either side, also
    for two seeds; a single seed has none.

    Aligned by the loss, the value at a level is that at the step at which the smoothed training
    loss (mean over a twentieth of the record, five steps at least) was first as low; the axis
    runs downwards, so that training goes to the right. What a run did while its loss was higher
    than before is not drawn.
    """
    return draw(
        describe_compare(
            drift,
            training,
            column,
            by=by,
            groups=groups,
            modules=modules,
            layers=layers,
            steps=steps,
            log=log,
        ),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_compare(
    drift: pd.DataFrame,
    training: pd.DataFrame,
    column: str = "delta_d",
    *,
    by: str = "step",
    groups: Mapping[str, str] | None = None,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
) -> Chart:
    """Turn rows into the chart of `compare`, which see."""
    if by not in BY:
        raise ValueError(f"by must be one of {', '.join(BY)}, got {by!r}.")
    if column == by:
        raise ValueError(f"{column} against itself is no comparison; choose another column or by.")
    modules = module_names(modules)
    of_drift = column in drift and column not in KEYS
    if of_drift:
        runs, order, said = runs_of_drift(drift, column, modules, layers, steps)
    else:
        runs, order, said = runs_of_training(training, drift, column, steps)
    runs, left_out = align(runs, training, by)
    formed, apart = form_groups(runs, order, groups)
    label = label_of(column)
    floors = [[f for g in formed for f in g.floors(m)] for m in order]
    # κ of q_proj can be thousands of times that of v_proj; what else there is, is compared.
    free = column in RATIOS
    shared = None if free else _scale(formed, order, column, log, floors)
    x = _axis(by, [s for g in formed for s in g.spreads.values()])
    panels, scales = [], []
    for module, floors_here in zip(order, floors, strict=True):
        scale = shared or _scale(formed, [module], column, log, [floors_here])
        marks = _marks(formed, module, scale)
        lines = [(m.x, m.y) for m in marks if isinstance(m, Line)]
        if x.limits[0] > x.limits[1]:
            # What keeps the floor's words away from the lines looks from the left to the right.
            lines = [(-there[::-1], values[::-1]) for there, values in lines]
        grey = floor_marks(column, floors_here, scale.limits, scale.log, lines)
        y = Axis(label.axis, label.symbol, scale.limits, log=scale.log)
        panels.append(Panel(clean(module) or label.symbol, x, y, (*grey[:1], *marks, *grey[1:])))
        scales.append(scale)
    return Chart(
        panels=tuple(panels),
        entries=tuple(
            Entry(f"group{i}", g.title, Ink("run", i), dash(i)) for i, g in enumerate(formed)
        ),
        reading=label.reading,
        caption=sentences(
            _lines_sentence(column if of_drift else "", formed),
            _by_sentence(by),
            noise_sentence(
                column,
                floors,
                [(g.title, f) for g in formed for f in _largest(g, order)],
                scales[0].limits,
                scales[0].log,
            ),
            _ends_sentence(formed, order, by),
            said,
            apart,
            left_out,
            *dict.fromkeys(scale.below for scale in scales),
        ),
        link_x=True,
        link_y=not free,
    )


def _scale(
    groups: Sequence[Group],
    order: Sequence[str],
    column: str,
    log: bool | None,
    floors: Sequence[Sequence[Floor]],
) -> Scale:
    spreads = [g.spreads[m] for g in groups for m in order if m in g.spreads]
    return value_scale(
        column,
        [s.mean for s in spreads],
        log,
        floors=[f.level for panel in floors for f in panel],
        sides=[side for s in spreads for side in _sides(s)],
    )


def _marks(groups: Sequence[Group], module: str, scale: Scale) -> list[Mark]:
    marks: list[Mark] = []
    for i, group in enumerate(groups):
        found = group.spreads.get(module)
        if found is not None and found.sd is not None:
            low, high = band_on(found.mean - found.sd, found.mean + found.sd, scale)
            marks.append(Band(found.x, low, high, Ink("run", i), 0.18, entry=f"group{i}"))
    for i, group in enumerate(groups):
        found = group.spreads.get(module)
        if found is None:
            continue
        count = sum(module in run.values for run in group.runs)
        columns = [("seeds", np.full(len(found.x), float(count)))]
        if found.sd is not None:
            columns.append(("standard deviation", found.sd))
        head = f"{group.title} · {clean(module)}" if module else group.title
        marks.append(
            Line(
                found.x,
                line_on(found.mean, scale),
                Ink("run", i),
                width=1.6,
                dash=dash(i),
                entry=f"group{i}",
                hover=Hover(head, tuple(columns)),
            )
        )
    return marks


def _sides(found: Spread) -> tuple[Floats, ...]:
    return () if found.sd is None else (found.mean - found.sd, found.mean + found.sd)


def _axis(by: str, spreads: Sequence[Spread]) -> Axis:
    places = [s.x for s in spreads]
    if by == "step":
        return horizontal("step", "step", places, integer=True)
    label = label_of(by)
    if by != "loss":
        return horizontal(label.axis, label.symbol, places)
    axis = horizontal("smoothed training loss (nats per token)", label.symbol, places)
    return Axis(axis.label, axis.symbol, axis.limits[::-1])


def _largest(group: Group, order: Sequence[str]) -> list[Floor]:
    floors = [f for module in order for f in group.floors(module)]
    return [max(floors, key=lambda f: -1.0 if np.isnan(f.level) else f.level)] if floors else []


def _lines_sentence(column: str, groups: Sequence[Group]) -> str:
    over = f"{centre_of(column)} over the layers" if column else "value"
    if all(len(g.runs) == 1 for g in groups):
        return f"Lines: {over} of one run each." if column else ""
    counts = [f"{g.title} {len(g.runs)}" for g in groups if len(g.runs) > 1]
    single = [g.title for g in groups if len(g.runs) == 1]
    return sentences(
        f"Lines: mean over the seeds of each run's {over}; shaded: ± 1 standard deviation of the "
        f"sample ({listed(counts)} seeds).",
        f"One seed, no band: {listed(single)}." if single else "",
    )


def _by_sentence(by: str) -> str:
    if by != "loss":
        return ""
    return (
        "At each level of the smoothed training loss, the value at the step that first reached it; "
        "training runs to the right."
    )


def _ends_sentence(groups: Sequence[Group], order: Sequence[str], by: str) -> str:
    """Name the groups of which some seed goes on where the mean ends."""
    found = []
    for group in groups:
        for module in order:
            ends = [run.values[module].x[-1] for run in group.runs if module in run.values]
            if by == "step" and module in group.spreads and max(ends) > min(ends):
                found.append(f"{group.title} (step {min(ends):.0f} of {max(ends):.0f})")
                break
    return f"The mean ends with the shortest seed: {listed(found)}." if found else ""
