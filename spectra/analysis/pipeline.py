"""From checkpoints to drift rows: only what is new, in order, and never half a file."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from checkpoints_index import (
    Checkpoint,
    CheckpointError,
    as_location,
    find_checkpoints,
    find_series,
    find_snapshots,
    is_remote,
    name_of,
    open_model,
    printable,
    settle_quantisation,
)
from checkpoints_index.snapshots import BASE_FILE, Snapshot
from spectra.analysis.base_cache import BaseCache
from spectra.analysis.bases import find_base, warn_of_another_model
from spectra.analysis.cost import Estimate, estimate_cost
from spectra.analysis.plan import (
    RowKey,
    Task,
    plan_tasks,
    refuse_shared_steps,
    row_keys,
    tell_replaced,
)
from spectra.analysis.rows import Quantities
from spectra.analysis.schedule import compute
from spectra.analysis.writing import RowWriter, describe_run
from spectra.linalg import PRECISIONS, SOLVERS
from spectra.store import Run, find_runs, read_runs

logger = logging.getLogger(__name__)

DEFAULT_MODULES = ("q_proj", "v_proj")
# A name may be longer than the line that the progress bar has.
_NAME_SHOWN = 40


def analyze(
    paths: Path | str | Sequence[Path | str],
    *,
    base: Path | str | None = None,
    dequantise: bool = False,
    modules: Sequence[str] | None = None,
    out: Path | str | None = None,
    values_only: bool = False,
    solver: str = "auto",
    precision: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Compute the drift of every recorded matrix at every step; only what is new is computed.

    Rows are written while they are made. Interrupted or killed, the next call goes on where
    this one stopped. Decompositions of bases are kept on disk and shared by all runs (see
    `spectra cache`).

    Parameters
    ----------
    paths : Path, str or a sequence of them
        Runs, or a folder of runs (their own snapshots and bases are used), or folders with
        checkpoints, or addresses of such, as ``s3://…``. One folder with the checkpoints of several
        trainings gives a run for each; several folders outside runs are taken together for one.
    base : Path or str, optional
        Folder, file, address or hub id of the base model. Needed for checkpoints outside a run,
        unless their adapters name one that is on this machine, or there is just one model beside
        them.
    dequantise : bool
        Of weights that bitsandbytes quantised, the base's and whole checkpoints', take the numbers
        that they stand for. Without it they are refused: of a base it is a choice of W_0.
    modules : sequence of str, optional
        Names or globs; for a run all that it recorded, elsewhere q_proj and v_proj.
    out : Path or str, optional
        The run to write to. Recorded runs keep their own rows by default; checkpoints outside
        a run go to ``runs/<name of the folder>``. Of several trainings, each has a run of its
        name in that folder.
    values_only : bool
        Singular values without vectors: no ΔD, but cheaper.
    solver : {"auto", "low-rank", "gram", "svd"}
        By default the fastest exact one for each matrix; where one fails its certificate, the
        next one runs, and the row's `solver` says so. Any other name leaves out those before it.
    precision : str, optional
        The precision that the checkpoints' weights really have, for the noise floor, where it is
        not that of the files: of weights de-quantised from four bits ``"q4_0"`` or ``"nf4"``.
    workers : int, optional
        Processes: 1 is a plain loop, -1 all cores; each gets cores // workers BLAS threads. By
        default what a short measurement finds best.
    scheduler : str, optional
        Address of a Dask scheduler that does the work instead; its workers must see the files.
    progress : bool
        Show a progress bar with the time left.

    Returns
    -------
    DataFrame
        All drift rows of the run or runs, one per step × layer × module.

    Raises
    ------
    FileNotFoundError
        If a path does not exist or holds no checkpoint.
    checkpoints_index.CheckpointError
        If a checkpoint is broken: at the end, when all others and all other runs have their rows.
    ValueError
        If base, modules and checkpoints do not fit together, or an option is unknown.
    RuntimeError
        If another process is analysing the same run, or matrices take down every worker.
    """
    quantities = checked_quantities(values_only, solver, precision)
    runs = []
    failed: list[CheckpointError] = []
    for job in _jobs(paths, base, dequantise, modules, out, failed):
        job.describe()
        with job.run.lock("analysis"):
            try:
                job.bring_up_to_date(quantities, workers, scheduler, progress)
            except CheckpointError as error:
                failed.append(error)
        runs.append(job.run)
    if failed:
        raise CheckpointError(" ".join(dict.fromkeys(map(str, failed))))
    return read_runs(runs, "drift")


