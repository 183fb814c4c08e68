"""One column of every layer over the steps, as colours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from spectra.figures.chart import Chart
from spectra.figures.drawing import draw
from spectra.figures.export import Backend


def heatmap(
    drift: pd.DataFrame,
    column: str = "delta_d",
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """One column of every layer over the steps, as colours."""
    return draw(
        describe_heatmap(drift, column, modules=modules, layers=layers, steps=steps, log=log),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_heatmap(
    drift: pd.DataFrame,
    column: str = "delta_d",
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
) -> Chart:
    """Turn rows into the chart of `heatmap`."""
    raise NotImplementedError
