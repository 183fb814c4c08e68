"""Limits, ticks and names of the axes of a paper figure."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Ruler
from matplotlib.colorbar import Colorbar
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from spectra.figures import style
from spectra.figures.chart import Axis, ColourBar, Heat, Panel
from spectra.figures.paper_layout import Sheet, text_width, thinned, wrap
from spectra.figures.style import Preset

_GAP = 0.05
"""Between two tick labels, inches."""


def dress(
    axes: Axes, panel: Panel, width: float, height: float, preset: Preset, small: bool = False
) -> None:
    """Give `axes`, `width` × `height` inches large, its limits, ticks and grid."""
    size = preset.small - (1.5 if small else 0.0)
    families = list(preset.fonts)
    axes.tick_params(labelsize=size, labelfontfamily=families, pad=1.5 if small else 2.5)
    if small:
        axes.tick_params(length=2)
    if not small and not any(isinstance(mark, Heat) for mark in panel.marks):
        axes.grid(axis="y", color="#ececec", lw=0.5)
    axes.set_axisbelow(True)
    if panel.x.log:
        axes.set_xscale("log")
    if panel.y.log:
        axes.set_yscale("log")
    axes.set_xlim(panel.x.limits)
    axes.set_ylim(panel.y.limits)
    _ticks(axes.xaxis, panel.x, width, preset, size, across=True)
    _ticks(axes.yaxis, panel.y, height, preset, size, across=False)
    if panel.square:
        axes.set_aspect("equal", adjustable="box")


def dress_bar(bar: Colorbar, scale: ColourBar, sheet: Sheet) -> None:
    """Give a colour bar its ticks."""
    preset = sheet.preset
    across = sheet.bar_below
    bar.ax.tick_params(labelsize=preset.small, labelfontfamily=list(preset.fonts), pad=2, length=2)
    length = (sheet.width if across else sheet.height - sheet.below) * 0.8
    ticks = tuple((t, style.tick(t, _powers(scale.limits))) for t in scale.ticks)
    axis = Axis(scale.label, scale.label, scale.limits, scale.log, scale.integer, ticks)
    ruler = bar.ax.xaxis if across else bar.ax.yaxis
    _ticks(ruler, axis, length, preset, preset.small, across=across)
    bar.ax.minorticks_off()


def _ticks(
    ruler: Ruler, axis: Axis, length: float, preset: Preset, size: float, across: bool
) -> None:
    if axis.ticks:
        _given(ruler, axis, length, preset, size, across)
        return
    if axis.log:
        _log(ruler, axis, max(2, min(6, int(length / 0.4))))
        return
    # A common factor above the axis would be taken for part of the title: every tick has its own.
    powers = _powers(axis.limits)
    ruler.set_major_locator(_linear(axis, length, preset, size, across, powers))
    ruler.set_major_formatter(FuncFormatter(lambda value, _: style.tick(value, powers)))


def _linear(
    axis: Axis, length: float, preset: Preset, size: float, across: bool, powers: bool
) -> MaxNLocator:
    """Return where ticks stand: as many as are read at ease, and none whose labels touch."""
    low, high = sorted(axis.limits)
    for most in range(6 if length > 0.8 else 3, 0, -1):
        places = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=axis.integer)
        ticks = [t for t in places.tick_values(low, high) if low <= t <= high]
        widest = max((text_width(style.tick(t, powers), preset, size) for t in ticks), default=0.0)
        # A label's own length and as much air again, or two and a half lines.
        room = 1.3 * widest + 0.12 if across else 2.5 * size / 72
        if len(ticks) < 2 or (ticks[1] - ticks[0]) / (high - low) * length >= room:
            break
    return places


def _log(ruler: Ruler, axis: Axis, most: int) -> None:
    low, high = sorted(axis.limits)
    decades = math.log10(high / low)
    ruler.set_minor_formatter(NullFormatter())
    if decades >= 1.5:
        ruler.set_major_locator(LogLocator(numticks=most + 1))
        ruler.set_major_formatter(FuncFormatter(lambda value, _: style.power_of_ten(value)))
        return
    # Too few powers of ten to read a value by.
    powers = _powers(axis.limits)
    if decades >= 0.6:
        ruler.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=most + 2))
    else:
        ruler.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    ruler.set_minor_locator(NullLocator())
    ruler.set_major_formatter(FuncFormatter(lambda value, _: style.tick(value, powers)))


def _given(
    ruler: Ruler, axis: Axis, length: float, preset: Preset, size: float, across: bool
) -> None:
    ticks = sorted(axis.ticks)
    values = np.array([place for place, _ in ticks], float)
    ends = np.array(axis.limits, float)
    if axis.log:
        values, ends = np.log(values), np.log(ends)
    places = (values - ends.min()) / (np.ptp(ends) or 1.0) * length
    # Names of runs may be endless; what they take is taken from the panel.
    room = max(length / 3, 0.4) if across else 0.25 * preset.width
    labels = ["".join(wrap(label, room, preset, size, most=1)) for _, label in ticks]
    sizes = [
        (text_width(label, preset, size) + _GAP) if across else size * 1.05 / 72 for label in labels
    ]
    kept = thinned(list(places), sizes)
    ruler.set_major_locator(FixedLocator([ticks[i][0] for i in kept]))
    ruler.set_major_formatter(FixedFormatter([labels[i] for i in kept]))
    ruler.set_minor_locator(NullLocator())
    # Made now, under this figure's settings: a label with a dollar sign starts no formula.
    ruler.get_major_ticks(len(kept))


def _powers(limits: tuple[float, float]) -> bool:
    """Whether ticks of an axis are powers: below 2e-3 they would be as long as 0.00025."""
    return not 2e-3 <= max(map(abs, limits)) < 1e5
