"""Tables for papers: where every method ended, mean and spread over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

TABLE_ENDINGS = (".tex", ".csv")


def comparison_table(
    drift: pd.DataFrame,
    training: pd.DataFrame | None = None,
    groups: Mapping[str, str] | None = None,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Return where every group of runs ended, a row a group and module."""
    raise NotImplementedError


def to_latex(table: pd.DataFrame, *, command: str = "") -> str:
    """Return a table of `comparison_table` as LaTeX, for the package booktabs."""
    raise NotImplementedError


def table_bytes(table: pd.DataFrame, ending: str, *, command: str = "") -> bytes:
    """Return a table as the bytes of a ``.tex`` or a ``.csv`` file."""
    raise NotImplementedError


def write_table(table: pd.DataFrame, path: Path | str, *, command: str = "") -> Path:
    """Write a table; the ending of `path`, ``.tex`` or ``.csv``, chooses the format."""
    raise NotImplementedError
