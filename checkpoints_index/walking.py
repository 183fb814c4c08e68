"""Walks a folder for checkpoints: by names alone, and only where something changed since last."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints_index.formats import READERS, RUN_FILE, SNAPSHOTS
from checkpoints_index.growing import SPLIT, UNFINISHED
from checkpoints_index.matrices import Matrix
from checkpoints_index.readers import Candidate
from checkpoints_index.snapshots import BASE_FILE
from checkpoints_index.steps import STATE_FILE, hub_commit, step_in_state

Stamp = tuple[int, int]
"""Size and time of change of a file, in bytes and nanoseconds."""

ABSENT: Stamp = (-1, -1)

# What trainers save beside the weights: tensors, but no model.
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|sampler|random_states|rng_state|training_args"
    r"|.*optim_states|.*_optimizer)([-_.].*)?\.(bin|pt|pth|pkl|safetensors)"
)
# Hidden folders, and those of an optimizer's state beside a distributed checkpoint.
_NOT_SEARCHED = re.compile(r"\..*|__pycache__|optimizer([-_]\d+)?")
# Where older trainers collect the files of a checkpoint before they rename it.
_UNFINISHED_FOLDER = re.compile(r"tmp[-_](checkpoint|step|global_?step)[-_]?\d+")
# Where Megatron and DeepSpeed save what one rank holds of a model.
_RANK = re.compile(r"(zero_pp_rank_\d+_)?mp_rank_\d+(_\d+)?(_model_states\.pt)?")
# What changed so recently may change again without a new time: file systems count in ticks of up
# to two seconds.
_TICK_NS = 2_000_000_000


@dataclass(frozen=True)
class Details:
    """What a checkpoint's headers say.

    Attributes
    ----------
    method : str
        The fine-tuning method.
    base : str, optional
        The base it names.
    matrices : tuple of Matrix
        Its weights.
    """

    method: str
    base: str | None
    matrices: tuple[Matrix, ...]


@dataclass(frozen=True)
class Found:
    """A candidate as it lies there now.

    Attributes
    ----------
    candidate : Candidate
        Where it is.
    stamps : tuple of Stamp
        Of its files; with a time that no file has where theirs may not tell.
    is_file : bool
        Whether it is something in the folder, which may hold several, and not the folder.
    details : Details, optional
        What was read from the same files before.
    """

    candidate: Candidate
    stamps: tuple[Stamp, ...]
    is_file: bool
    details: Details | None = None


@dataclass(frozen=True)
class Folder:
    """One folder below the root.

    Attributes
    ----------
    mtime_ns : int
        When names in it changed last; 0 where that may not tell.
    folders : tuple of str
        Names of the folders in it that are searched.
    notes : tuple of str
        What was left alone in it, and why.
    state : Stamp
        Of its ``trainer_state.json``.
    step : int, optional
        The step in that.
    found : tuple of Found
        Its checkpoints.
    """

    mtime_ns: int = 0
    folders: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    state: Stamp = ABSENT
    step: int | None = None
    found: tuple[Found, ...] = ()


def walk(root: Path, known: Mapping[str, Folder] | None = None) -> dict[str, Folder]:
    """Search a folder and all below it, links to folders and hidden folders left out.

    Parameters
    ----------
    root : Path
        Where to begin.
    known : mapping of str to Folder, optional
        What an earlier walk gave: unchanged folders are not listed again.

    Returns
    -------
    dict of str to Folder
        By path relative to `root`, ``""`` for itself; parents before children, in order of
        their names.

    Raises
    ------
    OSError
        If `root` itself cannot be listed.
    """
    known = known or {}
    trusted_before = time.time_ns() - _TICK_NS
    real_root = os.path.realpath(root)
    walked: dict[str, Folder] = {}
    open_ends = [""]
    while open_ends:
        relative = open_ends.pop()
        path = root / relative if relative else root
        before = known.get(relative)
        try:
            folder = _unchanged(path, before) if before else None
            if folder is None:
                folder = _listed(path, real_root, before or Folder(), trusted_before)
        except OSError as error:
            if not relative:
                raise
            folder = Folder(notes=(f"{path} cannot be searched ({error.strerror}).",))
        walked[relative] = folder
        prefix = f"{relative}/" if relative else ""
        open_ends += [prefix + name for name in reversed(folder.folders)]
    return walked


def candidates_in(folder: Path, names: Collection[str]) -> list[Candidate]:
    """Return the checkpoint that a folder is, else those that single files in it are.

    Of the same weights in two formats, or an adapter in its base's folder, the first of `READERS`
    is taken, and a complete one before one that lacks files.

    Parameters
    ----------
    folder : Path
        The folder.
    names : collection of str
        Names of the files in it.
    """
    weights = {name for name in names if not _NO_WEIGHTS.fullmatch(name)}
    candidates = [c for reader in READERS for c in reader.find(folder, weights)]
    whole = [c for c in candidates if c.path == folder]
    if not whole:
        return candidates
    return [next((c for c in whole if not c.missing), whole[0])]


def sorted_out(
    folder: Path, names: Collection[str], folders: Collection[str]
) -> tuple[list[Candidate], list[str]]:
    """Return the checkpoints of a folder, readable or not, and which folders to search.

    Parameters
    ----------
    folder : Path
        The folder.
    names, folders : collection of str
        Names of the files and of the folders in it.

    Returns
    -------
    list of Candidate
        Its checkpoints.
    list of str
        Names of the folders in it that may hold others.
    """
    parts = {name for name in (*names, *folders) if _RANK.fullmatch(name)}
    if len(parts) < 2:
        parts = set()
    candidates = [Candidate(folder, SPLIT, ())] if parts else []
    candidates += candidates_in(folder, {name for name in names if name not in parts})
    left = [f for f in folders if f not in parts and not _NOT_SEARCHED.fullmatch(f)]
    unfinished = [name for name in left if _UNFINISHED_FOLDER.fullmatch(name)]
    candidates += [Candidate(folder / name, UNFINISHED, ()) for name in unfinished]
    return candidates, sorted(set(left) - set(unfinished))


def walk_file(file: Path) -> dict[str, Folder]:
    """Return what `walk` would of the folder of a file that is a checkpoint by itself, alone."""
    folder = file.parent
    names = [path.name for path in folder.iterdir() if path.is_file()]
    candidates = [c for reader in READERS for c in reader.find(folder, names) if c.path == file]
    stamped = [Found(c, _stamps(os.fspath(folder), c), is_file=True) for c in candidates]
    return {"": Folder(found=tuple(stamped))} if stamped else {}


def stamps_of(candidate: Candidate) -> tuple[Stamp, ...]:
    """Return sizes and times of change of a checkpoint's files as they are now."""
    return _stamps(os.fspath(candidate.folder), candidate)


