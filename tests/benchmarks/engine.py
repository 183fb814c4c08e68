"""The engine's speed and accuracy beside the reference: the SORSA authors' float32 loop.

The reference decomposes every W_t with ``torch.linalg.svd`` in float32, in the faster of the two
orientations (W_tᵀ, tall), and takes ΔΣ and ΔD from that. Both sides of every ratio run in this
process, alternating, after one untimed call; figures are medians. Ours is timed twice: what the
reference computes too (ΔΣ, ΔD and κ), and the whole drift row with every column. The base's
decomposition is at hand on both sides.

    python -m tests.benchmarks.engine                      # all of it: about 15 minutes, 2 cores
    python -m tests.benchmarks.engine speed checkpoint --model smollm2
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import torch
from threadpoolctl import threadpool_info
from torch import Tensor

from checkpoints_index import Weight, open_model
from spectra import metrics
from spectra.analysis import BaseCache
from spectra.analysis.rows import BaseMatrix, Quantities
from spectra.linalg import (
    Decomposition,
    LowRankUpdate,
    NotConverged,
    decompose,
    follow,
    follow_values,
)
from tests.helpers import gaussian

Factors = tuple[Tensor, Tensor]

# Rank of the update, or None for a dense one; whether vectors are asked for.
SPEED = {
    "4096×4096, rank 16": (4096, 4096, 16, True, 4.0, 8.0),
    "4096×4096, rank 8": (4096, 4096, 8, True, 4.0, 12.0),
    "1024×4096, rank 16": (1024, 4096, 16, True, 2.5, 4.0),
    "1024×4096, dense": (1024, 4096, None, True, 1.4, 2.0),
    "4096×4096, dense": (4096, 4096, None, True, 0.9, 1.3),
    "4096×4096, values only": (4096, 4096, None, False, 4.0, 5.0),
}
"""(rows, columns, rank, vectors, ratio that must be reached, ratio aimed at)."""

DRIFTS = (1e-9, 1e-6, 1e-3, 1e-1)


def main() -> None:
    """Run the parts that are named on the command line; all by default."""
    parts = {
        "speed": speed,
        "checkpoint": checkpoint,
        "accuracy": accuracy,
        "roots": roots,
        "solvers": solvers,
    }
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("parts", nargs="*", help="default: all")
    parser.add_argument("--pairs", type=int, default=3, help="timed pairs a case")
    parser.add_argument("--model", help="folder of SmolLM2-135M; random matrices by default")
    parser.add_argument("--only", default="", help="speed: cases whose name has this in it")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {platform.machine()}, {_kernels()}")
    for name in options.parts or parts:
        if name not in parts:
            parser.error(f"no part {name!r}; there are {', '.join(parts)}")
        print(f"\n## {name}\n")
        parts[name](options)


def speed(options: argparse.Namespace) -> None:
    """Time a matrix and step of each kind."""
    print("| case | reference s | ours s | ratio | least | aim | whole row s | ratio | solver |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    bases: dict[tuple[int, int], tuple[Tensor, Decomposition]] = {}
    cases = {name: case for name, case in SPEED.items() if options.only in name}
    for name, (m, n, rank, vectors, least, aim) in cases.items():
        if (m, n) not in bases:
            w_0 = (gaussian(m, n) / n**0.5).float()
            bases = {(m, n): (w_0, decompose(w_0))}
        w_0, base = bases[m, n]
        update = scaled_update(base, rank or 16, 0.05)
        w_t = (w_0.double() + update[0] @ update[1]).float()
        weight = Weight(update=update) if rank else Weight(dense=w_t)
        row = BaseMatrix(w_0, Quantities(vectors), _Known(base))
        row.drift(Weight(dense=w_0))
        reference = authors_reference(w_0)

        ours = partial(core if vectors else core_values, base, weight, w_0)
        whole = partial(whole_row, row, weight)
        times = alternate([partial(reference, w_t), ours, whole], options.pairs)
        solver = whole()["solver"]
        print(
            f"| {name} | {times[0]:.3f} | {times[1]:.3f} | **{times[0] / times[1]:.2f}** | {least} "
            f"| {aim} | {times[2]:.3f} | {times[0] / times[2]:.2f} | {solver} |",
            flush=True,
        )


def checkpoint(options: argparse.Namespace) -> None:
    """Time all q_proj and v_proj of SmolLM2-135M after a dense update, with two workers."""
    pairs = [
        (b, b + 1e-3 * b.std() * gaussian(b.shape[0], b.shape[1], i).float())
        for i, b in enumerate(smollm2(options.model))
    ]
    bases = [decompose(w_0) for w_0, _ in pairs]
    references = [authors_reference(w_0) for w_0, _ in pairs]
    rows = [
        BaseMatrix(w_0, cache=_Known(base)) for (w_0, _), base in zip(pairs, bases, strict=True)
    ]
    steps = [w_t for _, w_t in pairs]
    halves = [slice(0, None, 2), slice(1, None, 2)]

    def authors(part: slice, threads: int) -> None:
        torch.set_num_threads(threads)
        for run, w_t in zip(references[part], steps[part], strict=True):
            run(w_t)

    def ours(part: slice, threads: int) -> None:
        torch.set_num_threads(threads)
        for base, (w_0, w_t) in zip(bases[part], pairs[part], strict=True):
            core(base, Weight(dense=w_t), w_0)

    def whole(part: slice, threads: int) -> None:
        torch.set_num_threads(threads)
        for row, w_t in zip(rows[part], steps[part], strict=True):
            whole_row(row, Weight(dense=w_t))

    # Each worker process keeps its half of the matrices, as the analysis' workers do.
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):

        def two(work: Callable[[slice, int], None]) -> Callable[[], object]:
            return lambda: joblib.Parallel(n_jobs=2)(
                joblib.delayed(_timed)(work, h) for h in halves
            )

        cases: dict[str, Callable[[], object]] = {
            "reference, one process, two threads": lambda: authors(slice(None), 2),
            "reference, two workers": two(authors),
            "ours (ΔΣ, ΔD, κ), one process, two threads": lambda: ours(slice(None), 2),
            "ours (ΔΣ, ΔD, κ), two workers": two(ours),
            "whole rows, two workers": two(whole),
        }
        inside: dict[str, list[float]] = {name: [] for name in cases}
        for turn in range(options.pairs + 1):
            for name, run in cases.items():
                start = time.perf_counter()
                result = run()
                seconds = time.perf_counter() - start
                # Of the workers, their own time: sending matrices to and fro is not the engine's.
                if isinstance(result, list):
                    seconds = max(result)
                if turn:
                    inside[name].append(seconds)
    print("| 60 matrices | s | reference / this |")
    print("| --- | --- | --- |")
    first = statistics.median(inside["reference, one process, two threads"])
    for name, times in inside.items():
        median = statistics.median(times)
        print(f"| {name} | {median:.2f} | {first / median:.2f} |")


def accuracy(options: argparse.Namespace) -> None:
    """Compare ours and the reference with a float64 SVD."""
    print(
        "| matrix | ΔΣ | solver | overlap | ΔD | ΔΣ/σ_max | κ (rel.) "
        "| float32: ΔΣ (rel.) | ΔD (rel.) |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    real = smollm2(options.model)
    matrices = {
        "576×576 Gaussian": gaussian(576, 576) / 24,
        "192×576 Gaussian": gaussian(192, 576) / 24,
        "q_proj 0": real[0].double(),
        "v_proj 0": real[1].double(),
    }
    for name, w_0 in matrices.items():
        base = decompose(w_0)
        truth_0 = torch.linalg.svd(w_0, full_matrices=False)
        run = authors_reference(w_0.float())
        for drift in DRIFTS:
            update = drifting_update(w_0, drift)
            w_t = w_0 + update[0] @ update[1]
            u, s, vh = torch.linalg.svd(w_t, full_matrices=False)
            overlaps = (u * truth_0[0]).sum(0).abs(), (vh * truth_0[2]).sum(1).abs()
            d_sigma = metrics.singular_value_deviation(s, truth_0[1])
            d_d = metrics.singular_vector_deviation(*overlaps)
            authors = run(w_t.float())
            for solver in ("low-rank", "gram"):
                found = follow(base, partial(_identity, w_t), update, solver)
                worst = max(
                    (found.overlap_u - overlaps[0]).abs().max().item(),
                    (found.overlap_v - overlaps[1]).abs().max().item(),
                )
                turn = metrics.singular_vector_deviation(found.overlap_u, found.overlap_v) - d_d
                value = metrics.singular_value_deviation(found.s, base.s) - d_sigma
                kappa = metrics.condition_number(found.s) / metrics.condition_number(s) - 1
                theirs = [
                    f"{abs(a / b - 1):.1%}" if b > 1e-15 else "–"
                    for a, b in zip(authors, (d_sigma, d_d), strict=True)
                ]
                print(
                    f"| {name} | {drift:.0e} | {found.solver} | {worst:.0e} | {abs(turn):.0e} "
                    f"| {abs(value) / s[0]:.0e} | {abs(kappa):.0e} | {theirs[0]} | {theirs[1]} |",
                    flush=True,
                )


def roots(options: argparse.Namespace) -> None:
    """Compare root finding on the secular equation with eigvalsh of the updated Gram matrix."""
    print("| k | rank | eigvalsh s | roots s | ratio | roots and vectors s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for k, rank in ((1024, 8), (4096, 1), (4096, 8), (4096, 16), (4096, 32), (8192, 8), (8192, 16)):
        # A diagonal base costs the solvers what any other does, and no decomposition here.
        s = gaussian(1, 2 * k).abs().sort(descending=True).values[0, :k] / k**0.5
        eye = torch.eye(k, dtype=torch.float64)
        base = Decomposition(eye, s, eye, "svd", 0.0)
        b, a = scaled_update(base, rank, 0.05)
        w_t = torch.diag(s) + b @ a
        gram = w_t @ w_t.T
        times = alternate(
            [
                partial(torch.linalg.eigvalsh, gram),
                partial(_roots, base, b, a),
                partial(_forced, base, (b, a)),
            ],
            options.pairs,
        )
        print(
            f"| {k} | {rank} | {times[0]:.2f} | {times[1]:.2f} | {times[0] / times[1]:.1f} "
            f"| {times[2]:.2f} |",
            flush=True,
        )


def solvers(options: argparse.Namespace) -> None:
    """Time the solvers over sizes and ranks: what `spectra.linalg.choice` is fitted to."""
    ranks = (1, 4, 8, 16, 32, 64)
    print("| matrix | dense s | values s | " + " | ".join(f"rank {r}" for r in ranks) + " |")
    print("| --- | --- | --- |" + " --- |" * len(ranks))
    for m, n in ((192, 576), (576, 576), (1024, 1024), (1024, 4096), (2048, 2048), (4096, 4096)):
        w_0 = gaussian(m, n) / n**0.5
        base = decompose(w_0)
        w_t = w_0 + 1e-3 * gaussian(m, n, 1) / n**0.5
        runs: list[Callable[[], object]] = [
            partial(follow, base, partial(_identity, w_t)),
            partial(follow_values, None, partial(_identity, w_t)),
        ]
        for rank in ranks:
            update = scaled_update(base, rank, 0.05)
            runs.append(partial(_forced, base, update))
        times = alternate(runs, options.pairs)
        print(f"| {m}×{n} | " + " | ".join(f"{t:.3f}" for t in times) + " |", flush=True)


def authors_reference(w_0: Tensor) -> Callable[[Tensor], tuple[float, float]]:
    """ΔΣ and ΔD as the authors compute them, in float32, with the base decomposed beforehand."""
    u_0, s_0, vh_0 = torch.linalg.svd(w_0.T, full_matrices=False)

    def run(w_t: Tensor) -> tuple[float, float]:
        u, s, vh = torch.linalg.svd(w_t.T, full_matrices=False)
        turned = ((u * u_0).sum(0).abs() + (vh * vh_0).sum(1).abs()).mean() / 2
        return (s - s_0).abs().mean().item(), 1 - turned.item()

    return run


def core(base: Decomposition, weight: Weight, w_0: Tensor) -> tuple[float, float, float]:
    """ΔΣ, ΔD and κ by our engine."""
    found = follow(base, lambda: weight.on(w_0), weight.update)
    return (
        metrics.singular_value_deviation(found.s, base.s),
        metrics.singular_vector_deviation(found.overlap_u, found.overlap_v),
        metrics.condition_number(found.s),
    )


def core_values(base: Decomposition, weight: Weight, w_0: Tensor) -> tuple[float, float]:
    """ΔΣ and κ by our engine, without vectors."""
    found = follow_values(None, lambda: weight.on(w_0))
    return metrics.singular_value_deviation(found.s, base.s), metrics.condition_number(found.s)


def whole_row(row: BaseMatrix, weight: Weight) -> dict[str, Any]:
    """Every column of the drift row."""
    row._last = None  # the bytes of the step before would be free
    return row.drift(weight)[0]


def scaled_update(base: Decomposition, rank: int, size: float) -> Factors:
    """Random factors whose product has `size` times the base's spectral norm."""
    m, n = base.u.shape[0], base.vh.shape[1]
    b, a = gaussian(m, rank, 1) / m**0.5, gaussian(rank, n, 2) / n**0.5
    norm = torch.linalg.matrix_norm(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T, ord=2)
    return b * (size * base.s[0] / norm), a


