"""Charts drawn by Plotly, for the screen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import plotly.graph_objects as go

from spectra.figures import style
from spectra.figures.chart import Chart, Entry, Ink, Inset
from spectra.figures.screen_axes import colour_axis, dress, named
from spectra.figures.screen_hover import text
from spectra.figures.screen_layout import (
    BUTTONS,
    FONT,
    FONT_SIZE,
    PIXELS_PER_POINT,
    SMALL_FONT_SIZE,
    Plan,
    clean_line,
    number_size,
    plan,
    title_lines,
)
from spectra.figures.screen_marks import GREY, Place, draw_marks, ground, has_rims, shades_for


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
        As wide as the place it is shown in, and as high as its panels need. Of a mark with a
        `Pick`, the first four entries of a point's ``customdata`` are run, module, layer and step,
        as they are: to show them is not safe, to look them up is.

    Raises
    ------
    ValueError
        If the chart has no panel.
    """
    if not chart.panels:
        raise ValueError("The chart has no panel to draw.")
    grid = plan(chart)
    layout = _layout(chart, grid, dark)
    traces = [_legend_trace(entry, dark) for entry in chart.entries]
    size, shades = number_size(chart, grid), shades_for(chart.panels)
    rims = has_rims(chart.panels)
    for index, panel in enumerate(chart.panels):
        x, y = _add_axes(layout, chart, grid, index, dark)
        _add_marks(traces, layout, Place(x, y, panel, dark, size, shades, rims, chart.bar))
    # Axes that come later are drawn above the earlier ones.
    for index, panel in enumerate(chart.panels):
        if panel.inset is not None:
            number = len(chart.panels) + index
            x, y = _add_inset(layout, grid, index, number, panel.inset, dark)
            inner = panel.inset.panel
            _add_marks(traces, layout, Place(x, y, inner, dark, size, shades, rims, chart.bar))
    if chart.bar is not None and chart.bar.limits[0] < chart.bar.limits[1]:
        traces.append(_bar_trace())
    # Names last, so that a figure drawn again keeps what is hidden though traces came or went.
    counts: Counter[str] = Counter()
    for trace in traces:
        kind = " ".join(trace.get(key, "") for key in ("xaxis", "legendgroup", "type", "mode"))
        counts[kind] += 1
        trace["uid"] = f"{kind} {counts[kind]}"
    # Every property is written in these files, and a test holds them against Plotly's schema: to
    # check each one here takes longer than all else together.
    return go.Figure({"data": traces, "layout": layout}, _validate=False)


