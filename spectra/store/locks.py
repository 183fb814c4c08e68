"""A lock that goes with the process which took it, and with no other."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

if sys.platform != "win32":  # there, one writer at a time is the user's care
    import fcntl

# Whoever asks for a run's state holds the file for a moment: a writer tries more than once.
_ATTEMPTS = 10
_PAUSE_SECONDS = 0.05


class FileLock:
    """A lock on a file, held until it is released or the process ends, however it does.

    A forked child, such as a data loader's worker, does not have it.

    Parameters
    ----------
    path : Path
        The file; made where it is missing, and left there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock; whether that worked.

        Raises
        ------
        OSError
            If the file cannot be opened.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _take(descriptor, shared=False):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        _HELD.add(self)
        return True

    def release(self) -> None:
        """Give it back; nothing where it is not held."""
        if self._descriptor is not None and sys.platform != "win32":
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._abandon()

    @property
    def intact(self) -> bool:
        """Whether it is held and the file is still the one on disk, not deleted or made anew."""
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except OSError:
            return False

    def _abandon(self) -> None:
        _HELD.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock on this file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _take(descriptor, shared=True)
    finally:
        os.close(descriptor)


_HELD: set[FileLock] = set()


def _abandon_all() -> None:
    # Closed and not unlocked: a lock is its parent's as long as that has it open.
    for lock in tuple(_HELD):
        lock._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


def _take(descriptor: int, shared: bool) -> bool:
    if sys.platform == "win32":
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    for _ in range(1 if shared else _ATTEMPTS):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.0 if shared else _PAUSE_SECONDS)
    return False
