"""One matrix at one step: its singular values and vectors against the base's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectra.figures.arrays import array_of, choose_arrays, peaks
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
from spectra.figures.noise import reach, short
from spectra.figures.selection import clean

ILL_DETERMINED_GAP = 1e-5
"""Part of σ_max: closer values are beyond what every solver tells apart (as `ill_determined`)."""
# Points of one line: a curve of thousands keeps its peaks.
_MOST_POINTS = 1000
# Overlaps are stored as float32: 1 minus one of them is known to this.
_RESOLVED = 1e-7
_MOST_NAMED = 6
# A label's part of the panel's width: no other stands as near.
_LABEL_WIDTH = 0.2
# Up to here every index has a marker of its own.
_MARKED = 48
_TICKS = 4
_TRAINED, _BASE, _LEFT, _RIGHT = "trained", "base", "left", "right"
_INKS = {_TRAINED: Ink("text"), _BASE: GREY, _LEFT: Ink("run", 0), _RIGHT: Ink("run", 1)}
_MARKERS = {_LEFT: "circle", _RIGHT: "square"}
# Left and right turn alike where two values lie close: the wider line shows below the thin one.
_PENS = {_LEFT: (1.4, 0.8), _RIGHT: (0.6, 1.0)}
_SHADE = 0.3


@dataclass(frozen=True)
class _Matrix:
    """What is known of the matrix; None or NaN where it is not stored.

    Attributes
    ----------
    sigma, change : array of shape (k,)
    overlaps : dict
        Side (left, right) to the array of shape (k,).
    leading : dict
        Side to the array of shape (p, p): base down, trained across.
    drift : Series
        The drift row, empty where there is none.
    """

    sigma: Floats
    change: Floats | None
    overlaps: dict[str, Floats]
    leading: dict[str, Floats]
    drift: pd.Series

    @property
    def k(self) -> int:
        return len(self.sigma)

    def number(self, column: str) -> float:
        value = self.drift.get(column)
        return math.nan if value is None or pd.isna(value) else float(value)


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
    found = _matrix(drift, row)
    shaded = _ill_determined(found)
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
        names = {_LEFT: "left vectors, u", _RIGHT: "right vectors, v"}
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
                *_drift_sentences(found),
                *_turn_sentences(found, shaded),
                *_missing_sentences(found),
            ]
        ),
    )


def _matrix(drift: pd.DataFrame, row: pd.Series) -> _Matrix:
    sigma = array_of(row["sigma"])
    assert sigma is not None

    def stored(column: str, size: int | None = None) -> Floats | None:
        array = array_of(row.get(column))
        return None if array is None or (size is not None and len(array) != size) else array

    overlaps = {_LEFT: stored("overlap_u", len(sigma)), _RIGHT: stored("overlap_v", len(sigma))}
    leading = {}
    for side, column in ((_LEFT, "leading_u"), (_RIGHT, "leading_v")):
        flat = stored(column)
        if flat is not None and math.isqrt(len(flat)) ** 2 == len(flat):
            leading[side] = flat.reshape(math.isqrt(len(flat)), -1)
    keys = ["run", "module", "layer", "step"]
    known = drift.iloc[:0] if drift.empty or not set(keys) <= set(drift.columns) else drift
    for key in keys if len(known) else []:
        known = known[known[key] == row[key]]
    return _Matrix(
        sigma=sigma,
        change=stored("sigma_change", len(sigma)),
        overlaps={side: o for side, o in overlaps.items() if o is not None},
        leading=leading,
        drift=known.iloc[0] if len(known) else pd.Series(dtype=object),
    )


def _ill_determined(found: _Matrix) -> NDArray[np.bool_]:
    """Return the indices whose value lies too close to a neighbour's for vectors to be told."""
    spectra = [found.sigma] if found.change is None else [found.sigma, found.sigma - found.change]
    shaded = np.zeros(found.k, dtype=bool)
    for sigma in spectra:
        close = np.abs(np.diff(sigma)) <= _least_gap(found)
        shaded[1:] |= close
        shaded[:-1] |= close
    return shaded


