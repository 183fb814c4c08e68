"""Methods × seeds × settings, trained and analysed one after another or on a cluster."""

from __future__ import annotations

import fnmatch
import gc
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from spectra import figures
from spectra.analysis import analyze
from spectra.analysis.schedule import connect
from spectra.recording.session import interrupt
from spectra.store import Run, Sweep, SweepRun, read_runs
from spectra.training.sweep import PlannedRun, SweepPlan, read_sweep
from spectra.training.trainer import FINAL, train

ERROR_FILE = "error.txt"
"""In the folder of a run that failed: where it did."""

_MINUTE, _HOUR = 60, 3600
# A worker with several threads takes several runs; they would share torch's random state.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """What became of a run: done, failed, or elsewhere, where another sweep is at it."""

    name: str
    state: str
    seconds: float = 0.0
    error: str = ""


def sweep(
    file: Path | str,
    *,
    scheduler: str | None = None,
    only: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[SweepRun]:
    """Train and analyse every run that a file asks for; what is done already is skipped.

    A run that fails is reported and the others go on. Interrupted or killed, the next call goes
    on where this one stopped. Several may work on one folder: no run is trained twice.

    Parameters
    ----------
    file : Path or str
        The sweep, as `spectra.training.sweep.read_sweep` takes it.
    scheduler : str, optional
        Address of a Dask scheduler whose workers train; files must have the same paths there.
    only : str, optional
        Pattern of the names of the runs to train now, such as ``"sorsa-*"``.
    progress : bool
        Show a bar for the run that is trained here.
    say : callable
        Told every result as a line of text.

    Returns
    -------
    list of SweepRun
        The chosen runs as they now are; also in ``sweep.json``.

    Raises
    ------
    FileNotFoundError, ValueError
        As of `read_sweep`, before anything is trained; or if no run is called like `only`.
    OSError
        If the folder cannot be written or the scheduler not be reached.
    ModuleNotFoundError
        If a scheduler is given and Dask is not installed.
    """
    plan = read_sweep(file)
    chosen = choose(plan, only)
    made = Sweep(plan.out)
    made.plan(plan.asked, [run.as_row() for run in plan.runs])
    done = finished(plan)
    todo = [run for run in chosen if run.name not in done]
    skipped = len(chosen) - len(todo)
    say(f"{len(chosen)} runs in {plan.out}" + (f", {skipped} of them done." if skipped else "."))
    clock = _Clock(made, todo)
    counted = f"/{len(chosen)}]"
    if scheduler is None:
        outcomes = _here(plan, todo, progress, lambda i, n: say(f"[{skipped + i}{counted} {n}"))
    else:
        outcomes = _on_cluster(plan, todo, scheduler, clock)
    for number, outcome in enumerate(outcomes, start=skipped + 1):
        clock.note(outcome)
        say(f"[{number}{counted} {_told(outcome)}{clock.left()}")
    names = {run.name for run in chosen}
    return [row for row in made.runs() if row.name in names]


def choose(plan: SweepPlan, only: str | None) -> list[PlannedRun]:
    """Return the runs whose names match a pattern; all without one.

    Raises
    ------
    ValueError
        If there are none.
    """
    chosen = [run for run in plan.runs if only is None or fnmatch.fnmatchcase(run.name, only)]
    if not chosen:
        names = ", ".join(run.name for run in plan.runs)
        raise ValueError(f"No run is called {only}; there are {names}.")
    return chosen


def finished(plan: SweepPlan) -> set[str]:
    """Return the names of the runs that are trained and, if that is asked for, analysed."""
    made = Sweep(plan.out)
    rows = made.runs() if made.exists() else []
    return {row.name for row in rows if row.state == "done" and _is_whole(plan, row.name)}


def summary(path: Path | str) -> pd.DataFrame:
    """Return where a sweep's finished runs ended: a row for each method and setting.

    Parameters
    ----------
    path : Path or str
        The sweep's folder.

    Returns
    -------
    DataFrame
        ``method``, what varies, ``seeds`` (how many), and means over the seeds: ``loss`` (of the
        last steps, see `spectra.figures.final_losses`) with its standard deviation ``loss_sd``,
        and, where analysed, ``delta_sigma`` and ``delta_d`` of the last step over all matrices.
        Empty if no run is finished.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is not a sweep.
    """
    made = Sweep(path)
    # One that somebody deleted stays listed.
    rows = [row for row in made.runs() if row.state == "done" and made.run(row.name).exists()]
    if not rows:
        return pd.DataFrame()
    runs = [made.run(row.name) for row in rows]
    table = pd.DataFrame(row.described() | {"run": row.name} for row in rows)
    table = table.merge(figures.final_losses(read_runs(runs, "training")), on="run", how="left")
    drift = read_runs(runs, "drift")
    if drift[["delta_sigma", "delta_d"]].notna().all(axis=1).any():
        ends = figures.final_values(drift).groupby("run")[["delta_sigma", "delta_d"]].mean()
        table = table.merge(ends.reset_index(), on="run", how="left")
    quantities = [c for c in ("loss", "delta_sigma", "delta_d") if c in table]
    varied = [c for c in table.columns if c not in ("run", "seed", *quantities)]
    means = figures.over_seeds(table, varied, quantities)
    return means.drop(columns=[c for c in ("delta_sigma_sd", "delta_d_sd") if c in means])


def _here(
    plan: SweepPlan,
    todo: Sequence[PlannedRun],
    progress: bool,
    begin: Callable[[int, str], None],
) -> Iterator[Outcome]:
    for number, run in enumerate(todo, start=1):
        begin(number, run.name)
        yield _train_one(plan, run, progress, workers=None)


def _on_cluster(
    plan: SweepPlan, todo: Sequence[PlannedRun], scheduler: str, clock: _Clock
) -> Iterator[Outcome]:
    with connect(scheduler) as client:
        from distributed import as_completed

        clock.parallel = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        # Not pure: an outcome of before is no reason not to try again.
        tasks = {
            client.submit(_train_one, plan, run, False, 1, pure=False): run.name for run in todo
        }
        for task in as_completed(tasks):
            try:
                yield task.result()
            except Exception as error:  # its workers were lost, or the scheduler
                yield _failed(Sweep(plan.out), tasks[task], error)


def _train_one(plan: SweepPlan, run: PlannedRun, progress: bool, workers: int | None) -> Outcome:
    made = Sweep(plan.out)
    folder = made.run(run.name)
    with _ONE_AT_A_TIME:
        try:
            lock = folder.take_lock("sweep")
        except RuntimeError:
            return Outcome(run.name, "elsewhere")
        started = time.monotonic()
        try:
            if run.name in finished(plan):  # by another sweep, a moment ago
                return Outcome(run.name, "done")
            made.update(run.name, state="running", error=None)
            train(plan.model, plan.data, folder.path, run.settings, progress=progress)
            if plan.analyze:
                analyze(folder.path, workers=workers, progress=progress)
            seconds = time.monotonic() - started
            (folder.path / ERROR_FILE).unlink(missing_ok=True)
            made.update(run.name, state="done", seconds=round(seconds, 1))
            return Outcome(run.name, "done", seconds)
        except Exception as error:
            interrupt(folder)
            return _failed(made, run.name, error)
        finally:
            lock.release()
            # What a trainer leaves are circles; the next model needs the room.
            gc.collect()
            torch.cuda.empty_cache()


def _failed(made: Sweep, name: str, error: Exception) -> Outcome:
    (first, *_) = str(error).strip().splitlines() or [""]
    # Ours are whole sentences; others say little without their kind.
    ours = type(error) in (ValueError, FileNotFoundError, ModuleNotFoundError)
    line = first if ours and first else f"{type(error).__name__}: {first}"
    path = made.run(name).path / ERROR_FILE
    path.parent.mkdir(exist_ok=True)  # a lost worker may not have come to it
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    made.update(name, state="failed", error=line)
    return Outcome(name, "failed", error=line)


def _is_whole(plan: SweepPlan, name: str) -> bool:
    run = Run(plan.out / name)
    return (run.path / FINAL).is_dir() and (not plan.analyze or bool(run.drift.parts()))


class _Clock:
    """How long the runs that are left will take, by those that are done."""

    def __init__(self, made: Sweep, todo: Sequence[PlannedRun]) -> None:
        self.parallel = 1
        self._methods = {row.name: row.method for row in made.runs()}
        self._left = [run.name for run in todo]
        self._taken: dict[str, list[float]] = {}
        for row in made.runs():
            if row.state == "done" and row.seconds:
                self._taken.setdefault(row.method, []).append(row.seconds)

    def note(self, outcome: Outcome) -> None:
        """Take notice of a run that is over."""
        self._left.remove(outcome.name)
        if outcome.state == "done" and outcome.seconds:
            self._taken.setdefault(self._methods[outcome.name], []).append(outcome.seconds)

    def left(self) -> str:
        """Return the time that is left, as the end of a line."""
        everything = [s for seconds in self._taken.values() for s in seconds]
        if not self._left or not everything:
            return ""
        seconds = 0.0
        for name in self._left:
            known = self._taken.get(self._methods[name], everything)
            seconds += sum(known) / len(known)
        return f"; about {in_time(seconds / self.parallel)} left"


def _told(outcome: Outcome) -> str:
    if outcome.state == "failed":
        return f"{outcome.name} failed: {outcome.error}"
    if outcome.state == "elsewhere":
        return f"{outcome.name} is being trained by another sweep"
    if not outcome.seconds:
        return f"{outcome.name}: done by another sweep"
    return f"{outcome.name}: done in {in_time(outcome.seconds)}"


def in_time(seconds: float) -> str:
    """Return a time for people, such as ``"35 s"`` or ``"2 h 10 min"``."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds // _HOUR:.0f} h {seconds % _HOUR / _MINUTE:.0f} min"


def summary_text(table: pd.DataFrame) -> str:
    """Return `summary` for people: the loss with its deviation, four digits of each number."""
    shown = table.copy()
    if "loss_sd" in shown:
        pairs: Any = zip(shown["loss"], shown.pop("loss_sd"), strict=True)
        shown["loss"] = [f"{m:.4f}" + ("" if pd.isna(sd) else f" ± {sd:.4f}") for m, sd in pairs]
    shown = shown.rename(columns={"delta_sigma": "mean ΔΣ", "delta_d": "mean ΔD"})
    return shown.to_string(index=False, float_format=lambda v: f"{v:.4g}", na_rep="-")
