"""One matrix at one step: its singular values and vectors against the base's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectra.figures.arrays import choose_arrays, peaks
from spectra.figures.chart import (
    GREY,
    Axis,
    Band,
    Chart,
    ColourBar,
    Entry,
    Floats,
    Heat,
    Hover,
    Ink,
    Line,
    Mark,
    Numbers,
    Panel,
    Rule,
    Zone,
)
from spectra.figures.drawing import draw
from spectra.figures.export import Backend
from spectra.figures.matrix_facts import (
    LEFT,
    RESOLVED,
    RIGHT,
    Matrix,
    drift_sentences,
    farthest,
    ill_determined,
    largest_turn,
    missing_sentences,
    read_matrix,
    turn,
    turn_sentences,
    unrelated,
)
from spectra.figures.noise import reach
from spectra.figures.selection import clean

# Points of one line: a curve of thousands keeps its peaks.
_MOST_POINTS = 1000
# A label's part of the panel's width: no other stands as near.
_LABEL_WIDTH = 0.2
# Up to here every index has a marker of its own.
_MARKED = 48
_TICKS = 4
_TRAINED, _BASE = "trained", "base"
_INKS = {_TRAINED: Ink("text"), _BASE: GREY, LEFT: Ink("run", 0), RIGHT: Ink("run", 1)}
_MARKERS = {LEFT: "circle", RIGHT: "square"}
# Left and right turn alike where two values lie close: the wider line shows below the thin one.
_PENS = {LEFT: (1.4, 0.8), RIGHT: (0.6, 1.0)}
_SHADE = 0.3
# A noise floor below this part of an axis is thinner than a line.
_SEEN = 0.002


def matrix(
    drift: pd.DataFrame,
    arrays: pd.DataFrame,
    *,
    module: str,
    layer: int,
    step: int,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Draw how the singular values and vectors of one matrix at one step left the base's.

    Panels: σ_t and σ_0 by index; their difference, with the noise floor of ΔΣ; the overlaps
    |⟨u_t, u_0⟩| and |⟨v_t, v_0⟩| of every index; 1 minus these, with the noise floor of ΔD; and
    the overlaps |U_0ᵀU_t| and |V_0ᵀV_t| of the leading vectors, each with each.

    Parameters
    ----------
    drift : DataFrame
        Drift rows of one run: columns run, module, layer, step; and, where present, rows, cols,
        delta_sigma, delta_d, sigma_noise, d_noise. May be empty: then no noise floor is drawn.
    arrays : DataFrame
        `Run.read_spectrum()` of the same run: columns run, method, module, layer, step, sigma;
        and, where present and not null, overlap_u, overlap_v, sigma_change, leading_u,
        leading_v. A panel whose array is missing is left out, and the caption says why.
    module : str
    layer, step : int
        Which matrix.
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    dark : bool
        Colours for a dark background (plotly only).
    preset : str, optional
        Width and fonts of a venue (matplotlib only).

    Returns
    -------
    plotly.graph_objects.Figure or matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the rows are of several runs, or hold no singular values of this matrix at this step.

    Notes
    -----
    A singular vector whose value lies within a distance g of a neighbour's can be turned at will
    by a change of W of norm g (Davis and Kahan; Wedin for singular vectors). Indices are shaded
    where that distance, in W_0 or in W_t, is below 10⁻⁵ σ_max, which not every solver resolves,
    or below the noise floor of ΔΣ: their overlaps say little.

    Long curves are drawn by the lowest and the highest value of every stretch of indices, so
    that no peak is lost.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Eqs. 1 to 4. Davis and Kahan, The rotation of
    eigenvectors by a perturbation III, SIAM J. Numer. Anal. 7, 1970. Wedin, Perturbation bounds
    in connection with singular value decomposition, BIT 12, 1972.
    """
    return draw(
        describe_matrix(drift, arrays, module=module, layer=layer, step=step),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_matrix(
    drift: pd.DataFrame,
    arrays: pd.DataFrame,
    *,
    module: str,
    layer: int,
    step: int,
) -> Chart:
    """Turn rows into the chart of `matrix`, which see."""
    for rows in (arrays, drift):
        if "run" in rows and rows["run"].nunique() > 1:
            raise ValueError(
                f"One matrix is of one run, got rows of {rows['run'].nunique()}: "
                f"{', '.join(clean(r) for r in rows['run'].unique()[:4])}. Choose one."
            )
    chosen, _ = choose_arrays(arrays, [module], [layer], [step])
    row = chosen.iloc[0]
    found = read_matrix(drift, row)
    shaded = ill_determined(found)
    panels = [_values_panel(found)]
    if found.change is not None:
        panels.append(_change_panel(found, found.change))
    if found.overlaps:
        panels += [_overlap_panel(found, shaded), _turn_panel(found, shaded)]
    panels += _leading_panels(found)
    sides = list(found.overlaps)
    entries = [Entry(_TRAINED, "trained, σ_t", _INKS[_TRAINED])]
    if found.change is not None:
        entries.append(Entry(_BASE, "base, σ_0", GREY, width=2.6))
    if found.overlaps:
        names = {LEFT: "left vectors, u", RIGHT: "right vectors, v"}
        entries += [Entry(s, names[s], _INKS[s], width=_PENS[s][0]) for s in sides]
    size = ""
    if found.number("rows") > 0:
        size = f" ({found.number('rows'):.0f} × {found.number('cols'):.0f})"
    run, method = clean(row["run"]), clean(row["method"])
    return Chart(
        panels=tuple(panels),
        entries=tuple(entries),
        bar=ColourBar("overlap of leading vectors", "size", (0.0, 1.0), integer=False)
        if found.leading
        else None,
        reading=(
            "One matrix against its base, index by index: singular values, their change, and how "
            "far each singular vector turned (overlap 1: not at all)."
        ),
        caption=" ".join(
            [
                f"{run if run == method or run.startswith(f'{method}-') else f'{method} · {run}'}, "
                f"layer {layer} {clean(module)}{size} at step {step}.",
                *drift_sentences(found),
                *_zone_sentences(panels),
                *turn_sentences(found, shaded),
                *missing_sentences(found),
            ]
        ),
    )


def _zone_sentences(panels: Sequence[Panel]) -> Iterator[str]:
    if any(isinstance(mark, Zone) for panel in panels for mark in panel.marks):
        yield "Grey along an axis: noise floors, means over all indices."


# The panels


def _values_panel(found: Matrix) -> Panel:
    lines = [(_TRAINED, found.sigma)]
    if found.change is not None:
        lines.insert(0, (_BASE, found.sigma - found.change))
    # Stored as float32: what is smaller than this part of the largest is its rounding.
    least = found.sigma[0] * RESOLVED
    low = min(float(s[s > least].min()) for _, s in lines)
    high = max(float(s.max()) for _, s in lines)
    margin = (high / low) ** 0.05 if high > low else 1.1
    marks: list[Mark] = []
    for name, sigma in lines:
        wide = name == _BASE
        y = np.where(sigma > least, sigma, np.nan)
        marks.append(
            _line(y, name, "base" if wide else "trained", 2.6 if wide else 1.0, 0.7 if wide else 1)
        )
    axis = Axis("σᵢ (unit of the weights)", "σᵢ", (low / margin, high * margin), log=True)
    return Panel("singular values", _index(found), axis, tuple(marks))


def _change_panel(found: Matrix, change: Floats) -> Panel:
    low, high = min(float(change.min()), 0.0), max(float(change.max()), 0.0)
    noise = found.number("sigma_noise")
    margin = 0.06 * (high - low) or noise * 1.1 or 1.0
    margin = margin if margin > 0 else 1.0
    low, high = low - margin, high + margin
    marks: list[Mark] = []
    if noise > _SEEN * (high - low):
        high = reach((low, high), [noise])[1]
        low = -reach((-high, -low), [noise])[1]
        marks.append(Zone(y=(-noise, noise)))
    marks += [Rule(y=0.0, dash="solid"), _line(change, _TRAINED, "change", 0.9)]
    axis = Axis("σ_t − σ_0", "change", (low, high))
    return Panel("change of values", _index(found), axis, tuple(marks))


def _overlap_panel(found: Matrix, shaded: NDArray[np.bool_]) -> Panel:
    lowest = min(float(np.nanmin(o)) for o in found.overlaps.values())
    # Where nothing turned far, 0 to 1 would show a line at the top.
    span = max(1.0 - lowest, 1e-6) if lowest > 0.5 else 1.0
    limits = (1 - 1.06 * span if span < 1 else 0.0, 1 + 0.04 * span)
    marks = _shading(shaded, limits)
    marks += [
        Rule(y=level, dash="dot" if side == LEFT else "dashdot")
        for side, level in unrelated(found)
        if level > limits[0]
    ]
    marks += [_line(o, side, f"{side} vectors", *_PENS[side]) for side, o in found.overlaps.items()]
    axis = Axis("overlap, 1 = unmoved", "overlap", limits)
    return Panel("overlap with the base", _index(found), axis, tuple(marks))


def _turn_panel(found: Matrix, shaded: NDArray[np.bool_]) -> Panel:
    turns = {side: turn(o) for side, o in found.overlaps.items()}
    known = np.concatenate([t[np.isfinite(t)] for t in turns.values()])
    low, high = (float(known.min()), float(known.max())) if len(known) else (RESOLVED, 1.0)
    noise = found.number("d_noise")
    limits = reach((low / 1.6, high * (high / low) ** 0.12 * 1.3), [noise], log=True)
    marks = _shading(shaded, limits)
    if noise > limits[0]:
        marks.append(Zone(y=(None, noise), edge=True))
    marks += [_line(t, side, f"{side} vectors", *_PENS[side]) for side, t in turns.items()]
    names = _names(farthest(found, shaded), found.k)
    if names:
        at = np.array([group[0] for group in names])
        marks.append(
            Numbers(
                # Within the panel, and just above the point, which stays visible.
                x=np.clip(
                    at + 1.0, 1 + _LABEL_WIDTH / 2 * found.k, (1 - _LABEL_WIDTH / 2) * found.k
                ),
                y=largest_turn(found)[at] * (limits[1] / limits[0]) ** 0.035,
                texts=tuple("–".join(str(i + 1) for i in _ends(group)) for group in names),
                places=np.zeros(len(at)),
                size=6.0,
                ink=Ink("text"),
            )
        )
    axis = Axis("1 − overlap", "1 − overlap", limits, log=True)
    return Panel("turn of each vector", _index(found), axis, tuple(marks))


def _leading_panels(found: Matrix) -> Iterator[Panel]:
    for side, values in found.leading.items():
        name = "|U₀ᵀUₜ|" if side == LEFT else "|V₀ᵀVₜ|"
        p = len(values)
        middles = np.arange(1.0, p + 1)
        ends = (0.5, p + 0.5)
        ticks = tuple((float(i), str(i)) for i in range(1, p + 1) if i == 1 or i % _TICKS == 0)
        yield Panel(
            title=f"{name}, {p} leading",
            x=Axis("trained vector j", "trained", ends, integer=True, ticks=ticks),
            y=Axis("base vector i", "base", (ends[1], ends[0]), integer=True, ticks=ticks),
            marks=(Heat(middles, middles, values, "overlap", f"{side} vectors"),),
            square=True,
        )


def _index(found: Matrix) -> Axis:
    margin = max(0.02 * found.k, 0.4)
    return Axis("index i", "i", (1 - margin, found.k + margin), integer=True)


def _line(y: Floats, entry: str, head: str, width: float, opacity: float = 1.0) -> Line:
    kept = peaks(y, _MOST_POINTS)
    return Line(
        x=kept.astype(np.float64) + 1,
        y=y[kept],
        ink=_INKS[entry],
        width=width,
        opacity=opacity,
        marker=_MARKERS.get(entry, "") if len(y) <= _MARKED else "",
        entry=entry,
        hover=Hover(head),
    )


def _shading(shaded: NDArray[np.bool_], limits: tuple[float, float]) -> list[Mark]:
    """Return one mark for all stretches of shaded indices, of no height between them."""
    if not shaded.any():
        return []
    turns = np.flatnonzero(np.diff(np.pad(shaded, 1).astype(np.int8)))
    x = np.repeat(turns + 0.5, 2)
    high = np.tile([limits[0], limits[1], limits[1], limits[0]], len(turns) // 2)
    return [Band(x, np.full(len(x), limits[0]), high, GREY, opacity=_SHADE)]


def _names(named: NDArray[np.int64], k: int) -> list[list[int]]:
    """Return the named indices, those that one label must stand for together, the first leading.

    Vectors whose values lie close turn into each other, so that the farthest come in pairs.
    """
    groups: list[list[int]] = []
    for i in named.tolist():
        near = next((g for g in groups if abs(g[0] - i) < _LABEL_WIDTH * k), None)
        if near is None:
            groups.append([i])
        elif abs(near[0] - i) < len(near) + 1:
            near.append(i)
    return groups


def _ends(group: list[int]) -> list[int]:
    return sorted({min(group), max(group)})
