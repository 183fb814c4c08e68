"""Factors of an update that lose nothing but their own rounding when they are stored."""

from __future__ import annotations

import torch
from torch import Tensor

# Above this many times the update's own norm, its terms cancel each other, and rounding the
# factors costs more than one bit beyond rounding the update's own.
_CANCELLATION = 2.0


def balanced(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product B A, each pair of column and row of equal norms.

    Where the columns' products are much larger than their sum (SORSA's and PiSSA's trained and
    initial part cancel each other up to what was learnt), B and A are taken from the singular
    value decomposition of the product, B = U √S and A = √S Vᵀ. Rounded to a dtype, they then
    err by a share of the update and not by a share of the principal part of W_0. Pairs that
    add nothing are left out.

    Parameters
    ----------
    b : Tensor of shape (m, q), float64
    a : Tensor of shape (q, n), float64

    Returns
    -------
    pair of Tensor of shape (m, p) and (p, n), float64
        p ≤ q; 0 where the product is zero.
    """
    if _cancels(b, a):
        b, a = _decomposed(b, a)
    norms_b, norms_a = torch.linalg.vector_norm(b, dim=0), torch.linalg.vector_norm(a, dim=1)
    kept = (norms_b > 0) & (norms_a > 0)
    scale = (norms_a[kept] / norms_b[kept]).sqrt()
    return b[:, kept] * scale, a[kept] / scale[:, None]


def padded(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors of the same product with `rank` columns and rows, the last ones zero."""
    more = rank - b.shape[1]
    return torch.nn.functional.pad(b, (0, more)), torch.nn.functional.pad(a, (0, 0, 0, more))


def squared_norm(b: Tensor, a: Tensor) -> float:
    """Return ‖B A‖_F² without forming the product."""
    return max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0)


def _cancels(b: Tensor, a: Tensor) -> bool:
    norms = torch.linalg.vector_norm(b, dim=0) * torch.linalg.vector_norm(a, dim=1)
    return float((norms**2).sum()) > _CANCELLATION**2 * squared_norm(b, a)


def _decomposed(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return U S and Vᵀ of the product, without the values that are rounding of its terms."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    terms = torch.linalg.matrix_norm(r_b) * torch.linalg.matrix_norm(r_a)
    kept = s > torch.finfo(s.dtype).eps * max(len(b), a.shape[1]) * terms
    return q_b @ (u[:, kept] * s[kept]), vh[kept] @ q_a.T
