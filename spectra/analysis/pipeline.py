"""From checkpoints to drift rows: only what is new, in order, and never half a file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch
from tqdm import tqdm

from checkpoints_index import Checkpoint, find_checkpoints, find_snapshots, open_model
from checkpoints_index.snapshots import BASE_FILE, Snapshot
from spectra.analysis.plan import (
    VALUES_ONLY,
    WITH_VECTORS,
    Task,
    plan_tasks,
    refuse_shared_steps,
)
from spectra.analysis.rows import BaseMatrix, Row, unreadable_row
from spectra.store import Run, find_runs, read_runs

logger = logging.getLogger(__name__)

DEFAULT_MODULES = ("q_proj", "v_proj")
# What a matrix can be, NaN or beyond LAPACK, that must not cost the others their rows.
_UNDECOMPOSABLE = (ValueError, torch.linalg.LinAlgError)
# Finished rows wait at most so long in memory before they are on disk.
_WRITE_SECONDS = 5.0


def analyze(
    paths: Path | str | Sequence[Path | str],
    *,
    base: Path | str | None = None,
    modules: Sequence[str] | None = None,
    out: Path | str | None = None,
    values_only: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Compute the drift of every recorded matrix at every step; only what is new is computed.

    Rows are written while they are made. Interrupted or killed, the next call goes on where
    this one stopped.

    Parameters
    ----------
    paths : Path, str or a sequence of them
        Runs, or a folder of runs (their own snapshots and bases are used), or folders with
        checkpoints.
    base : Path or str, optional
        Folder of the base model. Needed for checkpoints outside a run, unless their adapters
        name one that is on this machine.
    modules : sequence of str, optional
        Names or globs; for a run all that it recorded, elsewhere q_proj and v_proj.
    out : Path or str, optional
        The run to write to. Recorded runs keep their own rows by default; checkpoints outside
        a run go to ``runs/<name of the folder>``.
    values_only : bool
        Singular values without vectors: no ΔD, but cheaper.
    workers : int
        Processes; 1 is a plain loop, -1 all cores. Each worker's BLAS gets
        cores // workers threads.
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
        If a checkpoint is broken.
    ValueError
        If base, modules and checkpoints do not fit together.
    RuntimeError
        If another process is analysing the same run.
    """
    given = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    solving = _Solving(values_only, workers, scheduler, progress)
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
            snapshots = find_snapshots(source.snapshots_path)
            w_0: Checkpoint = Snapshot(source.snapshots_path / BASE_FILE, "base")
            target = source if out is None else Run(out)
            if target.path != source.path:
                found = sorted({m.module for m in w_0.matrices})
                _describe(target, snapshots, w_0, modules or found)
            _bring_up_to_date(target, snapshots, w_0, modules, solving)
        return read_runs(recorded if out is None else [Run(out)], "drift")
    checkpoints = [c for p in given for c in find_checkpoints(p)]
    refuse_shared_steps(checkpoints)
    run = Run(out if out is not None else Path("runs") / given[0].resolve().name)
    if (run.snapshots_path / BASE_FILE).is_file():
        raise ValueError(
            f"{run.path} is a recorded run with a base of its own. Write the rows against "
            "another base to another folder with --out."
        )
    modules = modules or DEFAULT_MODULES
    w_0 = open_model(_resolve_base(base, checkpoints))
    _describe(run, checkpoints, w_0, modules)
    _bring_up_to_date(run, checkpoints, w_0, modules, solving)
    return run.read_drift()


@dataclass(frozen=True)
class _Solving:
    """How the work is done: see `analyze`."""

    values_only: bool
    workers: int
    scheduler: str | None
    progress: bool


def _bring_up_to_date(
    run: Run,
    checkpoints: Sequence[Checkpoint],
    base: Checkpoint,
    modules: Sequence[str] | None,
    solving: _Solving,
) -> None:
    mode = VALUES_ONLY if solving.values_only else WITH_VECTORS
    with run.lock("analysis"):
        run.remove_leftovers()
        tasks = plan_tasks(base, checkpoints, modules, run.drift.read(["source"]), mode)
        total = sum(len(task.steps) for task in tasks)
        writer = _Writer(run, {"run": run.name, "method": run.method})
        shown = solving.progress and total > 0
        bar = tqdm(total=total, desc=f"Analysing {run.name}", unit="matrix", disable=not shown)
        try:
            for drift, spectrum in _compute(tasks, solving):
                writer.add(drift, spectrum)
                bar.update()
        finally:
            bar.close()
            writer.flush()
        steps = {0, *(c.step for c in checkpoints)}
        run.drift.compact(steps)
        run.spectrum.compact(steps)


