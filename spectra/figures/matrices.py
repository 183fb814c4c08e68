"""One matrix at one step: its singular values and vectors against the base's."""

from __future__ import annotations

from typing import Any

import pandas as pd

from spectra.figures.chart import Chart
from spectra.figures.drawing import draw
from spectra.figures.export import Backend


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
    """One matrix at one step: its singular values and vectors against the base's."""
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
    """Turn rows into the chart of `matrix`."""
    raise NotImplementedError
