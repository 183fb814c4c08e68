"""Quantities of the singular values alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def singular_value_deviation(s_t: Tensor, s_0: Tensor) -> float:
    """Mean absolute change of the singular values: the paper's ΔΣ.

    ΔΣ = (1/k) Σᵢ |σᵢ(W_t) − σᵢ(W_0)|, comparing the i-th largest with the i-th largest. It is
    in the unit of the weights, so compare it between steps of one matrix; between matrices,
    divide by ``s_0.mean()`` first.

    Parameters
    ----------
    s_t : Tensor of shape (k,), float64
        Singular values of the trained matrix W_t, largest first.
    s_0 : Tensor of shape (k,), float64
        Singular values of its base W_0, largest first.

    Returns
    -------
    float
        ΔΣ ≥ 0; exactly 0.0 for equal spectra.

    Raises
    ------
    ValueError
        If the two shapes differ.

    Notes
    -----
    Singular vectors may turn freely while ΔΣ stays 0; read it beside
    `singular_vector_deviation`. At most ‖W_t − W_0‖₂ (Weyl).

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Eq. 1.

    Examples
    --------
    >>> s_0 = torch.tensor([3.0, 1.0], dtype=torch.float64)
    >>> singular_value_deviation(1.5 * s_0, s_0)
    1.0
    """
    if s_t.shape != s_0.shape:
        raise ValueError(
            f"s_t and s_0 must have the same shape, got {tuple(s_t.shape)} and "
            f"{tuple(s_0.shape)}; both must come from the same weight matrix."
        )
    return (s_t - s_0).abs().mean().item()


def condition_number(s: Tensor) -> float:
    """Ratio of the largest to the smallest singular value, κ = σ_max/σ_min.

    Parameters
    ----------
    s : Tensor of shape (k,)
        Singular values, largest first.

    Returns
    -------
    float
        κ ≥ 1; infinite where σ_min = 0 (also for the zero matrix). Of a numerically
        rank-deficient matrix it is a multiple of 1/ε and says no more than that.

    Examples
    --------
    >>> condition_number(torch.tensor([4.0, 2.0]))
    2.0
    """
    smallest = s[-1].item()
    return s[0].item() / smallest if smallest > 0 else math.inf


def stable_rank(s: Tensor) -> float:
    """‖W‖_F²/‖W‖₂², a rank that small singular values hardly count in.

    Parameters
    ----------
    s : Tensor of shape (k,)
        Singular values, largest first.

    Returns
    -------
    float
        Between 1 and k; 0.0 for the zero matrix.

    Examples
    --------
    >>> stable_rank(torch.tensor([2.0, 2.0, 0.0]))
    2.0
    """
    largest = s[0].item()
    return (s / largest).square().sum().item() if largest > 0 else 0.0


def effective_rank(s: Tensor) -> float:
    """Exponential of the entropy of the singular values' distribution σ/Σσ.

    Parameters
    ----------
    s : Tensor of shape (k,)
        Singular values.

    Returns
    -------
    float
        Between 1 and k; 0.0 for the zero matrix.

    References
    ----------
    Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.

    Examples
    --------
    >>> round(effective_rank(torch.ones(5)), 6)
    5.0
    """
    total = s.sum()
    if total <= 0:
        return 0.0
    return torch.special.entr(s.double() / total).sum().exp().item()
