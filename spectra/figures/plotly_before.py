"""Descriptions drawn by Plotly, for screen."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spectra.figures import style
from spectra.figures.labels import Label, label_of
from spectra.figures.noise import NoiseBand
from spectra.figures.selection import clean
from spectra.figures.step_curves import Curve, LayerCurves, RunCurves
from spectra.figures.trajectories import Limits, Trajectory, TrajectoryPanel

_GREY = "#888888"
_NOISE: dict[str, Any] = {
    "type": "rect", "fillcolor": _GREY, "opacity": 0.22, "line_width": 0, "layer": "below",
}  # fmt: skip
_CAPTION_CHARACTERS = 150
_TOP, _BOTTOM = 76, 64
_CAPTION_LINE_PIXELS = 17
# A panel of this many pixels stands for the area in which layer numbers must fit.
_PANEL_INCHES = (5.0, 3.6)
_PIXELS_PER_POINT = 1.5
_SMALLEST = 5.4


def draw_trajectory(description: Trajectory, dark: bool = False) -> go.Figure:
    """Draw ΔΣ against ΔD, with the numbers, steps and κ of a point on hover."""
    count = len(description.panels)
    columns = style.columns_for(count, style.SCREEN_COLUMNS)
    figure = _panels([p.title for p in description.panels], 520 if count == 1 else 380)
    area = _PANEL_INCHES[0] * _PANEL_INCHES[1] * 2 / columns
    # A screen has fewer dots than paper: below this no digit is told from another.
    size = max(_SMALLEST, style.number_size(max(p.numbers for p in description.panels), area))
    seen: set[str] = set()
    for i, panel in enumerate(description.panels):
        x, y = _axis_names(i)
        # Where an inset shows the numbers, the small view shows the paths alone.
        numbers = None if panel.inset else size
        _draw_panel(figure, panel, description, (x, y), panel.limits, numbers, dark, seen)
    for i, panel in enumerate(description.panels):
        if panel.inset:
            names = _add_inset(figure, panel, i, count)
            _draw_panel(figure, panel, description, names, panel.inset, size * 0.9, dark, seen)
    if description.shared:
        for i in range(1, count):
            figure.layout[f"xaxis{i + 1}"].matches = "x"
            figure.layout[f"yaxis{i + 1}"].matches = "y"
    _outer_titles(figure, count, label_of("delta_sigma").axis, label_of("delta_d").axis)
    _colour_bar(figure, style.step_colours(dark), description.steps, "step")
    return _finished(figure, description.caption, dark)


def draw_layer_curves(description: LayerCurves, dark: bool = False) -> go.Figure:
    """Draw a column over the steps, a panel a run, with layer and value on hover."""
    count = len(description.panels)
    figure = _panels([p.title for p in description.panels], 460 if count == 1 else 340)
    anchors = style.layer_colours(dark)
    seen: set[str] = set()
    for i, panel in enumerate(description.panels):
        x, y = _axis_names(i)
        for module, layer, curve in panel.layers:
            figure.add_scatter(
                x=curve.steps, y=curve.values, xaxis=x, yaxis=y,
                mode=_line_mode(curve), showlegend=False, legendgroup=_text(module), opacity=0.7,
                line={"color": style.blend(anchors, style.fraction(layer, description.layers)),
                      "width": 1, "dash": style.dash(description.modules.index(module))},
                hovertemplate=_curve_hover(f"layer {layer} · {_text(module)}", description.label),
            )  # fmt: skip
        for module, curve in panel.centres:
            index = description.modules.index(module)
            colour = style.module_colour(index, dark)
            if description.band:
                _band(figure, curve, colour, 0.08, (x, y), _text(module))
            name = f"{_text(module)}, {description.centre}"
            figure.add_scatter(
                x=curve.steps, y=curve.values, xaxis=x, yaxis=y, mode=_line_mode(curve),
                name=name, legendgroup=_text(module), showlegend=module not in seen,
                line={"color": colour, "width": 3, "dash": style.dash(index)},
                hovertemplate=_curve_hover(name, description.label),
            )  # fmt: skip
            seen.add(module)
        _value_axis(figure, y, description.limits, description.log)
        _draw_noise(figure, panel.noise, (x, y), description.limits, description.log, dark)
        if i:
            figure.layout[f"xaxis{i + 1}"].matches = "x"
            figure.layout[f"yaxis{i + 1}"].matches = "y"
    _outer_titles(figure, count, "step", description.label.axis)
    _colour_bar(figure, anchors, tuple(range(*_inclusive(description.layers))), "layer")
    return _finished(figure, description.caption, dark)


def draw_run_curves(description: RunCurves, dark: bool = False) -> go.Figure:
    """Draw runs over one another, a panel a quantity, with run and value on hover."""
    count = len(description.panels)
    figure = _panels([p.title for p in description.panels], 460 if count == 1 else 380)
    seen: set[int] = set()
    for i, panel in enumerate(description.panels):
        x, y = _axis_names(i)
        for index, curve in panel.curves:
            colour, name = style.run_colour(index), _text(description.runs[index])
            group = f"run {index}"
            if description.band and curve.low:
                _band(figure, curve, colour, 0.13, (x, y), group)
            if curve.raw:
                figure.add_scatter(
                    x=curve.steps, y=curve.raw, xaxis=x, yaxis=y, mode="lines", opacity=0.3,
                    line={"color": colour, "width": 1}, legendgroup=group, showlegend=False,
                    hoverinfo="skip",
                )  # fmt: skip
            figure.add_scatter(
                x=curve.steps, y=curve.values, xaxis=x, yaxis=y, mode=_line_mode(curve),
                name=name, legendgroup=group, showlegend=index not in seen,
                line={"color": colour, "width": 2.2, "dash": style.dash(index)},
                hovertemplate=_curve_hover(name, panel.label),
            )  # fmt: skip
            seen.add(index)
        _value_axis(figure, y, panel.limits, panel.log)
        _draw_noise(figure, panel.noise, (x, y), panel.limits, panel.log, dark)
        _axis(figure, y).title = {"text": _text(panel.axis, whole=True)}
        _axis(figure, x).title = {"text": "step"}
        if i:
            _axis(figure, x).matches = "x"
    return _finished(figure, description.caption, dark)


def _draw_panel(
    figure: go.Figure,
    panel: TrajectoryPanel,
    description: Trajectory,
    names: tuple[str, str],
    limits: Limits,
    size: float | None,
    dark: bool,
    seen: set[str],
) -> None:
    x, y = names
    _axis(figure, x).range = limits.x
    _axis(figure, y).range = limits.y
    if panel.noise:
        across, up = panel.noise
        # A strip reaches over the whole panel, however far it is zoomed.
        figure.add_shape(
            x0=0, x1=across or 1, xref=x if across else f"{x} domain",
            y0=0, y1=up or 1, yref=y if up else f"{y} domain", **_NOISE,
        )  # fmt: skip
    for level in panel.unrelated:
        if limits.y[0] < level <= limits.y[1]:
            figure.add_shape(
                type="line", x0=limits.x[0], x1=limits.x[1], y0=level, y1=level, xref=x, yref=y,
                line={"color": _GREY, "dash": "dot", "width": 1.2}, layer="below",
            )  # fmt: skip
    for module in description.modules:
        paths = [p for p in panel.paths if p.module == module]
        xs: list[float | None] = []
        ys: list[float | None] = []
        for path in paths:
            # A gap between paths keeps them one trace: many traces make a slow page.
            xs += [0.0, *path.delta_sigma, None]
            ys += [0.0, *path.delta_d, None]
        figure.add_scatter(
            x=xs, y=ys, xaxis=x, yaxis=y, mode="lines", legendgroup=_text(module), showlegend=False,
            line={"color": _GREY, "width": 0.6}, opacity=0.45, hoverinfo="skip",
        )  # fmt: skip
    if size is not None:
        _draw_numbers(figure, panel, description, names, size * _PIXELS_PER_POINT, dark)
    for mean in panel.means:
        index = description.modules.index(mean.module)
        name = f"{_text(mean.module)}, mean of layers"
        label = f"<i>{name}</i>" if style.lettering(index)[0] == "italic" else name
        figure.add_scatter(
            x=mean.delta_sigma, y=mean.delta_d, xaxis=x, yaxis=y, mode="lines+markers",
            name=label, legendgroup=_text(mean.module), showlegend=mean.module not in seen,
            customdata=[[s] for s in mean.steps],
            line={"color": style.module_colour(index, dark), "width": 2.6,
                  "dash": style.dash(index)},
            marker={"symbol": style.marker(index), "size": 7},
            hovertemplate=f"{name}<br>step %{{customdata[0]}}<br>ΔΣ %{{x:.3g}}<br>ΔD %{{y:.3g}}"
                          "<extra></extra>",
        )  # fmt: skip
        seen.add(mean.module)


def _draw_numbers(
    figure: go.Figure,
    panel: TrajectoryPanel,
    description: Trajectory,
    names: tuple[str, str],
    size: float,
    dark: bool,
) -> None:
    anchors = style.step_colours(dark)
    ends = (description.steps[0], description.steps[-1])
    for index, module in enumerate(description.modules):
        points = [
            (p.layer, s, x, y, k)
            for p in panel.paths
            if p.module == module
            for s, x, y, k in zip(p.steps, p.delta_sigma, p.delta_d, p.kappa, strict=True)
        ]
        if not points:
            continue
        slant, weight, _ = style.lettering(index)
        figure.add_scatter(
            x=[p[2] for p in points], y=[p[3] for p in points], xaxis=names[0], yaxis=names[1],
            mode="text", text=[str(p[0]) for p in points], showlegend=False,
            legendgroup=_text(module),
            textfont={
                "size": size, "style": slant, "weight": weight,
                "color": [style.blend(anchors, style.fraction(p[1], ends)) for p in points],
            },
            customdata=[[p[1], _number(p[4])] for p in points],
            hovertemplate=f"<b>layer %{{text}}</b> · {_text(module)}<br>step %{{customdata[0]}}"
                          "<br>ΔΣ %{x:.3g}<br>ΔD %{y:.3g}<br>κ %{customdata[1]}<extra></extra>",
        )  # fmt: skip


def _add_inset(
    figure: go.Figure, panel: TrajectoryPanel, index: int, count: int
) -> tuple[str, str]:
    """Put an enlarged pair of axes into a panel and return their names."""
    x, y = _axis_names(index)
    outer_x, outer_y = _axis(figure, x).domain, _axis(figure, y).domain
    left, bottom, width, height = panel.inset_place
    # The grid may hold more axes than panels; the insets' come after all of them.
    columns = style.columns_for(count, style.SCREEN_COLUMNS)
    number = -(-count // columns) * columns + index + 1
    across, up = outer_x[1] - outer_x[0], outer_y[1] - outer_y[0]
    common = {"showline": True, "mirror": True, "linecolor": _GREY, "linewidth": 0.8,
              "nticks": 4, "tickfont": {"size": 10}, "zeroline": False}  # fmt: skip
    figure.update_layout(
        {
            f"xaxis{number}": common
            | {
                "domain": (
                    outer_x[0] + left * across,
                    outer_x[0] + (left + width) * across,
                ),
                "anchor": f"y{number}",
            },
            f"yaxis{number}": common
            | {
                "domain": (
                    outer_y[0] + bottom * up,
                    outer_y[0] + (bottom + height) * up,
                ),
                "anchor": f"x{number}",
            },
        }
    )
    assert panel.inset is not None
    figure.add_shape(
        type="rect", x0=panel.inset.x[0], x1=panel.inset.x[1], y0=panel.inset.y[0],
        y1=panel.inset.y[1], xref=x, yref=y, line={"color": _GREY, "width": 0.8},
    )  # fmt: skip
    return f"x{number}", f"y{number}"


def _panels(titles: Sequence[str], panel_pixels: int) -> go.Figure:
    count = len(titles)
    columns = style.columns_for(count, style.SCREEN_COLUMNS)
    rows = -(-count // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[_text(t) for t in titles] if any(titles) else None,
        horizontal_spacing=0.075,
        vertical_spacing=0.16 / rows if rows > 1 else 0.0,
    )
    # Cells beyond the last panel hold no axes worth showing.
    for i in range(count, rows * columns):
        for name in _axis_names(i):
            _axis(figure, name).visible = False
    figure.update_layout(height=rows * panel_pixels + _TOP + _BOTTOM)
    return figure


def _finished(figure: go.Figure, caption: str, dark: bool) -> go.Figure:
    lines = textwrap.wrap(caption, _CAPTION_CHARACTERS)
    below = _BOTTOM + _CAPTION_LINE_PIXELS * len(lines)
    ink = "#e8e8e8" if dark else "#222222"
    if lines:
        figure.add_annotation(
            text="<br>".join(_text(line, whole=True) for line in lines), showarrow=False,
            align="left", x=0, xref="paper", xanchor="left", y=0, yref="paper", yanchor="top",
            yshift=-46, font={"size": 12, "color": "#aaaaaa" if dark else "#555555"},
        )  # fmt: skip
    figure.update_layout(
        height=figure.layout.height + below - _BOTTOM,
        margin={"l": 64, "r": 20, "t": _TOP, "b": below},
        template="plotly_dark" if dark else "plotly_white",
        paper_bgcolor="#0e1117" if dark else "white",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "Source Sans Pro, Helvetica, Arial, sans-serif", "color": ink},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#999999", "activecolor": ink},
        # The same zoom stays when a growing run is drawn again.
        uirevision="spectra",
    )
    grid = "#30343d" if dark else "#ececec"
    figure.update_xaxes(gridcolor=grid, zeroline=False, exponentformat="power", title_standoff=8)
    figure.update_yaxes(gridcolor=grid, zeroline=False, exponentformat="power", title_standoff=8)
    return figure


def _colour_bar(figure: go.Figure, anchors: list[str], values: tuple[int, ...], title: str) -> None:
    if values[0] == values[-1]:
        return
    ticks = list(values) if len(values) <= 9 else None
    bar = {
        "title": {"text": title, "side": "right"},
        "thickness": 12,
        "outlinewidth": 0,
        "x": 1.01,
        "len": 1.0,
    }
    if ticks:
        bar["tickvals"] = ticks
    # Text has no colour scale of its own: an empty trace carries the bar.
    figure.add_scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip",
        marker={
            "color": [values[0]], "cmin": values[0], "cmax": values[-1], "showscale": True,
            "colorscale": [[i / (len(anchors) - 1), c] for i, c in enumerate(anchors)],
            "colorbar": bar,
        },
    )  # fmt: skip


def _band(
    figure: go.Figure,
    curve: Curve,
    colour: str,
    opacity: float,
    names: tuple[str, str],
    group: str,
) -> None:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=[*curve.steps, *reversed(curve.steps)], y=[*curve.high, *reversed(curve.low)],
        xaxis=names[0], yaxis=names[1], mode="lines", line={"width": 0}, fill="toself",
        fillcolor=f"rgba({red},{green},{blue},{opacity})", legendgroup=group, showlegend=False,
        hoverinfo="skip",
    )  # fmt: skip


def _draw_noise(
    figure: go.Figure,
    noise: NoiseBand | None,
    names: tuple[str, str],
    limits: tuple[float, float],
    log: bool,
    dark: bool,
) -> None:
    if noise is None:
        return
    x, y = f"{names[0]} domain", names[1]
    figure.add_shape(
        x0=0, x1=1, xref=x, y0=limits[0], y1=noise.level, yref=y, **_NOISE,
    )  # fmt: skip
    # The shading of the layers may be grey too; an edge tells the two apart.
    figure.add_shape(
        type="line", x0=0, x1=1, xref=x, y0=noise.level, y1=noise.level, yref=y,
        line={"color": _GREY, "width": 1}, layer="below",
    )  # fmt: skip
    # On a logarithmic axis shapes take the value, and annotations its logarithm.
    edge = math.log10(noise.level) if log else noise.level
    at_top = noise.place == "top"
    figure.add_annotation(
        text=noise.label, hovertext=noise.reading, showarrow=False, borderpad=1,
        x=0.01 if noise.side == "left" else 0.99, xref=x, xanchor=noise.side,
        y=1 if at_top else edge, yref=f"{y} domain" if at_top else y,
        yanchor="bottom" if noise.place == "over" else "top",
        font={"size": 11, "color": "#cccccc" if dark else "#444444"},
    )  # fmt: skip


def _value_axis(figure: go.Figure, name: str, limits: tuple[float, float], log: bool) -> None:
    axis = _axis(figure, name)
    if log:
        axis.type = "log"
        axis.range = [math.log10(limits[0]), math.log10(limits[1])]
        axis.dtick = 1
    else:
        axis.range = limits


def _outer_titles(figure: go.Figure, count: int, x: str, y: str) -> None:
    columns = style.columns_for(count, style.SCREEN_COLUMNS)
    for i in range(count):
        x_name, y_name = _axis_names(i)
        if i + columns >= count:
            _axis(figure, x_name).title = {"text": _text(x, whole=True)}
        if i % columns == 0:
            _axis(figure, y_name).title = {"text": _text(y, whole=True)}


def _curve_hover(name: str, label: Label) -> str:
    symbol = html.escape(label.symbol, quote=False)
    return f"{name}<br>step %{{x}}<br>{symbol} %{{y:.4g}}<extra></extra>"


def _line_mode(curve: Curve) -> str:
    return "markers" if len(curve.steps) == 1 else "lines"


def _axis_names(index: int) -> tuple[str, str]:
    number = "" if index == 0 else str(index + 1)
    return f"x{number}", f"y{number}"


def _axis(figure: go.Figure, name: str) -> Any:
    return figure.layout[f"{name[0]}axis{name[1:]}"]


def _text(name: str, whole: bool = False) -> str:
    """Text that Plotly shows as it stands: it reads tags, and in hovers ``%{…}``, otherwise."""
    return html.escape(name if whole else clean(name), quote=False).replace("%{", "%&#123;")


def _number(value: float) -> str:
    return "not computed" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.3g}"


def _inclusive(ends: tuple[int, int]) -> tuple[int, int]:
    return ends[0], ends[1] + 1