def _least_gap(found: _Matrix) -> float:
    noise = found.number("sigma_noise")
    return max(ILL_DETERMINED_GAP * float(found.sigma[0]), noise if noise > 0 else 0.0)


# The panels


def _values_panel(found: _Matrix) -> Panel:
    lines = [(_TRAINED, found.sigma)]
    if found.change is not None:
        lines.insert(0, (_BASE, found.sigma - found.change))
    # Stored as float32: what is smaller than this part of the largest is its rounding.
    least = found.sigma[0] * _RESOLVED
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


def _change_panel(found: _Matrix, change: Floats) -> Panel:
    low, high = min(float(change.min()), 0.0), max(float(change.max()), 0.0)
    noise = found.number("sigma_noise")
    margin = 0.06 * (high - low) or noise * 1.1 or 1.0
    margin = margin if margin > 0 else 1.0
    low, high = low - margin, high + margin
    marks: list[Mark] = []
    if noise > 0:
        high = reach((low, high), [noise])[1]
        low = -reach((-high, -low), [noise])[1]
        marks.append(Zone(y=(-noise, noise)))
    marks += [Rule(y=0.0, dash="solid"), _line(change, _TRAINED, "change", 0.9)]
    axis = Axis("σ_t − σ_0", "change", (low, high))
    return Panel("change of singular values", _index(found), axis, tuple(marks))


def _overlap_panel(found: _Matrix, shaded: NDArray[np.bool_]) -> Panel:
    lowest = min(float(o.min()) for o in found.overlaps.values())
    # Where nothing turned far, 0 to 1 would show a line at the top.
    span = max(1.0 - lowest, 1e-6) if lowest > 0.5 else 1.0
    limits = (1 - 1.06 * span if span < 1 else 0.0, 1 + 0.04 * span)
    marks = _shading(shaded, limits)
    marks += [
        Rule(y=level, dash="dot" if side == _LEFT else "dashdot")
        for side, level in _unrelated(found)
        if level > limits[0]
    ]
    marks += [_line(o, side, f"{side} vectors", *_PENS[side]) for side, o in found.overlaps.items()]
    axis = Axis("overlap, 1 = unmoved", "overlap", limits)
    return Panel("overlap with the base", _index(found), axis, tuple(marks))


def _turn_panel(found: _Matrix, shaded: NDArray[np.bool_]) -> Panel:
    turns = {side: _turn(o) for side, o in found.overlaps.items()}
    known = np.concatenate([t[np.isfinite(t)] for t in turns.values()])
    low, high = (float(known.min()), float(known.max())) if len(known) else (_RESOLVED, 1.0)
    noise = found.number("d_noise")
    limits = reach((low / 1.6, high * (high / low) ** 0.12 * 1.3), [noise], log=True)
    marks = _shading(shaded, limits)
    if noise > limits[0]:
        marks.append(Zone(y=(None, noise), edge=True))
    marks += [_line(t, side, f"{side} vectors", *_PENS[side]) for side, t in turns.items()]
    names = _names(_named(found, shaded), found.k)
    if names:
        at = np.array([group[0] for group in names])
        marks.append(
            Numbers(
                # Within the panel, and just above the point, which stays visible.
                x=np.clip(
                    at + 1.0, 1 + _LABEL_WIDTH / 2 * found.k, (1 - _LABEL_WIDTH / 2) * found.k
                ),
                y=_largest(found)[at] * (limits[1] / limits[0]) ** 0.035,
                texts=tuple("–".join(str(i + 1) for i in _ends(group)) for group in names),
                # The end of this map stands out on either ground.
                places=np.ones(len(at)),
                map="size",
                size=6.0,
            )
        )
    axis = Axis("1 − overlap", "1 − overlap", limits, log=True)
    return Panel("how far each vector turned", _index(found), axis, tuple(marks))


def _leading_panels(found: _Matrix) -> Iterator[Panel]:
    for side, values in found.leading.items():
        name = "|U_0ᵀU_t|" if side == _LEFT else "|V_0ᵀV_t|"
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


def _index(found: _Matrix) -> Axis:
    margin = max(0.02 * found.k, 0.4)
    return Axis("index i", "i", (1 - margin, found.k + margin), integer=True)


