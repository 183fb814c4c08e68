"""Quantities of the singular vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def vector_overlaps(x_t: Tensor, x_0: Tensor) -> Tensor:
    """Overlap |⟨x_t, x_0⟩| of each singular vector with its base's of the same index.

    Parameters
    ----------
    x_t : Tensor of shape (d, k)
        Singular vectors of W_t as columns, in the order of falling singular values.
    x_0 : Tensor of shape (d, k)
        Those of its base W_0.

    Returns
    -------
    Tensor of shape (k,)
        In [0, 1]; signs of the vectors do not count.

    Raises
    ------
    ValueError
        If the two shapes differ.

    Notes
    -----
    Two singular values that cross swap their vectors, and the vectors of nearly equal
    singular values are arbitrary among themselves: both read as overlap lost.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Eqs. 2 and 3.
    """
    if x_t.shape != x_0.shape:
        raise ValueError(
            f"x_t and x_0 must have the same shape, got {tuple(x_t.shape)} and "
            f"{tuple(x_0.shape)}; both must come from the same weight matrix."
        )
    return (x_t * x_0).sum(dim=0).abs().clamp(max=1.0)


def singular_vector_deviation(overlap_u: Tensor, overlap_v: Tensor) -> float:
    """How far the singular vectors have turned: the paper's ΔD.

    ΔD = 1 − (1/2k) Σᵢ (|⟨u_t,u_0⟩|ᵢ + |⟨v_t,v_0⟩|ᵢ), without a unit. 0 means no vector turned
    (up to sign). It does not reach 1: two unrelated bases of dimension d still overlap by
    about 1/√d.

    Parameters
    ----------
    overlap_u, overlap_v : Tensor of shape (k,)
        From `vector_overlaps`, for the left and the right vectors.

    Returns
    -------
    float
        In [0, 1]; exactly 0.0 where every overlap is 1.

    Raises
    ------
    ValueError
        If the two shapes differ.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Eq. 4.

    Examples
    --------
    >>> ones = torch.ones(4)
    >>> singular_vector_deviation(ones, 0.5 * ones)
    0.25
    """
    if overlap_u.shape != overlap_v.shape:
        raise ValueError(
            f"overlap_u and overlap_v must have the same shape, got {tuple(overlap_u.shape)} "
            f"and {tuple(overlap_v.shape)}."
        )
    return (mean_turn(overlap_u) + mean_turn(overlap_v)) / 2


def mean_turn(overlap: Tensor) -> float:
    """One half of ΔD: 1 − mean overlap, of the left or of the right vectors alone.

    Parameters
    ----------
    overlap : Tensor of shape (k,)
        From `vector_overlaps`.

    Returns
    -------
    float
        In [0, 1].
    """
    # The mean of 1 − overlap, not 1 − mean: small turns keep their digits.
    return (1.0 - overlap).mean().item()


def orthonormality_error(u: Tensor) -> float:
    """Distance of a factor's columns from orthonormality, ‖UᵀU − I‖_F.

    Parameters
    ----------
    u : Tensor of shape (d, r)
        A trained factor, U_p or V_p (transpose V_pᵀ first); computed in float64.

    Returns
    -------
    float
        0 for orthonormal columns; √r for the zero matrix.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Eq. 8 (one term of it).

    Examples
    --------
    >>> orthonormality_error(torch.eye(3))
    0.0
    """
    u = u.double()
    gram = u.T @ u
    return torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype)).item()
