"""The whole spectrum of every layer at a glance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from spectra.figures.arrays import (
    Group,
    Spectrum,
    choose_arrays,
    few_indices,
    groups,
    joined,
)
from spectra.figures.chart import (
    GREY,
    Axis,
    Chart,
    ColourBar,
    Entry,
    Floats,
    Heat,
    Hover,
    Ink,
    Line,
    Mark,
    Panel,
    Pick,
    Rule,
    Zone,
)
from spectra.figures.drawing import draw
from spectra.figures.export import Backend
from spectra.figures.noise import short
from spectra.figures.spectrum_facts import (
    PARTS,
    directions_sentence,
    energy,
    join,
    size_sentence,
    within_sentence,
)
from spectra.figures.style import dash, fraction

VIEWS = ("values", "density", "energy", "share")
WITHIN = (0.1, 1.1)
"""The range in which 99% of Gemma 2 9B's singular values were found to lie (survey note 003)."""
MOST_PANELS = 16
# Points of all lines of a figure; a browser draws so many at once.
_MOST_POINTS = 20_000
# Lines of one shade are one mark: more shades of one colour map than these look alike.
_MOST_SHADES = 16
_BINS = 60
# Singular values are stored as float32: below this share of the largest they are its rounding.
_RESOLVED = 1e-7
# The smallest values that the axis of a density leaves out.
_TAIL = 0.005
_DASHED = "reference"

Stack: TypeAlias = tuple[Group, ...]
"""The groups of one panel, steps ascending."""


