"""Quantities of the singular values alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Relative to σ_max: the error of a float32 SVD, measured 3.5e-6 at 1024×1024 and 4.7e-6 at
# 2048×2048, growing with √k; so a little more than that of one at 4096×4096.
ILL_DETERMINED_GAP = 1e-5


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


def ill_determined_share(s: Tensor, relative_gap: float = ILL_DETERMINED_GAP) -> float:
    """Share of singular values so close to another one that their vectors say little.

    A value counts when the nearest other one is no farther away than relative_gap · σ_max. A
    perturbation of W of about that norm can turn the two values' vectors into each other at
    will, so overlaps of these vectors measure it as much as they measure training.

    Parameters
    ----------
    s : Tensor of shape (k,)
        Singular values, in any order.
    relative_gap : float
        Distance relative to σ_max, ≥ 0. The default of 1e-5 stands for errors of computing:
        just above what a float32 SVD of a 4096×4096 matrix gets wrong. For what a checkpoint's
        storage blurs, give ‖E‖₂/σ_max of that rounding instead: up to 1.7e-3 for bfloat16.

    Returns
    -------
    float
        Between 0 and 1; 0.0 for a single value, 1.0 for two or more equal ones (also all 0).

    Raises
    ------
    ValueError
        If `relative_gap` is negative or NaN.

    Notes
    -----
    By Wedin's theorem a perturbation E turns a singular vector by at most about ‖E‖₂ over the
    distance to the nearest other value. Of a matrix that is not square, the long side's vectors
    of σ ≈ 0 are ill-determined too; that does not count here.

    References
    ----------
    Wedin, Perturbation bounds in connection with singular value decomposition, BIT 12, 1972.

    Examples
    --------
    >>> ill_determined_share(torch.tensor([3.0, 2.0, 2.0, 1.0]))
    0.5
    """
    if not relative_gap >= 0:
        raise ValueError(f"relative_gap must be 0 or more, got {relative_gap}.")
    if len(s) < 2:
        return 0.0
    ascending = s.double().sort().values
    close = ascending.diff() <= relative_gap * ascending[-1]
    apart = close.new_zeros(1)
    return (torch.cat([apart, close]) | torch.cat([close, apart])).double().mean().item()
