"""Quantities of the leading singular vectors as a subspace."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_angles(overlaps: Tensor) -> Tensor:
    """Principal angles between two subspaces of equal dimension, from their bases' overlaps.

    The cosines are the singular values of XᵀY for orthonormal bases X and Y; that r×r matrix,
    not a weight matrix, is what is decomposed here.

    Parameters
    ----------
    overlaps : Tensor of shape (r, r), float64
        XᵀY, signed; for the leading r-dimensional subspaces ``(u_0.T @ u_t)[:r, :r]``.

    Returns
    -------
    Tensor of shape (r,), float64
        In radians, smallest first, in [0, π/2].

    Raises
    ------
    ValueError
        If `overlaps` is not square, is empty, or has NaN or infinite entries.

    Notes
    -----
    A cosine in float64 resolves an angle θ to about 1e-16/θ, and none below about 1e-8: there
    1 − θ²/2 rounds to 1. Equal subspaces give 0 or some 1e-8. Smaller angles need sines.

    References
    ----------
    Björck and Golub, Numerical methods for computing angles between linear subspaces,
    Mathematics of Computation 27, 1973.

    Examples
    --------
    >>> principal_angles(torch.tensor([[1.0, 0.0], [0.0, 0.5]])).rad2deg().round()
    tensor([ 0., 60.], dtype=torch.float64)
    """
    return torch.arccos(_cosines(overlaps))


def subspace_deviation(leading_u: Tensor, leading_v: Tensor, r: int | None = None) -> float:
    """How far the leading r-dimensional singular subspaces have turned, without a unit.

    The mean of 1 − cos θ over the r principal angles θ between span(u_0,1 … u_0,r) and
    span(u_t,1 … u_t,r), averaged with that of the right vectors. Reads like ΔD, but which
    basis of the subspace the decomposition returned does not matter: crossings and clusters
    within the leading r count as no drift.

    Parameters
    ----------
    leading_u, leading_v : Tensor of shape (k, p), float64
        U_0ᵀU_t and V_0ᵀV_t, signed, of the p leading vectors of W_t.
    r : int, optional
        Dimension of the subspaces, at most p; p by default.

    Returns
    -------
    float
        In [0, 1]; exactly 0.0 where the upper r rows are the identity, and of the order of
        rounding errors (1e-16) for other bases of the same subspaces.

    Raises
    ------
    ValueError
        If the two shapes differ or are not (k, p) with p ≤ k, `r` is not in 1…p, or a value is
        NaN or infinite.

    Notes
    -----
    Not to be trusted where σ_r and σ_{r+1} nearly coincide: the subspace itself is then
    ill-determined and may exchange directions with the rest at will. Unrelated subspaces of
    dimension r ≪ d come to about 1 − 0.85 √(r/d), not 1.

    References
    ----------
    Björck and Golub, Mathematics of Computation 27, 1973, for the angles.

    Examples
    --------
    A rotation within the leading plane turns the vectors, but not the plane:

    >>> turn = torch.tensor([[0.6, -0.8], [0.8, 0.6], [0.0, 0.0]], dtype=torch.float64)
    >>> round(subspace_deviation(turn, turn), 12)
    0.0
    >>> round(subspace_deviation(turn, turn, r=1), 12)
    0.4
    """
    if leading_u.shape != leading_v.shape or leading_u.ndim != 2:
        raise ValueError(
            "leading_u and leading_v must both have the shape (k, p), got "
            f"{tuple(leading_u.shape)} and {tuple(leading_v.shape)}."
        )
    k, p = leading_u.shape
    r = p if r is None else r
    if not 1 <= r <= min(k, p):
        raise ValueError(
            f"r must be between 1 and p = {p}, and p at most k = {k}, got {r}; r vectors of the "
            "trained matrix are needed."
        )
    halves = [(1.0 - _cosines(leading[:r, :r])).mean().item() for leading in (leading_u, leading_v)]
    return sum(halves) / 2


def intruder_dimensions(leading_u: Tensor, k: int = 10, epsilon: float = 0.5) -> int:
    """Count of the leading singular vectors of W_t that resemble no singular vector of W_0.

    Among the first `k` left singular vectors of W_t (of the whole trained matrix, not of the
    update), those whose largest |cosine| with any left singular vector of W_0 is below
    `epsilon`. The count means nothing without its k and ε.

    Parameters
    ----------
    leading_u : Tensor of shape (min(m, n), p), float64
        U_0ᵀU_t of all the base's left singular vectors with the p leading ones of W_t; signs
        do not count.
    k : int
        How many leading vectors to look at: at most p, unless the matrix has no more than p.
    epsilon : float
        Threshold on the cosine, in (0, 1]. The larger, the more intruders.

    Returns
    -------
    int
        Between 0 and `k`.

    Raises
    ------
    ValueError
        If `leading_u` is not a matrix or has NaN or infinite entries, or if `k` or `epsilon` is
        out of range.

    Notes
    -----
    Side and defaults are those of the authors' program (``find_intruder_dimensions.py`` in
    github.com/reeceshuttle/intruder-dimensions). A vector that merely mixed with near-degenerate
    neighbours may fall below ε though nothing new came in (five equal parts: every |cosine| is
    0.45).

    References
    ----------
    Shuttleworth, Andreas, Torralba and Sharma, LoRA vs Full Fine-tuning: An Illusion of
    Equivalence, arXiv:2410.21228.

    Examples
    --------
    >>> cosines = torch.tensor([[0.9, 0.1], [-0.4, 0.2], [0.1, -0.3]], dtype=torch.float64)
    >>> intruder_dimensions(cosines, k=2)
    1
    """
    if leading_u.ndim != 2:
        raise ValueError(f"leading_u must have the shape (k, p), got {tuple(leading_u.shape)}.")
    rows, p = leading_u.shape
    if k < 1 or (k > p and p < rows):
        raise ValueError(f"k must be between 1 and the {p} leading vectors given, got {k}.")
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be above 0 and at most 1, got {epsilon}.")
    _require_finite("leading_u", leading_u)
    return int((leading_u[:, :k].abs().amax(dim=0) < epsilon).sum())


def _cosines(overlaps: Tensor) -> Tensor:
    """Cosines of the principal angles, largest first."""
    if overlaps.ndim != 2 or overlaps.shape[0] != overlaps.shape[1] or overlaps.numel() == 0:
        raise ValueError(f"overlaps must have the shape (r, r), got {tuple(overlaps.shape)}.")
    _require_finite("overlaps", overlaps)
    return torch.linalg.svdvals(overlaps.double()).clamp(max=1.0)


def _require_finite(name: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} must be finite, but has NaN or infinite entries.")