def spectrum(
    arrays: pd.DataFrame,
    *,
    view: str = "values",
    within: tuple[float, float] | None = None,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Draw the whole spectrum of every layer, a panel a run and module.

    Parameters
    ----------
    arrays : DataFrame
        `Run.read_spectrum()` of one or more runs, concatenated: columns run, method, module,
        step, layer and sigma, arrays of length k; where present, sigma_change (σ_t − σ_0) gives
        the base's.
    view : {"values", "density", "energy", "share"}
        ``"values"``: σᵢ against i, a line a layer. ``"density"``: how many singular values of a
        layer lie at a size, layer against log σ, and all of them pooled. ``"energy"``: the share
        of Σσ² that the i largest hold, against i/k. ``"share"``: the share of the singular values
        that lie `within` a range, by layer.
    within : (float, float), optional
        Ends of that range, both included, in the unit of the weights; 0.1 to 1.1 in the view
        ``"share"``. The other views mark it and count what lies in it.
    modules, layers : iterable, optional
        Draw only these; all by default.
    steps : iterable of int, optional
        By default the last of each run. Of several, ``"values"`` and ``"energy"`` draw the last
        and, dashed, the first; ``"density"`` the last; ``"share"`` all.
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
        than 16 panels, or an option is unknown.

    Notes
    -----
    The caption answers with numbers whether the values fall into "large" and "small" ones, as
    PiSSA (arXiv:2404.02948) and MiLoRA (arXiv:2406.09044) name them: how far the largest is from
    the smallest, what share of the energy Σσ² the r largest hold, and the widest gap between
    neighbours. It does not say what counts as large.
    """
    return draw(
        describe_spectrum(
            arrays, view=view, within=within, modules=modules, layers=layers, steps=steps
        ),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_spectrum(
    arrays: pd.DataFrame,
    *,
    view: str = "values",
    within: tuple[float, float] | None = None,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
) -> Chart:
    """Turn rows into the chart of `spectrum`, which see."""
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}.")
    if within is not None and not 0 <= within[0] < within[1]:
        raise ValueError(
            f"within must be two numbers, 0 ≤ low < high, got {within[0]:g} to {within[1]:g}."
        )
    modules = [modules] if isinstance(modules, str) else modules
    modules = None if modules is None else list(modules)
    within = WITHIN if within is None and view == "share" else within
    rows, empty = choose_arrays(arrays, modules, layers, steps)
    stacks = [
        tuple(stack)
        for _, stack in groupby(
            groups(rows, arrays, modules), key=lambda group: (group.run, group.title)
        )
    ]
    if len(stacks) > MOST_PANELS:
        raise ValueError(
            f"{rows['run'].nunique()} runs × {rows['module'].nunique()} modules would be "
            f"{len(stacks)} panels; more than {MOST_PANELS} cannot be read. Choose fewer runs or "
            "modules."
        )
    chart, sentences = _DESCRIBE[view](stacks, within)
    last = [stack[-1] for stack in stacks]
    return replace(
        chart,
        caption=join(
            _step_sentence(last),
            *sentences,
            within_sentence(last, within),
            size_sentence(last),
            f"Without singular values: {empty} of the chosen matrices." if empty else "",
        ),
    )


# The four views. Each takes the groups of one panel, steps ascending, and gives the chart and
# what its caption says.


def _values(
    stacks: Sequence[Stack], within: tuple[float, float] | None
) -> tuple[Chart, tuple[str, ...]]:
    drawn = [s for stack in stacks for s in (*stack[-1].spectra, *_reference(stack))]
    counts = {len(s.sigma) for s in drawn}
    alike = len(counts) == 1
    most = _points_per_line(len(drawn))
    high = max(float(s.sigma.max()) for s in drawn)
    # Stored as float32: what is smaller is rounding.
    low = min(float(np.min(s.sigma, where=s.sigma > high * _RESOLVED, initial=high)) for s in drawn)
    margin = (high / low) ** 0.04 if high > low else 1.1
    limits = (low / margin, high * margin)

    def curve(sigma: Floats) -> tuple[Floats, Floats]:
        chosen = few_indices(len(sigma), most)
        x = chosen + 1.0
        y = np.where(sigma[chosen] >= low, sigma[chosen], np.nan)
        return (x if alike else x / len(sigma)), y

    k = max(counts)
    if alike:
        x = Axis("index i", "i", (1 - 0.02 * k, k + 0.02 * k), integer=True)
    else:
        x = Axis("i/k", "i/k", (-0.02, 1.02))
    y = Axis("σᵢ (unit of the weights)", "σᵢ", limits, log=True)
    zone: tuple[Mark, ...] = ()
    if within is not None:
        zone = (Zone(y=(within[0] or None, within[1])),)
    hidden = sum(int((s.sigma < low).sum()) for stack in stacks for s in stack[-1].spectra)
    chart = _layer_chart(stacks, x, y, zone, curve)
    return (
        replace(chart, reading="A line is one layer's singular values, largest first."),
        (
            _dashed_sentence(stacks),
            f"Below the axis, 0 or the rounding of the largest: {hidden} values." if hidden else "",
        ),
    )


def _energy(
    stacks: Sequence[Stack], within: tuple[float, float] | None
) -> tuple[Chart, tuple[str, ...]]:
    drawn = [s for stack in stacks for s in (*stack[-1].spectra, *_reference(stack))]
    most = _points_per_line(len(drawn))

    def curve(sigma: Floats) -> tuple[Floats, Floats]:
        chosen = few_indices(len(sigma), most)
        x = np.concatenate([[0.0], (chosen + 1) / len(sigma)])
        return x, np.concatenate([[0.0], energy(sigma)[chosen]])

    chart = _layer_chart(
        stacks,
        Axis("i/k, share of the directions", "i/k", (-0.02, 1.02)),
        Axis("share of the energy Σσ²", "share", (-0.02, 1.02)),
        tuple(Rule(y=part) for part in PARTS),
        curve,
    )
    reading = (
        "A line is one layer: the share of Σσ² = ‖W‖_F² in its i largest singular values. The "
        "diagonal would be equal ones."
    )
    return replace(chart, reading=reading), (
        _dashed_sentence(stacks),
        "Dotted: 50, 90 and 99% of the energy.",
        directions_sentence([stack[-1] for stack in stacks]),
    )


def _density(
    stacks: Sequence[Stack], within: tuple[float, float] | None
) -> tuple[Chart, tuple[str, ...]]:
    last = [stack[-1] for stack in stacks]
    logs = [[np.log10(s.sigma[s.sigma > 0]) for s in group.spectra] for group in last]
    # The last values of a nearly singular matrix reach down for decades.
    everything = np.concatenate([v for of_group in logs for v in of_group])
    low, high = float(np.quantile(everything, _TAIL, method="lower")), float(everything.max())
    if high - low < 0.02:
        low, high = low - 0.01, high + 0.01
    edges = np.linspace(low, high, _BINS + 1)
    width = edges[1] - edges[0]
    x = Axis(
        "σ (unit of the weights)",
        "log₁₀ σ",
        (low, high),
        ticks=_ticks(low, high),
    )
    first, final = _layers(last)
    y = np.arange(first, final + 1)
    pooled: list[Mark] = []
    panels, entries, beyond = [], [], 0
    ends: list[float] = []
    if within is not None:
        ends = [math.log10(end) for end in within if end > 0]
        pooled.append(Zone(x=(ends[0] if within[0] > 0 else None, ends[-1])))
    middles = (edges[:-1] + edges[1:]) / 2
    for i, (stack, group, of_group) in enumerate(zip(stacks, last, logs, strict=True)):
        shares = np.full((len(y), _BINS), np.nan)
        for s, values in zip(group.spectra, of_group, strict=True):
            shares[s.layer - first] = _histogram(values, edges) / (len(s.sigma) * width)
            beyond += len(s.sigma) - int(((values >= low) & (values <= high)).sum())
        steps = (group.step,) * _BINS
        pick = Pick(group.run, group.module, tuple(y.tolist()), steps)
        heat = Heat(middles, y.astype(float), shares, "per decade", group.title, pick)
        of_layers = Axis("layer", "layer", (first - 0.5, final + 0.5), integer=True)
        borders = [Rule(x=end, dash="dash", ink=Ink("text")) for end in ends if low < end < high]
        panels.append(Panel(group.title, x, of_layers, (heat, *borders)))
        entries.append(Entry(str(i), group.title, Ink("run", i), dash(i)))
        pooled += _pooled(i, group.title, group.spectra, edges)
        if reference := _reference(stack):
            pooled += _pooled(i, "", reference, edges, dashed=True)
    top = max(float(m.y.max()) for m in pooled if isinstance(m, Line))
    curve = Axis("share of σ per decade", "per decade", (0.0, 1.05 * top))
    peak = max(float(np.nanmax(m.values)) for p in panels for m in p.marks if isinstance(m, Heat))
    chart = Chart(
        panels=(Panel("all layers", x, curve, tuple(pooled)), *panels),
        entries=tuple(entries),
        bar=ColourBar("share of a layer's σ per decade", "size", (0.0, peak), integer=False),
        reading=(
            "Where singular values lie: each row is one layer, its colour how many of its values "
            "have that size; above, all layers together."
        ),
        link_x=True,
    )
    return chart, (
        "Shares are per factor of ten of σ.",
        _dashed_sentence(stacks).replace("Dashed", "Dotted"),
        f"Beyond the axis: {beyond} values." if beyond else "",
    )


def _share(
    stacks: Sequence[Stack], within: tuple[float, float] | None
) -> tuple[Chart, tuple[str, ...]]:
    assert within is not None
    steps = sorted({group.step for stack in stacks for group in stack})
    first, final = _layers([group for stack in stacks for group in stack])
    shares = [[_lying(s, within) for s in g.spectra] for stack in stacks for g in stack]
    bases = [_lying(s, within) for stack in stacks for s in _bases(stack[-1])]
    lowest = min(min(v) for v in [*shares, bases] if v)
    limits = (-0.02, 1.02) if lowest < 0.5 else (lowest - 0.05 * (1 - lowest) - 0.005, 1.005)
    panels, based = [], False
    for stack in stacks:
        marks: list[Mark] = []
        if base := _bases(stack[-1]):
            based = True
            x = np.array([s.layer for s in base], dtype=float)
            y = np.array([_lying(s, within) for s in base])
            marks.append(Line(x, y, GREY, width=0.9, dash="dash", entry=_DASHED))
        for group in stack:
            place = fraction(group.step, (steps[0], steps[-1]))
            layers = tuple(s.layer for s in group.spectra)
            marks.append(
                Line(
                    x=np.array(layers, dtype=float),
                    y=np.array([_lying(s, within) for s in group.spectra]),
                    ink=Ink("step", place) if len(steps) > 1 else Ink("run", 0),
                    width=1.0,
                    marker="circle",
                    hover=Hover(f"{group.title}, step {group.step}"),
                    pick=Pick(group.run, group.module, layers, (group.step,) * len(layers)),
                )
            )
        layer = Axis("layer", "layer", (first - 0.6, final + 0.6), integer=True)
        share = Axis("share of the singular values", "share", limits)
        panels.append(Panel(stack[-1].title, layer, share, tuple(marks)))
    ends = f"{within[0]:g} to {within[1]:g}"
    several = len(steps) > 1
    chart = Chart(
        panels=tuple(panels),
        entries=(Entry(_DASHED, "base W_0", GREY, "dash"),) if based else (),
        bar=ColourBar("step", "step", (steps[0], steps[-1])) if several else None,
        reading=f"A point is one layer: the share of its singular values from {ends}.",
        link_x=True,
        link_y=True,
    )
    return chart, ("Colour: step." if several else "", "Dashed: the base W_0." if based else "")


_DESCRIBE: dict[
    str,
    Callable[[Sequence[Stack], tuple[float, float] | None], tuple[Chart, tuple[str, ...]]],
] = {"values": _values, "density": _density, "energy": _energy, "share": _share}


def _layer_chart(
    stacks: Sequence[Stack],
    x: Axis,
    y: Axis,
    behind: tuple[Mark, ...],
    curve: Callable[[Floats], tuple[Floats, Floats]],
) -> Chart:
    """Return a panel a stack with a line a layer, its colour the layer, the reference dashed."""
    first, final = _layers([stack[-1] for stack in stacks])
    panels, name = [], ""
    for stack in stacks:
        marks = list(behind)
        if reference := _reference(stack):
            lines = [curve(s.sigma) for s in reference]
            marks.append(
                Line(
                    x=joined([line[0] for line in lines]),
                    y=joined([line[1] for line in lines]),
                    ink=GREY,
                    width=0.9,
                    dash="dash",
                    entry=_DASHED,
                )
            )
            name = name or _reference_name(stack)
        marks += _layer_lines(stack[-1], (first, final), curve)
        panels.append(Panel(stack[-1].title, x, y, tuple(marks)))
    bar = ColourBar("layer", "layer", (first, final)) if final > first else None
    entries = (Entry(_DASHED, name, GREY, "dash"),) if name else ()
    return Chart(tuple(panels), entries, bar, link_x=True, link_y=True)


def _layer_lines(
    group: Group, ends: tuple[int, int], curve: Callable[[Floats], tuple[Floats, Floats]]
) -> Iterable[Line]:
    shades = min(_MOST_SHADES, ends[1] - ends[0] + 1)
    by_shade: dict[int, list[Spectrum]] = {}
    for s in group.spectra:
        by_shade.setdefault(round(fraction(s.layer, ends) * (shades - 1)), []).append(s)
    for shade, spectra in sorted(by_shade.items()):
        lines = [curve(s.sigma) for s in spectra]
        # One more a line: the gap behind it.
        layers = np.repeat([s.layer for s in spectra], [len(x) + 1 for x, _ in lines])[:-1]
        yield Line(
            x=joined([x for x, _ in lines]),
            y=joined([y for _, y in lines]),
            ink=Ink("layer", shade / max(shades - 1, 1)),
            width=0.9,
            hover=Hover(group.title, (("layer", layers.astype(float)),)),
            pick=Pick(group.run, group.module, tuple(layers.tolist()), (group.step,) * len(layers)),
        )


def _pooled(
    i: int, title: str, spectra: Sequence[Spectrum], edges: Floats, dashed: bool = False
) -> Iterable[Line]:
    values = np.concatenate([s.sigma for s in spectra])
    width = edges[1] - edges[0]
    share = _histogram(np.log10(values[values > 0]), edges) / (len(values) * width)
    yield Line(
        x=(edges[:-1] + edges[1:]) / 2,
        y=share,
        ink=Ink("run", i),
        width=0.7 if dashed else 1.4,
        dash="dot" if dashed else dash(i),
        entry=str(i),
        hover=None if dashed else Hover(title),
    )


def _histogram(values: Floats, edges: Floats) -> Floats:
    """Return how many of `values` lie between evenly spaced `edges`; others count nowhere."""
    place = (values - edges[0]) / (edges[-1] - edges[0]) * (len(edges) - 1)
    place = place[(place >= 0) & (values <= edges[-1])].astype(np.int64)
    return np.bincount(np.minimum(place, len(edges) - 2), minlength=len(edges) - 1).astype(float)


def _ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Return ticks of σ on an axis of log₁₀ σ: powers of ten, and 2 and 5 between where few."""
    mantissas = (1, 2, 5) if high - low < 2.5 else (1,)
    values = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in mantissas]
    every = max(1, math.ceil(len(values) / 12))
    found = [v for v in values if low <= math.log10(v) <= high]
    return tuple((math.log10(v), short(v)) for v in found[::every])


