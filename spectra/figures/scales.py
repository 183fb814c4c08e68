"""The axes of curves: how far they reach, and whether they are logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from spectra.figures.chart import Axis, Floats
from spectra.figures.labels import label_of
from spectra.figures.noise import reach


@dataclass(frozen=True)
class ValueScale:
    """How values stand on a vertical axis.

    Attributes
    ----------
    limits : (float, float)
    log : bool
    note : str
        What a logarithmic axis cannot show, counted.
    """

    limits: tuple[float, float]
    log: bool
    note: str

    @property
    def centre(self) -> str:
        """What stands for many layers: on a logarithmic axis one would carry their mean."""
        return "median" if self.log else "mean"

    def axis(self, column: str) -> Axis:
        """Return the vertical axis of a column."""
        label = label_of(column)
        return Axis(label.axis, label.symbol, self.limits, log=self.log)


def spans(values: pd.Series, ratio: float) -> bool:
    """Whether the values above 0 span more than `ratio`."""
    positive = values[values > 0]
    return len(positive) > 0 and float(positive.max() / positive.min()) > ratio


def value_scale(name: str, values: Floats, log: bool, floors: Sequence[float] = ()) -> ValueScale:
    """Return the scale that holds finite `values`, and noise `floors` that are not far above.

    Raises
    ------
    ValueError
        If it shall be logarithmic and no value is above 0.
    """
    low, high = float(values.min()), float(values.max())
    if log:
        positive = values[values > 0]
        if not len(positive):
            raise ValueError(
                f"A logarithmic axis needs values above 0, but {name} has none. Use log=False."
            )
        least = float(positive.min())
        margin = max((high / least) ** 0.04, 1.02)
        hidden = len(values) - len(positive)
        # An adapter that has not moved has ΔΣ = 0: as far below this axis as can be.
        what = "0" if low == 0 else "0 or less"
        note = f"Below the axis: {hidden} values of {what}." if hidden else ""
        return ValueScale(reach((least / margin, high * margin), floors, log=True), True, note)
    if low == high == 0:
        high = max((f for f in floors if f > 0), default=0.0)
    # Zero means "as the base": it belongs on the axis unless the values stay far from it.
    if low >= 0 and low < 0.5 * high:
        return ValueScale(reach((-0.02 * high, 1.05 * high), floors), False, "")
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return ValueScale(reach((low - margin, high + margin), floors), False, "")


def padded(low: float, high: float, log: bool = False) -> tuple[float, float]:
    """Return the limits of a horizontal axis with a little air at both ends."""
    if log:
        margin = max((high / low) ** 0.02, 1.02)
        return low / margin, high * margin
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin
