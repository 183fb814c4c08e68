"""Marks of a panel as Plotly's traces, shapes and annotations, all plain dictionaries.

Names of runs and modules are data. `text` makes of them what Plotly shows as it stands; raw they
only travel in ``customdata[0]`` and ``[1]``, to which no template refers.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectra.figures import style
from spectra.figures.chart import (
    Axis,
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
    Pick,
    Rule,
    Zone,
)
from spectra.figures.selection import clean

PIXELS_PER_POINT = 1.5
# Beyond the panel's edge by this many of its widths: further than anyone zooms out.
_FAR = 1000.0
_FAR_LOG = 10.0
_SHADES = 256
_GREY = "#888888"
_RIM = 2.0
# An invisible point is found by a pointer within this many pixels.
_REACH = 10


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
    bar : ColourBar or None
    """

    x: str
    y: str
    panel: Panel
    dark: bool
    size: float
    bar: ColourBar | None

    @property
    def axes(self) -> dict[str, str]:
        """The axes of a trace."""
        return {"xaxis": self.x, "yaxis": self.y}

    @property
    def ground(self) -> str:
        """The colour behind the panel."""
        return ground(self.dark)


def ground(dark: bool) -> str:
    """Return the colour behind everything."""
    return "#0e1117" if dark else "#ffffff"


def text(name: str, whole: bool = False) -> str:
    """Return text that Plotly shows as it stands.

    Plotly reads tags everywhere, and ``%{…}`` in what a pointer shows.
    """
    return html.escape(name if whole else clean(name), quote=False).replace("%{", "%&#123;")


def draw_marks(place: Place) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Any]]:
    """Return the traces, shapes and annotations of a panel, lowest first."""
    traces: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for mark in _merged(place.panel.marks):
        if isinstance(mark, list):
            traces += _lines(mark, place)
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


def _merged(marks: Iterable[Mark]) -> Iterator[Mark | list[Line]]:
    """Yield the marks; of lines that follow one another, those of one look together."""
    looks: dict[Any, list[Line]] = {}
    for mark in marks:
        if isinstance(mark, Line):
            looks.setdefault(_look(mark), []).append(mark)
            continue
        yield from looks.values()
        looks = {}
        yield mark
    yield from looks.values()


def _look(line: Line) -> tuple[Any, ...]:
    columns = tuple(name for name, _ in line.hover.columns) if line.hover else None
    return (
        line.ink, line.width, line.dash, line.opacity, line.marker or len(line.x) == 1, line.rim,
        line.entry, line.hover is None, columns, line.pick is None,
    )  # fmt: skip


def _lines(lines: Sequence[Line], place: Place) -> list[dict[str, Any]]:
    first = lines[0]
    x, y = _joined([line.x for line in lines]), _joined([line.y for line in lines])
    colour = style.colour(first.ink, place.dark)
    symbol = first.marker or ("circle" if len(first.x) == 1 else "")
    width = first.width * PIXELS_PER_POINT
    common = place.axes | {"type": "scatter", "x": x, "y": y, "showlegend": False}
    if first.entry:
        common["legendgroup"] = first.entry
    traces = []
    if first.rim:
        traces.append(
            common
            | {
                "mode": "lines+markers" if symbol else "lines",
                "line": {"color": place.ground, "width": width + _RIM},
                "marker": {"symbol": symbol or "circle", "color": place.ground, "size": 9},
                "opacity": 0.8,
                "hoverinfo": "skip",
            }
        )
    trace = common | {
        "mode": "lines",
        "line": {"color": colour, "width": width, "dash": first.dash},
        "opacity": first.opacity,
    }
    if symbol:
        trace |= {"mode": "lines+markers", "marker": {"symbol": symbol, "color": colour, "size": 7}}
    if first.pick is not None and not symbol:
        # Plotly selects markers and texts only: invisible ones, of which it need not draw more
        # than one to find all.
        trace |= {
            "mode": "lines+markers",
            "marker": {"opacity": 0, "size": _REACH, "maxdisplayed": 1},
        }
    if first.hover is None:
        trace["hoverinfo"] = "skip"
    else:
        heads = [text(line.hover.head) if line.hover else "" for line in lines]
        columns = [
            (name, _joined([line.hover.columns[k][1] for line in lines if line.hover]))
            for k, (name, _) in enumerate(first.hover.columns)
        ]
        counts = [len(line.x) for line in lines]
        if len(set(heads)) == 1:
            shown = heads[0]
        else:
            shown = "%{text}"
            trace["text"] = _repeated(heads, counts)
        data, template = _hover(shown, columns, place.panel, 0 if first.pick is None else 4)
        trace["hovertemplate"] = template
        if first.pick is not None:
            trace["customdata"] = _custom([line.pick for line in lines if line.pick], counts, data)
        elif data:
            trace["customdata"] = [list(row) for row in zip(*data, strict=True)]
    if first.hover is None and first.pick is not None:
        trace["customdata"] = _custom(
            [line.pick for line in lines if line.pick], [len(line.x) for line in lines], []
        )
        trace["hoverinfo"] = "none"
    return [*traces, trace]


