"""What a pointer shows of a mark on a screen, and what a click tells.

Names of runs and modules are data. `text` makes of them what Plotly shows as it stands; raw they
only travel in ``customdata[0]`` and ``[1]``, to which no template refers.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectra.figures.chart import Axis, Floats, Hover, Panel, Pick
from spectra.figures.selection import clean

PICKED = 4
"""customdata begins with run, module, layer and step."""


PICKABLE = "pick"
"""The ``meta`` of traces of which that is so."""


def text(name: str, whole: bool = False) -> str:
    """Return text that Plotly shows as it stands.

    Plotly reads tags everywhere, and ``%{…}`` in what a pointer shows. A name is also cut where it
    is very long; a `whole` text is not.
    """
    shown = name if whole else clean(name)
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
    return html.escape(printable, quote=False).replace("%{", "%&#123;")


def joined(parts: Sequence[Floats]) -> NDArray[Any]:
    """Return the parts one after the other, with a gap between them."""
    return _with_gaps([np.asarray(part, dtype=float) for part in parts], np.array([np.nan]))


def _with_gaps(parts: Sequence[NDArray[Any]], gap: NDArray[Any]) -> NDArray[Any]:
    if len(parts) == 1:
        return parts[0]
    pieces = [piece for part in parts for piece in (part, gap)]
    return np.concatenate(pieces[:-1])


def told(points: Sequence[tuple[Hover | None, Pick | None, int]], panel: Panel) -> dict[str, Any]:
    """Return what a pointer shows and what a click tells of joined marks of one look.

    Parameters
    ----------
    points : sequence of (Hover or None, Pick or None, int)
        Of each mark, with its number of points.
    panel : Panel
    """
    hover, pick, _ = points[0]
    found: dict[str, Any] = {}
    names = [name for name, _ in hover.columns] if hover else []
    if hover is None:
        found["hoverinfo"] = "skip" if pick is None else "none"
    else:
        heads = [text(h.head) if h else "" for h, _, _ in points]
        head = heads[0]
        if len(set(heads)) > 1:
            head = "%{hovertext}"
            found["hovertext"] = shared(
                _with_gaps(
                    [_filled(h, n) for h, (_, _, n) in zip(heads, points, strict=True)],
                    _filled("", 1),
                )
            )
        first = 0 if pick is None else PICKED
        rows = [f"<b>{head}</b>" if head else "", reading(panel.x, "x"), reading(panel.y, "y")]
        rows += [f"{text(name)} %{{customdata[{first + k}]}}" for k, name in enumerate(names)]
        found["hovertemplate"] = "<br>".join(row for row in rows if row) + "<extra></extra>"
    if names or pick is not None:
        tables = [_rows(h, p, count, len(names)) for h, p, count in points]
        gap = np.full((1, tables[0].shape[1]), None, dtype=object)
        found["customdata"] = shared(_with_gaps(tables, gap))
        if pick is not None:
            found["meta"] = PICKABLE
    return found


def without_picks(figure: dict[str, Any]) -> dict[str, Any]:
    """Take out of a figure, as a dictionary, what a click would tell: in a file nothing listens."""
    for trace in figure["data"]:
        if trace.get("meta") == PICKABLE:
            rows = np.array(trace["customdata"], dtype=object)
            rows[:, :PICKED] = None
            trace["customdata"] = rows
    return figure


def _rows(hover: Hover | None, pick: Pick | None, count: int, names: int) -> NDArray[Any]:
    """Return run, module, layer and step, where they are known, and the columns of every point."""
    first = 0 if pick is None else PICKED
    rows = np.empty((count, first + names), dtype=object)
    if pick is not None:
        rows[:, 0], rows[:, 1] = pick.run, pick.module
        rows[:, 2], rows[:, 3] = pick.layers, pick.steps
    for k, (_, values) in enumerate(hover.columns if hover else ()):
        rows[:, first + k] = readable(np.asarray(values, dtype=float))
    return rows


def _filled(word: str, count: int) -> NDArray[Any]:
    found = np.empty(count, dtype=object)
    found[:] = word
    return found


class _Shared(np.ndarray):
    """An array that is never changed, so that Plotly's copies of a figure need none of it.

    It copies a figure two or three times on the way to a page, which takes longer than all else
    where every point has names.
    """

    def __deepcopy__(self, memo: Any) -> _Shared:
        return self


def shared(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array as one that copies of a figure have in common."""
    return array.view(_Shared)


def reading(axis: Axis, name: str) -> str:
    """Return the line of a template that tells a point's place on an axis, x or y."""
    form = ":.8~g" if axis.integer else ":.4~g"
    return f"{text(axis.symbol)} %{{{name}{form}}}"


def readable(values: Floats) -> list[int] | list[str]:
    """Return numbers as a pointer shows them; whole ones as they are, which is quicker."""
    if np.isfinite(values).all() and (values == np.rint(values)).all():
        return values.astype(int).tolist()
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> str:
    if math.isnan(value):
        return "not computed"
    shown = "∞" if math.isinf(value) else f"{abs(value):.4g}"
    return f"\N{MINUS SIGN}{shown}" if value < 0 else shown