def _unchanged(path: Path, before: Folder) -> Folder | None:
    """Return what is known of a folder, if all of it still holds."""
    base = os.fspath(path)
    if not before.mtime_ns or os.stat(base).st_mtime_ns != before.mtime_ns:
        return None
    if before.state != ABSENT and _stamp(base, STATE_FILE) != before.state:
        return None
    for found in before.found:
        if _stamps(base, found.candidate) != found.stamps:
            return None
    return before


def _listed(path: Path, real_root: str, before: Folder, trusted_before: int) -> Folder:
    base = os.fspath(path)
    mtime_ns = os.stat(base).st_mtime_ns
    names, folders, notes = _list(path, real_root)
    state, step = ABSENT, None
    if STATE_FILE in names:
        state = _lasting(_stamp(base, STATE_FILE), trusted_before)
        step = before.step if state == before.state else step_in_state(path / STATE_FILE)
    known = {f.candidate: f for f in before.found}
    found = []
    candidates, folders = sorted_out(path, names, folders)
    for candidate in candidates:
        is_part = candidate.path != path
        stamps = tuple(_lasting(stamp, trusted_before) for stamp in _stamps(base, candidate))
        now = Found(candidate, stamps, is_part)
        then = known.get(candidate)
        if then and then.stamps == now.stamps:
            now = replace(now, details=then.details)
        found.append(now)
    if RUN_FILE in names and SNAPSHOTS in folders:
        if os.path.exists(f"{base}/{SNAPSHOTS}/{BASE_FILE}"):
            # A run of ours: what else its trainer kept are the same steps, to resume from.
            folders = [SNAPSHOTS]
        else:
            mtime_ns = 0  # not yet, and when it appears, this folder does not change
    return Folder(
        mtime_ns if mtime_ns < trusted_before else 0,
        tuple(folders),
        tuple(notes),
        state,
        step,
        tuple(found),
    )


def _list(path: Path, real_root: str) -> tuple[set[str], list[str], list[str]]:
    """Names of the files in a folder, of the folders to search, and what is to be told."""
    names: set[str] = set()
    folders: list[str] = []
    notes: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_symlink():
                is_folder = entry.is_dir()
                if not is_folder and entry.is_file():
                    names.add(entry.name)
                target = os.path.realpath(entry.path)
                # The hub's cache links a commit's files to the repository's blobs.
                commit = hub_commit(path)
                inside = (real_root, *([os.path.realpath(commit[0])] if commit else []))
                if not any(_is_within(target, folder) for folder in inside):
                    notes.append(_about_link(path / entry.name, target, is_folder))
            elif entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file():
                names.add(entry.name)
    return names, folders, sorted(notes)


def _about_link(link: Path, target: str, is_folder: bool) -> str:
    if is_folder:
        return (
            f"{link} is a link out of the folder, to {target}, and was not followed. Give that "
            "folder by itself."
        )
    if not os.path.exists(target):
        return f"{link} is a link out of the folder, to {target}, which does not exist."
    return (
        f"{link} is a link out of the folder, to {target}; no weights are read there. Copy the "
        "file to where the link is."
    )


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _stamps(base: str, candidate: Candidate) -> tuple[Stamp, ...]:
    return tuple(_stamp(base, name) for name in candidate.files)


def _lasting(stamp: Stamp, trusted_before: int) -> Stamp:
    """Return a stamp that no later one equals, where the file may change without a new time."""
    size, mtime_ns = stamp
    return stamp if mtime_ns < trusted_before else (size, -trusted_before)


def _stamp(base: str, name: str) -> Stamp:
    try:
        status = os.stat(f"{base}/{name}")
    except (OSError, ValueError):
        return ABSENT
    return status.st_size, status.st_mtime_ns
