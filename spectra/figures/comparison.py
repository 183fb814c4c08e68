"""Methods beside each other: the mean of their seeds with its band."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from spectra.figures.chart import Chart
from spectra.figures.drawing import draw
from spectra.figures.export import Backend


def compare(
    drift: pd.DataFrame,
    training: pd.DataFrame,
    column: str = "delta_d",
    *,
    by: str = "step",
    groups: Mapping[str, str] | None = None,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Methods beside each other: the mean of their seeds with its band."""
    return draw(
        describe_compare(
            drift,
            training,
            column,
            by=by,
            groups=groups,
            modules=modules,
            layers=layers,
            steps=steps,
            log=log,
        ),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_compare(
    drift: pd.DataFrame,
    training: pd.DataFrame,
    column: str = "delta_d",
    *,
    by: str = "step",
    groups: Mapping[str, str] | None = None,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
) -> Chart:
    """Turn rows into the chart of `compare`."""
    raise NotImplementedError
