"""Who computes which matrices, in what order, and what happens when a worker is lost."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits

from checkpoints_index import CheckpointError, Weight, add_bytes_read, counting_bytes
from spectra.analysis.base_cache import BaseCache
from spectra.analysis.cost import available_cores, step_cost, worker_bytes
from spectra.analysis.parcels import Packer, Parcel
from spectra.analysis.plan import StaleStep, Task
from spectra.analysis.rows import BaseMatrix, Quantities, Row, unreadable_row
from spectra.linalg import decompose

logger = logging.getLogger(__name__)

Rows = tuple[Row, Row]

# What a matrix can be, NaN or beyond LAPACK, that must not cost the others their rows.
_UNDECOMPOSABLE = (ValueError, torch.linalg.LinAlgError)
# A worker gives its rows back after about so long: that much is lost when it is.
_CHUNK_SECONDS = 10.0
# Below this, starting processes (2 to 4 s each) costs more than they save.
_WORTH_WORKERS = 20.0
# joblib hands out so many jobs a worker at a time.
_DISPATCHED = 2
# A chunk that was lost with its worker is tried so often again, with nothing beside it.
_ATTEMPTS = 2
# Of the memory that is free, workers get this share.
_MEMORY_SHARE = 0.8
# How much better a division of the cores must be in a sample before it is taken.
_CLEARLY = 1.05
_SAMPLE = 512


@dataclasses.dataclass(frozen=True)
class Workers:
    """Processes, and BLAS threads of each."""

    processes: int
    threads: int


@dataclasses.dataclass(frozen=True)
class _Solved:
    """What a worker gives back of a chunk: its rows, what failed, and what it read of the net."""

    number: int
    rows: list[Rows]
    failed: list[CheckpointError]
    process: int
    read: Mapping[str, int]

    def counted_rows(self) -> list[Rows]:
        if self.process != os.getpid():
            add_bytes_read(self.read)
        return self.rows


def compute(
    tasks: Sequence[Task],
    quantities: Quantities,
    cache: BaseCache,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Iterator[Rows]:
    """Yield a row of drift and one of spectrum for every stale step, in any order.

    A matrix that cannot be read costs its own rows and no others.

    Parameters
    ----------
    tasks : sequence of Task
        What to compute.
    quantities : Quantities
        What of it.
    cache : BaseCache
        Decompositions of bases.
    workers : int, optional
        Processes as joblib counts them; by default what a short measurement says.
    scheduler : str, optional
        Address of a Dask scheduler that gets the work instead.

    Raises
    ------
    CheckpointError
        At the end, if matrices could not be read.
    RuntimeError
        At the end, if some matrices take down every worker that they are given to.
    """
    failed: list[CheckpointError] = []
    yield from _computed(tasks, quantities, cache, workers, scheduler, failed)
    if failed:
        raise CheckpointError(
            f"{len(failed)} matrices could not be read; their rows are missing, all others are "
            f"there. {'; '.join(dict.fromkeys(map(str, failed)))}"
        )


def _computed(
    tasks: Sequence[Task],
    quantities: Quantities,
    cache: BaseCache,
    workers: int | None,
    scheduler: str | None,
    failed: list[CheckpointError],
) -> Iterator[Rows]:
    if scheduler is not None:
        with connect(scheduler), joblib.parallel_config(backend="dask"):
            yield from _in_parallel(tasks, quantities, cache, Workers(-1, 1), failed)
        return
    chosen = choose_workers(tasks, quantities, workers)
    if chosen.processes == 1:
        for task in tasks:
            yield from _solve(task, quantities, cache, failed)
        return
    with joblib.parallel_config(backend="loky", inner_max_num_threads=chosen.threads):
        yield from _in_parallel(tasks, quantities, cache, chosen, failed)


def choose_workers(
    tasks: Sequence[Task], quantities: Quantities, workers: int | None = None
) -> Workers:
    """Divide the cores between processes and their BLAS threads.

    With `workers` given, each gets cores // workers threads. Without, the division with the
    highest throughput in a sample of one decomposition, as far as memory allows; one process where
    the work is over too soon for others to pay.
    """
    cores = available_cores()
    most = max(1, sum(len(_chunks(task, quantities)) for task in tasks))
    if workers is not None:
        processes = min(joblib.effective_n_jobs(workers), most)
        return Workers(processes, max(1, cores // processes))
    seconds = sum(step_cost(s, quantities)[1] for task in tasks for s in task.steps)
    fitting = int(_MEMORY_SHARE * _free_memory() // worker_bytes(tasks))
    options = [n for n in _divisors(cores) if n <= min(most, fitting)]
    if seconds < _WORTH_WORKERS or len(options) < 2:
        return Workers(1, cores)
    size = min(_SAMPLE, max(min(task.matrix.shape) for task in tasks))
    throughput = {n: n / _sample_seconds(size, cores // n) for n in options}
    best = max(throughput, key=throughput.__getitem__)
    if throughput[best] < _CLEARLY * throughput[1]:
        best = 1
    logger.info("%d processes with %d threads each.", best, cores // best)
    return Workers(best, cores // best)


def _in_parallel(
    tasks: Sequence[Task],
    quantities: Quantities,
    cache: BaseCache,
    workers: Workers,
    failed: list[CheckpointError],
) -> Iterator[Rows]:
    # Every matrix once before any matrix twice: a base is then decomposed by one worker while
    # the others are at other matrices, and in the cache when they come to it.
    chunks = [list(enumerate(_chunks(task, quantities))) for task in tasks]
    rounds = sorted((n, i) for i, parts in enumerate(chunks) for n, _ in parts)
    left = dict(enumerate(chunks[i][n][1] for n, i in rounds))
    packer = Packer()
    hopeless = 0
    while left:
        jobs = _jobs(left, packer, quantities, cache, workers.threads)
        parallel = joblib.Parallel(n_jobs=workers.processes, return_as="generator_unordered")
        try:
            for solved in parallel(jobs):
                del left[solved.number]
                failed += solved.failed
                yield from solved.counted_rows()
        except TerminatedWorkerError:
            logger.warning("A worker was lost; its matrices are computed again.")
            # Whatever it was at is among these: one by one, only the culprit can be lost again.
            for number in list(left)[: _DISPATCHED * workers.processes]:
                chunk = {number: left.pop(number)}
                found = _alone(chunk, packer, quantities, cache, workers.threads)
                if found is None:
                    hopeless += 1
                    continue
                failed += found.failed
                yield from found.counted_rows()
    if hopeless:
        for error in failed:
            logger.warning("%s", error)
        raise RuntimeError(
            f"{hopeless} groups of matrices took down every worker, most likely for want of "
            "memory; their rows are missing, all others are there. Run the same command with "
            "--workers 1."
        )


def _jobs(
    chunks: Mapping[int, Task],
    packer: Packer,
    quantities: Quantities,
    cache: BaseCache,
    threads: int,
) -> Iterator[Any]:
    for number, task in list(chunks.items()):
        parcel = packer.parcel(task)
        yield joblib.delayed(_solve_chunk)(number, parcel, quantities, cache, threads)


def _alone(
    chunk: Mapping[int, Task],
    packer: Packer,
    quantities: Quantities,
    cache: BaseCache,
    threads: int,
) -> _Solved | None:
    """One chunk, computed while nothing else is; None if that takes workers down too."""
    for _ in range(_ATTEMPTS):
        try:
            # With one job joblib would stay in this process.
            (found,) = joblib.Parallel(n_jobs=2)(_jobs(chunk, packer, quantities, cache, threads))
            return found
        except TerminatedWorkerError:
            continue
    return None


def _chunks(task: Task, quantities: Quantities) -> list[Task]:
    """Split a task into parts of about `_CHUNK_SECONDS`, at least a step each."""
    parts: list[list[StaleStep]] = []
    seconds = _CHUNK_SECONDS
    for stale in task.steps:
        if seconds >= _CHUNK_SECONDS:
            parts.append([])
            seconds = 0.0
        parts[-1].append(stale)
        seconds += step_cost(stale, quantities)[1]
    return [dataclasses.replace(task, steps=tuple(part)) for part in parts]


def _solve_chunk(
    number: int, parcel: Parcel, quantities: Quantities, cache: BaseCache, threads: int
) -> _Solved:
    failed: list[CheckpointError] = []
    with _threads(threads), counting_bytes() as read:
        rows = list(_solve(parcel.opened(), quantities, cache, failed))
    return _Solved(number, rows, failed, os.getpid(), read)


def _solve(
    task: Task, quantities: Quantities, cache: BaseCache, failed: list[CheckpointError]
) -> Iterator[Rows]:
    try:
        w_0 = task.base.read(task.matrix).dense
    except CheckpointError as error:
        failed.append(error)
        return
    if w_0 is None:
        raise ValueError(f"{task.base.path} is an adapter, not a base model. Give its base.")
    base = BaseMatrix(w_0, quantities, cache, steps=len(task.steps))
    for stale in task.steps:
        keys = {
            "step": stale.checkpoint.step,
            "layer": stale.matrix.layer,
            "module": stale.matrix.module,
            "source": stale.source,
        }
        spectrum: Row = {}
        try:
            # The base's own step is not read a second time.
            weight = Weight(dense=w_0) if stale.is_base else stale.checkpoint.read(stale.matrix)
        except CheckpointError as error:
            failed.append(error)
            continue
        try:
            drift, spectrum = base.drift(weight, stale.matrix.dtype)
        except _UNDECOMPOSABLE as error:
            logger.warning("%s, %s: %s", stale.checkpoint.path, stale.matrix.name, error)
            drift = unreadable_row(stale.matrix.shape)
        yield drift | keys | {"dtype": stale.matrix.dtype}, spectrum and spectrum | keys


def connect(scheduler: str) -> AbstractContextManager[Any]:
    """Return a client of a Dask scheduler, to be closed.

    Raises
    ------
    ModuleNotFoundError
        If Dask is not installed.
    OSError
        If nobody answers at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ModuleNotFoundError(
            "A scheduler needs Dask, which is not installed. Install Spectra with its extra "
            '"cluster": pip install ".[cluster]" in a clone.'
        ) from error
    return Client(scheduler)


def _divisors(cores: int) -> list[int]:
    return [n for n in range(1, cores + 1) if cores % n == 0]


def _sample_seconds(size: int, threads: int) -> float:
    """Time of one decomposition with so many threads: the better of two, warmed up."""
    sample = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    times = []
    with _threads(threads):
        for _ in range(3):
            start = time.perf_counter()
            decompose(sample)
            times.append(time.perf_counter() - start)
    return min(times[1:])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Limit torch and every BLAS in this process to so many threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def _free_memory() -> int:
    """Bytes that may be used without swapping; practically infinite where the system won't say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return 2**62
