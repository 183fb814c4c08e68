"""What an analysis will cost: decompositions, time and memory, before anything is computed."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spectra.analysis.base_cache import BaseCache
from spectra.analysis.plan import StaleStep, Task
from spectra.analysis.rows import Quantities
from spectra.linalg import (
    PRECISIONS,
    decompose,
    dense_seconds,
    low_rank_seconds,
    prefers_low_rank,
)

# Resident memory of a process that has loaded torch, SciPy and pandas.
_BARE_PROCESS = 450 * 2**20
# Matrices of 8-byte numbers at the peak of the dense solver: W_t, its product with the vectors,
# the base's U and V, and, square in the short side, Gram matrix, vectors and LAPACK's work space.
_LONG_MATRICES, _SQUARE_MATRICES = 5, 4
# Size of the sample by which this machine is compared with the one the cost rule was fitted on.
_SAMPLE = 384


@dataclass(frozen=True)
class Work:
    """Decompositions of one kind.

    Attributes
    ----------
    what : str
        ``"base"``, ``"noise floor"`` or ``"step"``.
    solver : str
        ``"low-rank"`` or ``"dense"``: the one that is tried first.
    shape : tuple of int
        Of the matrices.
    count : int
        How many.
    seconds : float
        Of all of them, one after the other on all cores.
    """

    what: str
    solver: str
    shape: tuple[int, int]
    count: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What an analysis will do and cost.

    Attributes
    ----------
    work : tuple of Work
        The decompositions, by kind.
    free : int
        Steps of matrices that cost nothing, as they are the base.
    seconds : float
        Expected wall time, with all cores at work. Matrices that did not change, and solvers that
        fail their certificate, make it less and more.
    worker_bytes : int
        Expected peak memory of one worker.
    """

    work: tuple[Work, ...]
    free: int
    seconds: float
    worker_bytes: int

    def __str__(self) -> str:
        """Return a table, a line a kind, and the sums."""
        lines = [
            f"{w.count:>7} × {w.shape[0]}×{w.shape[1]}  {w.what:<11}  {w.solver:<8}  "
            f"{_duration(w.seconds):>8}"
            for w in self.work
        ]
        if self.free:
            lines.append(f"{self.free:>7} steps of matrices are the base itself")
        total = sum(w.count for w in self.work)
        memory = f"{self.worker_bytes / 2**30:.1f} GiB a worker"
        lines.append(f"{total} decompositions, about {_duration(self.seconds)}, {memory}")
        return "\n".join(lines)


def estimate_cost(tasks: Sequence[Task], quantities: Quantities, cache: BaseCache) -> Estimate:
    """Estimate what `tasks` cost; reads the bases once to see which are in the cache."""
    counts: Counter[tuple[str, str, tuple[int, int]]] = Counter()
    seconds: defaultdict[tuple[str, str, tuple[int, int]], float] = defaultdict(float)
    free = 0

    def add(what: str, solver: str, shape: tuple[int, int], cost: float) -> None:
        counts[what, solver, shape] += 1
        seconds[what, solver, shape] += cost

    for task in tasks:
        shape = task.matrix.shape
        w_0 = task.base.read(task.matrix).dense
        if w_0 is not None and not cache.holds(w_0, vectors=quantities.vectors):
            add("base", "dense", shape, _dense(shape, quantities))
        precisions = {
            quantities.precision or stale.matrix.dtype
            for stale in task.steps
            if stale.matrix.rank is None
        }
        for precision in precisions & set(PRECISIONS) - {"float64"}:
            if w_0 is not None and not cache.holds_noise(w_0, precision, quantities.vectors):
                add("noise floor", "dense", shape, _dense(shape, quantities))
        for stale in task.steps:
            if stale.is_base:
                free += 1
            else:
                solver, cost = step_cost(stale, quantities)
                add("step", solver, shape, cost)
    speed = _relative_speed() if counts else 1.0
    work = tuple(Work(*kind, counts[kind], speed * seconds[kind]) for kind in counts)
    return Estimate(work, free, sum(w.seconds for w in work), worker_bytes(tasks))


def step_cost(stale: StaleStep, quantities: Quantities) -> tuple[str, float]:
    """Return the solver that is tried first, and its time in seconds on the reference machine."""
    shape, rank = stale.matrix.shape, stale.matrix.rank
    if stale.is_base:
        return "unchanged", 0.0
    forced = quantities.solver == "low-rank"
    allowed = quantities.solver in ("auto", "low-rank") and rank is not None
    if allowed and rank and (forced or prefers_low_rank(shape, rank, quantities.vectors)):
        return "low-rank", low_rank_seconds(min(shape), max(shape), rank, quantities.vectors)
    return "dense", _dense(shape, quantities)


def worker_bytes(tasks: Sequence[Task]) -> int:
    """Peak memory of a process that works on the largest of `tasks`."""
    largest = 0
    for task in tasks:
        k, size = min(task.matrix.shape), max(task.matrix.shape)
        largest = max(largest, 8 * k * (_LONG_MATRICES * size + _SQUARE_MATRICES * k))
    return _BARE_PROCESS + largest


def _dense(shape: tuple[int, int], quantities: Quantities) -> float:
    return dense_seconds(min(shape), max(shape), quantities.vectors)


def _relative_speed() -> float:
    """How many times longer this machine takes than the one the cost rule was fitted on."""
    sample = torch.randn(_SAMPLE, _SAMPLE, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        decompose(sample)
        times.append(time.perf_counter() - start)
    return min(times) / dense_seconds(_SAMPLE, _SAMPLE)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
