"""Locks that go with their process."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spectra.store.locks import FileLock, is_locked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no locks there")


@contextmanager
def forked(work: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Fork a child that does its work and then sleeps until the block is over."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            os.write(tells, b"done")
            time.sleep(600)
        finally:
            os._exit(1)
    os.close(tells)
    try:
        assert os.read(told, 4) == b"done"
        yield
    finally:
        os.close(told)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    lock = FileLock(path)
    assert lock.acquire()
    assert is_locked(path)
    assert not FileLock(path).acquire()
    lock.release()
    assert not is_locked(path)
    lock.release()
    assert FileLock(path).acquire()


def test_a_child_that_outlives_the_release_does_not_hold_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    with forked():
        assert is_locked(lock.path)
        lock.release()
        assert not is_locked(lock.path)


def test_a_child_that_outlives_its_killed_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    told, tells = os.pipe()
    parent = os.fork()
    if parent == 0:
        assert lock.acquire()
        if os.fork() == 0:
            os.write(tells, os.getpid().to_bytes(4, "little"))
            time.sleep(600)
        time.sleep(600)
    child = int.from_bytes(os.read(told, 4), "little")
    try:
        assert is_locked(lock.path)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.kill(child, 0)  # it is there still
        assert not is_locked(lock.path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(told)
        os.close(tells)


def test_a_childs_release_leaves_its_parents_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    with forked(lock.release):
        assert is_locked(lock.path)
        assert lock.intact
    lock.release()


def test_a_lock_is_intact_while_its_file_is_there(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "run" / "lock")
    lock.path.parent.mkdir()
    assert not lock.intact
    assert lock.acquire()
    seen = [lock.intact]
    (tmp_path / "run").rename(tmp_path / "away")
    seen.append(lock.intact)
    (tmp_path / "away").rename(tmp_path / "run")
    seen.append(lock.intact)
    lock.path.unlink()
    seen.append(lock.intact)
    lock.path.touch()  # another one's
    seen.append(lock.intact)
    lock.release()
    seen.append(lock.intact)
    assert seen == [True, False, True, False, False, False]
