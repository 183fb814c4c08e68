"""Which solver a matrix gets, and what it costs: the fastest exact one, by measurement."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from spectra.linalg.decomposition import Decomposition, NotConverged, Spectrum, Turned
from spectra.linalg.dense import follow_dense, singular_values
from spectra.linalg.low_rank import LowRankUpdate

logger = logging.getLogger(__name__)

SOLVERS = ("auto", "low-rank", "gram", "svd")
"""What `follow` takes: a choice by cost, or one solver by name."""

SOLVER_VERSION = "4"
"""Changes whenever a decomposition, or the noise of a rounding, may come out differently."""

Factors = tuple[Tensor, Tensor]


def dense_seconds(k: int, size: int, vectors: bool = True) -> float:
    """Time of the dense solver for a k × `size` matrix, on the two cores it was measured on.

    Fitted to medians of tests/benchmarks/engine.py between 192×576 and 4096×4096; within 30%.
    """
    if vectors:
        return 2e-3 + 1.6e-11 * k**2 * size + 7.0e-11 * k**3 + 9e-9 * k * size
    return 1e-3 + 5.3e-12 * k**2 * size + 2.8e-11 * k**3 + 3.5e-9 * k * size


def low_rank_seconds(k: int, size: int, rank: int, vectors: bool = True) -> float:
    """Time of the rank-structured solver, as `dense_seconds`."""
    pairs = rank * (2 * rank + 1)
    evaluation = k * (6e-7 * rank + 2.5e-8 * rank**2 + 1.5e-9 * rank**3)
    far = 4e-11 * k**2 * pairs**0.5 * max(pairs, 200) ** 0.5
    return 8e-3 + 4 * evaluation + far + 2e-9 * k * size + (1.1e-8 * k**2 if vectors else 0.0)


def prefers_low_rank(shape: tuple[int, int], rank: int, vectors: bool = True) -> bool:
    """Whether the rank-structured solver is the faster one.

    Parameters
    ----------
    shape : (int, int)
        Of the matrix.
    rank : int
        Of the update: r of a LoRA, 2r of a SORSA adapter.
    vectors : bool
        Whether singular vectors are asked for.
    """
    k, size = min(shape), max(shape)
    if 2 * rank >= k:
        return False
    return low_rank_seconds(k, size, rank, vectors) < dense_seconds(k, size, vectors)


def follow(
    base: Decomposition,
    w_t: Callable[[], Tensor],
    update: Factors | None = None,
    solver: str = "auto",
) -> Turned:
    """Singular values of W_t, and its singular vectors as seen from those of its base.

    Parameters
    ----------
    base : Decomposition
        Of W_0, of shape (m, n).
    w_t : callable
        Returns W_t, shape (m, n); called only where a dense solver is needed.
    update : pair of Tensor of shape (m, r) and (r, n), optional
        B and A with W_t = W_0 + B A, where the update is known as factors.
    solver : str
        One of `SOLVERS`. ``"auto"`` takes the fastest; where its certificate fails, the next one,
        and the result says which. Any other name leaves out the solvers before it.

    Raises
    ------
    ValueError
        If the solver is unknown, or W_t is not finite or has another shape.
    torch.linalg.LinAlgError
        If no algorithm converges.
    """
    _require_known(solver)
    if _takes_low_rank(base, update, solver, vectors=True):
        assert update is not None
        try:
            return LowRankUpdate(base, *update).turned()
        except (NotConverged, torch.linalg.LinAlgError) as error:
            logger.debug("A dense solver instead of the rank-structured one: %s", error)
    return follow_dense(base, _fitting(w_t(), base), "svd" if solver == "svd" else "auto")


def follow_values(
    base: Decomposition | None,
    w_t: Callable[[], Tensor],
    update: Factors | None = None,
    solver: str = "auto",
) -> Spectrum:
    """Singular values of W_t alone.

    Parameters
    ----------
    base : Decomposition, optional
        Of W_0, where it is at hand; without it only the dense solvers can run.
    w_t, update, solver
        As in `follow`.

    Raises
    ------
    ValueError, torch.linalg.LinAlgError
        As `follow`.
    """
    _require_known(solver)
    if base is not None and _takes_low_rank(base, update, solver, vectors=False):
        assert update is not None
        try:
            return LowRankUpdate(base, *update).values()
        except (NotConverged, torch.linalg.LinAlgError) as error:
            logger.debug("A dense solver instead of the rank-structured one: %s", error)
    dense = w_t() if base is None else _fitting(w_t(), base)
    return singular_values(dense, "svd" if solver == "svd" else "auto")


def _fitting(w_t: Tensor, base: Decomposition) -> Tensor:
    shape = (base.u.shape[0], base.vh.shape[1])
    if tuple(w_t.shape) != shape:
        raise ValueError(f"W_t must have its base's shape {shape}, got {tuple(w_t.shape)}.")
    return w_t


def _require_known(solver: str) -> None:
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}.")


def _takes_low_rank(
    base: Decomposition, update: Factors | None, solver: str, vectors: bool
) -> bool:
    if update is None or solver in ("gram", "svd"):
        return False
    b, a = update
    if not (torch.isfinite(b).all() and torch.isfinite(a).all()):
        return False  # the dense solver says what is wrong
    shape = base.u.shape[0], base.vh.shape[1]
    return solver == "low-rank" or prefers_low_rank(shape, b.shape[1], vectors)
