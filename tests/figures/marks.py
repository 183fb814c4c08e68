"""Finding in a chart what a test asks about."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from spectra.figures.chart import Band, Chart, Line, Mark, Note, Numbers, Panel, Zone

M = TypeVar("M", bound=Mark)
Points = tuple[tuple[float, ...], tuple[float, ...]]


def of_kind(panel: Panel, kind: type[M]) -> list[M]:
    """The panel's marks of one kind, in their order."""
    return [mark for mark in panel.marks if isinstance(mark, kind)]


def entry(chart: Chart, name: str) -> str:
    """The key of the legend's entry that begins with this name."""
    (key,) = [e.key for e in chart.entries if e.name.split(",")[0] == name]
    return key


def thick(chart: Chart, panel: Panel, name: str) -> Line:
    """The one strong line of a module or run."""
    lines = [m for m in of_kind(panel, Line) if m.entry == entry(chart, name) and m.width >= 1.2]
    (line,) = lines
    return line


def band(chart: Chart, panel: Panel, name: str) -> Band:
    """The shading of a module or run."""
    (found,) = [m for m in of_kind(panel, Band) if m.entry == entry(chart, name)]
    return found


def segments(line: Line) -> list[Points]:
    """What a line joins: its points between the gaps."""
    ends = np.flatnonzero(~np.isfinite(line.y))
    starts = [0, *(ends + 1)]
    pieces = zip(starts, [*ends, len(line.y)], strict=True)
    return [(tuple(line.x[a:b]), tuple(line.y[a:b])) for a, b in pieces if b > a]


def layer_curves(panel: Panel) -> dict[tuple[str, int], Points]:
    """Thin lines of curves by module and layer, from what a click on them gives."""
    found = {}
    for line in of_kind(panel, Line):
        if line.pick is None:
            continue
        start = 0
        for piece in segments(line):
            # Every piece is followed by a gap.
            found[line.pick.module, line.pick.layers[start]] = piece
            start += len(piece[0]) + 1
    return found


def numbered(panel: Panel) -> dict[tuple[str, int, int], tuple[float, float]]:
    """Where the layer numbers stand, by module, layer and step; the text is the layer."""
    found = {}
    for mark in of_kind(panel, Numbers):
        assert mark.pick is not None
        assert mark.texts == tuple(map(str, mark.pick.layers))
        keys = zip(mark.pick.layers, mark.pick.steps, strict=True)
        for (layer, step), x, y in zip(keys, mark.x, mark.y, strict=True):
            found[mark.pick.module, layer, step] = (float(x), float(y))
    return found


def steps_of(line: Line) -> list[int]:
    """The steps behind a line's points, as a pointer shows them."""
    assert line.hover is not None
    return [int(s) for s in dict(line.hover.columns)["step"]]


def zone(panel: Panel) -> Zone | None:
    """The noise floor of a panel, None where there is none."""
    zones = of_kind(panel, Zone)
    assert len(zones) <= 1
    return zones[0] if zones else None


def note(panel: Panel) -> Note:
    """The words of a panel's noise floor."""
    (found,) = of_kind(panel, Note)
    return found


def finite(values: NDArray[np.float64]) -> bool:
    """Whether there is a value and none is missing or infinite."""
    return bool(len(values)) and bool(np.isfinite(values).all())
