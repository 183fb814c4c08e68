"""A recording under way: what the training's side hands over, and the thread that writes it."""

from __future__ import annotations

import atexit
import errno
import os
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from checkpoints_index import CheckpointError
from checkpoints_index.snapshots import BASE_FILE, Snapshot, snapshot_file
from spectra.recording.budget import Budget
from spectra.recording.rows import TrainingRows
from spectra.recording.snapshot_files import SnapshotLayout, write_snapshot
from spectra.recording.staging import Slot, Staging
from spectra.recording.writer import GONE, Notes, WritingThread, cause_of
from spectra.store import Run
from spectra.store.locks import FileLock

PATIENCE_SECONDS = 300.0
"""How long the end of a training waits for a disk that does not answer.

Half of what NCCL gives the other processes, which wait with it."""

# The curve and the notes are kept in memory when they cannot be written; if that goes on, a
# warning says so where no snapshot has.
_PATIENT_FAILURES = 3


class Session:
    """What writes one run, from its begin to its end; on rank 0, or in a process by itself.

    Parameters
    ----------
    run : Run
        The run; its ``run.json`` is there.
    lock : FileLock
        That of its recording, held; released by `close`.
    layout : SnapshotLayout
        Of its snapshots.
    staging : Staging
        Whose slots come to be written.
    base_id : str
        Id of the base's snapshot.
    budget : Budget
        What it may take.
    notes : Notes
        What goes to ``run.json``.
    """

    def __init__(
        self,
        run: Run,
        lock: FileLock,
        layout: SnapshotLayout,
        staging: Staging,
        base_id: str,
        budget: Budget,
        notes: Notes,
    ) -> None:
        self.rows = TrainingRows(run)
        self.notes = notes
        self._run = run
        self._lock = lock
        self._layout = layout
        self._staging = staging
        self._base_id = base_id
        self._budget = budget
        self._failures: list[tuple[str, str]] = []
        self._thread = WritingThread(self._tidy)
        self._thread.start()
        _UNDER_WAY[run.path.resolve()] = self

    def write(self, step: int, slot: Slot) -> None:
        """Queue a snapshot; returns at once."""
        self._thread.do(partial(self._write, step, slot))

    def drain(self) -> None:
        """Wait until all that was handed over is on disk, as far as that is possible."""
        if not self._thread.drain(PATIENCE_SECONDS):
            self._warn_slow()

    def close(self, **changes: Any) -> None:
        """Write what is left, and `changes` into ``run.json``; give the run free."""
        if _UNDER_WAY.get(self._run.path.resolve()) is self:
            del _UNDER_WAY[self._run.path.resolve()]
        self.notes.set(**changes)
        if not self._thread.stop(PATIENCE_SECONDS):
            self._warn_slow()
        elif self._failures:
            self._warn_unwritten()
        self._lock.release()

    def _warn_slow(self) -> None:
        self.notes.warn(
            "slow", f"could not be written within {PATIENCE_SECONDS:.0f} s; training goes on"
        )

    def _warn_unwritten(self) -> None:
        cause, reason = self._failures[-1]
        self.notes.warn(cause, f"cannot be written ({reason}): curve and run.json stay behind")

    def _write(self, step: int, slot: Slot) -> None:
        try:
            slot.wait()
            base = self._run.snapshots_path / BASE_FILE
            header = self._layout.header(id=uuid.uuid4().hex, step=step, base=self._base_id)
            if not self._lock.intact:
                self.notes.miss(step, "the run's folder was deleted", GONE)
            elif not base.is_file():
                self.notes.miss(step, f"{base} was deleted", GONE)
            elif problem := self._budget.problem(self._layout.nbytes + len(header)):
                self.notes.miss(step, problem[1], problem[0])
            else:
                path = base.with_name(snapshot_file(step))
                # Only where weights are stored as their difference from it.
                beside = None if self._layout.staging is self._layout else Snapshot(base)
                write_snapshot(path, header, self._layout.pieces(slot.body, beside))
                self._budget.add(path)
        except (OSError, CheckpointError) as error:
            self.notes.miss(step, str(error), cause_of(error))
        except Exception as error:  # a thread that ends would end the recording
            self.notes.miss(step, repr(error), type(error).__name__)
        finally:
            self._staging.give_back(slot)

    def _tidy(self) -> None:
        """Write the curve and the notes; what cannot be written is kept for the next time."""
        if not (self.rows.waiting or self.notes.waiting):
            return
        try:
            if not self._lock.intact:
                raise FileNotFoundError(errno.ENOENT, "the run's folder was deleted")
            if self.rows.waiting:
                self.rows.write()
            self.notes.write()
            self._failures = []
        except Exception as error:
            # Not the error itself, which would keep alive what it passed through.
            self._failures.append((cause_of(error), str(error)))
            if len(self._failures) >= _PATIENT_FAILURES:
                self._warn_unwritten()


def interrupt(run: Run) -> None:
    """End what this process still has under way for a run, as if it had been interrupted.

    A notebook's cell that was interrupted and is run again takes over from itself.
    """
    session = _UNDER_WAY.get(run.path.resolve())
    if session is not None:
        session.close()


# By the run's folder.
_UNDER_WAY: dict[Path, Session] = {}


@atexit.register
def _close_all() -> None:
    for session in list(_UNDER_WAY.values()):
        session.close()


if hasattr(os, "register_at_fork"):
    # The writing thread is its parent's.
    os.register_at_fork(after_in_child=_UNDER_WAY.clear)
