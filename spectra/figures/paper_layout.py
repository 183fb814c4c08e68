"""Where the panels, the legend and the words of a paper figure go."""

from __future__ import annotations

import bisect
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

from spectra.figures.chart import Chart, Heat, Numbers, Panel
from spectra.figures.style import Preset

PAGE_HEIGHT = 8.6
"""No figure is higher, inches: a page's text is 9 inches high at all venues, less a caption."""
_NARROW = 4.0
"""Below this width, in inches, a colour bar lies below the panels, and does not stand beside."""
_MOST_COLUMNS = 5
_LONG_NAME = 0.9
"""A vertical axis' name longer than this, in inches, takes two lines where panels are small."""
LINE = 1.15
"""Distance of lines within a text; STIX asks for twice that, made for formulas."""
OVERHANG = 0.08
"""How far an axis' name may stand out beyond its panel, inches."""
# σ_max, κ_p; and W_t, U_pᵀU_p, as `labels` writes them: one letter and its index. Not q_proj.
_GREEK_INDEX = re.compile(r"(?<!\w)([σκγηλ])_(max|min|[0-9ijkmnprstuv])(?![A-Za-z0-9_])")
_LATIN_INDEX = re.compile(r"(?<![A-Za-z0-9_])([A-Zuv])_([0-9ijkmnprstuv])(?![A-Za-z0-9_])")
# ‖U_pᵀU_p − I‖ and |U_0ᵀU_t|: mathematics also in a title, where W_0 may be a run's name.
_FORMULA = re.compile(r"‖[^‖]*‖|\|[^|]*ᵀ[^|]*\|")
_INDICES = str.maketrans("0123456789ijkmnprstuvaxe", "₀₁₂₃₄₅₆₇₈₉ᵢⱼₖₘₙₚᵣₛₜᵤᵥₐₓₑ")
_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Sheet:
    """The measures of one figure, inches.

    Attributes
    ----------
    preset : Preset
    columns, rows : int
    width, height : float
        Of the whole figure.
    panel_width, panel_height : float
        Of the axes of one panel, about.
    below : float
        Height of the caption at the foot.
    caption : tuple of str
        Its lines.
    bar_below : bool
        Whether the colour bar lies below the panels.
    legend_columns : int
    name_width : float
        Room for the name of a horizontal axis.
    x_once : float
        Height of the one name that all horizontal axes share where it is too long to stand at
        each; 0 otherwise.
    """

    preset: Preset
    columns: int
    rows: int
    width: float
    height: float
    panel_width: float
    panel_height: float
    below: float
    caption: tuple[str, ...]
    bar_below: bool
    legend_columns: int
    name_width: float
    x_once: float


