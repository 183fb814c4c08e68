"""The whole spectrum of every layer at a glance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from spectra.figures.chart import Chart
from spectra.figures.drawing import draw
from spectra.figures.export import Backend


def spectrum(
    arrays: pd.DataFrame,
    *,
    view: str = "values",
    within: tuple[float, float] | None = None,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """The whole spectrum of every layer at a glance."""
    return draw(
        describe_spectrum(
            arrays, view=view, within=within, modules=modules, layers=layers, steps=steps
        ),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_spectrum(
    arrays: pd.DataFrame,
    *,
    view: str = "values",
    within: tuple[float, float] | None = None,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
) -> Chart:
    """Turn rows into the chart of `spectrum`."""
    raise NotImplementedError
