"""The writing thread, and the notes of what is missing."""

from __future__ import annotations

import errno
import logging
import threading
import time
from functools import partial
from pathlib import Path

import pytest

import spectra.recording.writer
from spectra.recording.writer import GONE, Notes, WritingThread, cause_of
from spectra.store import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.update_settings()
    return run


# Notes.


def test_missing_steps_are_listed_in_their_order(run: Run) -> None:
    notes = Notes(run)
    notes.miss(30, "slow", "slow")
    notes.miss(20, "full", "full")  # found out later, by the thread
    notes.miss(40, "slow", "slow")
    notes.write()
    assert not notes.waiting
    expected = [
        {"step": 20, "reason": "full"},
        {"step": 30, "reason": "slow"},
        {"step": 40, "reason": "slow"},
    ]
    assert run.read_settings()["missing"] == expected
    assert notes.missing == expected
    notes.found(30)
    notes.found(35)
    notes.write()
    assert [e["step"] for e in run.read_settings()["missing"]] == [20, 40]


def test_of_very_many_missing_steps_the_number_is_listed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra.recording.writer, "_MOST_LISTED", 3)
    notes = Notes(run)
    for step in range(1, 11):
        notes.miss(step, "slow", "slow")
    assert [e["step"] for e in notes.missing] == [1, 2, 3]
    assert notes.missing[-1]["reason"] == "slow (and 7 others are not listed)"


def test_each_cause_is_warned_of_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes(run)
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            notes.miss(step, "too slow", "slow")
            notes.miss(step, "too full", "full")
    assert len(caplog.records) == 2
    assert "has no snapshot of step 0 (too slow)" in caplog.text
    assert "has no snapshot of step 0 (too full)" in caplog.text


def test_what_an_attempt_before_missed_stays_listed(run: Run) -> None:
    notes = Notes(run)
    notes.continue_from([{"step": 3, "reason": "full"}], [{"step": 2, "message": "high"}])
    notes.miss(8, "slow", "slow")
    notes.alert(step=9, message="higher")
    notes.write()
    settings = run.read_settings()
    assert [e["step"] for e in settings["missing"]] == [3, 8]
    assert [e["step"] for e in settings["alerts"]] == [2, 9]


def test_notes_that_cannot_be_written_are_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes(run)
    notes.set(state="finished", last_step=5)
    notes.miss(5, "full", "full")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            notes.write()
    assert notes.waiting
    notes.set(last_step=6)
    notes.write()
    settings = run.read_settings()
    assert settings["state"] == "finished"
    assert settings["last_step"] == 6
    assert [e["step"] for e in settings["missing"]] == [5]


def test_causes_are_told_apart_by_the_systems_number() -> None:
    assert cause_of(OSError(errno.ENOSPC, "a")) == cause_of(OSError(errno.ENOSPC, "b")) == "ENOSPC"
    assert cause_of(FileNotFoundError(errno.ENOENT, "x")) == GONE
    assert cause_of(PermissionError(errno.EACCES, "x")) == "EACCES"
    assert cause_of(OSError("without a number")) == "OSError"
    assert cause_of(KeyError("x")) == "KeyError"


# The thread.


def test_jobs_are_done_in_their_order_off_the_callers_thread() -> None:
    done: list[tuple[int, int]] = []

    def job(number: int) -> None:
        done.append((number, threading.get_ident()))

    thread = WritingThread(lambda: None)
    thread.start()
    for number in range(50):
        thread.do(partial(job, number))
    assert thread.drain(30)
    assert [number for number, _ in done] == list(range(50))
    assert {ident for _, ident in done} != {threading.get_ident()}
    assert thread.stop(30)
    assert not thread.drain(0.1), "nobody works any more"


def test_the_curve_is_written_before_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra.recording.writer, "_TIDY_SHARE", 0)
    done: list[str] = []
    thread = WritingThread(lambda: done.append("tidy"))
    thread.start()
    for number in range(3):
        thread.do(partial(done.append, f"snapshot {number}"))
    assert thread.stop(30)
    assert done == ["tidy", "snapshot 0", "tidy", "snapshot 1", "tidy", "snapshot 2", "tidy"]


def test_a_tidying_that_takes_long_is_done_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra.recording.writer, "_TIDY_SECONDS", 0.01)
    tidied: list[float] = []

    def tidy() -> None:
        tidied.append(time.monotonic())
        time.sleep(0.02)

    thread = WritingThread(tidy)
    thread.start()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        thread.do(lambda: None)
        time.sleep(0.005)
    assert thread.stop(30)
    # After 20 ms of it, two seconds go by; only stopping asks for another.
    assert len(tidied) == 2


def test_an_idle_thread_tidies_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra.recording.writer, "_TIDY_SECONDS", 0.01)
    tidied = threading.Semaphore(0)
    thread = WritingThread(tidied.release)
    thread.start()
    for _ in range(3):
        assert tidied.acquire(timeout=30)
    assert thread.stop(30)


def test_a_job_that_hangs_is_not_waited_for_without_end() -> None:
    gate = threading.Event()
    thread = WritingThread(lambda: None)
    thread.start()

    def hang() -> None:
        gate.wait(60)

    thread.do(hang)
    assert not thread.drain(0.05)
    assert not thread.stop(0.05)
    gate.set()
    assert thread.stop(30)