def estimate(
    paths: Path | str | Sequence[Path | str],
    *,
    base: Path | str | None = None,
    dequantise: bool = False,
    modules: Sequence[str] | None = None,
    out: Path | str | None = None,
    values_only: bool = False,
    solver: str = "auto",
    precision: str | None = None,
) -> Estimate:
    """Say what `analyze` with the same arguments would do and cost; nothing is written.

    Parameters
    ----------
    paths, base, dequantise, modules, out, values_only, solver, precision
        As of `analyze`.

    Returns
    -------
    Estimate
        Decompositions by kind, solver and shape, time and memory; ``print`` gives a table.

    Raises
    ------
    FileNotFoundError, checkpoints_index.CheckpointError, ValueError
        As `analyze`.
    """
    quantities = checked_quantities(values_only, solver, precision)
    failed: list[CheckpointError] = []
    jobs = list(_jobs(paths, base, dequantise, modules, out, failed))
    if failed and not jobs:
        raise failed[0]
    for error in failed:
        logger.warning("Left out: %s", error)
    tasks = [task for job in jobs for task in job.tasks(quantities, job.done())]
    return estimate_cost(tasks, quantities, BaseCache())


def checked_quantities(values_only: bool, solver: str, precision: str | None) -> Quantities:
    """Return what is computed; raises ValueError for an unknown solver or precision."""
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}.")
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    return Quantities(not values_only, solver, precision)


@dataclass(frozen=True)
class _Job:
    """Checkpoints, their base, and the run that the rows go to."""

    run: Run
    checkpoints: Sequence[Checkpoint]
    base: Checkpoint
    modules: Sequence[str] | None
    recorded: bool = False
    """Whether the rows go to the run that the hook recorded, which it has described."""
    steps: Collection[int] | None = None
    """Steps that exist, whose rows stay while those of others go; by default all stay."""

    def describe(self) -> None:
        """Write down what is analysed, where no hook has done so."""
        if not self.recorded:
            found = sorted({m.module for m in self.base.matrices})
            methods = {c.method for c in self.checkpoints}
            paths = [c.path for c in self.checkpoints]
            describe_run(self.run, self.base, self.modules or found, methods, paths)

    def done(self) -> set[RowKey]:
        """Return the rows there are."""
        return row_keys(self.run.drift.read(["source"]))

    def tasks(self, quantities: Quantities, done: Collection[RowKey]) -> list[Task]:
        """Return what has no current row."""
        return plan_tasks(self.base, self.checkpoints, self.modules, done, quantities)

    def bring_up_to_date(
        self, quantities: Quantities, workers: int | None, scheduler: str | None, progress: bool
    ) -> None:
        """Compute what has no current row, and write it as it comes."""
        self.run.remove_leftovers()
        done = self.done()
        tasks = self.tasks(quantities, done)
        if told := tell_replaced((step for task in tasks for step in task.steps), done):
            logger.warning("%s: %s", self.run.path, told)
        total = sum(len(task.steps) for task in tasks)
        writer = RowWriter(self.run)
        hidden = not progress or total == 0
        name = printable(self.run.name)[:_NAME_SHOWN]
        bar = tqdm(total=total, desc=f"Analysing {name}", unit="matrix", disable=hidden)
        try:
            for drift, spectrum in compute(tasks, quantities, BaseCache(), workers, scheduler):
                writer.add(drift, spectrum)
                bar.update()
        finally:
            bar.close()
            writer.flush()
        self.run.drift.compact(self.steps)
        self.run.spectrum.compact(self.steps)