def _line(y: Floats, entry: str, head: str, width: float, opacity: float = 1.0) -> Line:
    kept = peaks(y, _MOST_POINTS)
    return Line(
        x=kept + 1.0,
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


# What the vectors did


def _turn(overlap: Floats) -> Floats:
    """Return 1 − overlap, NaN where float32 cannot tell it from 0."""
    turn = 1.0 - overlap
    return np.where(turn >= _RESOLVED, turn, np.nan)


def _largest(found: _Matrix) -> Floats:
    """Return the larger turn of the two sides, by index."""
    return np.max([1.0 - o for o in found.overlaps.values()], axis=0)


def _named(found: _Matrix, shaded: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the indices that turned most and are told apart from their neighbours."""
    turn = np.where(shaded, 0.0, _largest(found))
    first = np.argsort(-turn, kind="stable")[:_MOST_NAMED]
    return first[turn[first] >= _RESOLVED]


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


def _unrelated(found: _Matrix) -> list[tuple[str, float]]:
    """Return how much unrelated vectors overlap, √(2/(πd)) for d dimensions, by side."""
    levels = []
    for side, column in ((_LEFT, "rows"), (_RIGHT, "cols")):
        dimension = found.number(column)
        if dimension > 1 and side in found.overlaps:
            levels.append((side, math.sqrt(2 / (math.pi * dimension))))
    return levels[:1] if len(levels) == 2 and levels[0][1] == levels[1][1] else levels


# The caption


def _drift_sentences(found: _Matrix) -> Iterator[str]:
    parts = []
    for symbol, column, floor in (
        ("ΔΣ", "delta_sigma", "sigma_noise"),
        ("ΔD", "delta_d", "d_noise"),
    ):
        value, noise = found.number(column), found.number(floor)
        if math.isfinite(value):
            of_noise = f", noise floor {short(noise)}" if noise > 0 else ""
            parts.append(f"{symbol} = {short(value)}{of_noise}")
    if parts:
        yield "; ".join(parts) + "."
    noises = [found.number(c) for c in ("sigma_noise", "d_noise")]
    if any(n > 0 for n in noises):
        yield "Grey along an axis: the noise floors, means over all indices."


def _turn_sentences(found: _Matrix, shaded: NDArray[np.bool_]) -> Iterator[str]:
    if not found.overlaps:
        return
    named = _named(found, shaded)
    if len(named):
        largest = _largest(found)
        names = ", ".join(f"{i + 1} ({short(float(largest[i]))})" for i in named)
        apart = " of those not shaded" if shaded.any() else ""
        yield f"Turned most{apart}, as 1 − overlap of the side that turned farther: {names}."
    else:
        yield "No vector turned measurably."
    still = int(sum(np.isnan(_turn(o)).sum() for o in found.overlaps.values()))
    if still:
        yield (
            f"{still} of {sum(map(len, found.overlaps.values()))} overlaps are 1 to within "
            "float32: no point among the turns."
        )
    levels = [short(level) for _, level in _unrelated(found)]
    if levels:
        both = " (left dotted, right dash-dotted)" if len(levels) == 2 else ""
        yield f"Unrelated vectors overlap by √(2/(πd)) = {' and '.join(levels)}{both}."
    if shaded.any():
        yield (
            f"Shaded upright: {shaded.sum()} of {found.k} indices whose σ lies within "
            f"{short(_least_gap(found))} of a neighbour's (the larger of 1e−5 σ_max and the noise "
            "floor of ΔΣ); a change of W of that norm turns their vectors at will (Davis–Kahan, "
            "Wedin)."
        )


def _missing_sentences(found: _Matrix) -> Iterator[str]:
    if not found.overlaps:
        yield (
            "No vectors: analysed with --values-only. `spectra analyze RUN` without it adds them."
        )
    missing = []
    if found.change is None:
        missing.append("the base's singular values")
    if found.overlaps and not found.leading:
        missing.append("the overlaps of the leading vectors")
    if missing:
        yield (
            f"Not stored by the version that analysed this run: {' and '.join(missing)}. "
            "`spectra analyze RUN` again adds them."
        )