def _reference(stack: Stack) -> tuple[Spectrum, ...]:
    """Return what the last step is compared with: the first step, or the base of a single one."""
    return stack[0].spectra if len(stack) > 1 else _bases(stack[-1])


def _bases(group: Group) -> tuple[Spectrum, ...]:
    return tuple(Spectrum(s.layer, s.base, None) for s in group.spectra if s.base is not None)


def _reference_name(stack: Stack) -> str:
    return f"step {stack[0].step}" if len(stack) > 1 else "base W_0"


def _dashed_sentence(stacks: Sequence[Stack]) -> str:
    names = list(dict.fromkeys(_reference_name(s) for s in stacks if _reference(s)))
    if not names:
        return "The base's are not stored with these: spectra analyze RUN writes them."
    return f"Dashed: {', '.join(names)}."


def _step_sentence(last: Sequence[Group]) -> str:
    steps = sorted({group.step for group in last})
    return f"Step {', '.join(map(str, steps))}."


def _layers(groups: Sequence[Group]) -> tuple[int, int]:
    layers = [s.layer for group in groups for s in group.spectra]
    return min(layers), max(layers)


def _lying(s: Spectrum, within: tuple[float, float]) -> float:
    return float(np.mean((s.sigma >= within[0]) & (s.sigma <= within[1])))


def _points_per_line(lines: int) -> int:
    return int(np.clip(_MOST_POINTS // lines, 16, 200))