class _Writer:
    """Collects rows and writes them every few seconds, arrays before the rows that need them."""

    def __init__(self, run: Run, keys: dict[str, str]) -> None:
        self._run = run
        self._keys = keys
        self._drift: list[Row] = []
        self._spectrum: list[Row] = []
        self._written = time.monotonic()

    def add(self, drift: Row, spectrum: Row) -> None:
        self._drift.append(self._keys | drift)
        if spectrum:
            self._spectrum.append(self._keys | spectrum)
        if time.monotonic() - self._written > _WRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._run.spectrum.append(self._spectrum)
        self._run.drift.append(self._drift)
        self._spectrum, self._drift = [], []
        self._written = time.monotonic()


def _compute(tasks: list[Task], solving: _Solving) -> Iterator[tuple[Row, Row]]:
    values_only, workers, scheduler = solving.values_only, solving.workers, solving.scheduler
    if scheduler is None and (workers == 1 or len(tasks) < 2):
        for task in tasks:
            yield from _solve(task, values_only)
        return
    workers = min(joblib.effective_n_jobs(workers), len(tasks))
    threads = max(1, (os.cpu_count() or 1) // workers)
    backend: dict[str, Any] = {"backend": "loky", "inner_max_num_threads": threads}
    cluster: AbstractContextManager[Any] = nullcontext()
    if scheduler is not None:
        backend, cluster, workers = {"backend": "dask"}, _connect(scheduler), -1
    with cluster, joblib.parallel_config(**backend):
        parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
        for rows in parallel(joblib.delayed(_solve_all)(t, values_only, threads) for t in tasks):
            yield from rows


def _solve_all(task: Task, values_only: bool, threads: int) -> list[tuple[Row, Row]]:
    torch.set_num_threads(threads)
    return list(_solve(task, values_only))


def _solve(task: Task, values_only: bool) -> Iterator[tuple[Row, Row]]:
    w_0 = task.base.read(task.matrix).dense
    if w_0 is None:
        raise ValueError(f"{task.base.path} is an adapter, not a base model. Give its base.")
    base: BaseMatrix | None = None
    try:
        base = BaseMatrix(w_0, values_only)
    except _UNDECOMPOSABLE as error:
        logger.warning("%s, %s: %s", task.base.path, task.matrix.name, error)
    for stale in task.steps:
        keys = {
            "step": stale.checkpoint.step,
            "layer": stale.matrix.layer,
            "module": stale.matrix.module,
            "source": stale.source,
        }
        drift: Row = unreadable_row(stale.matrix.shape)
        spectrum: Row = {}
        if base is not None:
            weight = stale.checkpoint.read(stale.matrix)
            try:
                drift, spectrum = base.drift(weight)
            except _UNDECOMPOSABLE as error:
                logger.warning("%s, %s: %s", stale.checkpoint.path, stale.matrix.name, error)
        yield drift | keys | {"dtype": stale.matrix.dtype}, spectrum and spectrum | keys


def _connect(scheduler: str) -> AbstractContextManager[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ModuleNotFoundError(
            "A scheduler needs Dask, which is not installed. Install Spectra with its extra "
            '"cluster": pip install ".[cluster]" in a clone.'
        ) from error
    return Client(scheduler)


def _recorded_runs(path: Path) -> list[Run]:
    """Return the run that `path` is, or the runs below it, as far as they have snapshots."""
    if not path.is_dir():
        return []
    return [run for run in find_runs(path) if (run.snapshots_path / BASE_FILE).is_file()]


def _resolve_base(base: Path | str | None, checkpoints: Sequence[Checkpoint]) -> Path:
    named = {c.base for c in checkpoints}
    if base is None and named == {None}:
        raise ValueError("Whole weights do not say what they were trained from; give --base.")
    if base is None and len(named) > 1:
        raise ValueError(f"The checkpoints name several bases: {named}. Choose one with --base.")
    path = Path(str(base if base is not None else named.pop()))
    if path.exists():
        return path
    try:
        from huggingface_hub import snapshot_download

        wanted = ["*.safetensors", "*.json"]
        return Path(snapshot_download(str(path), allow_patterns=wanted))
    except Exception as error:  # the hub's client raises many kinds, and may not be installed
        raise FileNotFoundError(
            f"The base {path} is neither a folder here nor a model that could be fetched from the "
            f"hub ({type(error).__name__}). Give its folder with --base."
        ) from error


def _describe(
    run: Run, checkpoints: Sequence[Checkpoint], base: Checkpoint, modules: Sequence[str]
) -> None:
    methods = sorted({c.method for c in checkpoints})
    described = run.read_settings().get("base", {}).get("name") if run.exists() else None
    if described not in (None, str(base.path)):
        raise ValueError(
            f"{run.path} was analysed against the base {described}, now it is {base.path}. Choose "
            "another --out."
        )
    run.update_settings(
        method="+".join(methods),
        modules=list(modules),
        base={"name": str(base.path), "fingerprint": base.fingerprint},
        checkpoints=[str(c.path) for c in checkpoints],
        state="finished",
    )
