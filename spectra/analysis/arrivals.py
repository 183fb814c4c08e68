"""What has come into a folder since it was last looked at, by names, sizes and times alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from checkpoints_index import Checkpoint, Index, build_index
from checkpoints_index.formats import SNAPSHOT_FORMAT, SNAPSHOT_NAME, SNAPSHOTS
from checkpoints_index.growing import open_candidate
from checkpoints_index.index_store import IndexInMemory
from checkpoints_index.readers import Candidate
from checkpoints_index.snapshots import BASE_FILE
from checkpoints_index.steps import step_in_name
from checkpoints_index.walking import ABSENT, Stamp, stamps_of, walk
from spectra.store import Run

# A checkpoint is whole when its files have not changed for so long: a trainer may write into a
# file that has its full size already. Of one that has lain there longer nothing need be awaited.
_QUIET_SECONDS = 1.0
_OLD_SECONDS = 10.0
# What changed so recently may change again without a new time: file systems count in ticks.
_TICK_NS = 2_000_000_000


@dataclass(frozen=True)
class Arrival:
    """A checkpoint as its files lie there now.

    Attributes
    ----------
    candidate : Candidate
        Where it is, in which format.
    step : int
        Its step.
    stamps : tuple of Stamp
        Sizes and times of change of its files.
    """

    candidate: Candidate
    step: int
    stamps: tuple[Stamp, ...]

    @property
    def path(self) -> Path:
        """Its folder, or its file."""
        return self.candidate.path

    @property
    def is_gone(self) -> bool:
        """Whether its files are no longer there."""
        return ABSENT in stamps_of(self.candidate)

    @property
    def has_changed(self) -> bool:
        """Whether its files are others now."""
        return stamps_of(self.candidate) != self.stamps

    def opened(self) -> Checkpoint:
        """Open it, reading headers only; errors as of `open_candidate`."""
        return open_candidate(self.candidate, self.step)


class Snapshots:
    """The snapshots of a run. The hook's files appear whole: one that is there can be read.

    Parameters
    ----------
    run : Run
        The run; it need not exist yet.
    """

    def __init__(self, run: Run) -> None:
        self._folder = run.snapshots_path
        self._known_ns = 0
        self._known: list[Arrival] = []
        self._base: tuple[Stamp, ...] = ()

    def look(self) -> list[Arrival]:
        """Return what is there, in no order; none where the folder is not."""
        trusted_before = time.time_ns() - _TICK_NS
        try:
            changed_ns = os.stat(self._folder).st_mtime_ns
            if changed_ns != self._known_ns or changed_ns >= trusted_before:
                self._known = list(self._listed())
                self._known_ns = changed_ns
        except FileNotFoundError:
            self._known, self._known_ns = [], 0
        return self._known

    def has_new_base(self) -> bool:
        """Whether the run's base is another than when this was last asked."""
        stamps = stamps_of(Candidate(self._folder / BASE_FILE, SNAPSHOT_FORMAT, (BASE_FILE,)))
        before, self._base = self._base, stamps
        return before != stamps

    def _listed(self) -> Iterator[Arrival]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if SNAPSHOT_NAME.fullmatch(entry.name):
                    candidate = Candidate(Path(entry.path), SNAPSHOT_FORMAT, (entry.name,))
                    step = step_in_name(candidate.path.stem)
                    if step is not None:
                        yield Arrival(candidate, step, stamps_of(candidate))


class Folder:
    """A folder that others write to: runs of ours, or checkpoints of other trainers.

    Parameters
    ----------
    root : Path
        The folder; it need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._memory = IndexInMemory()
        self._index: Index | None = None
        self._since: dict[Path, tuple[tuple[Stamp, ...], float]] = {}

    def look(self) -> bool:
        """See what is there; return whether that is anything else than before."""
        try:
            folders = walk(self.root, self._memory.folders)
        except FileNotFoundError:
            folders = {}
        if folders == self._memory.folders:
            return False
        self._memory.folders = folders
        self._index = None
        return True

    def index(self) -> Index:
        """Return the checkpoints that were there; opens what is new of them."""
        if self._index is None:
            self._index = build_index(self.root, self._memory)
        return self._index

    def runs(self) -> list[Run]:
        """Return the runs that the hook records or recorded in it."""
        found = [
            Run(self.root / place if place else self.root)
            for place, folder in self._memory.folders.items()
            if folder.folders == (SNAPSHOTS,)
        ]
        return list(filter(was_recorded, found))

    def is_quiet(self, arrival: Arrival) -> bool:
        """Whether nobody is writing to a checkpoint any more, as far as its files tell."""
        now = time.monotonic()
        stamps, since = self._since.get(arrival.path, ((), 0.0))
        if stamps != arrival.stamps:
            self._since[arrival.path] = (arrival.stamps, since := now)
        newest = max(mtime_ns for _, mtime_ns in arrival.stamps)
        is_old = time.time_ns() - newest > _OLD_SECONDS * 1e9
        return is_old or now - since >= _QUIET_SECONDS


def was_recorded(run: Run) -> bool:
    """Whether a run is one of the hook's, with a base of its own."""
    return run.exists() and (run.snapshots_path / BASE_FILE).is_file()
