"""Descriptions drawn by Matplotlib, for paper.

Figures are made without pyplot: no global state, no backend chosen, nothing to close.
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from spectra.figures import style
from spectra.figures.labels import label_of
from spectra.figures.noise import NoiseBand
from spectra.figures.selection import clean
from spectra.figures.step_curves import Curve, LayerCurves, RunCurves
from spectra.figures.trajectories import Limits, Trajectory, TrajectoryPanel

_DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (4, 1.6)),
    "dot": (0, (1, 1.4)),
    "dashdot": (0, (5, 1.6, 1, 1.6)),
    "longdash": (0, (8, 2)),
    "longdashdot": (0, (8, 1.6, 1, 1.6)),
}
_MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "x": "X"}
_GREY = "#888888"
_NOISE: dict[str, Any] = {"facecolor": _GREY, "alpha": 0.22, "lw": 0, "zorder": 0.4}
_TITLE_CHARACTERS_PER_INCH = 13
_SIDE_CHARACTERS_PER_INCH = 16
_CAPTION_CHARACTERS_PER_INCH = 17.5
_CAPTION_LINE_INCHES = 0.125
_LEGEND_LINE_INCHES = 0.17
_LEGEND_COLUMNS = 3
_RC: dict[str, object] = {
    "axes.edgecolor": "#555555",
    "axes.labelsize": style.FONT_SIZE,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": style.FONT_SIZE,
    "axes.unicode_minus": True,
    "figure.facecolor": "white",
    "font.family": style.FONT,
    "font.size": style.FONT_SIZE,
    "legend.fontsize": style.SMALL_FONT_SIZE,
    "legend.frameon": False,
    # Names of runs are data: a dollar sign in one starts no formula.
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.labelsize": style.SMALL_FONT_SIZE,
    "xtick.major.width": 0.6,
    "ytick.labelsize": style.SMALL_FONT_SIZE,
    "ytick.major.width": 0.6,
}


def draw_trajectory(description: Trajectory, dark: bool = False) -> Figure:
    """Draw ΔΣ against ΔD; `dark` is ignored, paper is white."""
    with style.matplotlib_settings(_RC):
        count = len(description.panels)
        columns = style.columns_for(count, style.PAPER_COLUMNS)
        panel_height = {1: 3.9, 2: 2.9, 3: 2.2}[columns] if count != 4 else 2.5
        legend_rows = -(-len(description.modules) // _LEGEND_COLUMNS)
        figure, grid = _grid(count, panel_height, description.caption, legend_rows)
        area = style.PAPER_WIDTH * (0.86 / columns) * (panel_height - 0.4)
        size = style.number_size(max(p.numbers for p in description.panels), area)
        limits = (description.steps[0], description.steps[-1])
        names = label_of("delta_sigma").axis, label_of("delta_d").axis
        for i, (panel, axes) in enumerate(zip(description.panels, grid, strict=True)):
            # Where an inset shows the numbers, the small view shows the paths alone.
            numbers = None if panel.inset else size
            _draw_panel(axes, panel, description, panel.limits, limits, numbers)
            _linear_ticks(axes.xaxis, panel.limits.x, 3 if columns == 3 else 5)
            _title(axes, panel.title, columns)
            _outer_labels(axes, i, count, *names, hide_ticks=description.shared)
            if panel.inset:
                _draw_inset(axes, panel, description, limits, size)
        _colour_bar(figure, grid, style.step_colours(), description.steps, "step")
        _trajectory_legend(figure, description)
        return figure


def draw_layer_curves(description: LayerCurves, dark: bool = False) -> Figure:
    """Draw a column over the steps, a panel a run; `dark` is ignored."""
    with style.matplotlib_settings(_RC):
        count = len(description.panels)
        columns = style.columns_for(count, style.PAPER_COLUMNS)
        height = {1: 3.2, 2: 2.5, 3: 2.0}[columns] if count != 4 else 2.1
        several = len(description.modules) > 1
        legend_rows = -(-len(description.modules) // _LEGEND_COLUMNS)
        figure, grid = _grid(count, height, description.caption, legend_rows)
        anchors = style.layer_colours()
        for i, (panel, axes) in enumerate(zip(description.panels, grid, strict=True)):
            for module, layer, curve in panel.layers:
                colour = style.blend(anchors, style.fraction(layer, description.layers))
                pattern = _DASHES[style.dash(description.modules.index(module))]
                axes.plot(
                    curve.steps, curve.values, color=colour, lw=0.6, ls=pattern, alpha=0.65,
                    marker="." if len(curve.steps) == 1 else None,
                )  # fmt: skip
            for module, curve in panel.centres:
                index = description.modules.index(module)
                colour = style.module_colour(index)
                if description.band:
                    axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.06)
                _thick(axes, curve, colour, _DASHES[style.dash(index)], 2.0)
            _value_axis(axes, description.limits, description.log)
            _draw_noise(axes, panel.noise, description.limits)
            _title(axes, panel.title, columns)
            _outer_labels(axes, i, count, "step", _side_label(description.label.axis, height))
        _colour_bar(figure, grid, anchors, tuple(range(*_inclusive(description.layers))), "layer")
        handles = [
            Line2D([], [], color=style.module_colour(i), ls=_DASHES[style.dash(i)], lw=2.0,
                   label=f"{clean(m)}, {description.centre}" if several else description.centre)
            for i, m in enumerate(description.modules)
        ]  # fmt: skip
        _legend(figure, handles, _LEGEND_COLUMNS)
        return figure


def draw_run_curves(description: RunCurves, dark: bool = False) -> Figure:
    """Draw runs over one another, a panel a quantity; `dark` is ignored."""
    with style.matplotlib_settings(_RC):
        count = len(description.panels)
        columns = style.columns_for(count, style.PAPER_COLUMNS)
        height = {1: 3.2, 2: 2.5, 3: 2.1}[columns] if count != 4 else 2.1
        longest = max(len(clean(run)) for run in description.runs)
        per_row = int(style.PAPER_WIDTH / (0.55 + 0.062 * longest))
        per_row = max(1, min(len(description.runs), per_row))
        legend_rows = -(-len(description.runs) // per_row)
        figure, grid = _grid(count, height, description.caption, legend_rows)
        for panel, axes in zip(description.panels, grid, strict=True):
            for index, curve in panel.curves:
                colour = style.run_colour(index)
                if description.band and curve.low:
                    axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.12)
                if curve.raw:
                    axes.plot(curve.steps, curve.raw, color=colour, lw=0.5, alpha=0.3)
                _thick(axes, curve, colour, _DASHES[style.dash(index)], 1.4, rim=False)
            _value_axis(axes, panel.limits, panel.log)
            _draw_noise(axes, panel.noise, panel.limits)
            _title(axes, panel.title, columns)
            axes.set_xlabel("step")
            axes.set_ylabel(_side_label(panel.axis, height))
        handles = [
            Line2D([], [], color=style.run_colour(i), ls=_DASHES[style.dash(i)], lw=1.4,
                   label=clean(run))
            for i, run in enumerate(description.runs)
        ]  # fmt: skip
        _legend(figure, handles, per_row)
        return figure


def _draw_panel(
    axes: Axes,
    panel: TrajectoryPanel,
    description: Trajectory,
    limits: Limits,
    steps: tuple[int, int],
    size: float | None,
) -> None:
    axes.set_xlim(limits.x)
    axes.set_ylim(limits.y)
    _linear_ticks(axes.yaxis, limits.y, 5)
    if panel.noise:
        across, up = panel.noise
        if across and up:
            axes.add_patch(Rectangle((0, 0), across, up, **_NOISE))
        elif across:
            axes.axvspan(0, across, **_NOISE)
        else:
            axes.axhspan(0, up, **_NOISE)
    for level in panel.unrelated:
        if limits.y[0] < level <= limits.y[1]:
            axes.axhline(level, color=_GREY, ls=_DASHES["dot"], lw=0.9, zorder=0.8)
    anchors = style.step_colours()
    for path in panel.paths:
        axes.plot(
            (0, *path.delta_sigma), (0, *path.delta_d), color=_GREY, lw=0.35, alpha=0.35, zorder=1
        )
        if size is None:
            continue
        slant, weight, _ = style.lettering(description.modules.index(path.module))
        for step, x, y in zip(path.steps, path.delta_sigma, path.delta_d, strict=True):
            axes.text(
                x, y, str(path.layer), color=style.blend(anchors, style.fraction(step, steps)),
                fontsize=size, fontstyle=slant, fontweight=weight, ha="center",
                va="center", clip_on=True, zorder=2,
            ).set_in_layout(False)  # fmt: skip
    for mean in panel.means:
        index = description.modules.index(mean.module)
        colour = style.module_colour(index)
        # A white rim keeps the path apart from the numbers it crosses.
        axes.plot(mean.delta_sigma, mean.delta_d, color="white", lw=2.6, zorder=3, alpha=0.8)
        axes.plot(
            mean.delta_sigma, mean.delta_d, color=colour, lw=1.5, zorder=4,
            ls=_DASHES[style.dash(index)], marker=_MARKERS[style.marker(index)], ms=3.4,
            mec="white", mew=0.5,
        )  # fmt: skip


def _draw_inset(
    axes: Axes,
    panel: TrajectoryPanel,
    description: Trajectory,
    steps: tuple[int, int],
    size: float,
) -> None:
    assert panel.inset is not None
    left, bottom, width, height = panel.inset_place
    inset = axes.inset_axes((left, bottom, width, height))
    _draw_panel(inset, panel, description, panel.inset, steps, size * math.sqrt(width))
    _linear_ticks(inset.xaxis, panel.inset.x, 3)
    _linear_ticks(inset.yaxis, panel.inset.y, 3)
    inset.tick_params(labelsize=style.SMALL_FONT_SIZE - 1.5, length=2, pad=1.5)
    for spine in inset.spines.values():
        spine.set(visible=True, linewidth=0.4)
    axes.indicate_inset_zoom(inset, edgecolor=_GREY, lw=0.4, alpha=0.8)


def _trajectory_legend(figure: Figure, description: Trajectory) -> None:
    handles = []
    for i, module in enumerate(description.modules):
        handles.append(
            Line2D([], [], color=style.module_colour(i), ls=_DASHES[style.dash(i)], lw=1.5,
                   marker=_MARKERS[style.marker(i)], ms=3.4, mec="white", mew=0.5,
                   label=f"{clean(module)}, mean of layers")
        )  # fmt: skip
    legend = _legend(figure, handles, _LEGEND_COLUMNS)
    for i, text in enumerate(legend.get_texts()):
        slant, weight, _ = style.lettering(i)
        text.set(fontstyle=slant, fontweight=weight)


def _legend(figure: Figure, handles: list[Line2D], columns: int) -> Legend:
    return figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, handlelength=3.4
    )


def _grid(
    count: int, panel_height: float, caption: str, legend_rows: int
) -> tuple[Figure, list[Axes]]:
    columns = style.columns_for(count, style.PAPER_COLUMNS)
    lines = textwrap.wrap(caption, int(style.PAPER_WIDTH * _CAPTION_CHARACTERS_PER_INCH))
    below = len(lines) * _CAPTION_LINE_INCHES + (0.06 if lines else 0.0)
    rows = -(-count // columns)
    height = rows * panel_height + below + 0.36 + legend_rows * _LEGEND_LINE_INCHES
    share = below / height
    engine = ConstrainedLayoutEngine(
        rect=(0, share, 1, 1 - share), w_pad=0.05, h_pad=0.05, wspace=0.03, hspace=0.03
    )
    figure = Figure(figsize=(style.PAPER_WIDTH, height), layout=engine)
    if lines:
        figure.text(
            0.01, 0.05 / height, "\n".join(lines), fontsize=style.SMALL_FONT_SIZE,
            color="#444444", va="bottom", ha="left", linespacing=1.15,
        )  # fmt: skip
    # Cells beyond `count` stay empty, so that the panels keep one size.
    layout = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(layout[i // columns, i % columns]) for i in range(count)]


def _colour_bar(
    figure: Figure, grid: list[Axes], anchors: list[str], values: tuple[int, ...], label: str
) -> None:
    low, high = values[0], values[-1]
    if low == high:
        return
    colours = LinearSegmentedColormap.from_list(label, anchors)
    mappable = ScalarMappable(Normalize(low, high), colours)
    bar = figure.colorbar(mappable, ax=grid, aspect=40, pad=0.015, fraction=0.03)
    bar.set_label(label, fontsize=style.FONT_SIZE)
    bar.outline.set_visible(False)
    if len(values) <= 9:
        bar.set_ticks([float(v) for v in values])
    else:
        bar.locator = MaxNLocator(7, integer=True)
        bar.update_ticks()
    bar.ax.minorticks_off()


def _thick(
    axes: Axes, curve: Curve, colour: str, pattern: Any, width: float, rim: bool = True
) -> None:
    if rim:
        axes.plot(curve.steps, curve.values, color="white", lw=width + 1, alpha=0.7)
    axes.plot(
        curve.steps, curve.values, color=colour, ls=pattern, lw=width,
        marker="o" if len(curve.steps) == 1 else None, ms=3,
    )  # fmt: skip


def _draw_noise(axes: Axes, noise: NoiseBand | None, limits: tuple[float, float]) -> None:
    if noise is None:
        return
    axes.axhspan(limits[0], min(noise.level, limits[1]), **_NOISE)
    # The shading of the layers may be grey too; an edge tells the two apart.
    if noise.place != "top":
        axes.axhline(noise.level, color=_GREY, lw=0.6, zorder=0.6)
    below_edge = noise.place != "over"
    axes.annotate(
        noise.label,
        (0.01 if noise.side == "left" else 0.99, min(noise.level, limits[1])),
        xycoords=axes.get_yaxis_transform(), xytext=(0, -1.5 if below_edge else 1.5),
        textcoords="offset points", ha=noise.side, va="top" if below_edge else "bottom",
        fontsize=style.SMALL_FONT_SIZE - 0.5, color="#444444", zorder=6, annotation_clip=False,
    ).set_in_layout(False)  # fmt: skip


def _value_axis(axes: Axes, limits: tuple[float, float], log: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", color="#e4e4e4", lw=0.5)
    axes.set_axisbelow(True)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: style.power_of_ten(v)))
    else:
        _linear_ticks(axes.yaxis, limits, 6)
    axes.set_ylim(limits)


def _linear_ticks(axis: Axis, limits: tuple[float, float], count: int) -> None:
    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    # A common factor above the axis would be taken for part of the title: every tick has its own.
    # Below 2e-3 ticks would be as long as 0.00025, and touch.
    largest = max(map(abs, limits))
    powers = not 2e-3 <= largest < 1e5
    axis.set_major_formatter(FuncFormatter(lambda value, _: style.tick(value, powers)))


def _outer_labels(
    axes: Axes, index: int, count: int, x: str, y: str, hide_ticks: bool = True
) -> None:
    columns = style.columns_for(count, style.PAPER_COLUMNS)
    at_bottom, at_left = index + columns >= count, index % columns == 0
    if at_bottom:
        axes.set_xlabel(x)
    if at_left:
        axes.set_ylabel(y)
    if hide_ticks:
        axes.tick_params(labelbottom=at_bottom, labelleft=at_left)


def _side_label(text: str, panel_height: float) -> str:
    """Break the name of a vertical axis before its unit where it would outgrow the panel."""
    # Half an inch is the panel's title and the labels of its other axis.
    if len(text) <= (panel_height - 0.5) * _SIDE_CHARACTERS_PER_INCH:
        return text
    symbol, bracket, unit = text.rpartition(" (")
    return f"{symbol}\n({unit}" if bracket else text


def _title(axes: Axes, title: str, columns: int) -> None:
    room = int(style.PAPER_WIDTH / columns * _TITLE_CHARACTERS_PER_INCH)
    lines = textwrap.wrap(title, room, max_lines=2, placeholder="…")
    axes.set_title("\n".join(lines), pad=4)


def _inclusive(ends: tuple[int, int]) -> tuple[int, int]:
    return ends[0], ends[1] + 1
