"""What is known of one matrix against its base, and what to say of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectra.figures.arrays import array_of
from spectra.figures.chart import Floats
from spectra.figures.noise import short

ILL_DETERMINED_GAP = 1e-5
"""Part of σ_max: closer values are beyond what every solver tells apart (as `ill_determined`)."""
RESOLVED = 1e-7
"""Overlaps are stored as float32: 1 minus one of them, and σ/σ_max, is known to this."""
LEFT, RIGHT = "left", "right"
_MOST_NAMED = 6


@dataclass(frozen=True)
class Matrix:
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
        """How many singular values there are."""
        return len(self.sigma)

    def number(self, column: str) -> float:
        """Return a value of the drift row; NaN where there is none."""
        value = self.drift.get(column)
        return math.nan if value is None or pd.isna(value) else float(value)


def read_matrix(drift: pd.DataFrame, row: pd.Series) -> Matrix:
    """Return what a row of arrays and the drift row of the same matrix know."""
    sigma = array_of(row["sigma"])
    assert sigma is not None

    def stored(column: str, size: int | None = None) -> Floats | None:
        array = array_of(row.get(column))
        return None if array is None or (size is not None and len(array) != size) else array

    overlaps = {LEFT: stored("overlap_u", len(sigma)), RIGHT: stored("overlap_v", len(sigma))}
    leading = {}
    for side, column in ((LEFT, "leading_u"), (RIGHT, "leading_v")):
        flat = stored(column)
        if flat is not None and math.isqrt(len(flat)) ** 2 == len(flat):
            leading[side] = flat.reshape(math.isqrt(len(flat)), -1)
    keys = ["run", "module", "layer", "step"]
    known = drift.iloc[:0] if drift.empty or not set(keys) <= set(drift.columns) else drift
    for key in keys if len(known) else []:
        known = known[known[key] == row[key]]
    return Matrix(
        sigma=sigma,
        change=stored("sigma_change", len(sigma)),
        overlaps={
            side: o for side, o in overlaps.items() if o is not None and np.isfinite(o).any()
        },
        leading=leading,
        drift=known.iloc[0] if len(known) else pd.Series(dtype=object),
    )


def ill_determined(found: Matrix) -> NDArray[np.bool_]:
    """Return the indices whose value lies too close to a neighbour's for vectors to be told."""
    spectra = [found.sigma] if found.change is None else [found.sigma, found.sigma - found.change]
    shaded = np.zeros(found.k, dtype=bool)
    for sigma in spectra:
        close = np.abs(np.diff(sigma)) <= least_gap(found)
        shaded[1:] |= close
        shaded[:-1] |= close
    return shaded


def least_gap(found: Matrix) -> float:
    """Return the distance below which two values' vectors are arbitrary."""
    noise = found.number("sigma_noise")
    return max(ILL_DETERMINED_GAP * float(found.sigma[0]), noise if noise > 0 else 0.0)


def turn(overlap: Floats) -> Floats:
    """Return 1 − overlap, NaN where float32 cannot tell it from 0."""
    turned = 1.0 - overlap
    return np.where(turned >= RESOLVED, turned, np.nan)


def largest_turn(found: Matrix) -> Floats:
    """Return the larger turn of the two sides, by index."""
    return np.max([1.0 - np.nan_to_num(o, nan=1.0) for o in found.overlaps.values()], axis=0)


def farthest(found: Matrix, shaded: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the indices that turned most and are told apart from their neighbours."""
    turned = np.where(shaded, 0.0, largest_turn(found))
    first = np.argsort(-turned, kind="stable")[:_MOST_NAMED]
    return first[turned[first] >= RESOLVED]


def unrelated(found: Matrix) -> list[tuple[str, float]]:
    """Return how much unrelated vectors overlap, √(2/(πd)) for d dimensions, by side."""
    levels = []
    for side, column in ((LEFT, "rows"), (RIGHT, "cols")):
        dimension = found.number(column)
        if dimension > 1 and side in found.overlaps:
            levels.append((side, math.sqrt(2 / (math.pi * dimension))))
    return levels[:1] if len(levels) == 2 and levels[0][1] == levels[1][1] else levels


def drift_sentences(found: Matrix) -> Iterator[str]:
    """Tell how far the matrix moved, and what of that rounding alone gives."""
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


def turn_sentences(found: Matrix, shaded: NDArray[np.bool_]) -> Iterator[str]:
    """Tell which vectors turned, and of which that says little."""
    if not found.overlaps:
        return
    named = farthest(found, shaded)
    if len(named):
        largest = largest_turn(found)
        names = ", ".join(f"{i + 1} ({short(float(largest[i]))})" for i in named)
        apart = " of those not shaded" if shaded.any() else ""
        yield f"Turned most{apart}, as 1 − overlap of the side that turned farther: {names}."
    else:
        yield "No vector turned measurably."
    still = int(sum(np.isnan(turn(o)).sum() for o in found.overlaps.values()))
    if still:
        yield (
            f"{still} of {sum(map(len, found.overlaps.values()))} overlaps are 1 to within "
            "float32: no point among the turns."
        )
    levels = [short(level) for _, level in unrelated(found)]
    if levels:
        both = " (left dotted, right dash-dotted)" if len(levels) == 2 else ""
        yield f"Unrelated vectors overlap by √(2/(πd)) = {' and '.join(levels)}{both}."
    if shaded.any():
        yield (
            f"Shaded upright: {shaded.sum()} of {found.k} indices whose σ lies within "
            f"{short(least_gap(found))} of a neighbour's (the larger of 1e−5 σ_max and the noise "
            "floor of ΔΣ); a change of W of that norm turns their vectors at will (Davis–Kahan, "
            "Wedin)."
        )


def missing_sentences(found: Matrix) -> Iterator[str]:
    """Tell what is not drawn and how to get it."""
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