def _layout(chart: Chart, grid: Plan, dark: bool) -> dict[str, Any]:
    ink = style.colour(Ink("text"), dark)
    font = {"family": FONT, "size": FONT_SIZE, "color": ink}
    layout: dict[str, Any] = {
        "template": {},
        "height": grid.height,
        "margin": {"l": grid.left, "r": grid.right, "t": grid.top, "b": grid.bottom},
        "paper_bgcolor": ground(dark),
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": font,
        "hovermode": "closest",
        "dragmode": "zoom",
        "hoverlabel": {
            "align": "left",
            "bgcolor": "#262730" if dark else "#ffffff",
            "bordercolor": GREY,
            "font": font,
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "yref": "container",
            "y": 1 - BUTTONS / grid.height,
            "yanchor": "top",
            "bgcolor": "rgba(0,0,0,0)",
            "font": {"size": SMALL_FONT_SIZE},
            "tracegroupgap": 0,
            "itemwidth": 36,
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#999999", "activecolor": ink},
        # The same zoom and the same hidden entries stay when a growing run is drawn again.
        "uirevision": "spectra",
        "shapes": [],
        "annotations": [],
    }
    if grid.caption:
        layout["annotations"].append(
            {
                "text": "<br>".join(text(line, whole=True) for line in grid.caption),
                "showarrow": False,
                "align": "left",
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "xshift": 8 - grid.left,
                "y": 0,
                "yref": "paper",
                "yanchor": "top",
                "yshift": -(grid.under + 2),
                "font": {"size": SMALL_FONT_SIZE, "color": "#aaaaaa" if dark else "#555555"},
            }
        )
    if chart.bar is not None:
        layout["coloraxis"] = colour_axis(chart.bar, dark)
    return layout


def _add_marks(traces: list[dict[str, Any]], layout: dict[str, Any], place: Place) -> None:
    drawn, shapes, notes = draw_marks(place)
    traces += drawn
    layout["shapes"] += shapes
    layout["annotations"] += notes


def _add_axes(
    layout: dict[str, Any], chart: Chart, grid: Plan, index: int, dark: bool
) -> tuple[str, str]:
    """Add a panel's axes and title to the layout, and return the axes' names."""
    panel = chart.panels[index]
    number = "" if index == 0 else str(index + 1)
    across, up = grid.domain(index)
    at_left, at_bottom = grid.at_left(index), grid.at_bottom(index, len(chart.panels))
    x = dress(panel.x, "x", grid.panel_width, dark) | {"domain": across, "anchor": f"y{number}"}
    y = dress(panel.y, "y", grid.panel_height, dark) | {"domain": up, "anchor": f"x{number}"}
    if at_bottom or not grid.x_outside:
        x["title"] = named(panel.x.label, grid.panel_width)
    if at_left or not grid.y_outside:
        y["title"] = named(panel.y.label, grid.panel_height)
    if chart.link_x:
        x |= {"showticklabels": at_bottom} | ({"matches": "x"} if index else {})
    if chart.link_y:
        y |= {"showticklabels": at_left} | ({"matches": "y"} if index else {})
    if panel.square:
        y |= {"scaleanchor": f"x{number}", "scaleratio": 1, "constrain": "domain"}
        x["constrain"] = "domain"
    layout[f"xaxis{number}"], layout[f"yaxis{number}"] = x, y
    lines = title_lines(panel.title, grid.panel_width)
    if lines:
        layout["annotations"].append(
            {
                "text": "<br>".join(text(line, whole=True) for line in lines),
                "hovertext": text(clean_line(panel.title), whole=True),
                "showarrow": False,
                "x": 0.5,
                "xref": f"x{number} domain",
                "xanchor": "center",
                "y": 1,
                "yref": f"y{number} domain",
                "yanchor": "bottom",
                "font": {"size": FONT_SIZE + 1},
            }
        )
    return f"x{number}", f"y{number}"


def _add_inset(
    layout: dict[str, Any], grid: Plan, index: int, number: int, inset: Inset, dark: bool
) -> tuple[str, str]:
    """Put an inset's axes and ground into a panel and return the axes' names."""
    (x0, x1), (y0, y1) = grid.domain(index)
    left, bottom, width, height = inset.place
    x, y = f"x{number + 1}", f"y{number + 1}"
    framed = {
        "showline": True,
        "mirror": True,
        "linecolor": GREY,
        "linewidth": 0.8,
        "tickfont": {"size": 10},
    }
    layout[f"xaxis{number + 1}"] = {
        **dress(inset.panel.x, "x", width * grid.panel_width, dark),
        **framed,
        "domain": [x0 + left * (x1 - x0), x0 + (left + width) * (x1 - x0)],
        "anchor": y,
    }
    layout[f"yaxis{number + 1}"] = {
        **dress(inset.panel.y, "y", height * grid.panel_height, dark),
        **framed,
        "domain": [y0 + bottom * (y1 - y0), y0 + (bottom + height) * (y1 - y0)],
        "anchor": x,
    }
    layout["shapes"].append(
        {
            "type": "rect",
            "x0": 0,
            "x1": 1,
            "y0": 0,
            "y1": 1,
            "xref": f"{x} domain",
            "yref": f"{y} domain",
            "fillcolor": ground(dark),
            "opacity": 0.85,
            "line": {"width": 0},
            "layer": "below",
        }
    )
    return x, y


def _legend_trace(entry: Entry, dark: bool) -> dict[str, Any]:
    colour = style.colour(entry.ink, dark)
    name = text(entry.name)
    slant, weight, _ = style.lettering(entry.lettering)
    if slant == "italic":
        name = f"<i>{name}</i>"
    if weight == "bold":
        name = f"<b>{name}</b>"
    line = entry.width > 0
    trace: dict[str, Any] = {
        "type": "scatter",
        "x": [None],
        "y": [None],
        "name": name,
        "legendgroup": entry.key,
        "showlegend": True,
        "mode": ("lines+markers" if entry.marker else "lines") if line else "markers",
        "line": {"color": colour, "width": entry.width * PIXELS_PER_POINT, "dash": entry.dash},
        "hoverinfo": "skip",
    }
    if entry.marker or not line:
        trace["marker"] = {"symbol": entry.marker or "circle", "color": colour, "size": 7}
    return trace


def _bar_trace() -> dict[str, Any]:
    # Text has no colour scale of its own: an empty trace carries the bar.
    return {
        "type": "scatter",
        "x": [None],
        "y": [None],
        "mode": "markers",
        "showlegend": False,
        "hoverinfo": "skip",
        "marker": {"color": [0], "coloraxis": "coloraxis"},
    }
