"""Charts drawn by Plotly, for the screen."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from spectra.figures import style
from spectra.figures.chart import Axis, Chart, ColourBar, Entry, Inset, Numbers, Panel
from spectra.figures.plotly_marks import (
    PIXELS_PER_POINT,
    Place,
    bar_limits,
    draw_marks,
    ground,
    text,
)

# The narrowest place that a figure is made for: a laptop's 1280 pixels beside a sidebar.
_WIDTH = 880
_LEFT, _RIGHT, _BAR = 64, 20, 78
_FONT = "Source Sans Pro, Helvetica, Arial, sans-serif"
_FONT_SIZE, _SMALL = 13, 12
_PIXELS_PER_CHARACTER = 6.4
# Plotly's buttons stand at the top; the legend begins below them.
_BUTTONS = 26
_LEGEND_LINE, _TITLE_LINE, _CAPTION_LINE = 20, 17, 17
_LEGEND_SAMPLE = 48
_TICKS, _LABEL = 24, 22
_PANEL_HEIGHTS = {1: 440, 2: 320, 3: 270, 4: 220}
_PIXELS_PER_INCH = 72 * PIXELS_PER_POINT
# A screen has fewer dots than paper: below this no digit is told from another.
_SMALLEST = 5.4
_GREY = "#888888"


def draw(chart: Chart, dark: bool = False) -> go.Figure:
    """Draw a chart for the screen.

    Parameters
    ----------
    chart : Chart
    dark : bool
        Colours for a dark background.

    Returns
    -------
    plotly.graph_objects.Figure
        As wide as the place it is shown in, and as high as its panels need.

    Raises
    ------
    ValueError
        If the chart has no panel.
    """
    if not chart.panels:
        raise ValueError("The chart has no panel to draw.")
    grid = _plan(chart)
    layout = _layout(chart, grid, dark)
    traces: list[dict[str, Any]] = [_legend_trace(entry, dark) for entry in chart.entries]
    count = len(chart.panels)
    size = _number_size(chart, grid)
    for index, panel in enumerate(chart.panels):
        name = _axes(layout, chart, grid, index, dark)
        _add(traces, layout, Place(f"x{name}", f"y{name}", panel, dark, size, chart.bar))
    # Axes that come later are drawn above the earlier ones.
    for index, panel in enumerate(chart.panels):
        if panel.inset is not None:
            name = _inset_axes(layout, grid, index, count + index, panel.inset, dark)
            inner = panel.inset.panel
            _add(traces, layout, Place(f"x{name}", f"y{name}", inner, dark, size, chart.bar))
    if chart.bar is not None and chart.bar.limits[0] < chart.bar.limits[1]:
        traces.append(_bar_trace())
    # Every property above is written here: to check each against Plotly's schema takes longer than
    # all else together.
    return go.Figure({"data": traces, "layout": layout}, _validate=False)


@dataclass(frozen=True)
class _Grid:
    """Where the panels stand, in pixels; widths are those of the narrowest place."""

    columns: int
    rows: int
    panel_width: float
    panel_height: float
    gap_x: float
    gap_y: float
    top: float
    bottom: float
    right: float
    titles: int

    @property
    def height(self) -> float:
        inner = self.rows * self.panel_height + (self.rows - 1) * self.gap_y
        return self.top + inner + self.bottom

    def domain(self, index: int) -> tuple[list[float], list[float]]:
        """Return the horizontal and vertical extent of a panel as parts of the plotting area."""
        row, column = divmod(index, self.columns)
        across = self.columns * self.panel_width + (self.columns - 1) * self.gap_x
        up = self.rows * self.panel_height + (self.rows - 1) * self.gap_y
        left = column * (self.panel_width + self.gap_x)
        bottom = up - row * (self.panel_height + self.gap_y) - self.panel_height
        return (
            [left / across, min(1.0, (left + self.panel_width) / across)],
            [max(0.0, bottom / up), min(1.0, (bottom + self.panel_height) / up)],
        )


def columns_for(panels: int) -> int:
    """Return how many panels stand in a row: as many rows as needed, of even length."""
    if panels <= 3:
        return panels
    most = 2 if panels == 4 else 3 if panels <= 6 else 4
    return -(-panels // -(-panels // most))


def _plan(chart: Chart) -> _Grid:
    count = len(chart.panels)
    columns = min(chart.columns or columns_for(count), count)
    rows = -(-count // columns)
    right = _BAR if chart.bar is not None else _RIGHT
    gap_x = 18.0 if chart.link_y else 64.0
    width = (_WIDTH - _LEFT - right - (columns - 1) * gap_x) / columns
    titled = [len(_title(panel.title, width)) for panel in chart.panels]
    titles = max(titled, default=0)
    gap_y = 14.0 + titles * _TITLE_LINE + (0 if chart.link_x else _TICKS + _LABEL)
    below = _TICKS + _LABEL + 8 + len(_caption(chart)) * _CAPTION_LINE
    top = _BUTTONS + _legend_rows(chart) * _LEGEND_LINE + titles * _TITLE_LINE + 8
    height = _PANEL_HEIGHTS.get(columns, 220)
    return _Grid(columns, rows, width, height, gap_x, gap_y, top, below, right, titles)


def _legend_rows(chart: Chart) -> int:
    if not chart.entries:
        return 0
    widest = max(len(text(entry.name)) for entry in chart.entries)
    each = _LEGEND_SAMPLE + widest * _PIXELS_PER_CHARACTER
    return -(-len(chart.entries) // max(1, int((_WIDTH - _LEFT - _RIGHT) / each)))


def _caption(chart: Chart) -> list[str]:
    return textwrap.wrap(chart.caption, int((_WIDTH - _LEFT) / _PIXELS_PER_CHARACTER))


def _title(title: str, width: float) -> list[str]:
    room = max(8, int(width / _PIXELS_PER_CHARACTER))
    return textwrap.wrap(title, room, max_lines=2, placeholder="…")


def _number_size(chart: Chart, grid: _Grid) -> float:
    fullest = max(
        (
            sum(len(m.x) for m in part.marks if isinstance(m, Numbers))
            for panel in chart.panels
            for part in (panel, *([panel.inset.panel] if panel.inset else []))
        ),
        default=0,
    )
    area = grid.panel_width * grid.panel_height / _PIXELS_PER_INCH**2
    return max(_SMALLEST, style.number_size(fullest, area))


def _layout(chart: Chart, grid: _Grid, dark: bool) -> dict[str, Any]:
    ink = "#e8e8e8" if dark else "#222222"
    layout: dict[str, Any] = {
        "template": {},
        "height": grid.height,
        "margin": {"l": _LEFT, "r": grid.right, "t": grid.top, "b": grid.bottom},
        "paper_bgcolor": ground(dark),
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": _FONT_SIZE, "color": ink},
        "hovermode": "closest",
        "hoverlabel": {
            "align": "left",
            "bgcolor": "#262730" if dark else "#ffffff",
            "bordercolor": _GREY,
            "font": {"family": _FONT, "size": _FONT_SIZE, "color": ink},
        },
        "legend": {
            "orientation": "h", "x": 0, "xanchor": "left", "yref": "container",
            "y": 1 - _BUTTONS / grid.height, "yanchor": "top", "bgcolor": "rgba(0,0,0,0)",
            "font": {"size": _SMALL}, "itemsizing": "trace", "tracegroupgap": 0,
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#999999", "activecolor": ink},
        # The same zoom and the same hidden entries stay when a growing run is drawn again.
        "uirevision": "spectra",
        "shapes": [],
        "annotations": [],
    }  # fmt: skip
    lines = _caption(chart)
    if lines:
        layout["annotations"].append(
            {
                "text": "<br>".join(text(line, whole=True) for line in lines),
                "showarrow": False, "align": "left", "x": 0, "xref": "paper", "xanchor": "left",
                "xshift": 8 - _LEFT, "y": 0, "yref": "paper", "yanchor": "top",
                "yshift": -(_TICKS + _LABEL), "font": {"size": _SMALL, "color": _faint(dark)},
            }
        )  # fmt: skip
    if chart.bar is not None:
        layout["coloraxis"] = _colour_axis(chart.bar, dark)
    return layout


def _add(traces: list[dict[str, Any]], layout: dict[str, Any], place: Place) -> None:
    drawn, shapes, notes = draw_marks(place)
    traces += drawn
    layout["shapes"] += shapes
    layout["annotations"] += notes


def _axes(layout: dict[str, Any], chart: Chart, grid: _Grid, index: int, dark: bool) -> str:
    """Add a panel's axes and title to the layout, and return the number in their names."""
    panel = chart.panels[index]
    name = "" if index == 0 else str(index + 1)
    across, up = grid.domain(index)
    at_left = index % grid.columns == 0
    at_bottom = index + grid.columns >= len(chart.panels)
    x = _axis(panel.x, grid.panel_width, dark) | {"domain": across, "anchor": f"y{name}"}
    y = _axis(panel.y, grid.panel_height, dark) | {"domain": up, "anchor": f"x{name}"}
    if at_bottom or not chart.link_x:
        x["title"] = _axis_title(panel.x.label, grid.panel_width)
    else:
        x["showticklabels"] = False
    if at_left or not chart.link_y:
        y["title"] = _axis_title(panel.y.label, grid.panel_height)
    else:
        y["showticklabels"] = False
    if index and chart.link_x:
        x["matches"] = "x"
    if index and chart.link_y:
        y["matches"] = "y"
    if panel.square:
        y |= {"scaleanchor": f"x{name}", "scaleratio": 1, "constrain": "domain"}
        x["constrain"] = "domain"
    layout[f"xaxis{name}"], layout[f"yaxis{name}"] = x, y
    lines = _title(panel.title, grid.panel_width)
    if lines:
        layout["annotations"].append(
            {
                "text": "<br>".join(text(line, whole=True) for line in lines),
                "hovertext": text(panel.title, whole=True), "showarrow": False,
                "x": 0.5, "xref": f"x{name} domain", "xanchor": "center",
                "y": 1, "yref": f"y{name} domain", "yanchor": "bottom",
                "font": {"size": _FONT_SIZE + 1},
            }
        )  # fmt: skip
    return name


