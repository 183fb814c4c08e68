"""Many layers as one line: their mean or median with its range, and the axis it is drawn on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spectra.figures.chart import Axis, Floats
from spectra.figures.labels import LOG_FROM_RATIO, RATIOS
from spectra.figures.noise import reach

# A κ of orthonormal columns is 1 but for rounding: ticks that tell 1.00000001 from 1 say nothing.
_LEAST_SPAN = 1e-3


@dataclass(frozen=True)
class OverLayers:
    """A column of one run and module, over the layers at every step.

    Attributes
    ----------
    steps : array of float, ascending
    centre : array of float
        Mean, or median, of the layers that have a value; infinite where half of them are.
    low, high : array of float
        Smallest and largest layer.
    """

    steps: Floats
    centre: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Scale:
    """Of a vertical axis: its limits, and what the caption says of values that it cannot show."""

    limits: tuple[float, float]
    log: bool
    below: str


def centre_of(column: str) -> str:
    """Return ``"median"`` for condition numbers, where one layer would carry a mean."""
    return "median" if column in RATIOS else "mean"


def over_layers(rows: pd.DataFrame, column: str) -> OverLayers:
    """Summarise the layers of one run and module at every step.

    Parameters
    ----------
    rows : DataFrame
        Ascending in step, as `select_rows` returns them, with a value of `column` in each.
    column : str
    """
    step = rows["step"].to_numpy()
    values = rows[column].to_numpy(dtype=float)
    starts = np.flatnonzero(np.diff(step, prepend=step[:1] - 1))
    counts = np.diff(starts, append=len(step))
    low = np.minimum.reduceat(values, starts)
    high = np.maximum.reduceat(values, starts)
    if centre_of(column) == "mean":
        centre = np.add.reduceat(values, starts) / counts
    else:
        values = values[np.lexsort((values, np.repeat(np.arange(len(starts)), counts)))]
        middle = values[starts + (counts - 1) // 2], values[starts + counts // 2]
        centre = (middle[0] + middle[1]) / 2
    return OverLayers(step[starts].astype(float), centre, low, high)


def value_scale(
    column: str,
    drawn: Iterable[Floats],
    log: bool | None,
    floors: Sequence[float] = (),
    sides: Iterable[Floats] = (),
) -> Scale:
    """Return limits for what is drawn of a column and its noise floors.

    Parameters
    ----------
    column : str
    drawn : iterable of array
        Lines, and other values that must be on the axis; what is not finite is left out.
    log : bool, optional
        By default for condition numbers that span over two decades.
    floors : sequence of float
        Noise floors; see `reach`.
    sides : iterable of array
        Of bands about the lines: a logarithmic axis is not stretched down to them.

    Raises
    ------
    ValueError
        If `log` is asked for, and nothing is above 0.
    """
    values, bands = _finite(drawn), _finite(sides)
    positive = values[values > 0]
    if log and not len(positive):
        raise ValueError(
            f"A logarithmic axis needs values above 0, but {column} has none. Use log=False."
        )
    if log is None:
        spread = positive.max() / positive.min() if len(positive) else 1.0
        log = column in RATIOS and spread > LOG_FROM_RATIO
    if log:
        low, high = float(positive.min()), float(max(positive.max(), bands.max(initial=0)))
        margin = max((high / low) ** 0.04, 1.02)
        below = "Values of 0 lie below the logarithmic axis." if len(positive) < len(values) else ""
        return Scale(reach((low / margin, high * margin), floors, log=True), True, below)
    values = np.concatenate([values, bands])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if low == high == 0:
        high = max((f for f in floors if f > 0), default=1.0)
    if column in RATIOS and high - low < _LEAST_SPAN * high:
        low, high = low - _LEAST_SPAN * high / 2, high + _LEAST_SPAN * high / 2
    # The end that means "as the base", or "best conditioned", belongs on the axis unless the values
    # stay far from it.
    end = 1.0 if column in RATIOS - {"residual"} else 0.0
    if end <= low < (end + high) / 2:
        reached = high - end
        return Scale(reach((end - 0.02 * reached, high + 0.05 * reached), floors), False, "")
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(reach((low - margin, high + margin), floors), False, "")


def line_on(values: Floats, scale: Scale) -> Floats:
    """Return a line's values, with NaN, which breaks it, in place of what the axis cannot show."""
    shown = np.isfinite(values) & (values > 0) if scale.log else np.isfinite(values)
    return np.where(shown, values, math.nan)


def band_on(low: Floats, high: Floats, scale: Scale) -> tuple[Floats, Floats]:
    """Return a band's sides, cut off at the ends of the axis; a gap where all lies beyond."""
    shown = (high >= scale.limits[0]) & (low <= scale.limits[1])
    low, high = (np.where(shown, np.clip(side, *scale.limits), math.nan) for side in (low, high))
    return low, high


def horizontal(label: str, symbol: str, values: Iterable[Floats], *, integer: bool = False) -> Axis:
    """Return an axis that reaches a little beyond the finite `values`, left to right."""
    found = _finite(values)
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    margin = 0.02 * (high - low) or max(0.02 * abs(high), 0.5)
    return Axis(label, symbol, (low - margin, high + margin), integer=integer)


def _finite(parts: Iterable[Floats]) -> Floats:
    values = np.concatenate([np.empty(0), *(np.asarray(p, dtype=float).ravel() for p in parts)])
    return values[np.isfinite(values)]
