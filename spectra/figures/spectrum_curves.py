"""Whole spectra as curves: singular values, and the energy they hold, by index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from spectra.figures.arrays import (
    Group,
    Spectrum,
    Stack,
    few_indices,
    joined,
    layer_range,
    reference,
)
from spectra.figures.chart import (
    GREY,
    Axis,
    Chart,
    ColourBar,
    Entry,
    Floats,
    Hover,
    Ink,
    Line,
    Mark,
    Panel,
    Pick,
    Rule,
    Zone,
)
from spectra.figures.selection import MOST_LINE_POINTS
from spectra.figures.spectrum_facts import (
    DASHED,
    PARTS,
    dashed_sentence,
    directions_sentence,
    energy,
    reference_name,
)
from spectra.figures.style import fraction

# Lines of one shade are one mark. More shades of one colour map look alike, and more marks than
# these, over all panels, take a browser longer than all their points.
_MOST_SHADES = 16
_MOST_MARKS = 80
# Singular values are stored as float32: below this share of the largest they are its rounding.
_RESOLVED = 1e-7


def values_chart(
    stacks: Sequence[Stack], within: tuple[float, float] | None
) -> tuple[Chart, tuple[str, ...]]:
    """Describe σᵢ against i, a line a layer."""
    drawn = [s for stack in stacks for s in (*stack[-1].spectra, *reference(stack))]
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
        x = chosen.astype(np.float64) + 1
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
        zone = (Zone(y=(within[0] or None, within[1] if np.isfinite(within[1]) else None)),)
    hidden = sum(int((s.sigma < low).sum()) for stack in stacks for s in stack[-1].spectra)
    chart = _layer_chart(stacks, x, y, zone, curve)
    return (
        replace(chart, reading="A line is one layer's singular values, largest first."),
        (
            dashed_sentence(stacks),
            f"Below the axis, 0 or the rounding of the largest: {hidden} values." if hidden else "",
        ),
    )


def energy_chart(
    stacks: Sequence[Stack], within: tuple[float, float] | None
) -> tuple[Chart, tuple[str, ...]]:
    """Describe the share of Σσ² that the i largest values hold, a line a layer."""
    drawn = [s for stack in stacks for s in (*stack[-1].spectra, *reference(stack))]
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
        dashed_sentence(stacks),
        "Dotted: 50, 90 and 99% of the energy.",
        directions_sentence([stack[-1] for stack in stacks]),
    )


def _layer_chart(
    stacks: Sequence[Stack],
    x: Axis,
    y: Axis,
    behind: tuple[Mark, ...],
    curve: Callable[[Floats], tuple[Floats, Floats]],
) -> Chart:
    """Return a panel a stack with a line a layer, its colour the layer, the reference dashed."""
    first, final = layer_range([stack[-1] for stack in stacks])
    shades = min(_MOST_SHADES, max(_MOST_MARKS // len(stacks), 1), final - first + 1)
    panels, name = [], ""
    for stack in stacks:
        marks = list(behind)
        if before := reference(stack):
            lines = [curve(s.sigma) for s in before]
            marks.append(
                Line(
                    x=joined([line[0] for line in lines]),
                    y=joined([line[1] for line in lines]),
                    ink=GREY,
                    width=0.9,
                    dash="dash",
                    entry=DASHED,
                )
            )
            name = name or reference_name(stack)
        marks += _layer_lines(stack[-1], (first, final), shades, curve)
        panels.append(Panel(stack[-1].title, x, y, tuple(marks)))
    bar = ColourBar("layer", "layer", (first, final)) if final > first else None
    entries = (Entry(DASHED, name, GREY, "dash"),) if name else ()
    return Chart(tuple(panels), entries, bar, link_x=True, link_y=True)


def _layer_lines(
    group: Group,
    ends: tuple[int, int],
    shades: int,
    curve: Callable[[Floats], tuple[Floats, Floats]],
) -> Iterable[Line]:
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


def _points_per_line(lines: int) -> int:
    return int(np.clip(MOST_LINE_POINTS // lines, 16, 200))
