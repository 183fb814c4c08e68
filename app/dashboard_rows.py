"""The rows of the chosen runs: only what a page draws, read once for all its visitors."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pandas as pd
import streamlit as st
from dashboard_markup import escape
from dashboard_runs import FileState, RunEntry

from spectra.store import Follower, Run

# Bounds on memory. Ten runs of 44,800 rows: 110 MB of followed columns, and 4 MB a run for every
# set of columns that a page asks for. Arrays of whole models at many steps are tens of MB.
_FOLLOWERS_HELD = 192
_TABLES_HELD = 32
_JOINED_HELD = 4
_ARRAYS_HELD = 3


def read_drift(entries: Sequence[RunEntry], columns: Collection[str]) -> pd.DataFrame:
    """Return the drift rows of the runs: the keys, and `columns` where the runs have them.

    Says what cannot be read and what is not analysed yet, and stops the page where nothing is
    left. The rows are shared between visitors: filter them, do not change them.

    Returns
    -------
    DataFrame
        Columns run, method, module (categorical), step, layer and `columns`.
    """
    rows, without = _collect(entries, lambda e: read_run_drift(e, columns))
    ask_for_analysis(without)
    if rows.empty:
        st.stop()
    return rows


def read_training(entries: Sequence[RunEntry]) -> pd.DataFrame:
    """Return the training rows of the runs; says what is missing and stops like `read_drift`."""
    rows, without = _collect(entries, read_run_training)
    if without:
        names = ", ".join(escape(entry.label) for entry in without)
        st.info(
            f"Without recorded training: {names}\\. Runs made by `spectra analyze` from "
            "checkpoints have none; pass `loss=` and `grad_norm=` to `Recorder.step` to record "
            "them."
        )
    if rows.empty:
        st.stop()
    return rows


def read_arrays(
    entry: RunEntry,
    *,
    steps: Collection[int],
    columns: Collection[str],
    modules: Collection[str] | None = None,
    layers: Collection[int] | None = None,
) -> pd.DataFrame:
    """Return the per-index arrays of a run at some steps; stops the page where there are none.

    Returns
    -------
    DataFrame
        Columns run, method, module, step, layer and `columns`, whose cells are arrays.
    """
    try:
        rows = _read_arrays(
            str(entry.path),
            entry.spectrum_files,
            tuple(sorted(steps)),
            tuple(columns),
            None if modules is None else tuple(modules),
            None if layers is None else tuple(layers),
        )
    except (OSError, ValueError) as error:
        warn(entry, str(error))
        st.stop()
    if rows.empty:
        st.info(f"{escape(entry.label)} holds no singular values of this step\\. To compute them:")
        st.code(f"spectra analyze {quoted(entry.path)}", language="bash")
        st.stop()
    return _named(rows, entry.label, entry.method)


def read_run_drift(entry: RunEntry, columns: Collection[str]) -> pd.DataFrame:
    """Return the drift rows of one run, called by its label.

    Raises
    ------
    OSError, ValueError
        If a file is damaged or gone.
    """
    return _read_drift(
        str(entry.path), entry.label, entry.method, entry.drift_files, tuple(columns)
    )


def read_run_training(entry: RunEntry) -> pd.DataFrame:
    """Return the training rows of one run, called by its label.

    Raises
    ------
    OSError, ValueError
        If the file is damaged or gone.
    """
    return _read_training(str(entry.path), entry.label, entry.method, entry.training_files)


def ask_for_analysis(without: Sequence[RunEntry]) -> None:
    """Say which runs have no drift rows yet, and the command that computes them."""
    if without:
        names = ", ".join(escape(entry.label) for entry in without)
        st.info(f"Recorded but not analysed yet: {names}. To compute the drift:")
        st.code("\n".join(f"spectra analyze {quoted(e.path)}" for e in without), language="bash")


def warn(entry: RunEntry, problem: str) -> None:
    """Say in one line that a run is left out, and why."""
    st.warning(f"{escape(entry.label)} is left out: {escape(problem)}")


def quoted(path: Path) -> str:
    """Return a path as a shell reads it."""
    return shlex.quote(str(path))


def _collect(
    entries: Sequence[RunEntry], read: Callable[[RunEntry], pd.DataFrame]
) -> tuple[pd.DataFrame, list[RunEntry]]:
    """Return the rows of all runs that can be read, and the runs that have none yet."""
    tables, key, without = [], [], []
    for entry in entries:
        try:
            table = read(entry)
        except (OSError, ValueError, KeyError) as error:
            warn(entry, str(error))
            continue
        if table.empty:
            without.append(entry)
        else:
            tables.append(table)
            key.append((entry.label, str(entry.path), entry.drift_files, entry.training_files))
    if not tables:
        return pd.DataFrame(), without
    return _join(tuple(key), tuple(map(str, tables[0].columns)), tables), without


# A change of choice reads the same rows again: they are put together once.
@st.cache_resource(max_entries=_JOINED_HELD, show_spinner=False)
def _join(
    key: tuple[object, ...], columns: tuple[str, ...], _tables: list[pd.DataFrame]
) -> pd.DataFrame:
    # Categories of one kind stay codes when they are put together; others become objects.
    for name in ("run", "method", "module"):
        if all(name in table for table in _tables):
            kind = pd.CategoricalDtype(
                list(dict.fromkeys(c for t in _tables for c in t[name].cat.categories))
            )
            _tables = [table.assign(**{name: table[name].astype(kind)}) for table in _tables]
    return pd.concat(_tables, ignore_index=True)


def _named(rows: pd.DataFrame, label: str, method: str) -> pd.DataFrame:
    """Return rows under the run's label, and of its method where they do not say theirs."""
    told = rows["method"]
    if told.isna().any():
        kinds = dict.fromkeys([*told.cat.categories, method])
        told = told.cat.set_categories(list(kinds)).fillna(method)
    return rows.assign(run=rows["run"].cat.rename_categories([label]), method=told)


@st.cache_resource(max_entries=_FOLLOWERS_HELD, show_spinner=False)
def _follower(path: str, table: str) -> Follower:
    return Follower(Run(path), table)


# The files' state is not read inside: it is in the key, so that new files are new entries. What
# the followers hold is not read again for them.
@st.cache_resource(max_entries=_TABLES_HELD, show_spinner=False)
def _read_drift(
    path: str, label: str, method: str, files: FileState, columns: tuple[str, ...]
) -> pd.DataFrame:
    return _named(_follower(path, "drift").read(["method", *columns]), label, method)


@st.cache_resource(max_entries=_TABLES_HELD, show_spinner=False)
def _read_training(path: str, label: str, method: str, files: FileState) -> pd.DataFrame:
    return _named(_follower(path, "training").read(), label, method)


@st.cache_resource(max_entries=_ARRAYS_HELD, show_spinner=False)
def _read_arrays(
    path: str,
    files: FileState,
    steps: tuple[int, ...],
    columns: tuple[str, ...],
    modules: tuple[str, ...] | None,
    layers: tuple[int, ...] | None,
) -> pd.DataFrame:
    return _follower(path, "spectrum").read(
        ["method", *columns], steps=steps, modules=modules, layers=layers
    )
