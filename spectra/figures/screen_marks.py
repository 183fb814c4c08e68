"""Marks of a panel as Plotly's traces, shapes and annotations, all plain dictionaries."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectra.figures import style
from spectra.figures.chart import (
    Axis,
    Band,
    ColourBar,
    Frame,
    Heat,
    Ink,
    Line,
    Map,
    Mark,
    Note,
    Numbers,
    Panel,
    Rule,
    Zone,
)
from spectra.figures.screen_hover import PICKED, joined, readable, reading, shared, text, told
from spectra.figures.screen_layout import PIXELS_PER_POINT

# Beyond the panel's edge by this many of its widths: further than anyone zooms out.
_FAR = 1000.0
_FAR_LOG = 10.0
_SHADES = 256
GREY = "#888888"
_RIM = 2.0
_MARKER = 7
# Plotly selects markers and texts only. Of these it draws one and yet finds all.
_UNSEEN = {"opacity": 0, "size": 10, "maxdisplayed": 1}
# Measured in Chromium on two cores: 20,000 points are drawn in 0.4 s as 640 traces, in 0.27 s as
# 160, in 0.17 s as 40; as scattergl in software in 1.5 s.
_MOST_TRACES = 160
_MOST_SHADES, _FEWEST_SHADES = 32, 5
_MOST_RIMS = 24


@dataclass(frozen=True)
class Place:
    """Where the marks of a panel go.

    Attributes
    ----------
    x, y : str
        Plotly's names of the axes, such as ``"x2"``.
    panel : Panel
    dark : bool
    size : float
        Of numbers that have none of their own, points.
    shades : int
        Of a colour map, that lines may have.
    rims : bool
        Whether lines that ask for a rim get one.
    bar : ColourBar or None
    """

    x: str
    y: str
    panel: Panel
    dark: bool
    size: float
    shades: int
    rims: bool
    bar: ColourBar | None

    @property
    def ground(self) -> str:
        """The colour behind the panel."""
        return ground(self.dark)


def ground(dark: bool) -> str:
    """Return the colour behind everything."""
    return "#0e1117" if dark else "#ffffff"


def draw_marks(place: Place) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Any]]:
    """Return the traces, shapes and annotations of a panel, lowest first."""
    traces: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for mark in _merged(place.panel.marks, place.shades):
        if isinstance(mark, list):
            traces += _lines(mark, place)
        elif isinstance(mark, Line):
            traces += _lines([mark], place)
        elif isinstance(mark, Band):
            traces.append(_band(mark, place))
        elif isinstance(mark, Numbers):
            traces.append(_numbers(mark, place))
        elif isinstance(mark, Heat):
            traces += _heat(mark, place)
        elif isinstance(mark, Zone):
            shapes += _zone(mark, place)
        elif isinstance(mark, Rule):
            shapes.append(_rule(mark, place))
        elif isinstance(mark, Frame):
            shapes.append(_frame(mark, place))
        else:
            notes.append(_note(mark, place))
    return traces, shapes, notes


def shades_for(panels: Iterable[Panel]) -> int:
    """Return how many shades of a colour map the lines may have, so that they are few traces."""
    lines = list(_lines_of(panels))
    for shades in (_MOST_SHADES, 16, 8):
        if len({(index, _look(line, shades)) for index, line in lines}) <= _MOST_TRACES:
            return shades
    return _FEWEST_SHADES


def has_rims(panels: Iterable[Panel]) -> bool:
    """Whether lines get their rims: a trace each, and in small panels of little use."""
    return sum(line.rim for _, line in _lines_of(panels)) <= _MOST_RIMS


def _lines_of(panels: Iterable[Panel]) -> Iterator[tuple[int, Line]]:
    parts = (p for panel in panels for p in (panel, *([panel.inset.panel] if panel.inset else [])))
    for index, panel in enumerate(parts):
        yield from ((index, mark) for mark in panel.marks if isinstance(mark, Line))


def _merged(marks: Iterable[Mark], shades: int) -> Iterator[Mark | list[Line]]:
    """Yield the marks; of lines that follow one another, those of one look together."""
    looks: dict[Any, list[Line]] = {}
    for mark in marks:
        if isinstance(mark, Line):
            looks.setdefault(_look(mark, shades), []).append(mark)
            continue
        yield from looks.values()
        looks = {}
        yield mark
    yield from looks.values()


def _look(line: Line, shades: int) -> tuple[Any, ...]:
    """Return what lines must have in common to be one trace."""
    columns = tuple(name for name, _ in line.hover.columns) if line.hover else None
    return (
        _shade(line.ink, shades), line.width, line.dash, line.opacity,
        line.marker or len(line.x) == 1, line.rim, line.entry, columns, line.pick is None,
    )  # fmt: skip


def _shade(ink: Ink, shades: int) -> Ink:
    if ink.kind not in ("step", "layer"):
        return ink
    return Ink(ink.kind, round(ink.place * (shades - 1)) / (shades - 1))


def _lines(lines: Sequence[Line], place: Place) -> list[dict[str, Any]]:
    first = lines[0]
    colour = style.colour(_shade(first.ink, place.shades), place.dark)
    symbol = first.marker or ("circle" if len(first.x) == 1 else "")
    width = first.width * PIXELS_PER_POINT
    common = _scatter(place, first.entry) | {
        "x": joined([line.x for line in lines]),
        "y": joined([line.y for line in lines]),
        "mode": ("lines+markers" if symbol else "lines") if first.width else "markers",
    }
    traces = []
    if first.rim and first.width and place.rims:
        rim = {"color": place.ground, "width": width + _RIM}
        traces.append(common | {"mode": "lines", "line": rim, "opacity": 0.8, "hoverinfo": "skip"})
    trace = common | {
        "line": {"color": colour, "width": width, "dash": first.dash},
        "opacity": first.opacity,
    }
    if symbol:
        trace["marker"] = {"symbol": symbol, "color": colour, "size": _MARKER}
        if first.rim:
            trace["marker"]["line"] = {"color": place.ground, "width": 1}
    elif first.pick is not None:
        trace |= {"mode": "lines+markers", "marker": _UNSEEN}
    points = [(line.hover, line.pick, len(line.x)) for line in lines]
    return [*traces, trace | told(points, place.panel)]


def _scatter(place: Place, entry: str) -> dict[str, Any]:
    trace = {"type": "scatter", "xaxis": place.x, "yaxis": place.y, "showlegend": False}
    # A click on the legend hides all that belongs to the entry.
    return trace | ({"legendgroup": entry} if entry else {})


def _band(band: Band, place: Place) -> dict[str, Any]:
    colour = style.colour(band.ink, place.dark)
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    there = np.isfinite(band.low) & np.isfinite(band.high)
    x, low, high = (np.asarray(a, dtype=float)[there] for a in (band.x, band.low, band.high))
    return _scatter(place, band.entry) | {
        "x": np.concatenate([x, x[::-1]]),
        "y": np.concatenate([high, low[::-1]]),
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},{band.opacity:g})",
        "hoverinfo": "skip",
    }


def _numbers(mark: Numbers, place: Place) -> dict[str, Any]:
    slant, weight, _ = style.lettering(mark.lettering)
    shades = _shades(mark.map, place.dark)
    places = np.nan_to_num(np.clip(np.asarray(mark.places, dtype=float), 0.0, 1.0), nan=1.0)
    colours = shades[np.rint(places * (len(shades) - 1)).astype(int)]
    trace = _scatter(place, mark.entry) | {
        "mode": "text",
        "x": np.asarray(mark.x, dtype=float),
        "y": np.asarray(mark.y, dtype=float),
        "text": shared(np.array([text(t) for t in mark.texts], dtype=object)),
        "textfont": {
            "size": (mark.size or place.size) * PIXELS_PER_POINT,
            "style": slant,
            "weight": weight,
            "color": style.colour(mark.ink, place.dark) if mark.ink else shared(colours),
        },
    }
    return trace | told([(mark.hover, mark.pick, len(mark.x))], place.panel)


@functools.cache
def _shades(name: Map, dark: bool) -> NDArray[Any]:
    anchors = style.map_colours(name, dark)
    return np.array([style.blend(anchors, i / (_SHADES - 1)) for i in range(_SHADES)], dtype=object)


def _heat(heat: Heat, place: Place) -> list[dict[str, Any]]:
    values = np.asarray(heat.values, dtype=float)
    colours = values
    if place.bar is not None:
        if place.bar.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                colours = np.log10(values)
        # What lies beyond the bar has the colour of its end.
        colours = np.clip(colours, *bar_limits(place.bar))
    x, y = np.asarray(heat.x, dtype=float), np.asarray(heat.y, dtype=float)
    trace: dict[str, Any] = {
        "type": "heatmap",
        "xaxis": place.x,
        "yaxis": place.y,
        "x": x,
        "y": y,
        "z": colours,
        "coloraxis": "coloraxis",
        "hoverongaps": False,
    }
    head = [f"<b>{text(heat.head)}</b>"] if heat.head else []
    rows = [*head, reading(place.panel.x, "x"), reading(place.panel.y, "y"), text(heat.symbol)]
    template = "<br>".join(rows)
    if heat.pick is None:
        return [
            trace
            | {
                "customdata": values,
                "hovertemplate": f"{template} %{{customdata:.4~g}}<extra></extra>",
            }
        ]
    # Plotly's heat maps are not selectable: invisible points at the cells' middles are.
    across, up = np.meshgrid(np.arange(values.shape[1]), np.arange(values.shape[0]))
    there = ~np.isnan(values)
    custom = np.empty((int(there.sum()), PICKED + 1), dtype=object)
    custom[:, 0], custom[:, 1] = heat.pick.run, heat.pick.module
    custom[:, 2] = np.asarray(heat.pick.layers)[up[there]].tolist()
    custom[:, 3] = np.asarray(heat.pick.steps)[across[there]].tolist()
    custom[:, 4] = readable(values[there])
    points = _scatter(place, "") | {
        "mode": "markers",
        "x": x[across[there]],
        "y": y[up[there]],
        "marker": _UNSEEN,
        "customdata": shared(custom),
        "hovertemplate": f"{template} %{{customdata[{PICKED}]}}<extra></extra>",
    }
    return [trace | {"hoverinfo": "skip"}, points]


def bar_limits(bar: ColourBar) -> tuple[float, float]:
    """Return the ends of a colour bar as they are drawn: logarithms on a logarithmic one."""
    low, high = bar.limits
    return (math.log10(low), math.log10(high)) if bar.log else (low, high)


def _zone(zone: Zone, place: Place) -> list[dict[str, Any]]:
    x0, x1, x_ref = _side(zone.x, place.panel.x, place.x)
    y0, y1, y_ref = _side(zone.y, place.panel.y, place.y)
    colour = style.colour(zone.ink, place.dark)
    across = {"xref": x_ref, "yref": y_ref, "layer": "below"}
    shapes = [
        across
        | {
            "type": "rect", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "fillcolor": colour,
            "opacity": zone.opacity, "line": {"width": 0},
        }
    ]  # fmt: skip
    if zone.edge and zone.y[1] is not None:
        shapes.append(
            across
            | {
                "type": "line", "x0": x0, "x1": x1, "y0": y1, "y1": y1,
                "line": {"color": colour, "width": 1},
            }
        )  # fmt: skip
    return shapes


def _side(
    ends: tuple[float | None, float | None], axis: Axis, name: str
) -> tuple[float, float, str]:
    """Return the two ends of a zone along an axis, and what they refer to."""
    low, high = ends
    if low is None and high is None:
        return 0.0, 1.0, f"{name} domain"
    first, last = min(axis.limits), max(axis.limits)
    if axis.log:
        width = (last / first) ** _FAR_LOG
        below, above = first / width, last * width
    else:
        below, above = first - _FAR * (last - first), last + _FAR * (last - first)
    return (below if low is None else low), (above if high is None else high), name


def _rule(rule: Rule, place: Place) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "type": "line",
        "layer": "below",
        "line": {
            "color": style.colour(rule.ink, place.dark), "dash": rule.dash,
            "width": rule.width * PIXELS_PER_POINT,
        },
    }  # fmt: skip
    if rule.x is not None:
        ends = {"x0": rule.x, "x1": rule.x, "xref": place.x}
        return shape | ends | {"y0": 0, "y1": 1, "yref": f"{place.y} domain"}
    ends = {"y0": rule.y, "y1": rule.y, "yref": place.y}
    return shape | ends | {"x0": 0, "x1": 1, "xref": f"{place.x} domain"}


def _frame(frame: Frame, place: Place) -> dict[str, Any]:
    return {
        "type": "rect", "x0": frame.x[0], "x1": frame.x[1], "y0": frame.y[0], "y1": frame.y[1],
        "xref": place.x, "yref": place.y, "line": {"color": GREY, "width": 0.8},
    }  # fmt: skip


def _note(note: Note, place: Place) -> dict[str, Any]:
    axis = place.panel.y
    at_top = note.y is None
    # On a logarithmic axis shapes take the value, and annotations its logarithm.
    height = 1.0 if note.y is None else math.log10(note.y) if axis.log else note.y
    found = {
        "text": text(note.text, whole=True),
        "showarrow": False,
        "borderpad": 1,
        "x": 0.01 if note.side == "left" else 0.99,
        "xref": f"{place.x} domain",
        "xanchor": note.side,
        "y": height,
        "yref": f"{place.y} domain" if at_top else place.y,
        "yanchor": "bottom" if note.over else "top",
        "font": {"size": 11, "color": "#cccccc" if place.dark else "#444444"},
    }
    return found | ({"hovertext": text(note.reading, whole=True)} if note.reading else {})