def _inset_axes(
    layout: dict[str, Any], grid: _Grid, index: int, number: int, inset: Inset, dark: bool
) -> str:
    """Put an inset's axes and ground into a panel and return the number in their names."""
    (x0, x1), (y0, y1) = grid.domain(index)
    left, bottom, width, height = inset.place
    name = str(number + 1)
    framed = {
        "showline": True, "mirror": True, "linecolor": _GREY, "linewidth": 0.8,
        "tickfont": {"size": 10}, "title": {"text": ""},
    }  # fmt: skip
    panel: Panel = inset.panel
    layout[f"xaxis{name}"] = (
        _axis(panel.x, width * grid.panel_width, dark)
        | framed
        | {
            "domain": [x0 + left * (x1 - x0), x0 + (left + width) * (x1 - x0)],
            "anchor": f"y{name}",
        }
    )
    layout[f"yaxis{name}"] = (
        _axis(panel.y, height * grid.panel_height, dark)
        | framed
        | {
            "domain": [y0 + bottom * (y1 - y0), y0 + (bottom + height) * (y1 - y0)],
            "anchor": f"x{name}",
        }
    )
    layout["shapes"].append(
        {
            "type": "rect", "x0": 0, "x1": 1, "y0": 0, "y1": 1, "xref": f"x{name} domain",
            "yref": f"y{name} domain", "fillcolor": ground(dark), "opacity": 0.85,
            "line": {"width": 0}, "layer": "below",
        }
    )  # fmt: skip
    return name


