"""Axes, ticks and colour bars of a figure on a screen, as Plotly's plain dictionaries."""

from __future__ import annotations

import math
from typing import Any

from spectra.figures import style
from spectra.figures.chart import Axis, ColourBar
from spectra.figures.screen_hover import text
from spectra.figures.screen_layout import FONT_SIZE, SMALL_FONT_SIZE, broken
from spectra.figures.screen_marks import bar_limits

_TICK_PIXELS = {"x": 54, "y": 40}
# Of fewer decades a value is not read by the powers of ten.
_DECADES = 3


def dress(axis: Axis, side: str, pixels: float, dark: bool) -> dict[str, Any]:
    """Return range, grid and ticks of an axis, `side` ``"x"`` or ``"y"``, `pixels` long."""
    low, high = axis.limits
    found: dict[str, Any] = {
        "range": [math.log10(low), math.log10(high)] if axis.log else [low, high],
        "gridcolor": "#30343d" if dark else "#ececec",
        "zeroline": False,
        "ticks": "",
        "tickfont": {"size": SMALL_FONT_SIZE},
        # A zoom belongs to a quantity: it stays while a run grows, and goes when another is drawn.
        "uirevision": f"{axis.label}, {'logarithmic' if axis.log else 'linear'}",
    }
    if axis.log:
        found["type"] = "log"
    if axis.ticks:
        return found | _given(axis, pixels / _TICK_PIXELS[side])
    most = max(2, min(8, int(pixels / _TICK_PIXELS[side])))
    return found | (_log(axis, most) if axis.log else _linear(axis, most))


def named(label: str, pixels: float) -> dict[str, Any]:
    """Return the title of an axis."""
    lines = [text(line, whole=True) for line in broken(label, pixels)]
    return {"text": "<br>".join(lines), "standoff": 5, "font": {"size": FONT_SIZE}}


def colour_axis(bar: ColourBar, dark: bool) -> dict[str, Any]:
    """Return the scale of colours, with its bar at the right."""
    low, high = bar_limits(bar)
    anchors = style.map_colours(bar.map, dark)
    shown: dict[str, Any] = {
        "title": {"text": text(bar.label, whole=True), "side": "right"},
        "thickness": 12,
        "outlinewidth": 0,
        "x": 1.01,
        "len": 1.0,
        "tickfont": {"size": SMALL_FONT_SIZE},
        "exponentformat": "e",
        "minexponent": 3,
    }
    ticks = bar.ticks or (_readable_ticks(*bar.limits) if bar.log else ())
    if ticks:
        powers = _powers(bar.limits)
        shown["tickvals"] = [math.log10(t) if bar.log else t for t in ticks]
        shown["ticktext"] = [_tick(t, powers, bar.log) for t in ticks]
    elif bar.integer and high - low <= 8:
        shown["dtick"] = 1
    return {
        "cmin": low,
        "cmax": high,
        "colorscale": [[i / (len(anchors) - 1), colour] for i, colour in enumerate(anchors)],
        "colorbar": shown,
    }


def _linear(axis: Axis, most: int) -> dict[str, Any]:
    largest = max(map(abs, axis.limits))
    found: dict[str, Any] = {
        "nticks": most,
        # All ticks of an axis then have one exponent, or none from 0.001 up to 99999.
        "exponentformat": "e",
        "minexponent": 4 if largest >= 1 else 3,
    }
    if axis.integer and abs(axis.limits[1] - axis.limits[0]) <= most:
        found["dtick"] = 1
    return found


def _log(axis: Axis, most: int) -> dict[str, Any]:
    low, high = sorted(axis.limits)
    decades = math.log10(high / low)
    # Plotly labels powers of ten alone from 0.7 decades a tick on; below, also 2 and 5 times, or
    # from less than a decade on as a linear axis.
    if decades >= _DECADES:
        return {"nticks": min(most, math.ceil(decades)), "exponentformat": "power"}
    shape = "~e" if _powers(axis.limits) else "~g"
    return {"nticks": max(3, round(decades / 0.5)), "tickformat": shape}


def _given(axis: Axis, most: float) -> dict[str, Any]:
    kept = axis.ticks
    # Labels that would touch: every second, third … is enough.
    if len(kept) > max(2, most * 2):
        kept = kept[:: math.ceil(len(kept) / max(2, most * 2))]
    return {
        "tickmode": "array",
        "tickvals": [value for value, _ in kept],
        "ticktext": [text(label) for _, label in kept],
    }


def _readable_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return powers of ten between `low` and `high`; where they are few, also 2 and 5 times."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**e for e in exponents]
    inside = [p for p in powers if low * (1 - 1e-9) <= p <= high * (1 + 1e-9)]
    if len(inside) < 3:
        inside = [m * p for p in powers for m in (1, 2, 5) if low <= m * p <= high]
    return tuple(inside) if len(inside) > 1 else (low, high)


def _tick(value: float, powers: bool, log: bool) -> str:
    if log and value > 0 and math.log10(value) == round(math.log10(value)):
        return style.power_of_ten(value)
    return style.tick(value, powers)


def _powers(limits: tuple[float, float]) -> bool:
    return not 2e-3 <= max(map(abs, limits)) < 1e5
