"""Which runs there are, and their tables, cached for as long as their files stay the same."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import streamlit as st

from spectra.store import Run, find_runs

_CACHED_TABLES = 128
"""Tables held at once; one of 32 layers, 2 modules and 50 steps takes about 1 MB."""

FileState = tuple[tuple[str, int, int], ...]
"""Name, time of change and size of the files that a table comes from."""


@dataclass(frozen=True)
class RunEntry:
    """A run as the pages see it.

    Attributes
    ----------
    path : Path
    label : str
        The folder's name; with the folders above it where two runs share a name.
    method, state : str
        As `Run.method` and `Run.state`; empty where `problem` is set.
    problem : str
        Why the run cannot be read, or empty.
    drift_files, training_files : FileState
    varies : tuple of (str, object)
        Of a run in the chosen sweep: method, seed, and what else the sweep varies.
    """

    path: Path
    label: str
    method: str
    state: str
    problem: str
    drift_files: FileState
    training_files: FileState
    varies: tuple[tuple[str, object], ...] = ()


def root_folder() -> Path | None:
    """Return the folder of runs that stands behind ``--`` on the command line, if any."""
    return Path(sys.argv[1]) if len(sys.argv) > 1 else None


def list_runs(root: Path) -> list[RunEntry]:
    """Return every run in `root` and below it, those that cannot be read included.

    Raises
    ------
    FileNotFoundError
        If `root` is not a folder.
    """
    runs = find_runs(root)
    names = Counter(run.name for run in runs)
    return [_entry(run, root, twice=names[run.name] > 1) for run in runs]


def read_drift(entry: RunEntry) -> pd.DataFrame:
    """Return the drift rows of a run, called by its label.

    Raises
    ------
    OSError, ValueError
        If a file is damaged.
    """
    rows = _read_drift(str(entry.path), entry.drift_files)
    return rows.assign(run=entry.label, method=rows["method"].fillna(entry.method))


def read_training(entry: RunEntry) -> pd.DataFrame:
    """Return the training rows of a run, called by its label.

    Raises
    ------
    OSError, ValueError
        If the file is damaged.
    """
    return _read_training(str(entry.path), entry.training_files).assign(run=entry.label)


# The files' state is not read inside: it is in the key, so that new files are new entries.
@st.cache_data(max_entries=_CACHED_TABLES, show_spinner=False)
def _read_drift(path: str, files: FileState) -> pd.DataFrame:
    return Run(path).read_drift()


@st.cache_data(max_entries=_CACHED_TABLES, show_spinner=False)
def _read_training(path: str, files: FileState) -> pd.DataFrame:
    return Run(path).read_training()


def _entry(run: Run, root: Path, twice: bool) -> RunEntry:
    method = state = problem = ""
    try:
        method, state = run.method, run.state
    except (OSError, ValueError) as error:
        problem = str(error)
    label = run.path.relative_to(root).as_posix() if twice else run.name
    return RunEntry(
        path=run.path,
        label=run.name if label == "." else label,
        method=method,
        state=state,
        problem=problem,
        drift_files=_state_of([run.settings_path, *run.drift.parts()]),
        training_files=_state_of([run.settings_path, run.training_path]),
    )


def _state_of(paths: list[Path]) -> FileState:
    found = []
    for path in paths:
        try:
            facts = path.stat()
        except OSError:
            continue
        found.append((path.name, facts.st_mtime_ns, facts.st_size))
    return tuple(found)
