"""What a recording may take on disk."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from spectra.recording.budget import Budget, parse_bytes, shown
from spectra.store import Run

Disk = namedtuple("Disk", "total used free")


@pytest.mark.parametrize(
    ("amount", "size"),
    [
        (1, 1),
        (2.5e6, 2_500_000),
        ("1234", 1234),
        ("20 GiB", 20 * 2**30),
        ("20GiB", 20 * 2**30),
        ("1.5 kib", 1536),
        ("500 MB", 500_000_000),
        (" 2TB ", 2 * 10**12),
        ("3 TiB", 3 * 2**40),
        ("7 B", 7),
    ],
)
def test_amounts(amount: float | str, size: int) -> None:
    assert parse_bytes(amount) == size


@pytest.mark.parametrize(
    "amount", [0, -1, 0.5, True, float("nan"), "", "GiB", "-2 GiB", "2 GiBs", "2 G i B", "0", "1e9"]
)
def test_what_is_no_amount_is_refused(amount: float | str) -> None:
    with pytest.raises(ValueError, match='number of bytes, or an amount such as "20 GiB"; got'):
        parse_bytes(amount)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (2**30, "1.0 GiB"),
        (2**51, "2048.0"),
    ],
)
def test_sizes_are_shown_for_people(size: int, text: str) -> None:
    assert shown(size).startswith(text)


def room(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 10**12) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(total, total - free, free))


def test_what_will_not_fit_is_refused_with_sizes_and_advice(tmp_path: Path) -> None:
    budget = Budget(Run(tmp_path / "run"), "10 KiB")
    budget.refuse_beyond(base=2048, snapshot=1024, count=8)
    with pytest.raises(ValueError) as refused:
        budget.refuse_beyond(base=2048, snapshot=1024, count=9)
    message = str(refused.value)
    for part in ("11.0 KiB", "2.0 KiB for the base", "9 snapshots of 1.0 KiB", "allows 10.0 KiB"):
        assert part in message
    assert "every=" in message and "dtype=" in message


def test_what_is_taken_already_counts(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for folder in (run.snapshots_path, run.earlier_path / "attempt-1" / "snapshots"):
        folder.mkdir(parents=True)
        (folder / "step-00000001.safetensors").write_bytes(bytes(3000))
    budget = Budget(run, 10_000)
    budget.measure()
    budget.refuse_beyond(0, 1000, 4)
    with pytest.raises(ValueError, match=r"of which 5\.9 KiB are taken"):
        budget.refuse_beyond(0, 1000, 5)
    assert budget.problem(4000) is None
    assert budget.problem(4001) == ("max_bytes", "max_bytes=9.8 KiB is used up")
    written = run.snapshots_path / "step-00000002.safetensors"
    written.write_bytes(bytes(1000))
    budget.add(written)
    assert budget.problem(3000) is None
    assert budget.problem(3001) is not None


def test_the_free_disk_is_a_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(Run(tmp_path / "not" / "yet" / "there"), None)
    reserve = 64 * 2**20
    room(monkeypatch, free=reserve + 10_000)
    budget.refuse_beyond(1000, 1000, 9)
    with pytest.raises(ValueError, match=r"the disk of .*there has 9\.8 KiB free"):
        budget.refuse_beyond(1000, 1000, 10)
    assert budget.problem(10_000) is None
    cause, reason = budget.problem(10_001) or ("", "")
    assert cause == "ENOSPC" and "the disk is full: 9.8 KiB free" in reason


def test_of_a_small_disk_little_is_kept_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(Run(tmp_path), None)
    room(monkeypatch, free=100_000, total=2_000_000)
    assert budget.problem(80_000) is None
    assert budget.problem(80_001) is not None


def test_without_a_number_of_steps_a_few_snapshots_must_fit(tmp_path: Path) -> None:
    budget = Budget(Run(tmp_path), 5000)
    budget.refuse_beyond(2000, 1000, None)
    with pytest.raises(ValueError, match=r"takes at least 5\.9 KiB"):
        budget.refuse_beyond(3000, 1000, None)