def _axis(axis: Axis, pixels: float, dark: bool) -> dict[str, Any]:
    low, high = axis.limits
    found: dict[str, Any] = {
        "range": [math.log10(low), math.log10(high)] if axis.log else [low, high],
        "gridcolor": "#30343d" if dark else "#ececec",
        "zeroline": False,
        "tickfont": {"size": _SMALL},
        # A zoom belongs to a quantity: it stays while a run grows, and goes when another is drawn.
        "uirevision": f"{axis.label} {axis.log}",
    }
    if axis.ticks:
        return found | {
            "tickmode": "array",
            "tickvals": [value for value, _ in axis.ticks],
            "ticktext": [text(label) for _, label in axis.ticks],
        }
    if axis.log:
        return found | {"type": "log", "exponentformat": "power", "dtick": 1}
    largest = max(abs(low), abs(high))
    found |= {
        "nticks": max(3, min(8, int(pixels / 55))),
        # All ticks of an axis share one exponent, and have none between 0.001 and 99999.
        "exponentformat": "e",
        "minexponent": 4 if largest >= 1 else 3,
    }
    if axis.integer and abs(high - low) <= 8:
        found["dtick"] = 1
    return found


def _axis_title(label: str, room: float) -> dict[str, Any]:
    return {
        "text": text(label, whole=True),
        "standoff": 6,
        "font": {"size": _FONT_SIZE},
    }