def plan(chart: Chart, preset: Preset, captioned: bool) -> Sheet:
    """Return the measures of `chart`, drawn with `preset`."""
    count = len(chart.panels)
    bar_below = preset.width < _NARROW
    has_bar = shown_bar(chart)
    at_left, at_bottom = named_outside(chart)
    # Room for ticks and a name at the left, and for a bar with its own.
    sides = 0.1 + (0.55 if at_left else 0.0) + (0.55 if has_bar and not bar_below else 0.0)
    own_side = (0.0 if chart.link_y else 0.38) + (0.0 if at_left else 0.17)
    room = preset.width - sides
    # Panels that have ticks of their own are fewer, and may be a little narrower.
    least = 0.95 if chart.link_y else 0.72 + own_side
    longest = max(text_width(symbols(p.y.label), preset, preset.size) for p in chart.panels)
    if bar_below and not at_left and longest > _LONG_NAME:
        least += preset.size * LINE / 72
    columns = columns_for(count, chart.columns, int(room / least))
    rows = -(-count // columns)
    panel_width = room / columns - own_side - 0.1
    above_panel = 0.1 + max(_title_lines(p, panel_width, preset) for p in chart.panels) * (
        preset.size * 1.2 / 72
    )
    line = preset.small * 1.25 / 72
    tick_line, name_line = line + 0.06, preset.size * 1.25 / 72 + 0.03
    # A name may reach under the ticks of its neighbour, and no farther than the page's edge.
    name_width = panel_width + OVERHANG + 0.3 * own_side
    names = max(len(broken(p.x.label, name_width, preset)) for p in chart.panels)
    x_once = at_bottom and columns > 1 and names > 1 and not (has_bar and bar_below)
    foot_names = 1 if x_once else names
    own_foot = (0.0 if chart.link_x else tick_line) + (0.0 if at_bottom else names * name_line)
    foot = (tick_line if chart.link_x else 0.0) + (foot_names * name_line if at_bottom else 0.0)
    if has_bar and bar_below:
        foot += 0.5
    legend_columns = legend_columns_for(chart, preset)
    legend_rows = -(-len(chart.entries) // legend_columns) if chart.entries else 0
    head = legend_rows * (line + 0.02) + (0.1 if legend_rows else 0.05)
    once = name_line if x_once else 0.0
    lines = wrap(chart.caption, preset.width - 0.15, preset, preset.small) if captioned else []
    below = len(lines) * line + (0.06 if lines else 0.0)
    fixed = head + foot + below + rows * (above_panel + own_foot)
    high = max(_height_of(panel, panel_width, bar_below) for panel in chart.panels)
    panel_height = max(min(high, (PAGE_HEIGHT - fixed) / rows), 0.6)
    return Sheet(
        preset=preset,
        columns=columns,
        rows=rows,
        width=preset.width,
        height=fixed + rows * panel_height,
        panel_width=panel_width,
        panel_height=panel_height,
        below=below,
        caption=tuple(lines),
        bar_below=bar_below,
        legend_columns=legend_columns,
        name_width=name_width,
        x_once=once,
    )


def columns_for(count: int, wanted: int | None, most: int) -> int:
    """Return how many of `count` panels stand in a row, so that rows are even.

    Parameters
    ----------
    count : int
    wanted : int or None
        What the chart asks for; less where `most` is less.
    most : int
        How many the width has room for.

    Returns
    -------
    int
        At least 1. Of numbers near the square root the one that leaves the fewest cells empty.
    """
    most = max(most, 1)
    if wanted is not None:
        return max(1, min(wanted, count, most))
    if count <= 3:
        return min(count, most)
    if count == 4:
        return min(2, most)
    root = math.isqrt(count - 1) + 1
    fits = range(min(3, most), min(root + 1, most, _MOST_COLUMNS) + 1)
    return min(fits, key=lambda n: (-count % n, abs(n - root)))


def shown_bar(chart: Chart) -> bool:
    """Whether the chart's colour bar is drawn: one that says only one value is not."""
    return chart.bar is not None and chart.bar.limits[0] < chart.bar.limits[1]


def named_outside(chart: Chart) -> tuple[bool, bool]:
    """Whether the names of the vertical and of the horizontal axes stand at the outer sides only.

    So it is where all panels' axes have the same name, linked or not.
    """
    return (
        len({panel.y.label for panel in chart.panels}) == 1,
        len({panel.x.label for panel in chart.panels}) == 1,
    )


def fullest(chart: Chart) -> int:
    """Return how many numbers without a size of their own the fullest panel holds."""
    panels = [
        p for panel in chart.panels for p in (panel, *([panel.inset.panel] if panel.inset else []))
    ]
    return max(
        sum(len(m.texts) for m in p.marks if isinstance(m, Numbers) and m.size is None)
        for p in panels
    )


def legend_columns_for(chart: Chart, preset: Preset) -> int:
    """Return into how many columns the legend's entries go, all that fit beside one another."""
    count = len(chart.entries)
    widths = [
        legend_handle(preset) + text_width(plain(e.name), preset, preset.small)
        for e in chart.entries
    ]
    for columns in range(min(count, 8), 1, -1):
        rows = -(-count // columns)
        # Matplotlib fills column after column, each as wide as its widest entry.
        parts = [widths[i : i + rows] for i in range(0, count, rows)]
        if sum(max(part) for part in parts) + 0.2 <= preset.width:
            return len(parts)
    return 1


def legend_handle(preset: Preset) -> float:
    """Return what an entry of the legend takes beside its name, inches."""
    return (3.0 + 0.6 + 1.2) * preset.small / 72


def text_width(text: str, preset: Preset, size: float) -> float:
    """Return how wide one line of `text` is, inches."""
    return _width(text, preset.fonts, size)


@functools.lru_cache(maxsize=4096)
def _width(text: str, fonts: tuple[str, ...], size: float) -> float:
    font = FontProperties(family=list(fonts), size=size)
    width, _, _ = _measurer().get_text_width_height_descent(text, font, False)
    return float(width) / _MEASURED_DPI


_MEASURED_DPI = 720


@functools.cache
def _measurer() -> RendererAgg:
    return RendererAgg(1, 1, _MEASURED_DPI)


def wrap(text: str, room: float, preset: Preset, size: float, most: int | None = None) -> list[str]:
    """Break `text` into lines of `room` inches; beyond `most` lines it ends in an ellipsis."""

    def fits(line: str) -> bool:
        return text_width(line, preset, size) <= room

    lines: list[str] = []
    for word in plain(text).split():
        if lines and fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
            continue
        # A word longer than a line is broken where the line ends.
        while not fits(word) and len(word) > 1:
            end = max(
                1, bisect.bisect(range(1, len(word)), False, key=lambda n: not fits(word[:n]))
            )
            # Rather after a joint of its own: "sorsa-noreg-" and "seed0", not "seed" and "0".
            joint = 1 + max(word.rfind(mark, 0, end) for mark in "-_/")
            end = joint if joint > end // 2 else end
            lines.append(word[:end])
            word = word[end:]
        lines.append(word)
    if most is not None and len(lines) > most:
        last = lines[most - 1]
        while last and not fits(f"{last}…"):
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last}…"]
    return lines


def plain(text: str) -> str:
    """Return `text` as it stands on paper: σₘₐₓ for σ_max, and no control characters."""
    text = "".join(c if c.isprintable() else " " if c.isspace() else _UNPRINTABLE for c in text)
    text = _FORMULA.sub(lambda found: _LATIN_INDEX.sub(_with_index, found[0]), text)
    return _GREEK_INDEX.sub(_with_index, text)


def symbols(label: str) -> str:
    """Return the name of an axis as it stands on paper: W₀ for W_0, which may be a run's name."""
    return _LATIN_INDEX.sub(_with_index, plain(label))


def _with_index(found: re.Match[str]) -> str:
    return found[1] + found[2].translate(_INDICES)


def broken(label: str, room: float, preset: Preset) -> list[str]:
    """Return the lines of an axis' name, broken before its unit where it outgrows `room` inches."""
    label = symbols(label)
    if text_width(label, preset, preset.size) <= room:
        return [label]
    symbol, bracket, unit = label.rpartition(" (")
    if not bracket:
        return wrap(label, room, preset, preset.size, most=2)
    return [
        line for part in (symbol, f"({unit}") for line in wrap(part, room, preset, preset.size, 2)
    ]


def _title_lines(panel: Panel, width: float, preset: Preset) -> int:
    return len(wrap(panel.title, width + 0.1, preset, preset.size, most=2))


def _height_of(panel: Panel, width: float, narrow: bool) -> float:
    if panel.square:
        return min(width, 3.4)
    high = min(0.92 * width, 0.75 + 0.32 * width if narrow else 0.95 + 0.4 * width)
    layers = max((len(m.y) for m in panel.marks if isinstance(m, Heat)), default=0)
    # A heat map of many layers is higher, so that a layer is still a strip and not a hair.
    return max(high, min(layers * 0.035, 1.6 * width))


def thinned(places: Sequence[float], sizes: Sequence[float]) -> list[int]:
    """Return which of the labels at `places` are drawn, so that no two touch.

    Parameters
    ----------
    places : sequence of float, ascending
        Middles, inches.
    sizes : sequence of float
        Lengths along the axis, inches.

    Returns
    -------
    list of int
        The first and every second, fifth, tenth, … after it.
    """
    for every in (n * 10**power for power in range(len(str(len(places)))) for n in (1, 2, 5)):
        kept = range(0, len(places), every)
        if all(
            places[b] - places[a] >= (sizes[a] + sizes[b]) / 2
            for a, b in zip(kept, kept[1:], strict=False)
        ):
            return list(kept)
    return [0] if places else []