def _joined(parts: Sequence[Floats]) -> Floats:
    """Return the parts one after the other, with a gap between them."""
    if len(parts) == 1:
        return np.asarray(parts[0], dtype=float)
    gap = np.array([np.nan])
    with_gaps = [piece for part in parts for piece in (part, gap)]
    return np.concatenate(with_gaps[:-1]).astype(float)


def _repeated(words: Sequence[str], counts: Sequence[int]) -> list[str]:
    found: list[str] = []
    for word, count in zip(words, counts, strict=True):
        found += [word] * count
        found.append("")
    return found[:-1]


def _custom(
    picks: Sequence[Pick], counts: Sequence[int], columns: Sequence[Sequence[Any]]
) -> list[list[Any]]:
    """Return run, module, layer, step and the columns of every point, and of gaps nothing."""
    rows: list[list[Any]] = []
    for pick, count in zip(picks, counts, strict=True):
        if rows:
            rows.append([])
        rows += [
            [pick.run, pick.module, layer, step]
            for layer, step in zip(pick.layers, pick.steps, strict=True)
        ]
        assert len(pick.layers) == count
    if columns:
        for row, *values in zip(rows, *columns, strict=True):
            if row:
                row += values
    return rows


def _hover(
    head: str, columns: Sequence[tuple[str, Floats]], panel: Panel, offset: int
) -> tuple[list[list[str]], str]:
    """Return the columns as texts, and the template of what a pointer shows."""
    rows = [f"<b>{head}</b>", _reading(panel.x, "x"), _reading(panel.y, "y")]
    data = []
    for k, (name, values) in enumerate(columns):
        rows.append(f"{text(name)} %{{customdata[{offset + k}]}}")
        data.append([_number(v) for v in values.tolist()])
    return data, "<br>".join(rows) + "<extra></extra>"


def _reading(axis: Axis, name: str) -> str:
    form = ":d" if axis.integer else ":.4~g"
    return f"{text(axis.symbol)} %{{{name}{form}}}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "not computed"
    if math.isinf(value):
        return "∞" if value > 0 else "\N{MINUS SIGN}∞"
    return (
        f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.4g}"
    ).replace("-", "\N{MINUS SIGN}")


def _band(band: Band, place: Place) -> dict[str, Any]:
    colour = style.colour(band.ink, place.dark)
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    there = np.isfinite(band.low) & np.isfinite(band.high)
    x, low, high = band.x[there], band.low[there], band.high[there]
    trace = place.axes | {
        "type": "scatter",
        "x": np.concatenate([x, x[::-1]]),
        "y": np.concatenate([high, low[::-1]]),
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},{band.opacity:g})",
        "showlegend": False,
        "hoverinfo": "skip",
    }
    return trace | ({"legendgroup": band.entry} if band.entry else {})


