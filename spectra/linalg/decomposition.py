"""What every solver returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 16
"""Overlaps are kept with so many base vectors on either side of the same index."""

LEADING = 16
"""Of so many leading vectors the overlaps with all base vectors are kept."""


class NotConverged(ArithmeticError):
    """A solver failed, or its certificate did: the next solver's turn."""


@dataclass(frozen=True)
class Decomposition:
    """Singular value decomposition W = U diag(S) Vᵀ of one matrix, in float64 on the CPU.

    Attributes
    ----------
    u : Tensor of shape (m, k)
        Left singular vectors, as columns; signs are arbitrary.
    s : Tensor of shape (k,)
        Singular values, largest first.
    vh : Tensor of shape (k, n)
        Right singular vectors, as rows.
    solver : str
        Which solver ran: ``"gram"`` or ``"svd"``.
    residual : float
        Measured error: the larger of ‖W − U diag(S) Vᵀ‖_F/‖W‖_F and the departures of U and V
        from orthonormality, each estimated from a few random probes.
    """

    u: Tensor
    s: Tensor
    vh: Tensor
    solver: str
    residual: float


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix, without vectors.

    Attributes
    ----------
    s : Tensor of shape (k,)
        Largest first, float64.
    solver : str
        ``"gram-values"``, ``"svd-values"`` or ``"low-rank-values"``.
    residual : float
        Measured error, relative: of ‖W‖_F² = Σ σᵢ² for the dense solvers, of the eigenvalue
        equation for the rank-structured one.
    """

    s: Tensor
    solver: str
    residual: float


@dataclass(frozen=True)
class Turned:
    """The singular values of W_t, and its singular vectors as seen from those of its base.

    Attributes
    ----------
    s : Tensor of shape (k,)
        Singular values of W_t, largest first, float64.
    near_u, near_v : Tensor of shape (k, 2w + 1)
        ``near_u[i, w + d]`` = |⟨u_t,i, u_0,i+d⟩|, 0 where i + d is no index;
        w = min(`NEIGHBOURS`, k − 1).
    leading_u, leading_v : Tensor of shape (k, p)
        U_0ᵀU_t and V_0ᵀV_t of the p = min(`LEADING`, k) leading vectors of W_t.
    solver : str
        Which solver ran: ``"low-rank"``, ``"gram"`` or ``"svd"``.
    residual : float
        Measured error of W_t's decomposition, relative to its norm.
    """

    s: Tensor
    near_u: Tensor
    near_v: Tensor
    leading_u: Tensor
    leading_v: Tensor
    solver: str
    residual: float

    @property
    def overlap_u(self) -> Tensor:
        """|⟨u_t, u_0⟩| of the same index; shape (k,)."""
        return self.near_u[:, self.near_u.shape[1] // 2]

    @property
    def overlap_v(self) -> Tensor:
        """|⟨v_t, v_0⟩| of the same index; shape (k,)."""
        return self.near_v[:, self.near_v.shape[1] // 2]


def nearest_distance(values: Tensor) -> Tensor:
    """Distance of each of the sorted values to the nearest other one; infinite for one alone."""
    gaps = values.diff().abs()
    infinity = gaps.new_full((1,), torch.inf)
    return torch.minimum(torch.cat([infinity, gaps]), torch.cat([gaps, infinity]))


def band_width(k: int) -> int:
    """Neighbours on either side for k singular values."""
    return min(NEIGHBOURS, k - 1)


def diagonals(columns: Tensor, first: int, width: int, top: int = 0) -> Tensor:
    """Entries of |columns| around the diagonal.

    Parameters
    ----------
    columns : Tensor of shape (h, c)
        Columns `first` to `first` + c of a (k, k) matrix, all rows of it or those around the
        diagonal.
    first : int
        Index of the first of them.
    width : int
        How many entries above and below the diagonal.
    top : int
        Index of the first row.

    Returns
    -------
    Tensor of shape (c, 2 width + 1)
        0 beyond the matrix.
    """
    h, c = columns.shape
    index = torch.arange(first - top, first - top + c)[:, None] + torch.arange(-width, width + 1)
    inside = (index >= 0) & (index < h)
    taken = columns.T.gather(1, index.clamp(0, h - 1))
    return torch.where(inside, taken.abs(), 0.0)
