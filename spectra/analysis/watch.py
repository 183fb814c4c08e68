"""Follows a folder and analyses every checkpoint when it is complete."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from checkpoints_index import (
    Checkpoint,
    Entry,
    Series,
    as_location,
    is_remote,
    name_of,
    open_model,
    settle_quantisation,
)
from checkpoints_index.formats import ADAPTER_FORMAT
from checkpoints_index.snapshots import BASE_FILE, Snapshot
from checkpoints_index.walking import stamps_of
from spectra.analysis.arrivals import Arrival, Folder, Snapshots, was_recorded
from spectra.analysis.bases import find_base, warn_of_another_model
from spectra.analysis.following import Training, WatchedStep
from spectra.analysis.pipeline import DEFAULT_MODULES, checked_quantities
from spectra.analysis.plan import Plan
from spectra.analysis.rows import Quantities
from spectra.analysis.writing import describe_run
from spectra.store import Run

logger = logging.getLogger(__name__)

DEFAULT_INTERVAL = 0.5
"""Seconds between two looks: one at an unchanged folder of 1,000 checkpoints takes some 0.02."""

# What lacks a file so long after its last change is told.
_PATIENCE_SECONDS = 60.0


def watch(
    path: Path | str,
    *,
    base: Path | str | None = None,
    dequantise: bool = False,
    modules: Sequence[str] | None = None,
    out: Path | str | None = None,
    values_only: bool = False,
    solver: str = "auto",
    precision: str | None = None,
    workers: int | None = None,
    interval: float = DEFAULT_INTERVAL,
    idle: float | None = None,
    until_finished: bool = False,
) -> Generator[WatchedStep, None, None]:
    """Follow a folder and analyse every checkpoint when it is complete; yields step by step.

    The folder need not exist yet. A checkpoint that is still being written is awaited; one that is
    broken is told and left until its files change; one that is written anew is computed anew. The
    rows of one that its trainer deletes stay.

    Parameters
    ----------
    path : Path or str
        A run that is being recorded, or a folder of runs; or a folder to which any other trainer
        writes its checkpoints.
    base, dequantise, modules, values_only, solver, precision, workers
        As of `analyze`. A base that is not there is awaited.
    out : Path or str, optional
        The run to write to. Recorded runs keep their own rows by default; checkpoints of other
        trainers go to ``runs/<name of the folder>``. Those in folders below `path` have a run each
        in that folder, of their name.
    interval : float
        Seconds between two looks at the folder.
    idle : float, optional
        End after so many minutes without news.
    until_finished : bool
        End when every run's recording is over, finished or killed, and all has its rows. Other
        trainers do not say when they are done.

    Yields
    ------
    WatchedStep
        A step whose rows have just been written.

    Raises
    ------
    ValueError
        If an option is unknown, `path` is no folder of this machine, or `out` holds rows against
        another base.
    OSError
        If rows cannot be written.

    Examples
    --------
    >>> for step in spectra.watch("runs/a", until_finished=True):  # doctest: +SKIP
    ...     print(step.step, step.drift["delta_d"].mean())
    """
    if interval <= 0:
        raise ValueError(f"interval must be above 0 seconds, got {interval}.")
    location = as_location(path)
    if is_remote(location):
        raise ValueError(
            f"{path} is an address, and watch follows folders of this machine. Run `spectra "
            "analyze` again and again: it computes only what is new."
        )
    if location.is_file():
        raise ValueError(f"watch follows a folder, and {path} is a file. Give its folder.")
    quantities = checked_quantities(values_only, solver, precision)
    options = _Options(base, dequantise, modules, quantities, workers)
    return _watched(_Watch(location, out, options), interval, idle, until_finished)


def _watched(
    watch: _Watch, interval: float, idle: float | None, until_finished: bool
) -> Generator[WatchedStep, None, None]:
    whole = False
    news = time.monotonic()
    try:
        while True:
            # Asked before looking: whatever is there when it is over is seen.
            is_over = until_finished and watch.is_over()
            if watch.look():
                news = time.monotonic()
            step = watch.next_step()
            if step is not None:
                yield step
                news = time.monotonic()
                continue
            if is_over and not watch.is_waiting:
                break
            if idle is not None and time.monotonic() - news > idle * 60.0:
                break
            time.sleep(interval)
        whole = True
    finally:
        watch.close(whole)


@dataclass(frozen=True)
class _Options:
    base: Path | str | None
    dequantise: bool
    modules: Sequence[str] | None
    quantities: Quantities
    workers: int | None


@dataclass
class _Watch:
    """What lies in a folder, and the trainings that are followed in it."""

    location: Path
    out: Path | str | None
    options: _Options
    trainings: dict[object, Training] = field(default_factory=dict)
    told: set[object] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._folder = Folder(self.location)
        self._snapshots: dict[Path, Snapshots] = {}
        self._existed = self.location.exists()
        self._is_unsettled = True
        self._beside: list[Path] = []
        self._order: list[Training] = []

    @property
    def is_waiting(self) -> bool:
        return any(training.is_waiting for training in self.trainings.values())

    def is_over(self) -> bool:
        """Whether nobody records here any more."""
        if not self.location.exists():
            return self._existed
        self._existed = True
        if self._snapshots:
            return all(Run(folder).is_recorded for folder in self._snapshots)
        if self.trainings:
            self._tell(
                "endless",
                f"Nothing says when the training in {self.location} is finished: it is followed "
                "until Ctrl+C, or with --idle.",
            )
            return False
        return Run(self.location).is_recorded

    def look(self) -> bool:
        """Offer to each training what there is; return whether there is something new."""
        news = False
        if self.options.base is not None:
            news = self._look_at_others(self._folder.look())
        elif was_recorded(own := Run(self.location)):
            news = self._look_at_run(own)
        elif not own.is_locked("recording"):  # else its base is not there yet
            changed = self._folder.look()
            if runs := self._folder.runs():
                news = any([self._look_at_run(run) for run in runs])
            else:
                news = self._look_at_others(changed)
        if not self.trainings:
            self._tell("nothing", f"Waiting for checkpoints in {self.location}.", logging.INFO)
        return news

    def next_step(self) -> WatchedStep | None:
        """Compute the next step of a training, each in its turn."""
        known = set(map(id, self._order))
        self._order += [t for t in self.trainings.values() if id(t) not in known]
        for training in list(self._order):
            self._order.remove(training)
            self._order.append(training)
            step = training.next_step()
            if step is not None:
                return step
        return None

    def close(self, whole: bool) -> None:
        for training in self.trainings.values():
            training.close(whole)

    # Recorded runs.

    def _look_at_run(self, run: Run) -> bool:
        if run.path not in self._snapshots:
            self.trainings[run.path] = self._training_of_run(run)
            self._snapshots[run.path] = Snapshots(run)
            logger.info("Following %s.", run.path)
        training, snapshots = self.trainings[run.path], self._snapshots[run.path]
        if snapshots.has_new_base():
            training.forget_base()
        return training.offer(snapshots.look())

    def _training_of_run(self, run: Run) -> Training:
        options = self.options
        target = run
        if self.out is not None:
            if run.path != self.location:
                raise ValueError("out takes one run; leave it out and each keeps its own rows.")
            target = Run(self.out)

        def open_plan(checkpoint: Checkpoint) -> Plan:
            w_0 = Snapshot(run.snapshots_path / BASE_FILE, "base")
            return Plan(w_0, options.modules, options.quantities)

        def describe(checkpoint: Checkpoint, plan: Plan) -> None:
            found = options.modules or sorted({m.module for m in plan.base.matrices})
            describe_run(target, plan.base, found, {checkpoint.method}, [run.snapshots_path])

        is_own = target is run
        return Training(
            target,
            options.quantities,
            options.workers,
            open_plan,
            lambda checkpoint, plan: checkpoint.bind(plan.base),
            None if is_own else describe,
            is_complete=True,
        )

    # Checkpoints of other trainers.

    def _look_at_others(self, changed: bool) -> bool:
        if not changed and not self._is_unsettled:
            return False
        self._is_unsettled = False
        series = self._folder.index().series if self.location.is_dir() else ()
        # A model of which nothing says the step may be a base, or the end of something.
        lone = [s for s in series if not _is_training(s)]
        self._beside = [entry.path for s in lone for entry in s.entries]
        return any([self._look_at(one) for one in series if _is_training(one)])

    def _look_at(self, series: Series) -> bool:
        if series.problem:
            self._tell(series.problem, series.problem)
            return False
        arrivals = []
        news = False
        for entry in series.entries:
            arrival = Arrival(entry.candidate, entry.step_or_lone, stamps_of(entry.candidate))
            if not self._folder.is_quiet(arrival):
                self._is_unsettled = news = True
            elif entry.state == "complete":
                arrivals.append(arrival)
            else:
                self._is_unsettled |= not self._tell_problem(entry, arrival)
        key = (series.name, series.method, series.base)
        if key not in self.trainings:
            if not arrivals:
                return news
            self.trainings[key] = self._training_of(series)
        return self.trainings[key].offer(arrivals) or news

    def _training_of(self, series: Series) -> Training:
        options = self.options
        run = self._run_for(series)
        is_adapter = _is_adapter(series)

        def open_plan(checkpoint: Checkpoint) -> Plan:
            beside = self._beside if is_adapter else []
            place = find_base(options.base, [checkpoint], self.location, beside)
            w_0 = open_model(place, dequantise=options.dequantise)
            warn_of_another_model(w_0, checkpoint)
            return Plan(w_0, options.modules or DEFAULT_MODULES, options.quantities)

        def prepare(checkpoint: Checkpoint, plan: Plan) -> Checkpoint:
            return settle_quantisation(checkpoint, options.dequantise).bind(plan.base)

        paths: list[Path] = []

        def describe(checkpoint: Checkpoint, plan: Plan) -> None:
            if not paths and run.exists():
                paths.extend(map(Path, run.read_settings().get("checkpoints", ())))
            if checkpoint.path not in paths:
                paths.append(checkpoint.path)
            names = options.modules or DEFAULT_MODULES
            describe_run(run, plan.base, names, {checkpoint.method}, paths)

        logger.info("Following %s in %s; its rows go to %s.", series.name, self.location, run.path)
        return Training(run, options.quantities, options.workers, open_plan, prepare, describe)

    def _run_for(self, series: Series) -> Run:
        """Return the run of a training: the same whatever came first."""
        target = Path(self.out) if self.out is not None else Path("runs") / name_of(self.location)
        name = "" if series.name == name_of(self.location) else series.name
        taken = {training.run.path for training in self.trainings.values()}
        number = 1
        while True:
            run = Run(target / name) if name else Run(target)
            if (run.snapshots_path / BASE_FILE).is_file():
                raise ValueError(
                    f"{run.path} is a recorded run with a base of its own. Write the rows against "
                    "another base to another folder with --out."
                )
            if run.path.is_file():
                raise ValueError(f"A run is a folder, and {run.path} is a file. Choose another.")
            if run.path not in taken and (not run.exists() or run.method == series.method):
                return run
            name = f"{series.name}-{series.method}" + (f"-{number}" if number > 1 else "")
            number += 1

    def _tell_problem(self, entry: Entry, arrival: Arrival) -> bool:
        """Tell what is wrong with a checkpoint, unless it may still be written."""
        newest = max(mtime_ns for _, mtime_ns in arrival.stamps)
        is_late = time.time() - newest / 1e9 > _PATIENCE_SECONDS
        if entry.state == "incomplete" and not is_late:
            return False
        self._tell((entry.path, arrival.stamps), entry.problem)
        return True

    def _tell(self, about: object, message: str, level: int = logging.WARNING) -> None:
        if about not in self.told:
            self.told.add(about)
            logger.log(level, "%s", message)


def _is_training(series: Series) -> bool:
    return _is_adapter(series) or any(entry.step is not None for entry in series.entries)


def _is_adapter(series: Series) -> bool:
    return any(entry.format == ADAPTER_FORMAT for entry in series.entries)
