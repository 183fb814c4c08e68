"""The index: every checkpoint in a folder and below it, with what its headers say."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from checkpoints_index.adapters import CONFIG_FILE
from checkpoints_index.byte_files import is_file, is_remote
from checkpoints_index.errors import CheckpointError, IncompleteCheckpointError
from checkpoints_index.formats import SNAPSHOTS
from checkpoints_index.growing import open_candidate
from checkpoints_index.index_store import IndexStore
from checkpoints_index.matrices import Checkpoint, Matrix
from checkpoints_index.model_readers import LOOKED_FOR
from checkpoints_index.placing import Placed, place
from checkpoints_index.readers import Candidate
from checkpoints_index.remote import open_path
from checkpoints_index.remote_walking import walk_remote, walk_remote_file
from checkpoints_index.snapshots import BASE_FILE
from checkpoints_index.walking import Details, Folder, Found, walk, walk_file

# A lone checkpoint whose step nobody wrote down counts as one step from its base.
LONE_STEP = 1


@dataclass(frozen=True)
class Entry:
    """One checkpoint as the index describes it.

    Attributes
    ----------
    candidate : Candidate
        Where it is, in which format.
    series : str
        What it is a step of.
    step : int, optional
        Where something says it.
    revisions : tuple of str
        Branches and tags of the hub that point to it.
    size : int
        Of its files, in bytes.
    state : {"complete", "incomplete", "broken"}
        Incomplete is what lacks a file, or a file its end: it is still being written, or was
        damaged.
    problem : str
        What is missing or wrong; empty for a complete one.
    method, base, matrices
        As of a `Checkpoint`; unknown of one that is not complete.
    """

    candidate: Candidate
    series: str
    step: int | None
    revisions: tuple[str, ...]
    size: int
    state: Literal["complete", "incomplete", "broken"]
    problem: str = ""
    method: str | None = None
    base: str | None = None
    matrices: tuple[Matrix, ...] = ()

    @property
    def path(self) -> Path:
        """The folder, or the file where one file is a whole checkpoint."""
        return self.candidate.path

    @property
    def format(self) -> str:
        """Name of its format."""
        return self.candidate.format

    @property
    def step_or_lone(self) -> int:
        """Its step; one from the base where nothing says it."""
        return LONE_STEP if self.step is None else self.step


@dataclass(frozen=True)
class Series:
    """Checkpoints of one training, in order of their steps.

    Attributes
    ----------
    name : str
        Its folder relative to the root, or its repository on the hub.
    method, base : str, optional
        What all its complete checkpoints have in common.
    entries : tuple of Entry
        Those without a step last.
    problem : str
        Why it cannot be analysed as it is, with the candidates; else empty.
    """

    name: str
    method: str | None
    base: str | None
    entries: tuple[Entry, ...]
    problem: str = ""


@dataclass(frozen=True)
class Index:
    """What is in a folder.

    Attributes
    ----------
    root : Path
        The folder.
    series : tuple of Series
        In order of their names.
    notes : tuple of str
        What was left alone, and why: links out of the folder, folders that cannot be read.
    """

    root: Path
    series: tuple[Series, ...]
    notes: tuple[str, ...]

    @property
    def entries(self) -> list[Entry]:
        """All checkpoints, series by series."""
        return [entry for series in self.series for entry in series.entries]


def build_index(
    path: Path | str,
    store: IndexStore | None = None,
    opened: dict[Candidate, Checkpoint] | None = None,
) -> Index:
    """Describe the checkpoints in a folder and below it; headers are read, weights never.

    Parameters
    ----------
    path : Path or str
        The folder, or one file that is a checkpoint; or an address of such, as ``s3://…``.
    store : IndexStore, optional
        Where the index of a folder of this machine is kept between calls. Only what changed since
        is read again.
    opened : dict of Candidate to Checkpoint, optional
        Where what had to be opened is left, so that its headers need not be read again.

    Raises
    ------
    FileNotFoundError
        If `path` is neither.
    """
    location = as_location(path)
    root = location.parent if is_file(location) else location
    kept = store if root == location and not is_remote(root) else None
    with _collector_paused():
        before = kept.read(root) if kept else {}
        folders = searched(location, before)
        described: dict[int, Found] = {}
        shared: dict[tuple[Matrix, ...], tuple[Matrix, ...]] = {}
        entries = []
        for placed in place(root, folders):
            entry, found = _entry(placed, shared, opened)
            described[id(placed.found)] = found
            entries.append((entry, placed.is_named))
        if kept:
            now = {path: _with_details(folder, described) for path, folder in folders.items()}
            if now != before:
                kept.write(root, now)
        notes = tuple(note for folder in folders.values() for note in folder.notes)
        return Index(root, _in_series(entries), notes)


def searched(location: Path, known: Mapping[str, Folder] | None = None) -> dict[str, Folder]:
    """Return what is in a folder and below it, or the one file that is a checkpoint.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, and no such file that a reader knows.
    """
    if is_remote(location):
        found = walk_remote_file(location) if is_file(location) else walk_remote(location)
    elif location.is_dir():
        return walk(location, known)
    else:
        found = walk_file(location) if location.is_file() else {}
    if not found:
        raise FileNotFoundError(f"{location} is not a folder. Give one that holds checkpoints.")
    return found


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Make many small objects that all live on, without searching them for garbage meanwhile.

    Of 10,000 folders, that search took half of the 0.8 s of a refresh.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def as_location(text: Path | str) -> Path:
    """Return where a path or an address, such as ``s3://bucket/run``, leads.

    Raises
    ------
    CheckpointError
        If the library for this kind of address is not installed.
    """
    return open_path(text)


def _entry(
    placed: Placed,
    shared: dict[tuple[Matrix, ...], tuple[Matrix, ...]],
    opened: dict[Candidate, Checkpoint] | None,
) -> tuple[Entry, Found]:
    """Describe one checkpoint, opening it where its files are not known."""
    found = placed.found
    candidate = found.candidate
    details = found.details
    state: Literal["complete", "incomplete", "broken"] = "complete"
    problem = ""
    if details is None:
        try:
            checkpoint = open_candidate(
                candidate, LONE_STEP if placed.step is None else placed.step
            )
            if opened is not None:
                opened[candidate] = checkpoint
            matrices = tuple(checkpoint.matrices)
            matrices = shared.setdefault(matrices, matrices)
            details = Details(checkpoint.method, checkpoint.base, matrices)
            found = replace(found, details=details)
        except IncompleteCheckpointError as error:
            state, problem = "incomplete", str(error)
        except (CheckpointError, OSError) as error:
            state, problem = "broken", str(error)
    # A file that is a checkpoint may need others, which are not its own.
    own = candidate.path.name if found.is_file else None
    sizes = zip(candidate.files, found.stamps, strict=True)
    entry = Entry(
        candidate,
        placed.series,
        placed.step,
        placed.revisions,
        sum(max(size, 0) for name, (size, _) in sizes if own in (None, name)),
        state,
        problem,
        details.method if details else None,
        details.base if details else None,
        details.matrices if details else (),
    )
    return entry, found


def _with_details(folder: Folder, described: dict[int, Found]) -> Folder:
    if not folder.found:
        return folder
    return replace(folder, found=tuple(described.get(id(f), f) for f in folder.found))


def _in_series(entries: list[tuple[Entry, bool]]) -> tuple[Series, ...]:
    """Group by name, method and base; what is not complete joins the others of its name."""
    by_name: dict[str, list[tuple[Entry, bool]]] = defaultdict(list)
    for entry, is_named in entries:
        by_name[entry.series].append((entry, is_named))
    by_key: dict[tuple[str, str | None, str | None], list[tuple[Entry, bool]]] = defaultdict(list)
    for name, group in by_name.items():
        kinds = sorted({(e.method, e.base) for e, _ in group if e.state == "complete"}, key=str)
        for entry, is_named in group:
            lone = kinds[0] if len(kinds) == 1 else (None, None)
            kind = (entry.method, entry.base) if entry.state == "complete" else lone
            by_key[name, *kind].append((entry, is_named))
    series = []
    for (name, method, base), group in by_key.items():
        for label, members in _ends_apart(name, group):
            named = members if label == name else [replace(e, series=label) for e in members]
            ordered = sorted(named, key=_by_step)
            series.append(Series(label, method, base, tuple(ordered), _ambiguity(ordered)))
    return tuple(sorted(series, key=lambda s: (s.name, str(s.method), str(s.base))))


def _ends_apart(name: str, group: list[tuple[Entry, bool]]) -> list[tuple[str, list[Entry]]]:
    """Take apart the ends of several trainings that lie side by side.

    Where names tell the steps of others beside them, they are of that training, unless two share a
    step.
    """
    unnamed = [entry for entry, is_named in group if not is_named]
    named = [entry for entry, is_named in group if is_named]
    apart_by_step = len({entry.step for entry in unnamed}) == len(unnamed)
    if len(unnamed) < 2 or (named and apart_by_step):
        return [(name, [entry for entry, _ in group])]
    apart = [(f"{name}/{entry.path.name}", [entry]) for entry in unnamed]
    return ([(name, named)] if named else []) + apart


def _by_step(entry: Entry) -> tuple[bool, int, str]:
    return entry.step is None, entry.step or 0, str(entry.path)


def _ambiguity(entries: Sequence[Entry]) -> str:
    steps = {e.path: e.step for e in entries if e.state == "complete"}
    return "" if len(steps) < 2 else ambiguity(steps)


def ambiguity(steps: dict[Path, int | None]) -> str:
    """Say why checkpoints cannot be put in order of their steps; empty where they can."""
    unknown = [path for path, step in steps.items() if step is None]
    if unknown:
        return (
            f"{len(unknown)} of {len(steps)} checkpoints have no step, e.g. {unknown[0]}: it has "
            "no trainer_state.json and no name like checkpoint-500. Rename them, or give one alone."
        )
    by_step = defaultdict(list)
    for path, step in steps.items():
        by_step[step].append(path)
    for step, paths in by_step.items():
        if len(paths) > 1:
            listed = ", ".join(map(str, paths))
            return f"Step {step} stands for {len(paths)} checkpoints: {listed}."
    return ""


def nothing_in(path: Path | str) -> str:
    """Say that no checkpoint was found, and what was looked for."""
    return (
        f"No checkpoint in {path}: looked for {LOOKED_FOR}, {CONFIG_FILE} and "
        f"{SNAPSHOTS}/{BASE_FILE}. Give the folder that holds one."
    )