def drifting_update(w_0: Tensor, drift: float, rank: int = 4) -> Factors:
    """Random factors scaled until ΔΣ is about `drift`."""
    s_0 = torch.linalg.svdvals(w_0)
    b, a = gaussian(w_0.shape[0], rank, 1), gaussian(rank, w_0.shape[1], 2)
    for _ in range(8):
        s = torch.linalg.svdvals(w_0 + b @ a)
        b = b * (drift / metrics.singular_value_deviation(s, s_0)) ** 0.8
    return b, a


def alternate(runs: Sequence[Callable[[], object]], pairs: int) -> list[float]:
    """Median time of each, run in turns after one untimed round."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(pairs + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if turn:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def smollm2(folder: str | None) -> list[Tensor]:
    """q_proj and v_proj of all 30 layers in turn; random matrices of these shapes by default."""
    if folder is None:
        return [gaussian(m, 576, i).float() / 24 for i in range(30) for m in (576, 192)]
    model = open_model(Path(folder))
    wanted = [m for m in model.matrices if m.module in ("q_proj", "v_proj")]
    wanted.sort(key=lambda m: (m.layer, m.module))
    return [dense for m in wanted if (dense := model.read(m).dense) is not None]


def _kernels() -> str:
    """Which kernels SciPy's BLAS runs; the environment may force slower ones than there are."""
    pools = threadpool_info()
    found = {f"{p['internal_api']} {p.get('architecture', '')}".strip() for p in pools}
    forced = os.environ.get("OPENBLAS_CORETYPE")
    return ", ".join(sorted(found)) + (f" (forced: OPENBLAS_CORETYPE={forced})" if forced else "")


class _Known(BaseCache):
    """A cache that holds one decomposition, and no noise."""

    def __init__(self, base: Decomposition) -> None:
        super().__init__(max_bytes=0)
        self._base = base

    def decomposition(self, w_0: Tensor, compute: object) -> Decomposition:
        return self._base

    def values(self, w_0: Tensor, compute: object) -> Tensor:
        return self._base.s

    def noise(self, *_: object, **__: object) -> tuple[float, float | None]:
        return 0.0, 0.0


def _timed(work: Callable[[slice, int], None], part: slice) -> float:
    start = time.perf_counter()
    work(part, 1)
    return time.perf_counter() - start


def _identity(w_t: Tensor) -> Tensor:
    return w_t


def _roots(base: Decomposition, b: Tensor, a: Tensor) -> object:
    return LowRankUpdate(base, b, a).values()


def _forced(base: Decomposition, update: Factors) -> object:
    try:
        return LowRankUpdate(base, *update).turned()
    except NotConverged:
        return None


if __name__ == "__main__":
    os.environ.setdefault("SPECTRA_CACHE_GIB", "0")
    main()
