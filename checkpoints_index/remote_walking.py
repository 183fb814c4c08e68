"""Walks a remote folder for checkpoints, by listings; nothing of it is kept for the next time."""

from __future__ import annotations

from pathlib import Path

from checkpoints_index.byte_files import has_file, open_bytes
from checkpoints_index.errors import CheckpointError
from checkpoints_index.formats import READERS, RUN_FILE, SNAPSHOTS
from checkpoints_index.readers import Candidate
from checkpoints_index.remote import RemoteFolder, list_folder
from checkpoints_index.snapshots import BASE_FILE
from checkpoints_index.steps import STATE_FILE, step_in_state
from checkpoints_index.walking import ABSENT, Folder, Found, Stamp, sorted_out


def walk_remote(root: Path) -> dict[str, Folder]:
    """Search a remote folder and all below it, hidden folders left out.

    Returns
    -------
    dict of str to Folder
        As `walking.walk` gives them.

    Raises
    ------
    CheckpointError
        If `root` itself cannot be listed.
    """
    walked: dict[str, Folder] = {}
    open_ends = [""]
    while open_ends:
        relative = open_ends.pop()
        path = root / relative if relative else root
        try:
            folder = _listed(path)
        except CheckpointError as error:
            if not relative:
                raise
            folder = Folder(notes=(str(error),))
        walked[relative] = folder
        prefix = f"{relative}/" if relative else ""
        open_ends += [prefix + name for name in reversed(folder.folders)]
    return walked


def walk_remote_file(file: Path) -> dict[str, Folder]:
    """Return what `walk_remote` would of the folder of a file that is a checkpoint, alone."""
    try:
        listed = list_folder(file.parent)
    except CheckpointError:
        # Stores may give a file and list nothing.
        listed = RemoteFolder(file.parent, {file.name: ""}, ())
    found = [
        Found(candidate, _stamps(candidate, listed), is_file=True)
        for reader in READERS
        for candidate in reader.find(file.parent, listed.files)
        if candidate.path == file
    ]
    return {"": Folder(found=tuple(found))} if found else {}


def _listed(path: Path) -> Folder:
    listed = list_folder(path)
    step = step_in_state(path / STATE_FILE) if STATE_FILE in listed.files else None
    candidates, folders = sorted_out(path, listed.files, listed.folders)
    found = [Found(c, _stamps(c, listed), c.path != path) for c in candidates]
    if RUN_FILE in listed.files and SNAPSHOTS in folders:
        if has_file(path / SNAPSHOTS / BASE_FILE):
            folders = [SNAPSHOTS]
    return Folder(folders=tuple(folders), step=step, found=tuple(found))


def _stamps(candidate: Candidate, listed: RemoteFolder) -> tuple[Stamp, ...]:
    return tuple(_stamp(candidate.folder, name, listed) for name in candidate.files)


def _stamp(folder: Path, name: str, listed: RemoteFolder) -> Stamp:
    """Only the size, which is shown: what has changed is seen by opening it."""
    if name not in listed.files:
        return ABSENT
    size = listed.files[name].partition(":")[0]
    if size.isdigit():
        return int(size), 0
    try:
        # The listing of a web server has no sizes.
        return open_bytes(folder / name).size, 0
    except CheckpointError:
        return ABSENT
