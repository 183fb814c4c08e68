"""The hook for any training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints_index.snapshots import snapshot_file
from spectra.recording.alerts import Alerts, Raised
from spectra.recording.budget import Budget
from spectra.recording.feed import DriftFeed
from spectra.recording.gathering import (
    agreed,
    gathered,
    is_sharded,
    is_writer,
    refuse_unsupported,
    settle,
)
from spectra.recording.layers import find_layers
from spectra.recording.live import LiveAnalysis
from spectra.recording.opening import Opening, Plan
from spectra.recording.session import PATIENCE_SECONDS, Session, interrupt
from spectra.recording.snapshot_files import SnapshotLayout
from spectra.recording.staging import Staging
from spectra.recording.when import Every, Schedule
from spectra.recording.writer import Missing, Notes, cause_of
from spectra.store import TRAINING_QUANTITIES, Run

DEFAULT_MODULES = ("q_proj", "v_proj")
DEFAULT_EVERY = 50
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
logger = logging.getLogger(__name__)


class Recorder:
    """Records chosen weights and the training's curve into a run, from any loop.

    Snapshots are taken of step 0, of the steps that `every` names and of the last one. Adapters
    are stored as their factors, never merged; plain layers as their weight. W_0 is stored once.
    The model, its gradients and the random state are only read. A thread writes the files; where
    it cannot, training goes on, a warning says so once, and the steps are listed in ``run.json``
    under ``missing``. In a distributed training every process makes one and calls it alike.

    Parameters
    ----------
    run : Path or str
        The run's folder; made if missing. An existing run is continued; what it holds of steps
        that are trained again is set aside (see `spectra.Run.earlier_attempts`).
    modules : sequence of str
        Which layers: names, globs, paths, labels, ``"re:…"`` for a regular expression of the
        whole path, or ``"all-linear"``.
    every : int, str, sequence of int or callable
        Steps between snapshots; the steps themselves; ``"log"`` or ``"log:N"``, N steps of every
        power of ten; a function of the step that says whether to record it, or
        ``"module:function"``.
    method : str, optional
        What to call the method; found out from the model by default.
    base : str, optional
        What to call the base model; ``model.config``'s name by default.
    settings : dict, optional
        Resolved hyperparameters, stored in ``run.json``.
    overwrite : bool
        Let a finished run be recorded again; without it that is refused.
    dtype : {"float32", "bfloat16", "float16"}, optional
        Store plain layers as W_t − W_0 in it; by default the exact weight is stored. Adapters are
        always exact.
    max_bytes : int or str, optional
        The most that the run's snapshots may take, such as ``"20 GiB"``.
    analyze : {"live"}, optional
        Analyse the snapshots in a process beside the training, at the lowest priority.
    wait : bool
        Whether `end` waits for that analysis.
    alerts : sequence, optional
        What of the drift is to be warned of: `spectra.Alert`, a dict of its arguments, a function
        of a step's rows, or ``"module:function"``.

    Attributes
    ----------
    run : Run
        The run.
    stop_requested : str or None
        The message of an alert that asks for the end of the training.

    Raises
    ------
    ValueError, TypeError
        If an option is none of these.

    Examples
    --------
    >>> recorder = Recorder("runs/a", every=50)  # doctest: +SKIP
    >>> with recorder.attach(model):  # doctest: +SKIP
    ...     for step, batch in enumerate(batches, start=1):
    ...         loss = train_step(batch)
    ...         recorder.step(step, loss=loss)
    """

    def __init__(
        self,
        run: Path | str,
        modules: Sequence[str] = DEFAULT_MODULES,
        every: Every = DEFAULT_EVERY,
        *,
        method: str | None = None,
        base: str | None = None,
        settings: dict[str, Any] | None = None,
        overwrite: bool = False,
        dtype: str | None = None,
        max_bytes: int | str | None = None,
        analyze: str | None = None,
        wait: bool = False,
        alerts: Any = (),
    ) -> None:
        if isinstance(modules, str):
            raise TypeError(f"modules must be a sequence of names, e.g. ({modules!r},).")
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"dtype must be None or one of {', '.join(_DTYPES)}, got {dtype!r}.")
        if analyze not in (None, "live"):
            raise ValueError(f'analyze must be None or "live", got {analyze!r}.')
        # A training may go to another folder later, and the thread writes later still.
        self.run = Run(Path(run).absolute())
        self.modules = tuple(modules)
        self.stop_requested: str | None = None
        self._schedule = Schedule(every)
        self._plan = Plan(
            self.run,
            self.modules,
            self._schedule,
            Budget(self.run, max_bytes),
            method,
            base,
            settings,
            overwrite,
        )
        self._alerts = Alerts(alerts)
        self._dtype = None if dtype is None else _DTYPES[dtype]
        self._analyze = analyze
        self._wait = wait
        self._model: nn.Module | None = None
        self._sharded = False
        self._staging: Staging | None = None
        self._session: Session | None = None
        self._notes = Notes(self.run)
        self._live: LiveAnalysis | None = None
        self._feed: DriftFeed | None = None
        self._news: list[tuple[int, dict[str, float], tuple[Raised, ...]]] = []
        self._last_step = 0
        self._last_snapshot: int | None = None
        self._started = 0.0

    @property
    def missing(self) -> list[Missing]:
        """The steps that were due and have no snapshot, as ``{"step": …, "reason": …}``."""
        return self._notes.missing

    @property
    def last_snapshot(self) -> int | None:
        """The step of which the last snapshot was taken, whether it is written yet or not."""
        return self._last_snapshot

    def note(self, **entries: Any) -> None:
        """Add entries to the run's ``run.json``, in place of those of the same names."""
        self._notes.set(**entries)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what is done in the block, such as an evaluation, out of the rows' ``seconds``."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - begun

    @contextmanager
    def attach(
        self, model: nn.Module, start_step: int = 0, total_steps: int | None = None
    ) -> Iterator[Recorder]:
        """Record `model` inside a ``with`` block.

        Parameters
        ----------
        model : nn.Module
            As it is trained: after adapters are added and parameters are frozen.
        start_step : int
            How many optimizer steps it has already had in this run; more than 0 on resuming.
        total_steps : int, optional
            How many it will have in the end: to say before it begins if the disk is too small.

        Raises
        ------
        ValueError
            If nothing in the model matches, if it does not fit what the run already holds, if
            the run is finished and would be recorded again, or if there is no room for it.
        checkpoints_index.CheckpointError
            If the run's base is broken.
        RuntimeError
            If another process is recording into the run.
        """
        self.begin(model, start_step, total_steps)
        try:
            yield self
        except BaseException:
            self.interrupt()
            raise
        self.end()

    def begin(self, model: nn.Module, start_step: int = 0, total_steps: int | None = None) -> None:
        """Start recording; `attach` without the ``with``. Parameters and errors as there."""
        self._detach()
        interrupt(self.run)
        refuse_unsupported(model)
        # Else what an evaluation has left whole is taken for a model that is not sharded.
        settle(model)
        layers = find_layers(model, self.modules)
        self._sharded = any(is_sharded(p.live()) for e in layers for p in (*e.parts, *e.base_parts))
        self._notes = Notes(self.run)
        self._news, self.stop_requested = [], None
        self._last_step, self._last_snapshot = start_step, None
        self._started = time.monotonic()
        if is_writer() or self._sharded:
            layout = SnapshotLayout(layers, dtype=self._dtype)
            self._staging = Staging(layout.staging)
            opening = Opening(self._plan, model, layers, layout, start_step, self._sharded)
            self._session = opening.session(self._staging, self._notes, total_steps)
        self._model = model
        if self._has_snapshot(start_step):
            self._last_snapshot = start_step
        if self._session is not None:
            self._started -= self._session.rows.seconds
            self._follow(sum(len(layer.matrices) for layer in layers))
        # Plain layers at step 0 are the base, which is stored already.
        if start_step == 0 and any(layer.kind != "dense" for layer in layers):
            self._record(0, PATIENCE_SECONDS)

    def step(self, step: int, **values: float | Tensor | None) -> None:
        """Tell that an optimizer step is done: log it, and take a snapshot if one is due.

        Parameters
        ----------
        step : int
            Number of optimizer steps done, counting from 1; not micro-batches.
        **values : float or Tensor, optional
            Any of ``loss``, ``grad_norm``, ``lr``, ``ortho_loss``, ``tokens`` (of all batches so
            far, without padding).

        Raises
        ------
        RuntimeError
            If no model is attached.
        ValueError
            If `step` is not beyond the last one, or a value is not one number.
        TypeError
            For a value that has no column.
        """
        if self._model is None:
            raise RuntimeError("No model is attached; call step inside `with recorder.attach(…)`.")
        if step <= self._last_step:
            raise ValueError(
                f"step must count finished optimizer steps upwards from 1; the last was "
                f"{self._last_step}, got {step}. With enumerate, use start=1."
            )
        self.log(step, **values)
        self._last_step = step
        self._look()
        if self._due(step):
            self._record(step)

    def log(self, step: int, **values: float | Tensor | None) -> None:
        """Note values of a step without counting it as done; later calls add to earlier ones."""
        unknown = values.keys() - TRAINING_QUANTITIES.keys()
        if unknown:
            raise TypeError(
                f"step has no column for {', '.join(sorted(unknown))}; it has "
                f"{', '.join(TRAINING_QUANTITIES)}."
            )
        told = {name: _whole(value) for name, value in values.items() if value is not None}
        if self._session is not None:
            self._session.rows.tell(step, time.monotonic() - self._started, told)

    def news(self) -> list[tuple[int, dict[str, float], tuple[Raised, ...]]]:
        """Return what was analysed since the last call: step, summary, alerts raised."""
        self._look()
        news, self._news = self._news, []
        return news

    def flush(self) -> None:
        """Wait until all that was recorded so far is on disk, as far as that is possible."""
        if self._session is not None:
            self._session.drain()

    def interrupt(self) -> None:
        """Stop recording as if the training had been interrupted; what there is, is written."""
        self._detach()

    def end(self) -> None:
        """Take the last step's snapshot, write everything and mark the run finished."""
        if self._last_step and self._last_snapshot != self._last_step:
            self._record(self._last_step, PATIENCE_SECONDS)
        self._detach(state="finished", last_step=self._last_step)

    def _detach(self, **changes: Any) -> None:
        self._model = self._staging = None
        session, self._session = self._session, None
        live, self._live = self._live, None
        feed, self._feed = self._feed, None
        if session is None:
            return
        waits = live is not None and self._wait and bool(changes)
        if feed is not None and not waits:
            feed.stop()
            self._take(feed)
        session.close(**changes)
        if feed is not None and live is not None and waits:
            # Nobody records the run any more, so it ends when all has been analysed.
            if not live.finish(wait=True):
                self._notes.warn(
                    "live",
                    f"is not analysed to its end; {live.log_path} says why. Run `spectra "
                    f"analyze {self.run.path}`",
                )
            feed.stop()
            self._take(feed)
            self._unless_it_fails(self._notes.write)

    # What is due

    def _due(self, step: int) -> bool:
        if self._schedule.fixed:
            return self._schedule.due(step)
        # A function need not say the same in every process.
        due = self._asked(step) if is_writer() else False
        return agreed(due) if self._sharded else due

    def _asked(self, step: int) -> bool:
        try:
            return self._schedule.due(step)
        except Exception as error:
            self._notes.miss(step, f"every={self._schedule.description} raised {error!r}", "every")
            return False

    def _has_snapshot(self, step: int) -> bool:
        """Whether the run held a step before this recording began; alike in every process."""
        path = self.run.snapshots_path / snapshot_file(step)
        held = is_writer() and step > 0 and path.is_file()
        return agreed(held) if self._sharded else held

    def _record(self, step: int, patience: float = 0.0) -> None:
        """Copy what is due and have it written; or note why not."""
        staging, session = self._staging, self._session
        slot = None
        if staging is not None and session is not None:
            slot = self._unless_it_fails(lambda: staging.take(patience), step)
            if slot is None:
                self._notes.miss(step, "the disk does not keep up", "slow disk")
        elif staging is not None and is_writer():
            self._notes.miss(step, "the run could not be begun", "inert")
        if self._sharded:
            # Of all processes or of none.
            if not agreed(slot is not None):
                return
            assert self._model is not None
            settle(self._model)
        elif slot is None:
            return
        assert staging is not None
        self._last_snapshot = step
        problem = staging.fill(slot)
        if slot is None or session is None:
            return
        if problem is None:
            self._notes.found(step)
            session.write(step, slot)
        else:
            staging.give_back(slot)
            self._notes.miss(step, f"it could not be copied: {problem!r}", cause_of(problem))
        if self._live is not None and (died := self._live.problem()):
            self._notes.warn("live", f"is analysed no more. {died} See analysis.log there")

    def _unless_it_fails(self, action: Any, step: int | None = None) -> Any:
        try:
            return action()
        except Exception as error:
            logger.debug("%s, step %s:", self.run.path, step, exc_info=True)
            self._notes.warn(cause_of(error), f"cannot be recorded ({error})")
            return None

    # What was found

    def _follow(self, matrices: int) -> None:
        self._feed = DriftFeed(self.run, matrices, self._alerts)
        self._unless_it_fails(self._feed.start)
        if self._analyze:
            self._live = LiveAnalysis(self.run)
            self._unless_it_fails(self._live.start)

    def _look(self) -> None:
        if self._feed is not None:
            self._take(self._feed)

    def _take(self, feed: DriftFeed) -> None:
        for found in feed.take():
            self._news.append((found.step, found.summary, found.alerts))
            for raised in found.alerts:
                logger.warning("%s: %s", self.run.path, raised.message)
                if raised.stop and self.stop_requested is None:
                    self.stop_requested = raised.message
                self._notes.alert(step=raised.step, message=raised.message, stop=raised.stop)


def _whole(value: float | Tensor) -> float | Tensor:
    # FSDP2's gradient norm, for one, is in pieces; every process gathers it.
    if not isinstance(value, Tensor) or not is_sharded(value):
        return value
    with gathered(value) as whole:
        return whole
