"""One matrix at one step: from weights to a row of drift and a row of spectrum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from checkpoints_index import TrainedFactors, Weight
from spectra import metrics
from spectra.linalg import (
    Decomposition,
    as_float64,
    decompose,
    product_singular_values,
    singular_values,
)

UNREADABLE = "none"
"""The solver of a row whose matrix could not be decomposed."""

Row = dict[str, Any]


class BaseMatrix:
    """W_0 and its decomposition, made once for all steps.

    Parameters
    ----------
    w_0 : Tensor of shape (m, n)
        The base's weight.
    values_only : bool
        Compute singular values without vectors.

    Raises
    ------
    ValueError
        If W_0 has NaN or infinite entries.
    """

    def __init__(self, w_0: Tensor, values_only: bool = False) -> None:
        self.w_0 = as_float64(w_0)
        self.values_only = values_only
        self.svd = _values(self.w_0) if values_only else decompose(self.w_0)

    def drift(self, weight: Weight) -> tuple[Row, Row]:
        """Return the quantities of W_t and its arrays, without the keys.

        Parameters
        ----------
        weight : Weight
            W_t as read from a checkpoint.

        Returns
        -------
        drift : dict
            Columns of the drift table.
        spectrum : dict
            Columns of the spectrum table; empty where W_t could not be decomposed.

        Raises
        ------
        ValueError
            If W_t does not fit W_0, or has NaN or infinite entries.
        """
        w_t = as_float64(weight.on(self.w_0))
        unchanged = torch.equal(w_t, self.w_0)
        if unchanged:
            svd = self.svd
        else:
            svd = _values(w_t) if self.values_only else decompose(w_t)
        drift: Row = {
            "rows": w_t.shape[0],
            "cols": w_t.shape[1],
            "delta_sigma": metrics.singular_value_deviation(svd.s, self.svd.s),
            "sigma_max": svd.s[0].item(),
            "sigma_min": svd.s[-1].item(),
            "kappa": metrics.condition_number(svd.s),
            "stable_rank": metrics.stable_rank(svd.s),
            "effective_rank": metrics.effective_rank(svd.s),
            "frobenius_drift": metrics.frobenius_drift(w_t, self.w_0),
            "solver": svd.solver,
            "residual": max(svd.residual, self.svd.residual),
        }
        spectrum: Row = {"sigma": svd.s.numpy()}
        if not self.values_only:
            overlap_u, overlap_v = self._overlaps(svd, unchanged)
            drift |= {
                "delta_d": metrics.singular_vector_deviation(overlap_u, overlap_v),
                "delta_u": metrics.mean_turn(overlap_u),
                "delta_v": metrics.mean_turn(overlap_v),
            }
            spectrum |= {"overlap_u": overlap_u.numpy(), "overlap_v": overlap_v.numpy()}
        if weight.factors is not None:
            drift |= factor_quantities(weight.factors)
        return drift, spectrum

    def _overlaps(self, svd: Decomposition, unchanged: bool) -> tuple[Tensor, Tensor]:
        if unchanged:
            # ⟨u, u⟩ is 1 up to rounding; of one and the same vector it is 1.
            return torch.ones_like(svd.s), torch.ones_like(svd.s)
        return (
            metrics.vector_overlaps(svd.u, self.svd.u),
            metrics.vector_overlaps(svd.vh.T, self.svd.vh.T),
        )


def factor_quantities(factors: TrainedFactors) -> Row:
    """Return κ of W_p, U_p and V_p, and both orthonormality errors.

    Raises
    ------
    ValueError
        If a factor has NaN or infinite entries.
    """
    return {
        "kappa_p": metrics.condition_number(product_singular_values(*_parts(factors))),
        "kappa_u": metrics.condition_number(singular_values(factors.u)),
        "kappa_v": metrics.condition_number(singular_values(factors.vh)),
        "ortho_u": metrics.orthonormality_error(factors.u),
        "ortho_v": metrics.orthonormality_error(factors.vh.T),
    }


def unreadable_row(shape: tuple[int, int]) -> Row:
    """Return the row of a matrix that could not be decomposed: no numbers, and it says so."""
    return {"rows": shape[0], "cols": shape[1], "solver": UNREADABLE}


def _parts(factors: TrainedFactors) -> tuple[Tensor, Tensor, Tensor]:
    return factors.u, factors.s, factors.vh


def _values(w: Tensor) -> Decomposition:
    empty = w.new_empty(0)
    return Decomposition(empty, singular_values(w), empty, "svdvals", torch.finfo(w.dtype).eps)
