"""Condition numbers and orthonormality errors over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from spectra.figures.chart import Chart
from spectra.figures.drawing import draw
from spectra.figures.export import Backend


def conditioning(
    drift: pd.DataFrame,
    columns: Sequence[str] = ("kappa", "kappa_p", "kappa_u", "kappa_v", "ortho_u", "ortho_v"),
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Condition numbers and orthonormality errors over the steps."""
    return draw(
        describe_conditioning(drift, columns, modules=modules, layers=layers, steps=steps, log=log),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_conditioning(
    drift: pd.DataFrame,
    columns: Sequence[str] = ("kappa", "kappa_p", "kappa_u", "kappa_v", "ortho_u", "ortho_v"),
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    log: bool | None = None,
) -> Chart:
    """Turn rows into the chart of `conditioning`."""
    raise NotImplementedError


def kappa_ratio(
    drift: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    column: str = "kappa_p",
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Regularized over unregularized condition number of paired runs (Theorem 5)."""
    return draw(
        describe_kappa_ratio(drift, pairs, column, modules=modules, layers=layers, steps=steps),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_kappa_ratio(
    drift: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    column: str = "kappa_p",
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
) -> Chart:
    """Turn rows into the chart of `kappa_ratio`."""
    raise NotImplementedError