def _legend_trace(entry: Entry, dark: bool) -> dict[str, Any]:
    colour = style.colour(entry.ink, dark)
    name = text(entry.name)
    slant, weight, _ = style.lettering(entry.lettering)
    if slant == "italic":
        name = f"<i>{name}</i>"
    if weight == "bold":
        name = f"<b>{name}</b>"
    trace: dict[str, Any] = {
        "type": "scatter", "x": [None], "y": [None], "name": name, "legendgroup": entry.key,
        "showlegend": True, "mode": "lines+markers" if entry.marker else "lines",
        "line": {"color": colour, "width": entry.width * PIXELS_PER_POINT, "dash": entry.dash},
        "hoverinfo": "skip",
    }  # fmt: skip
    if entry.marker:
        trace["marker"] = {"symbol": entry.marker, "color": colour, "size": 7}
    return trace


def _bar_trace() -> dict[str, Any]:
    # Text has no colour scale of its own: an empty trace carries the bar.
    return {
        "type": "scatter", "x": [None], "y": [None], "mode": "markers", "showlegend": False,
        "hoverinfo": "skip", "marker": {"color": [0], "coloraxis": "coloraxis"},
    }  # fmt: skip


def _colour_axis(bar: ColourBar, dark: bool) -> dict[str, Any]:
    low, high = bar_limits(bar)
    anchors = style.map_colours(bar.map, dark)
    shown: dict[str, Any] = {
        "title": {"text": text(bar.label, whole=True), "side": "right"},
        "thickness": 12, "outlinewidth": 0, "x": 1.01, "len": 1.0, "tickfont": {"size": _SMALL},
        "exponentformat": "e", "minexponent": 3,
    }  # fmt: skip
    if bar.ticks:
        shown["tickvals"] = [math.log10(t) if bar.log else t for t in bar.ticks]
        if bar.log:
            shown["ticktext"] = [f"{t:g}" for t in bar.ticks]
    elif bar.log:
        powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        shown["tickvals"] = list(powers)
        shown["ticktext"] = [style.power_of_ten(10.0**p) for p in powers]
    elif bar.integer and high - low <= 8:
        shown["dtick"] = 1
    return {
        "cmin": low,
        "cmax": high,
        "colorscale": [[i / (len(anchors) - 1), c] for i, c in enumerate(anchors)],
        "colorbar": shown,
    }


def _faint(dark: bool) -> str:
    return "#aaaaaa" if dark else "#555555"
