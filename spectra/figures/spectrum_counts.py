"""Whole spectra as counts: how many singular values have a size, or lie within a range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from spectra.figures.arrays import Spectrum, Stack, bases, layer_range, reference
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
from spectra.figures.noise import short
from spectra.figures.spectrum_facts import DASHED, dashed_sentence, range_words, share_within
from spectra.figures.style import dash, fraction

_BINS = 60
# The smallest values that the axis of a density leaves out.
_TAIL = 0.005


def density_chart(
    stacks: Sequence[Stack], within: tuple[float, float] | None
) -> tuple[Chart, tuple[str, ...]]:
    """Describe how many singular values have a size, by layer and pooled."""
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
    first, final = layer_range(last)
    y = np.arange(first, final + 1)
    pooled: list[Mark] = []
    panels, entries, beyond = [], [], 0
    ends: list[float] = []
    if within is not None:
        left, right = (math.log10(end) if 0 < end < math.inf else None for end in within)
        pooled.append(Zone(x=(left, right)))
        ends = [end for end in (left, right) if end is not None]
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
        if before := reference(stack):
            pooled += _pooled(i, "", before, edges, dashed=True)
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
        dashed_sentence(stacks).replace("Dashed", "Dotted"),
        f"Beyond the axis: {beyond} values." if beyond else "",
    )


def share_chart(
    stacks: Sequence[Stack], within: tuple[float, float] | None
) -> tuple[Chart, tuple[str, ...]]:
    """Describe what share of the singular values lies within a range, by layer."""
    assert within is not None
    steps = sorted({group.step for stack in stacks for group in stack})
    first, final = layer_range([group for stack in stacks for group in stack])
    shares = [[share_within(s.sigma, within) for s in g.spectra] for stack in stacks for g in stack]
    of_bases = [share_within(s.sigma, within) for stack in stacks for s in bases(stack[-1])]
    lowest = min(min(v) for v in [*shares, of_bases] if v)
    limits = (-0.02, 1.02) if lowest < 0.5 else (lowest - 0.05 * (1 - lowest) - 0.005, 1.005)
    panels, based = [], False
    for stack in stacks:
        marks: list[Mark] = []
        if base := bases(stack[-1]):
            based = True
            x = np.array([s.layer for s in base], dtype=float)
            y = np.array([share_within(s.sigma, within) for s in base])
            marks.append(Line(x, y, GREY, width=0.9, dash="dash", entry=DASHED))
        for group in stack:
            place = fraction(group.step, (steps[0], steps[-1]))
            layers = tuple(s.layer for s in group.spectra)
            marks.append(
                Line(
                    x=np.array(layers, dtype=float),
                    y=np.array([share_within(s.sigma, within) for s in group.spectra]),
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
    several = len(steps) > 1
    chart = Chart(
        panels=tuple(panels),
        entries=(Entry(DASHED, "base W_0", GREY, "dash"),) if based else (),
        bar=ColourBar("step", "step", (steps[0], steps[-1])) if several else None,
        reading=f"A point is one layer: the share of its singular values {range_words(within)}.",
        link_x=True,
        link_y=True,
    )
    return chart, ("Colour: step." if several else "", "Dashed: the base W_0." if based else "")


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
