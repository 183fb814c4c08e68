"""Sweeps: which runs belong together, by what they differ, and their means over the seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from dashboard_choices import choose_one
from dashboard_runs import LISTING_SECONDS, RunEntry, list_sweep_folders

from spectra import figures
from spectra.store import STATES, Sweep, SweepRun

_NO_SWEEP = "all runs"
_DEVIATION = "_sd"
_FORMATS = {
    "delta_sigma": ("mean ΔΣ", "%.3g"),
    "delta_d": ("mean ΔD", "%.3g"),
    "kappa": ("median κ", "%.3g"),
    "loss": ("final loss", "%.4f"),
}


@dataclass(frozen=True)
class SweepEntry:
    """A sweep as the pages see it.

    Attributes
    ----------
    path : Path
    label : str
        The folder's name; with the folders above it where two sweeps share a name.
    rows : tuple of SweepRun
    """

    path: Path
    label: str
    rows: tuple[SweepRun, ...]

    @property
    def progress(self) -> str:
        """How many runs are in which state, and why some failed, a line each."""
        counts = Counter(row.state for row in self.rows)
        states = [f"{counts[state]} {state}" for state in reversed(STATES) if counts[state]]
        failed = [f"{row.name} failed: {row.error}" for row in self.rows if row.state == "failed"]
        return "\n".join([", ".join(states), *failed])


def list_sweeps(root: Path) -> tuple[list[SweepEntry], list[str]]:
    """Return the sweeps in `root` and below it, and what is wrong with those not readable."""
    return _list_sweeps(str(root))


@st.cache_resource(ttl=LISTING_SECONDS, max_entries=8, show_spinner=False)
def _list_sweeps(folder: str) -> tuple[list[SweepEntry], list[str]]:
    root = Path(folder)
    sweeps = [Sweep(path) for path in list_sweep_folders(root)]
    names = Counter(sweep.name for sweep in sweeps)
    entries, problems = [], []
    for sweep in sweeps:
        inner = sweep.path.relative_to(root).as_posix()
        label = inner if names[sweep.name] > 1 and inner != "." else sweep.name
        try:
            entries.append(SweepEntry(sweep.path, label, tuple(sweep.runs())))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    return entries, problems


def choose_sweep(sweeps: Sequence[SweepEntry], entries: Sequence[RunEntry]) -> list[RunEntry]:
    """Show the choice of a sweep and return its runs, in its order and by their own names.

    All runs where there is no sweep, or none is chosen. A folder that is one sweep opens as it.
    """
    if not sweeps:
        return list(entries)
    by_label = {sweep.label: sweep for sweep in sweeps}
    paths = {sweep.path for sweep in sweeps}
    only = len(sweeps) == 1 and all(entry.path.parent in paths for entry in entries)
    label = choose_one(
        "sweep",
        "Sweep",
        [_NO_SWEEP, *by_label],
        default=sweeps[0].label if only else None,
    )
    if label not in by_label:
        return list(entries)
    sweep = by_label[label]
    st.text(sweep.progress)
    found = {entry.path: entry for entry in entries}
    return [
        replace(found[path], label=row.name, varies=tuple(row.described().items()))
        for row in sweep.rows
        if (path := sweep.path / row.name) in found
    ]


def describe_rows(values: pd.DataFrame, entries: Sequence[RunEntry]) -> pd.DataFrame:
    """Return a table with a row a run, with method, seed and what else varies in a sweep."""
    described = [{"run": e.label} | dict(e.varies) for e in entries if e.varies]
    if not described or values.empty:
        return values
    kept = values.drop(columns="method", errors="ignore")
    return pd.DataFrame(described).merge(kept, on="run")


def show_values(values: pd.DataFrame, entries: Sequence[RunEntry], quantities: list[str]) -> None:
    """Show a table with a row a run, or a run and module, and below it the means over seeds."""
    table = describe_rows(values, entries)
    st.dataframe(table, hide_index=True, column_config=_columns(quantities))
    if "seed" not in table or table["seed"].nunique() < 2:
        return
    left_out = {"run", "seed", "step", "layers", "kappa", *quantities}
    groups = [column for column in table.columns if column not in left_out]
    means = figures.over_seeds(table, groups, quantities)
    st.caption("Means over the seeds, and the standard deviation between them (sd).")
    st.dataframe(means, hide_index=True, column_config=_columns(quantities))


def _columns(quantities: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column in {*quantities, "kappa"}:
        text, form = _FORMATS[column]
        found[column] = st.column_config.NumberColumn(text, format=form)
        found[column + _DEVIATION] = st.column_config.NumberColumn("sd", format="%.2g")
    return found