def _jobs(
    paths: Path | str | Sequence[Path | str],
    base: Path | str | None,
    dequantise: bool,
    modules: Sequence[str] | None,
    out: Path | str | None,
    failed: list[CheckpointError],
) -> Iterator[_Job]:
    given = [as_location(p) for p in _listed(paths)]
    runs_of = {path: _recorded_runs(path) for path in given}
    recorded = [run for path in given for run in runs_of[path]]
    if recorded and base is None:
        others = [path for path in given if not runs_of[path]]
        if others:
            raise ValueError(
                f"{others[0]} is no recorded run, others of the paths are. Analyse it by itself, "
                "with --base and --out."
            )
        if out is not None and len(recorded) > 1:
            raise ValueError("out takes one run; leave it out and each run keeps its own rows.")
        for source in recorded:
            target = source if out is None else Run(out)
            broken: list[CheckpointError] = []
            try:
                snapshots = find_snapshots(source.snapshots_path, broken)
                w_0 = Snapshot(source.snapshots_path / BASE_FILE, "base")
            except CheckpointError as error:
                failed.append(error)
                continue
            failed += broken
            is_own = target.path == source.path
            # What an earlier attempt recorded is not there any more. Other trainers delete their
            # old checkpoints while they train: what was computed of these stays.
            steps = None if broken else {0, *(c.step for c in snapshots)}
            yield _Job(target, snapshots, w_0, modules, recorded=is_own, steps=steps)
        return
    if len(given) == 1:
        yield from _series_jobs(given[0], base, dequantise, modules, out, failed)
        return
    checkpoints = [c for p in given for c in find_checkpoints(p, failed)]
    refuse_shared_steps(checkpoints)
    run = Run(out if out is not None else Path("runs") / name_of(given[0]))
    model = open_model(find_base(base, checkpoints), dequantise=dequantise)
    yield from _job(run, checkpoints, model, dequantise, modules, failed)


def _series_jobs(
    path: Path,
    base: Path | str | None,
    dequantise: bool,
    modules: Sequence[str] | None,
    out: Path | str | None,
    failed: list[CheckpointError],
) -> list[_Job]:
    """Each training in a folder as a run of its own; all bases are found before any is read."""
    found = find_series(path, failed)
    models = [s for s in found if not s.is_adapter and not s.has_steps]
    trained = [s for s in found if s.is_adapter or s.has_steps]
    if base is not None:
        given = _identity(as_location(base))
        models = [m for m in models if _identity(m.checkpoints[0].path) != given]
    if not trained:
        if len(models) > 1:
            find_checkpoints(path)  # says that no step of theirs is known
        trained, models = models or found, []
    target = Path(out) if out is not None else Path("runs") / name_of(path)
    jobs: list[_Job] = []
    bases: dict[Path, Checkpoint] = {}
    beside = [model.checkpoints[0].path for model in models]
    for series in trained:
        near = beside if series.is_adapter else []
        w_0 = find_base(base, series.checkpoints, path, near)
        run = Run(target if len(trained) == 1 else target / series.name)
        if w_0 not in bases:
            bases[w_0] = open_model(w_0, dequantise=dequantise)
        jobs += _job(run, series.checkpoints, bases[w_0], dequantise, modules, failed)
    used = {_identity(base.path) for base in bases.values()}
    for model in beside:
        if _identity(model) not in used:
            logger.warning("%s has no step and is nobody's base: it is left out.", model)
    return jobs


def _listed(paths: Path | str | Sequence[Path | str]) -> Sequence[Path | str]:
    return [paths] if isinstance(paths, str) or not isinstance(paths, Sequence) else paths


def _identity(path: Path) -> str:
    return str(path) if is_remote(path) else str(path.resolve())


def _job(
    run: Run,
    checkpoints: Sequence[Checkpoint],
    base: Checkpoint,
    dequantise: bool,
    modules: Sequence[str] | None,
    failed: list[CheckpointError],
) -> list[_Job]:
    """Return what is to be done for a training; nothing if none of its checkpoints can be used."""
    if (run.snapshots_path / BASE_FILE).is_file():
        raise ValueError(
            f"{run.path} is a recorded run with a base of its own. Write the rows against "
            "another base to another folder with --out."
        )
    if run.path.is_file():
        raise ValueError(f"A run is a folder, and {run.path} is a file. Choose another --out.")
    bound = []
    for checkpoint in checkpoints:
        try:
            bound.append(settle_quantisation(checkpoint, dequantise).bind(base))
        except CheckpointError as error:
            failed.append(error)
    if not bound:
        return []
    warn_of_another_model(base, bound[0])
    return [_Job(run, bound, base, modules or DEFAULT_MODULES)]


def _recorded_runs(path: Path) -> list[Run]:
    """Return the run that `path` is, or the runs below it, as far as they have snapshots."""
    # Rows are written here: what is recorded elsewhere is read as any checkpoints are.
    if is_remote(path) or not path.is_dir():
        return []
    return [run for run in find_runs(path) if (run.snapshots_path / BASE_FILE).is_file()]
