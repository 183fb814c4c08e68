"""Runs that a figure was given and does not draw: its caption names them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from spectra.figures.captions import listed
from spectra.figures.labels import label_of
from spectra.figures.selection import clean


def left_out_sentence(rows: pd.DataFrame, drift: pd.DataFrame, columns: Iterable[str]) -> str:
    """Name the runs of `drift` that have none of the drawn `rows`; nothing where all are drawn.

    A run analysed with ``--values-only`` has no ΔD: without a word its panel would just be missing.
    """
    drawn = {str(run) for run in rows["run"].unique()}
    without = [run for run in drift["run"].unique() if str(run) not in drawn]
    if not without:
        return ""
    theirs = drift[drift["run"].isin(without)]
    columns = list(columns)
    lacking = [c for c in columns if theirs[c].isna().any()] or columns
    symbols = " and ".join(label_of(column).symbol for column in lacking)
    names = listed([clean(run) for run in without])
    return f"Without {symbols} in what is chosen, so not drawn: {names}."
