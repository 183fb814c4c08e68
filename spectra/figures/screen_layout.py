"""Where the parts of a figure stand on a screen, in pixels.

A figure is as wide as its place, which is not known here: room is planned for the narrowest.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from spectra.figures import style
from spectra.figures.chart import Axis, Chart, Heat, Numbers
from spectra.figures.selection import clean

FONT = "Source Sans, Source Sans Pro, Helvetica, Arial, sans-serif"
FONT_SIZE, SMALL_FONT_SIZE = 13, 12
PIXELS_PER_POINT = 1.5
TICKS, LABEL = 24, 20
BUTTONS = 28
"""Plotly's buttons stand at the top; the legend begins below them."""

# A laptop's 1280 pixels, beside a sidebar and between a page's margins.
_WIDTH = 840
_RIGHT, _BAR = 20, 84
# Of the small font; the usual one is a little wider.
_CHARACTER = 6.0
_LEGEND_LINE, _TITLE_LINE, _LINE = 20, 18, 16
_LEGEND_SAMPLE = 50
_PANEL_HEIGHTS = {1: 430, 2: 310, 3: 260}
_SMALL_PANEL = 220
_MOST_COLUMNS = 4
# Rows of cells below this height are told apart no more, and their labels touch.
_CELL = 3.5
# A screen has fewer dots than paper: below this no digit is told from another.
_SMALLEST_NUMBER = 5.4


@dataclass(frozen=True)
class Plan:
    """The grid of panels and what surrounds it.

    Attributes
    ----------
    columns, rows : int
    panel_width, panel_height : float
        The width is that in the narrowest place.
    gap_x, gap_y : float
        Between panels.
    left, right, top, bottom : float
        Margins around all panels.
    under : float
        Height of what stands between the lowest panels and the caption.
    caption : tuple of str
        Lines.
    x_outside, y_outside : bool
        Whether the names of the axes stand at the outer sides only.
    """

    columns: int
    rows: int
    panel_width: float
    panel_height: float
    gap_x: float
    gap_y: float
    left: float
    right: float
    top: float
    bottom: float
    under: float
    caption: tuple[str, ...]
    x_outside: bool
    y_outside: bool

    @property
    def height(self) -> float:
        """Of the whole figure."""
        inner = self.rows * self.panel_height + (self.rows - 1) * self.gap_y
        return self.top + inner + self.bottom

    def at_left(self, index: int) -> bool:
        """Whether no panel stands left of this one."""
        return index % self.columns == 0

    def at_bottom(self, index: int, count: int) -> bool:
        """Whether none of `count` panels stands below this one."""
        return index + self.columns >= count

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


def plan(chart: Chart) -> Plan:
    """Return where the parts of `chart` stand."""
    count = len(chart.panels)
    columns = columns_for(count, chart.columns)
    rows = -(-count // columns)
    # Where all panels' axes have the same name, it stands once, linked or not.
    y_outside = len({panel.y.label for panel in chart.panels}) == 1
    x_outside = len({panel.x.label for panel in chart.panels}) == 1
    height = _panel_height(chart, columns, rows)
    names = max(len(broken(panel.y.label, height)) for panel in chart.panels)
    ticks = max(_tick_room(panel.y) for panel in chart.panels)
    left = ticks + names * _LINE + 8.0
    between = (0.0 if chart.link_y else ticks) + (0.0 if y_outside else names * _LINE + 8.0)
    gap_x = max(26.0, between)
    right = _BAR if chart.bar is not None else _RIGHT
    width = (_WIDTH - left - right - (columns - 1) * gap_x) / columns
    if any(panel.square for panel in chart.panels):
        height = min(width, 460.0)
    lines = max(len(title_lines(panel.title, width)) for panel in chart.panels)
    under = LABEL + (max(len(broken(p.x.label, width)) for p in chart.panels) - 1) * _LINE
    below = (0 if chart.link_x else TICKS) + (0 if x_outside else under)
    caption = tuple(textwrap.wrap(chart.caption, int((_WIDTH - 16) / _CHARACTER)))
    return Plan(
        columns=columns,
        rows=rows,
        panel_width=width,
        panel_height=height,
        gap_x=gap_x,
        gap_y=14.0 + lines * _TITLE_LINE + below,
        left=left,
        right=right,
        top=BUTTONS + _legend_rows(chart) * _LEGEND_LINE + lines * _TITLE_LINE + 8.0,
        bottom=TICKS + under + 10.0 + len(caption) * _LINE,
        under=TICKS + under,
        caption=caption,
        x_outside=x_outside,
        y_outside=y_outside,
    )


def columns_for(panels: int, wanted: int | None = None) -> int:
    """Return how many panels stand in a row: as few rows as fit, of even length."""
    if wanted is not None:
        return max(1, min(wanted, panels, _MOST_COLUMNS))
    if panels <= 3:
        return panels
    most = 2 if panels == 4 else 3 if panels <= 6 else _MOST_COLUMNS
    return -(-panels // -(-panels // most))


def title_lines(title: str, width: float) -> list[str]:
    """Return a panel's title as at most two lines that fit over it."""
    room = max(8, int(width / (_CHARACTER * 1.15)))
    return textwrap.wrap(clean_line(title), room, max_lines=2, placeholder="…")


def broken(label: str, room: float) -> list[str]:
    """Return the name of an axis in lines: broken before its unit where it outgrows the panel."""
    label = clean_line(label)
    if len(label) * _CHARACTER * 1.08 <= room:
        return [label]
    symbol, bracket, unit = label.rpartition(" (")
    parts = [symbol, f"({unit}"] if bracket else [label]
    most = max(8, int(room / (_CHARACTER * 1.08)))
    return [line for part in parts for line in textwrap.wrap(part, most)]


def clean_line(text: str) -> str:
    """Return a text of several words as one printable line, however long."""
    return " ".join(clean(word) for word in text.split())


def number_size(chart: Chart, plan: Plan) -> float:
    """Return the font size of layer numbers, points, so that those of the fullest panel fit."""
    parts = [part for p in chart.panels for part in (p, *([p.inset.panel] if p.inset else []))]
    fullest = max(sum(len(m.x) for m in p.marks if isinstance(m, Numbers)) for p in parts)
    area = plan.panel_width * plan.panel_height / (72 * PIXELS_PER_POINT) ** 2
    return max(_SMALLEST_NUMBER, style.number_size(fullest, area))


def _panel_height(chart: Chart, columns: int, rows: int) -> float:
    usual = _PANEL_HEIGHTS.get(columns, _SMALL_PANEL) if rows < 3 else _SMALL_PANEL
    cells = [len(m.y) for panel in chart.panels for m in panel.marks if isinstance(m, Heat)]
    return float(max([usual, *(min(600, n * _CELL) for n in cells)]))


def _tick_room(axis: Axis) -> float:
    longest = max((len(clean_line(label)) for _, label in axis.ticks), default=6)
    return 8.0 + min(24, max(5, longest)) * _CHARACTER


def _legend_rows(chart: Chart) -> int:
    if not chart.entries:
        return 0
    widest = max(len(clean(entry.name)) for entry in chart.entries)
    each = _LEGEND_SAMPLE + widest * _CHARACTER
    return -(-len(chart.entries) // max(1, int((_WIDTH - _RIGHT - 50) / each)))
