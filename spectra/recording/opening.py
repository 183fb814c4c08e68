"""How a recording begins: its run is made or continued, by all processes that take part."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from torch import nn

from checkpoints_index.snapshots import Snapshot
from spectra.recording.bases import Base
from spectra.recording.budget import Budget
from spectra.recording.continuing import refuse_other_adapter
from spectra.recording.gathering import agreed, is_writer, whole_shape
from spectra.recording.layers import RecordedLayer
from spectra.recording.session import Session
from spectra.recording.snapshot_files import SnapshotLayout
from spectra.recording.staging import Staging
from spectra.recording.when import Schedule
from spectra.recording.writer import Notes
from spectra.store import Run, software_versions
from spectra.store.attempts import begin_attempt
from spectra.store.files import remove_leftovers
from spectra.store.locks import FileLock


@dataclass(frozen=True)
class Plan:
    """What `Recorder` was asked for, whatever model it is attached to."""

    run: Run
    modules: tuple[str, ...]
    schedule: Schedule
    budget: Budget
    method: str | None
    base: str | None
    settings: dict[str, Any] | None
    overwrite: bool


class Opening:
    """The beginning of one recording.

    Parameters
    ----------
    plan : Plan
        What was asked for.
    model : nn.Module
        What is trained.
    layers : sequence of RecordedLayer
        What of it is recorded.
    layout : SnapshotLayout
        Of the snapshots.
    start_step : int
        The optimizer steps that the model has had.
    sharded : bool
        Whether every process takes part.
    """

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        layers: Sequence[RecordedLayer],
        layout: SnapshotLayout,
        start_step: int,
        sharded: bool,
    ) -> None:
        self._plan = plan
        self._model = model
        self._layers = layers
        self._layout = layout
        self._start_step = start_step
        self._sharded = sharded
        self._base = Base(plan.run, layers, start_step)
        self._lock: FileLock | None = None

    def session(self, staging: Staging, notes: Notes, total_steps: int | None) -> Session | None:
        """Make or continue the run.

        Parameters
        ----------
        staging : Staging
            Where the session's snapshots come from.
        notes : Notes
            For the session.
        total_steps : int, optional
            How many steps the training will have, where that is known.

        Returns
        -------
        Session or None
            What writes; ``None`` in other processes than rank 0, and where the disk refuses, of
            which a warning tells: training goes on.

        Raises
        ------
        ValueError, RuntimeError, checkpoints_index.CheckpointError
            As of `Recorder.attach`; what rank 0 finds wrong is raised by every process.
        """
        try:
            session, failure = self._opened(staging, notes, total_steps)
        except BaseException:  # an interrupted begin, too, leaves the run to the next one
            self._release()
            raise
        if failure is None:
            return session
        self._release()
        if not isinstance(failure, OSError):
            raise failure
        if is_writer():
            notes.warn(
                "inert", f"cannot be recorded ({failure}); training goes on and nothing is recorded"
            )
        return None

    def _opened(
        self, staging: Staging, notes: Notes, total_steps: int | None
    ) -> tuple[Session | None, Exception | None]:
        stored, session = None, None
        failure: Exception | None = None
        if is_writer():
            try:
                if not self._plan.run.path.exists():
                    # What is refused leaves no folder behind.
                    self._checked(total_steps)
                self._lock = self._plan.run.take_lock("recording")
                stored = self._checked(total_steps)
            except Exception as error:
                failure = error
        continues, failure = self._together(stored is not None, failure)
        if failure is None:
            try:
                if continues:
                    self._base.compare(stored)
                else:
                    self._base.write(wanted=is_writer())
                if self._lock is not None:
                    self._refuse_to_replace()
                    refuse_other_adapter(self._plan.run, self._layers, self._start_step)
                    self._continue_run(notes)
                    session = Session(
                        self._plan.run,
                        self._lock,
                        self._layout,
                        staging,
                        self._base.id,
                        self._plan.budget,
                        notes,
                    )
            except Exception as error:
                failure = error
            _, failure = self._together(None, failure)
        return session, failure

    def _checked(self, total_steps: int | None) -> Snapshot | None:
        """Return the run's base, if it has one; refuse what can be refused without the model."""
        stored = self._base.stored()
        if stored is None:
            self._refuse_to_replace()
        self._refuse_beyond_budget(stored is None, total_steps)
        return stored

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def method(self) -> str:
        """What to call the method."""
        if self._plan.method is not None:
            return self._plan.method
        methods = {layer.method for layer in self._layers}
        return "+".join(sorted(methods - {"full-ft"})) or "full-ft"

    def _together(self, found: Any, failure: Exception | None) -> tuple[Any, Exception | None]:
        """Return what rank 0 found, on every process that takes part."""
        return agreed((found, _portable(failure))) if self._sharded else (found, failure)

    def _refuse_to_replace(self) -> None:
        run = self._plan.run
        if not run.exists():
            return
        stored = run.read_settings()
        if self._start_step > 0 and (before := stored.get("method", self.method)) != self.method:
            raise ValueError(
                f"{run.path} was begun with the method {before}, now it is {self.method}. Record "
                "into a new run."
            )
        last = stored.get("last_step") or 0
        finished = stored.get("state") == "finished" and last > self._start_step
        if finished and not self._plan.overwrite:
            raise ValueError(
                f"{run.path} is a finished run of {last} steps, and recording from step "
                f"{self._start_step} would replace them. Choose another folder, or pass "
                "overwrite=True."
            )

    def _refuse_beyond_budget(self, is_new: bool, total_steps: int | None) -> None:
        header = self._layout.header(id=self._base.id, step=0, base=self._base.id)
        self._plan.budget.measure()
        self._plan.budget.refuse_beyond(
            self._base.nbytes if is_new else 0,
            self._layout.nbytes + len(header),
            None if total_steps is None else self._count(total_steps),
        )

    def _count(self, total_steps: int) -> int | None:
        """Return how many snapshots there will be, unless a function decides."""
        schedule, start = self._plan.schedule, self._start_step
        due = schedule.count(start, total_steps)
        if due is None:
            return None
        first = start == 0 and any(layer.kind != "dense" for layer in self._layers)
        last = total_steps > start and not schedule.due(total_steps)
        return due + first + last

    def _continue_run(self, notes: Notes) -> None:
        run, plan = self._plan.run, self._plan
        run.remove_leftovers()
        # With the lock in hand, no unfinished snapshot has a writer any more; an analysis may be
        # at work in the other folders.
        remove_leftovers(run.snapshots_path, older_than=time.time())
        changes = begin_attempt(
            run,
            self._start_step,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=software_versions(),
        )
        changes |= {
            "method": self.method,
            "modules": list(plan.modules),
            "parameters": count_parameters(self._model, self._layers),
            "every": plan.schedule.description,
            "state": "running",
            "base": {
                "name": plan.base or _model_name(self._model),
                "dtype": self._base.dtype,
                "weights": self._base.path.relative_to(run.path).as_posix(),
            },
        }
        if plan.settings is not None:
            changes["settings"] = plan.settings
        run.update_settings(**changes)
        plan.budget.measure()
        notes.continue_from(changes.get("missing", []), changes.get("alerts", []))


def count_parameters(model: nn.Module, layers: Sequence[RecordedLayer]) -> dict[str, int]:
    """Return how many numbers are trained, and how many of those the snapshots hold.

    Where both are equal, base and snapshots are the whole model.
    """
    recorded = {(part.path, part.name): part for layer in layers for part in layer.parts}
    return {
        "trained": sum(math.prod(whole_shape(p)) for p in model.parameters() if p.requires_grad),
        "recorded": sum(math.prod(p.shape) for p in recorded.values() if p.live().requires_grad),
    }


def _portable(failure: Exception | None) -> Exception | None:
    """Return an error that other processes can be given: they wait for one."""
    try:
        pickle.loads(pickle.dumps(failure))
        return failure
    except Exception:
        return RuntimeError(f"{type(failure).__name__}: {failure}")


def _model_name(model: nn.Module) -> str:
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    return str(name) or type(model).__name__
