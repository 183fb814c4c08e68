"""Repetitions with other seeds: their values on common places, their mean and spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spectra.figures.chart import Floats

# A training loss is that of one batch. Averaged over so large a part of the record, it falls
# nearly without a break; below the least number, batches would decide.
_SMOOTHED_PART, _LEAST_SMOOTHED = 20, 5


@dataclass(frozen=True)
class Series:
    """One run's values by where they stand on the horizontal axis; `x` ascends strictly."""

    x: Floats
    y: Floats


@dataclass(frozen=True)
class Spread:
    """Several runs' values on common places.

    Attributes
    ----------
    x, mean : array of float
    sd : array of float or None
        The sample's standard deviation; None of a single run.
    """

    x: Floats
    mean: Floats
    sd: Floats | None


def spread(runs: Sequence[Series], most: int) -> Spread | None:
    """Return mean and standard deviation over runs, each interpolated between its own places.

    Parameters
    ----------
    runs : sequence of Series
    most : int
        Places that there may be; of more, evenly chosen ones, the last among them.

    Returns
    -------
    Spread or None
        On all places at which some run has a value, as far as every run reaches; None where they
        have no range in common.
    """
    first, last = max(r.x[0] for r in runs), min(r.x[-1] for r in runs)
    places = np.unique(np.concatenate([r.x for r in runs]))
    places = places[(places >= first) & (places <= last)]
    if not len(places):
        return None
    if len(places) > most:
        places = places[np.round(np.linspace(0, len(places) - 1, max(most, 2))).astype(int)]
    values = np.stack([np.interp(places, r.x, r.y) for r in runs])
    sd = values.std(axis=0, ddof=1) if len(runs) > 1 else None
    return Spread(places, values.mean(axis=0), sd)


def counted(training: pd.DataFrame, column: str) -> Series:
    """Return how a running total, such as ``"tokens"``, grew over the steps; 0 at step 0."""
    rows = training[training[column].notna()]
    steps = np.concatenate([[0.0], rows["step"].to_numpy(dtype=float)])
    totals = np.concatenate([[0.0], rows[column].to_numpy(dtype=float)])
    steps, at = np.unique(steps, return_index=True)
    return Series(steps, totals[at])


def against_total(values: Series, total: Series) -> Series | None:
    """Return values over steps as values over a running total; None where it reaches none.

    Steps between two recorded ones get the total between theirs; later ones have none.
    """
    known = values.x <= total.x[-1]
    x = np.interp(values.x[known], total.x, total.y)
    x, at = np.unique(x, return_index=True)
    return Series(x, values.y[known][at]) if len(x) else None


def against_loss(values: Series, training: pd.DataFrame) -> Series | None:
    """Return values over steps as values over the level of the loss, lowest level first.

    The value at a level is that at the step at which the smoothed loss was first as low. A
    recorded loss is computed before its step's update, so it belongs to the weights of the step
    before. None where no step has both.

    Parameters
    ----------
    values : Series
        By the step.
    training : DataFrame
        One run's rows, ascending in step; with the column loss.
    """
    rows = training[np.isfinite(training["loss"].to_numpy(dtype=float))]
    if rows.empty:
        return None
    step = rows["step"].to_numpy(dtype=float) - 1
    window = max(len(rows) // _SMOOTHED_PART, _LEAST_SMOOTHED)
    loss = rows["loss"].rolling(window, center=True, min_periods=1).mean().to_numpy(dtype=float)
    lowest = np.minimum.accumulate(loss)
    # The record ends a step before the weights do.
    reach = values.x[(values.x >= step[0]) & (values.x <= step[-1] + 1)]
    if not len(reach):
        return None
    levels = np.unique(lowest[np.searchsorted(step, reach, side="right") - 1])
    # `lowest` never rises: the first step at or below a level.
    first = np.searchsorted(-lowest, -levels, side="left")
    at = step[first]
    known = (at >= values.x[0]) & (at <= values.x[-1])
    return Series(levels[known], np.interp(at[known], values.x, values.y)) if known.any() else None
