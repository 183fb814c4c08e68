"""Charts drawn by Matplotlib, for paper.

Figures are made without pyplot: no global state, no backend chosen, nothing to close.
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text

from spectra.figures import paper_axes, style
from spectra.figures.chart import Chart, ColourBar, Inset
from spectra.figures.paper_layout import (
    LINE,
    OVERHANG,
    Sheet,
    broken,
    fullest,
    legend_handle,
    named_outside,
    plan,
    shown_bar,
    symbols,
    wrap,
)
from spectra.figures.paper_marks import DASHES, MARKERS, NOTE_COLOUR, Look, colour_scale, draw_marks
from spectra.figures.style import Preset

_PLAIN = Preset(style.PAPER_WIDTH, style.FONT_SIZE, style.SMALL_FONT_SIZE, (style.FONT,))


def draw(chart: Chart, preset: str | None = None) -> Figure:
    """Draw a chart for paper.

    Parameters
    ----------
    chart : Chart
    preset : str, optional
        One of `style.PRESETS`, for a venue's width and letters; the caption is then left to the
        paper. Without one the figure is 6.75 inches wide, with its caption below.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the preset is unknown or the chart has no panel.
    """
    if preset is not None and preset not in style.PRESETS:
        raise ValueError(f"preset must be one of {', '.join(style.PRESETS)}, got {preset!r}.")
    if not chart.panels:
        raise ValueError("The chart has no panel to draw.")
    look = _PLAIN if preset is None else style.PRESETS[preset]
    with style.matplotlib_settings(_settings(look)):
        sheet = plan(chart, look, captioned=preset is None)
        figure, grid = _grid(sheet, len(chart.panels))
        size = style.number_size(fullest(chart), sheet.panel_width * sheet.panel_height)
        _panels(chart, sheet, grid, size)
        once = _names(figure, chart, sheet, grid)
        if chart.bar is not None and shown_bar(chart):
            _colour_bar(figure, grid, chart.bar, sheet)
        if chart.entries:
            _legend(figure, chart, sheet)
        # Once and here, so that every file of the figure has the same layout.
        _lay_out(figure)
        _centre(once, grid)
        return figure


def _settings(preset: Preset) -> dict[str, object]:
    return {
        "axes.edgecolor": "#555555",
        "axes.labelpad": 2.5,
        "axes.labelsize": preset.size,
        "axes.linewidth": 0.6,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": preset.size,
        "axes.unicode_minus": True,
        "figure.facecolor": "white",
        "font.family": list(preset.fonts),
        "font.size": preset.size,
        "hatch.linewidth": 0.4,
        "legend.fontsize": preset.small,
        "legend.frameon": False,
        # Letters fitted to a screen's pixels would be measured up to a sixth too wide.
        "text.hinting": "none",
        # Names of runs are data: a dollar sign in one starts no formula.
        "text.parse_math": False,
        "text.usetex": False,
        "xtick.labelsize": preset.small,
        "xtick.major.width": 0.6,
        "xtick.major.size": 2.8,
        "xtick.minor.width": 0.4,
        "xtick.minor.size": 1.6,
        "ytick.labelsize": preset.small,
        "ytick.major.width": 0.6,
        "ytick.major.size": 2.8,
        "ytick.minor.width": 0.4,
        "ytick.minor.size": 1.6,
    }


def _grid(sheet: Sheet, count: int) -> tuple[Figure, list[Axes]]:
    # Panels above empty cells have no room kept for half a tick label at the right, see `_panels`.
    orphans = count < sheet.rows * sheet.columns
    share = (sheet.below + sheet.x_once) / sheet.height
    engine = ConstrainedLayoutEngine(
        rect=(0, share, 1, 1 - share),
        w_pad=0.07 if orphans else 0.04,
        h_pad=0.04,
        wspace=0.02,
        hspace=0.02,
    )
    figure = Figure(figsize=(sheet.width, sheet.height), layout=engine)
    if sheet.caption:
        figure.text(
            0.01, 0.05 / sheet.height, "\n".join(sheet.caption), fontsize=sheet.preset.small,
            color=NOTE_COLOUR, va="bottom", ha="left", linespacing=LINE,
        )  # fmt: skip
    # Cells beyond `count` stay empty, so that the panels keep one size.
    layout = figure.add_gridspec(sheet.rows, sheet.columns)
    cells = [divmod(i, sheet.columns) for i in range(count)]
    return figure, [figure.add_subplot(layout[row, column]) for row, column in cells]


def _panels(chart: Chart, sheet: Sheet, grid: list[Axes], size: float) -> None:
    for index, (panel, axes) in enumerate(zip(chart.panels, grid, strict=True)):
        title = wrap(panel.title, sheet.panel_width + 0.1, sheet.preset, sheet.preset.size, most=2)
        axes.set_title("\n".join(title), pad=4, linespacing=LINE)
        paper_axes.dress(axes, panel, sheet.panel_width, sheet.panel_height, sheet.preset)
        at_left = index % sheet.columns == 0
        at_bottom = index + sheet.columns >= len(grid)
        axes.tick_params(
            labelbottom=at_bottom or not chart.link_x, labelleft=at_left or not chart.link_y
        )
        if at_bottom and index + sheet.columns < sheet.rows * sheet.columns:
            # What hangs into an empty cell moves no row apart.
            axes.xaxis.set_in_layout(False)
        inset = None
        if panel.inset:
            inset = _inset(axes, panel.inset, chart, sheet, size)
        draw_marks(axes, Look(sheet.preset, panel, sheet.panel_width, size, chart.bar, inset))


def _names(figure: Figure, chart: Chart, sheet: Sheet, grid: list[Axes]) -> list[Text]:
    """Name the axes: at the outer sides where all have one name, once where it is long.

    Return the names that stand once, for a place at the middle of all panels.
    """
    once = []
    first = chart.panels[0]
    y_outside, x_outside = named_outside(chart)
    broken_x = [broken(p.x.label, sheet.name_width, sheet.preset) for p in chart.panels]
    broken_y = [
        broken(p.y.label, sheet.panel_height + 2 * OVERHANG, sheet.preset) for p in chart.panels
    ]
    y_once = y_outside and (sheet.rows > 2 or (sheet.rows > 1 and len(broken_y[0]) > 1))
    if sheet.x_once:
        across = figure.text(
            0.5, (sheet.below + 0.03) / sheet.height, symbols(first.x.label),
            fontsize=sheet.preset.size, ha="center", va="bottom",
        )  # fmt: skip
        once.append(across)
    if y_once:
        once.append(figure.supylabel(symbols(first.y.label), fontsize=sheet.preset.size))
    for index, axes in enumerate(grid):
        if not sheet.x_once and (not x_outside or index + sheet.columns >= len(grid)):
            axes.set_xlabel("\n".join(broken_x[index]), linespacing=LINE)
        if not y_once and (not y_outside or index % sheet.columns == 0):
            axes.set_ylabel("\n".join(broken_y[index]), linespacing=LINE)
    return once


def _lay_out(figure: Figure) -> None:
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")


def _centre(names: list[Text], grid: list[Axes]) -> None:
    """Put names that stand once at the middle of all panels."""
    places = [axes.get_position() for axes in grid]
    for text in names:
        if text.get_rotation():
            text.set_y((min(p.y0 for p in places) + max(p.y1 for p in places)) / 2)
        else:
            text.set_x((min(p.x0 for p in places) + max(p.x1 for p in places)) / 2)


def _inset(axes: Axes, inset: Inset, chart: Chart, sheet: Sheet, size: float) -> Axes:
    left, bottom, width, height = inset.place
    inner = axes.inset_axes((left, bottom, width, height), zorder=3.5)
    across, up = sheet.panel_width * width, sheet.panel_height * height
    paper_axes.dress(inner, inset.panel, across, up, sheet.preset, small=True)
    for spine in inner.spines.values():
        spine.set(visible=True, linewidth=0.4)
    draw_marks(inner, Look(sheet.preset, inset.panel, across, size * math.sqrt(width), chart.bar))
    return inner


def _colour_bar(figure: Figure, grid: list[Axes], bar: ColourBar, sheet: Sheet) -> None:
    norm, colours = colour_scale(bar)
    height = sheet.rows * (sheet.panel_height + 0.3)
    # As long as the panels' edge and a ninth of an inch wide.
    along, across = (sheet.width, height) if sheet.bar_below else (height, sheet.width)
    drawn = figure.colorbar(
        ScalarMappable(norm, colours), ax=grid, pad=0.015, fraction=0.11 / across,
        aspect=1.3 * along / 0.11, location="bottom" if sheet.bar_below else "right",
    )  # fmt: skip
    label = wrap(symbols(bar.label), 0.85 * along, sheet.preset, sheet.preset.size, most=2)
    drawn.set_label("\n".join(label), fontsize=sheet.preset.size, linespacing=LINE)
    drawn.outline.set_visible(False)
    paper_axes.dress_bar(drawn, bar, sheet)


def _legend(figure: Figure, chart: Chart, sheet: Sheet) -> None:
    room = sheet.width - legend_handle(sheet.preset) - 0.1
    handles = [
        Line2D([], [], color=style.colour(e.ink), ls=DASHES[e.dash], lw=e.width,
               marker=MARKERS[e.marker], ms=3.4, mec="white", mew=0.5,
               label="".join(wrap(e.name, room, sheet.preset, sheet.preset.small, most=1)))
        for e in chart.entries
    ]  # fmt: skip
    legend = figure.legend(
        handles=handles, loc="outside upper center", ncols=sheet.legend_columns,
        handlelength=3.0, handletextpad=0.6, columnspacing=1.2, labelspacing=0.25,
        borderaxespad=0.2, borderpad=0.2,
    )  # fmt: skip
    for text, entry in zip(legend.get_texts(), chart.entries, strict=True):
        slant, weight, _ = style.lettering(entry.lettering)
        text.set(fontstyle=slant, fontweight=weight)
