"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spectra.store import whole_file
from spectra.store.files import TEMPORARY_PREFIX, remove_leftovers


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(params=["new", "existing"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    if request.param == "existing":
        path.write_text("old")
    return path


def state(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


def test_a_file_appears_with_its_folder_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert state(path.parent) == {"file.txt": "new"}


def test_readers_see_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert state(tmp_path) == {"file.txt": "new"}


def test_the_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with whole_file(tmp_path / "rows.parquet") as temporary:
        assert temporary.suffix == ".parquet"
        assert temporary.name.startswith(TEMPORARY_PREFIX)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "file.txt"
    with umask(mask), whole_file(path) as temporary:
        temporary.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_block_changes_nothing(
    target: Path, error: type[BaseException]
) -> None:
    before = state(target.parent)
    with pytest.raises(error, match="half-way"), whole_file(target) as temporary:
        temporary.write_text("ha")
        raise error("half-way")
    assert state(target.parent) == before


@pytest.mark.parametrize(("owner", "function"), [(os, "fsync"), (Path, "replace"), (Path, "chmod")])
def test_a_full_disk_at_the_end_changes_nothing(
    target: Path, monkeypatch: pytest.MonkeyPatch, owner: object, function: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = state(target.parent)
    monkeypatch.setattr(owner, function, full)
    with pytest.raises(OSError, match="No space left"), whole_file(target) as temporary:
        temporary.write_text("new")
    assert state(target.parent) == before


def test_bytes_are_flushed_before_the_name_appears(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def told_fsync(descriptor: int) -> None:
        events.append(f"flush {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    def told_replace(path: Path, other: Path) -> Path:
        events.append("rename")
        return replace(path, other)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "replace", told_replace)
    with whole_file(target) as temporary:
        temporary.write_text("twelve bytes")
    assert events == ["flush 12", "rename"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with whole_file(path) as first, whole_file(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    # The outer block ends last.
    assert state(tmp_path) == {"file.txt": "first"}


def test_only_old_leftovers_are_removed(tmp_path: Path) -> None:
    old = (f"{TEMPORARY_PREFIX}old.parquet", ".tmpA1b2C3")  # the latter is safetensors' own
    for name in (*old, f"{TEMPORARY_PREFIX}young.parquet", "mine.txt", ".tmp"):
        (tmp_path / name).write_text(name)
    now = time.time()
    for path in tmp_path.iterdir():
        if "young" not in path.name:
            os.utime(path, (now - 100, now - 100))
    remove_leftovers(tmp_path, older_than=now - 50)
    assert set(state(tmp_path)) == {f"{TEMPORARY_PREFIX}young.parquet", "mine.txt", ".tmp"}


def test_a_missing_folder_has_no_leftovers(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "none", older_than=time.time())
    assert state(tmp_path) == {}
