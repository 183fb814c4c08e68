"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".spectra-tmp-"
"""Names of unfinished files start so; readers skip them and `remove_leftovers` deletes them."""

# safetensors writes what it is given through a file of its own beside it.
_LEFTOVERS = (f"{TEMPORARY_PREFIX}*", ".tmp??????")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends well.

    The bytes are on disk before the name is, so a reader, or a start after SIGKILL or a
    power cut, finds the complete file or none. If the block raises, nothing is left behind.

    Parameters
    ----------
    path : Path
        Where the file shall appear; its folder is created.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; an existing `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush_to_disk(temporary)
        # mkstemp makes files private; a run is shared like any file the user writes.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `path` when the block ends well.

    If the block raises, nothing is left behind.

    Parameters
    ----------
    path : Path
        Where the folder shall appear; its parents are created.

    Raises
    ------
    FileExistsError
        If `path` is there and is not an empty folder; before the block and after it.
    OSError
        If the folder cannot be written or the disk is full.
    """
    path = Path(path)
    refuse_filled(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
                # safetensors makes its files private, mkdtemp its folders, see above.
                file.chmod(0o666 & ~_umask())
        temporary.chmod(0o777 & ~_umask())
        refuse_filled(path)
        if path.is_dir():
            path.rmdir()
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def refuse_filled(path: Path) -> None:
    """Raise FileExistsError if a path holds something already, empty folders aside."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} is there already. Choose another folder, or delete it.")


def remove_leftovers(folder: Path, older_than: float) -> None:
    """Delete unfinished files in `folder` that a killed process left before time `older_than`.

    Parameters
    ----------
    folder : Path
        Looked at without its sub-folders; may be missing.
    older_than : float
        Seconds since the epoch; younger files may belong to a writer that is still at work.
    """
    for path in (p for pattern in _LEFTOVERS for p in folder.glob(pattern)):
        try:
            if path.stat().st_mtime < older_than:
                path.unlink()
        except FileNotFoundError:
            continue


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
