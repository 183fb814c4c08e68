"""A recording under way: the model's side, which hands over, and the thread's, which writes."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from checkpoints_index.snapshots import BASE_FILE, snapshot_file
from spectra.recording.budget import Budget
from spectra.recording.gathering import agreed, settle
from spectra.recording.rows import TrainingRows
from spectra.recording.snapshot_files import SnapshotLayout, write_snapshot
from spectra.recording.staging import Slot, Staging
from spectra.recording.writer import Notes, WritingThread
from spectra.store import FileLock, Run

PATIENCE_SECONDS = 300.0
"""How long the end of a training waits for a disk that does not answer.

Half of what NCCL gives the other processes, which wait with it."""


class Session:
    """What writes one run, from its begin to its end; on rank 0, or in a process by itself."""

    def __init__(
        self,
        run: Run,
        lock: FileLock,
        layout: SnapshotLayout,
        staging: Staging,
        base_id: str,
        budget: Budget,
    ) -> None:
        self.run = run
        self.notes = Notes(run)
        self.rows = TrainingRows(run)
        self.staging = staging
        self._lock = lock
        self._layout = layout
        self._base_id = base_id
        self._budget = budget
        self._thread = WritingThread(self._tidy)
        self._thread.start()