def _numbers(mark: Numbers, place: Place) -> dict[str, Any]:
    slant, weight, _ = style.lettering(mark.lettering)
    anchors = style.map_colours(mark.map, place.dark)
    shades = [style.blend(anchors, i / (_SHADES - 1)) for i in range(_SHADES)]
    places = np.nan_to_num(np.clip(mark.places, 0.0, 1.0), nan=1.0)
    size = (mark.size or place.size) * PIXELS_PER_POINT
    trace = place.axes | {
        "type": "scatter",
        "mode": "text",
        "x": mark.x,
        "y": mark.y,
        "text": [text(t) for t in mark.texts],
        "textfont": {
            "size": size,
            "style": slant,
            "weight": weight,
            "color": (
                style.colour(mark.ink, place.dark)
                if mark.ink
                else [shades[i] for i in np.rint(places * (_SHADES - 1)).astype(int).tolist()]
            ),
        },
        "showlegend": False,
    }
    if mark.entry:
        trace["legendgroup"] = mark.entry
    data: list[list[str]] = []
    if mark.hover is None:
        trace["hoverinfo"] = "skip" if mark.pick is None else "none"
    else:
        data, template = _hover(
            text(mark.hover.head), mark.hover.columns, place.panel, 0 if mark.pick is None else 4
        )
        trace["hovertemplate"] = template
    if mark.pick is not None:
        trace["customdata"] = _custom([mark.pick], [len(mark.x)], data)
    elif data:
        trace["customdata"] = [list(row) for row in zip(*data, strict=True)]
    return trace


def _heat(heat: Heat, place: Place) -> list[dict[str, Any]]:
    values = np.asarray(heat.values, dtype=float)
    log = place.bar is not None and place.bar.log
    colours = values
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            colours = np.log10(values)
    if place.bar is not None:
        # What lies beyond the bar has the colour of its end.
        low, high = bar_limits(place.bar)
        colours = np.clip(colours, low, high)
    head = f"<b>{text(heat.head)}</b><br>" if heat.head else ""
    template = (
        f"{head}{_reading(place.panel.x, 'x')}<br>{_reading(place.panel.y, 'y')}<br>"
        f"{text(heat.symbol)} %{{customdata:.4~g}}<extra></extra>"
    )
    trace = place.axes | {
        "type": "heatmap",
        "x": heat.x,
        "y": heat.y,
        "z": np.where(np.isfinite(colours), colours, np.nan),
        "customdata": values,
        "coloraxis": "coloraxis",
        "hoverongaps": False,
        "hovertemplate": template,
    }
    if heat.pick is None:
        return [trace]
    trace["hoverinfo"] = "skip"
    del trace["hovertemplate"], trace["customdata"]
    # Plotly's heat maps are not selectable: invisible points at the cells' middles are.
    rows, columns = np.nonzero(np.isfinite(values) | np.isinf(values))
    layers, steps = heat.pick.layers, heat.pick.steps
    picks = [
        [heat.pick.run, heat.pick.module, layers[i], steps[j], _number(value)]
        for i, j, value in zip(
            rows.tolist(), columns.tolist(), values[rows, columns].tolist(), strict=True
        )
    ]
    points = place.axes | {
        "type": "scatter",
        "mode": "markers",
        "x": np.asarray(heat.x)[columns],
        "y": np.asarray(heat.y)[rows],
        "marker": {"opacity": 0, "size": _REACH, "maxdisplayed": 1},
        "customdata": picks,
        "hovertemplate": template.replace("%{customdata:.4~g}", "%{customdata[4]}"),
        "showlegend": False,
    }
    return [trace, points]


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
        "xref": place.x, "yref": place.y, "line": {"color": _GREY, "width": 0.8},
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
