"""Which runs there are in ROOT: their names, states and files, and nothing outside it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from spectra.store import Run

LISTING_SECONDS = 1.0
"""How long a listing stands: a choice that draws the page again does not walk the folders again."""

# What lies below a run and holds no other run; snapshots alone can be thousands of files.
_INSIDE_A_RUN = frozenset({"snapshots", "drift", "spectrum", "checkpoints", "final", "earlier"})

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
    base : str
        What the drift is measured from, as the run names it; empty where it does not.
    problem : str
        Why the run cannot be read, or empty.
    drift_files, spectrum_files, training_files : FileState
    varies : tuple of (str, object)
        Of a run in the chosen sweep: method, seed, and what else the sweep varies.
    """

    path: Path
    label: str
    method: str = ""
    state: str = ""
    base: str = ""
    problem: str = ""
    drift_files: FileState = ()
    spectrum_files: FileState = ()
    training_files: FileState = ()
    varies: tuple[tuple[str, object], ...] = ()

    @property
    def run(self) -> Run:
        """The run itself."""
        return Run(self.path)


def root_folder() -> Path | None:
    """Return the folder of runs that stands behind ``--`` on the command line, if any."""
    return Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None


def list_runs(root: Path) -> tuple[RunEntry, ...]:
    """Return every run in `root` and below it, those that cannot be read included.

    A run that a symbolic link leads to is listed where it lies, if that is in `root`; one that
    lies elsewhere is named and not read.

    Raises
    ------
    FileNotFoundError
        If `root` is not a folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder. Give the one that holds your runs.")
    return _list_runs(str(root))


def list_sweep_folders(root: Path) -> tuple[Path, ...]:
    """Return the folders in `root` and below it that hold a ``sweep.json``."""
    return _walk(str(root))[1]


def find_outside(root: Path, run: Run) -> Path | None:
    """Return the file or folder of a run that lies outside `root`, where a link leads out."""
    tables = (run.drift.folder, run.spectrum.folder)
    parts = [part for table in tables for part in _names_in(table)]
    for path in (run.path, run.settings_path, run.training_path, *tables, *parts):
        if not _is_inside(root, path):
            return path
    return None


@st.cache_resource(ttl=LISTING_SECONDS, max_entries=8, show_spinner=False)
def _list_runs(root: str) -> tuple[RunEntry, ...]:
    found = _walk(root)[0]
    names = Counter(path.name for path in found)
    return tuple(_entry(Run(path), Path(root), names[path.name] > 1) for path in found)


@st.cache_resource(ttl=LISTING_SECONDS, max_entries=8, show_spinner=False)
def _walk(root: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the folders of runs and those of sweeps, by path."""
    runs, sweeps = [], []
    for folder, names in _folders(root, Path(root)):
        if "run.json" in names:
            runs.append(Path(folder))
        if "sweep.json" in names and _is_inside(Path(root), os.path.join(folder, "sweep.json")):
            sweeps.append(Path(folder))
    return tuple(sorted(runs)), tuple(sorted(sweeps))


def _folders(folder: str, root: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield `folder` and those below it that can hold a run, with the names in them."""
    names, below, links = set(), [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.add(entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
    except OSError:
        return  # vanished meanwhile, or not ours to read
    yield folder, names
    if "run.json" in names:
        below = [path for path in below if os.path.basename(path) not in _INSIDE_A_RUN]
        links = []
    for link in links:
        # Not entered: a run in ROOT is found where it lies, and one outside is only named.
        if os.path.isfile(os.path.join(link, "run.json")) and not _is_inside(root, link):
            yield link, {"run.json"}
    for path in below:
        yield from _folders(path, root)


def _entry(run: Run, root: Path, twice: bool) -> RunEntry:
    label = run.path.relative_to(root).as_posix() if twice else run.path.name
    label = root.name if label == "." else label
    try:
        if outside := find_outside(root, run):
            inner = outside.relative_to(root).as_posix()
            return RunEntry(run.path, label, problem=f"{inner} lies outside {root}.")
        settings = run.read_settings()
        return RunEntry(
            path=run.path,
            label=label,
            method=run.method,
            state=run.state,
            base=_base(settings.get("base")),
            drift_files=_state_of([run.settings_path, *run.drift.parts()]),
            spectrum_files=_state_of([run.settings_path, *run.spectrum.parts()]),
            training_files=_state_of([run.settings_path, run.training_path]),
        )
    except (OSError, ValueError) as error:
        return RunEntry(run.path, label, problem=str(error))


def _base(told: object) -> str:
    name = told.get("name", "") if isinstance(told, dict) else told
    return name if isinstance(name, str) else ""


def _is_inside(root: Path, path: Path | str) -> bool:
    real = os.path.realpath(path)
    return real == str(root) or real.startswith(os.path.join(root, ""))


def _names_in(folder: Path) -> list[Path]:
    """Return what a table's folder holds that is a link; the rest lies where the folder does."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_symlink()]
    except OSError:
        return []


def _state_of(paths: list[Path]) -> FileState:
    found = []
    for path in paths:
        try:
            facts = path.stat()
        except OSError:
            continue
        found.append((path.name, facts.st_mtime_ns, facts.st_size))
    return tuple(found)
