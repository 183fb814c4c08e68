"""One training whose checkpoints get their rows as they come."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from checkpoints_index import Checkpoint, CheckpointError
from checkpoints_index.walking import Stamp
from spectra.analysis.arrivals import Arrival
from spectra.analysis.base_cache import BaseCache
from spectra.analysis.plan import Plan, RowKey, StaleStep, row_keys, tell_replaced
from spectra.analysis.rows import Quantities, Row
from spectra.analysis.schedule import compute
from spectra.analysis.writing import RowWriter
from spectra.store import DRIFT, Run

logger = logging.getLogger(__name__)

# A step's rows are one part, unless they take longer than one would like to lose.
_WRITE_SECONDS = 60.0
# What is not there yet, a base or a lock, is looked for again after so long.
_RETRY_SECONDS = 5.0
# Reading many parts is slow: a table of so many is made one.
_MOST_PARTS = 128

_UNUSABLE = (CheckpointError, OSError, ValueError, RuntimeError)


@dataclass(frozen=True)
class WatchedStep:
    """A step whose rows have just been written.

    Attributes
    ----------
    run : Run
        Where they are.
    step : int
        Which step.
    rows : int
        How many rows.
    seconds : float
        What they took.
    drift : DataFrame
        The rows, with the columns of the drift table.
    """

    run: Run
    step: int
    rows: int
    seconds: float
    drift: pd.DataFrame


class Training:
    """A training whose checkpoints get their rows in a run, step by step.

    Only one process does this for a run: the lock is taken with the first checkpoint and held
    until `close`.

    Parameters
    ----------
    run : Run
        Where the rows go.
    quantities : Quantities
        What is computed.
    workers : int, optional
        As of `compute`.
    open_plan : callable
        Finds the base for a checkpoint and gives what is analysed on it.
    prepare : callable
        Makes of an opened checkpoint what is compared with the base.
    describe : callable, optional
        Writes to ``run.json`` what is analysed, before a checkpoint's first rows.
    is_complete : bool
        Whether the steps that are there are all that count, so that others' rows are dropped.
    """

    def __init__(
        self,
        run: Run,
        quantities: Quantities,
        workers: int | None,
        open_plan: Callable[[Checkpoint], Plan],
        prepare: Callable[[Checkpoint, Plan], Checkpoint],
        describe: Callable[[Checkpoint, Plan], None] | None = None,
        is_complete: bool = False,
    ) -> None:
        self.run = run
        self._quantities = quantities
        self._workers = workers
        self._open_plan = open_plan
        self._prepare = prepare
        self._describe = describe
        self._is_complete = is_complete
        self._plan: Plan | None = None
        self._done: set[RowKey] = set()
        self._present: set[int] = set()
        self._has_zero = False
        self._waiting: dict[Path, Arrival] = {}
        self._settled: dict[Path, tuple[Stamp, ...]] = {}
        self._told: set[tuple[object, str]] = set()
        self._held: ExitStack | None = None
        self._retry_at = 0.0
        self._base_problem: str | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether there is something that has no rows yet."""
        return bool(self._waiting)

    def offer(self, arrivals: Iterable[Arrival]) -> bool:
        """Take note of what there is now; return whether some of it is new."""
        now = {arrival.path: arrival for arrival in arrivals}
        for path in self._waiting.keys() - now.keys():
            if not path.exists():
                self._tell(path, f"{path} was deleted before it was analysed.")
        before = self._waiting
        self._waiting = {p: a for p, a in now.items() if self._settled.get(p) != a.stamps}
        vanished = self._present - (present := {arrival.step for arrival in now.values()})
        self._present = present
        self._has_zero = 0 in present or (self._has_zero and not self._is_complete)
        for path in self._settled.keys() - now.keys():
            del self._settled[path]
        if vanished and self._held is not None:
            self._drop_vanished()
        return any(before.get(p) != a for p, a in self._waiting.items())

    def forget_base(self) -> None:
        """Open the base again, which was written anew, and with it all checkpoints."""
        self._plan = None
        self._settled.clear()

    def next_step(self) -> WatchedStep | None:
        """Compute and write the rows of the first step that lacks some; None if none can be.

        What cannot be read is told and left until its files change.
        """
        if not self._waiting or time.monotonic() < self._retry_at or not self._take_lock():
            return None
        for arrival in sorted(self._waiting.values(), key=lambda a: a.step):
            checkpoint = self._opened(arrival)
            if checkpoint is None:
                continue
            plan = self._plan_for(checkpoint)
            if plan is None:
                return None
            step = self._analysed(arrival, checkpoint, plan)
            if step is not None:
                return step
        return None

    def close(self, whole: bool) -> None:
        """Give the run back to others.

        Parameters
        ----------
        whole : bool
            Make one part of the parts before.
        """
        if self._held is None:
            return
        try:
            if whole:
                self._compact()
        finally:
            self._held.close()
            self._held = None

    def _take_lock(self) -> bool:
        if self._held is not None:
            return True
        held = ExitStack()
        try:
            held.enter_context(self.run.lock("analysis"))
        except RuntimeError:
            self._tell("lock", f"{self.run.path} is being analysed by another process: waiting.")
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            return False
        self._held = held
        self.run.remove_leftovers()
        self._done = row_keys(self.run.drift.read(["source"]))
        self._drop_vanished()
        return True

    def _opened(self, arrival: Arrival) -> Checkpoint | None:
        try:
            return arrival.opened()
        except _UNUSABLE as error:
            self._give_up(arrival, error)
            return None

    def _plan_for(self, checkpoint: Checkpoint) -> Plan | None:
        if self._plan is None:
            try:
                self._plan = self._open_plan(checkpoint)
            except _UNUSABLE as error:
                # Of one that is being copied, something else is wrong at every look.
                message, before = str(error), self._base_problem
                if before in (None, message):
                    self._tell("base", f"Waiting for the base. {message}")
                self._base_problem = message
                self._retry_at = time.monotonic() + _RETRY_SECONDS
        return self._plan

    def _analysed(self, arrival: Arrival, checkpoint: Checkpoint, plan: Plan) -> WatchedStep | None:
        """Bring one checkpoint's rows up to date, or the base's before it."""
        try:
            checkpoint = self._prepare(checkpoint, plan)
            stale = plan.stale(checkpoint, self._done)
            at_zero = [] if self._has_zero else plan.stale_base(self._done)
        except _UNUSABLE as error:
            self._give_up(arrival, error)
            return None
        if told := tell_replaced([*at_zero, *stale], self._done):
            self._tell("anew", f"{self.run.path}, step {arrival.step}: {told}")
        if self._describe is not None and (at_zero or stale):
            self._describe(checkpoint, plan)
        if at_zero:
            return self._computed(plan, at_zero, 0)
        if not stale:
            self._settle(arrival)
            return None
        return self._computed(plan, stale, arrival.step, arrival)

    def _computed(
        self, plan: Plan, stale: Sequence[StaleStep], step: int, arrival: Arrival | None = None
    ) -> WatchedStep | None:
        started = time.monotonic()
        writer = RowWriter(self.run, _WRITE_SECONDS)
        found: list[Row] = []
        problem: Exception | None = None
        try:
            tasks = plan.tasks(stale)
            for drift, spectrum in compute(tasks, self._quantities, BaseCache(), self._workers):
                writer.add(drift, spectrum)
                found.append(drift)
        except (CheckpointError, RuntimeError) as error:
            problem = error
        except BaseException:
            writer.flush()
            raise
        if arrival is not None and arrival.has_changed and not arrival.is_gone:
            # Written anew meanwhile: what was read may be of both. It comes again.
            return None
        if not self.run.exists():
            self._tell("run", f"{self.run.path} was deleted: its rows are dropped.")
            return None
        writer.flush()
        if len(self.run.drift.parts()) > _MOST_PARTS:
            self.run.drift.compact(self._steps())
        self._done |= {(r["step"], r["layer"], r["module"], r["source"]) for r in found}
        if arrival is not None:
            if problem is None:
                self._settle(arrival)
            else:
                self._give_up(arrival, problem, len(found))
        rows = pd.DataFrame(found).reindex(columns=DRIFT.names)
        return WatchedStep(self.run, step, len(rows), time.monotonic() - started, rows)

    def _settle(self, arrival: Arrival) -> None:
        self._waiting.pop(arrival.path, None)
        self._settled[arrival.path] = arrival.stamps

    def _give_up(self, arrival: Arrival, error: Exception, rows: int = 0) -> None:
        """Leave a checkpoint until its files change."""
        message = str(error)
        if arrival.is_gone:
            message = f"{arrival.path} was deleted before it was analysed."
            if rows:
                message = f"{arrival.path} was deleted after {rows} of its rows were computed."
        self._tell((arrival.path, arrival.stamps), message)
        self._settle(arrival)

    def _tell(self, about: object, message: str) -> None:
        if (about, message) not in self._told:
            self._told.add((about, message))
            logger.warning("%s", message)

    def _steps(self) -> Collection[int] | None:
        return {0, *self._present} if self._is_complete else None

    def _drop_vanished(self) -> None:
        """Drop the rows of steps that an earlier attempt recorded."""
        steps = self._steps()
        if steps is not None and any(key[0] not in steps for key in self._done):
            self._compact()
            self._done = {key for key in self._done if key[0] in steps}

    def _compact(self) -> None:
        self.run.drift.compact(self._steps())
        self.run.spectrum.compact(self._steps())
