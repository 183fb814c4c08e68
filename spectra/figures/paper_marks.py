"""Every mark of a chart, drawn by Matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.patches import Rectangle

from spectra.figures import style
from spectra.figures.chart import (
    GREY,
    Band,
    ColourBar,
    Floats,
    Frame,
    Heat,
    Line,
    Mark,
    Note,
    Numbers,
    Panel,
    Rule,
    Zone,
)
from spectra.figures.paper_layout import LINE, plain, wrap
from spectra.figures.style import Preset

DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (4, 1.6)),
    "dot": (0, (1, 1.4)),
    "dashdot": (0, (5, 1.6, 1, 1.6)),
    "longdash": (0, (8, 2)),
    "longdashdot": (0, (8, 1.6, 1, 1.6)),
}
MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "x": "X", "": None}
_RIM = 1.1
_HATCH = "#d8d8d8"
NOTE_COLOUR = "#444444"


@dataclass(frozen=True)
class Look:
    """What marks need to know beside themselves.

    Attributes
    ----------
    preset : Preset
    panel : Panel
        The one they stand in.
    width : float
        The panel's width, inches.
    number_size : float
        Points, for numbers without a size of their own.
    bar : ColourBar or None
        The scale of heat maps.
    inset : Axes or None
        What a frame belongs to.
    """

    preset: Preset
    panel: Panel
    width: float
    number_size: float
    bar: ColourBar | None
    inset: Axes | None = None


def draw_marks(axes: Axes, look: Look) -> None:
    """Draw the marks of a panel, later ones above earlier ones."""
    for order, mark in enumerate(look.panel.marks):
        # Between 2 and 3: above the grid, below the axes' own lines and numbers.
        _draw(mark, axes, look, 2 + order / (len(look.panel.marks) + 1))


def colour_scale(bar: ColourBar) -> tuple[Normalize, Colormap]:
    """Return from values to colours what `bar` shows."""
    low, high = bar.limits
    colours = LinearSegmentedColormap.from_list(bar.map, style.map_colours(bar.map))
    return (LogNorm(low, high) if bar.log else Normalize(low, high)), colours


@singledispatch
def _draw(mark: Mark, axes: Axes, look: Look, order: float) -> None:
    raise TypeError(f"{type(mark).__name__} is not a mark of a chart.")


@_draw.register
def _(mark: Line, axes: Axes, look: Look, order: float) -> None:
    x, y = np.asarray(mark.x, float), np.asarray(mark.y, float)
    colour = style.colour(mark.ink)
    if mark.rim:
        axes.plot(x, y, color="white", lw=mark.width + _RIM, alpha=0.8, zorder=order)
    size = 1.6 + 1.2 * mark.width
    axes.plot(
        x, y, color=colour, lw=mark.width, ls=DASHES[mark.dash], alpha=mark.opacity,
        marker=MARKERS[mark.marker], ms=size, mec="white" if mark.rim else colour,
        mew=0.5 if mark.rim else 0.0, zorder=order,
    )  # fmt: skip
    lone = _lone(x, y)
    if not mark.marker and lone.any():
        axes.plot(
            x[lone], y[lone], color=colour, ls="", marker="o", ms=max(2.0, 1.8 * mark.width),
            mew=0.0, alpha=mark.opacity, zorder=order,
        )  # fmt: skip


@_draw.register
def _(mark: Band, axes: Axes, look: Look, order: float) -> None:
    x, low, high = (np.asarray(a, float) for a in (mark.x, mark.low, mark.high))
    colour = style.colour(mark.ink)
    axes.fill_between(x, low, high, color=colour, alpha=mark.opacity, lw=0, zorder=order)
    lone = _lone(x, low + high)
    if lone.any():
        axes.vlines(
            x[lone], low[lone], high[lone], color=colour, lw=2.5,
            alpha=min(1.0, 2 * mark.opacity), zorder=order,
        )  # fmt: skip


@_draw.register
def _(mark: Numbers, axes: Axes, look: Look, order: float) -> None:
    slant, weight, _ = style.lettering(mark.lettering)
    size = look.number_size if mark.size is None else mark.size
    anchors = style.map_colours(mark.map)
    places = np.asarray(mark.places, float)
    shades = {
        place: style.colour(mark.ink) if mark.ink else style.blend(anchors, place)
        for place in np.unique(places)
    }
    xs, ys = np.asarray(mark.x, float), np.asarray(mark.y, float)
    inside = _between(xs, look.panel.x.limits) & _between(ys, look.panel.y.limits)
    for i in np.flatnonzero(inside):
        number = axes.text(
            xs[i], ys[i], plain(mark.texts[i]), color=shades[places[i]], fontsize=size,
            fontstyle=slant, fontweight=weight, ha="center", va="center", clip_on=True,
            zorder=order,
        )  # fmt: skip
        # Thousands of numbers would each be measured for the layout.
        number.set_in_layout(False)


@_draw.register
def _(mark: Heat, axes: Axes, look: Look, order: float) -> None:
    assert look.bar is not None, "a heat map has a colour bar"
    norm, colours = colour_scale(look.bar)
    x, y = (
        cell_edges(np.asarray(a, float), a_log)
        for a, a_log in ((mark.x, look.panel.x.log), (mark.y, look.panel.y.log))
    )
    # What lies beyond the bar has the colour of its end, also 0 on a logarithmic one.
    values = np.ma.masked_invalid(np.clip(np.asarray(mark.values, float), *look.bar.limits))
    if np.ma.getmaskarray(values).any():
        axes.add_patch(
            Rectangle(
                (x[0], y[0]),
                x[-1] - x[0],
                y[-1] - y[0],
                facecolor="white",
                edgecolor=_HATCH,
                hatch="//////",
                lw=0,
                zorder=order,
            )  # fmt: skip
        )
    # As an image within the file: smaller from a hundred cells on (80 layers × 40 steps × 4 panels:
    # 76 KB instead of 328 KB), and without the hairlines that viewers leave between shapes.
    axes.pcolormesh(
        x, y, values, norm=norm, cmap=colours, shading="flat", zorder=order, rasterized=True
    )


@_draw.register
def _(mark: Zone, axes: Axes, look: Look, order: float) -> None:
    (left, right), (low, high) = (
        _inside(ends, axis.limits)
        for ends, axis in ((mark.x, look.panel.x), (mark.y, look.panel.y))
    )
    colour = style.colour(mark.ink)
    axes.add_patch(
        Rectangle(
            (left, low),
            right - left,
            high - low,
            facecolor=colour,
            alpha=mark.opacity,
            lw=0,
            zorder=order,
        )  # fmt: skip
    )
    if mark.edge and mark.y[1] is not None:
        axes.plot((left, right), (high, high), color=colour, lw=0.6, zorder=order)


@_draw.register
def _(mark: Rule, axes: Axes, look: Look, order: float) -> None:
    line = {
        "color": style.colour(mark.ink),
        "ls": DASHES[mark.dash],
        "lw": mark.width,
        "zorder": order,
    }
    if mark.x is not None:
        axes.axvline(mark.x, **line)
    if mark.y is not None:
        axes.axhline(mark.y, **line)


@_draw.register
def _(mark: Frame, axes: Axes, look: Look, order: float) -> None:
    bounds = (mark.x[0], mark.y[0], mark.x[1] - mark.x[0], mark.y[1] - mark.y[0])
    axes.indicate_inset(
        bounds, look.inset, edgecolor=style.colour(GREY), lw=0.4, alpha=0.8,
        zorder=order,
    )  # fmt: skip


@_draw.register
def _(mark: Note, axes: Axes, look: Look, order: float) -> None:
    size = look.preset.small - 0.5
    text = "\n".join(wrap(mark.text, look.width * 0.95, look.preset, size, most=3))
    across = 0.01 if mark.side == "left" else 0.99
    frame: Any = axes.transAxes if mark.y is None else axes.get_yaxis_transform()
    low, high = sorted(look.panel.y.limits)
    height = 1.0 if mark.y is None else min(max(mark.y, low), high)
    axes.annotate(
        text, (across, height), xycoords=frame, xytext=(0, 1.5 if mark.over else -1.5),
        textcoords="offset points", ha=mark.side, va="bottom" if mark.over else "top",
        fontsize=size, color=NOTE_COLOUR, zorder=4, annotation_clip=False, linespacing=LINE,
    ).set_in_layout(False)  # fmt: skip


def cell_edges(middles: Floats, log: bool = False) -> Floats:
    """Return the edges of cells that meet half-way between their middles.

    Parameters
    ----------
    middles : array of shape (n,), ascending
    log : bool
        Whether half-way is meant on a logarithmic axis.

    Returns
    -------
    array of shape (n + 1,)
        The outermost cells reach as far outwards as inwards; a single cell is 1 long.
    """
    places = np.log(middles) if log else middles
    if len(places) == 1:
        edges = np.array([places[0] - 0.5, places[0] + 0.5])
    else:
        half = np.diff(places) / 2
        edges = np.concatenate([[places[0] - half[0]], places[:-1] + half, [places[-1] + half[-1]]])
    return np.exp(edges) if log else edges


def _lone(x: Floats, y: Floats) -> Any:
    """Return which points have no neighbour that a line could join them to."""
    there = np.isfinite(x) & np.isfinite(y)
    padded = np.concatenate([[False], there, [False]])
    return there & ~padded[:-2] & ~padded[2:]


def _between(places: Floats, limits: tuple[float, float]) -> Any:
    low, high = sorted(limits)
    return (places >= low) & (places <= high)


def _inside(
    ends: tuple[float | None, float | None], limits: tuple[float, float]
) -> tuple[float, float]:
    low, high = sorted(limits)
    return (
        low if ends[0] is None else max(ends[0], low),
        high if ends[1] is None else min(ends[1], high),
    )
