"""Quantities of the update W_t − W_0 as a whole."""

from __future__ import annotations

import torch
from torch import Tensor


def frobenius_drift(w_t: Tensor, w_0: Tensor) -> float:
    """Size of the update relative to the base, ‖W_t − W_0‖_F/‖W_0‖_F.

    Parameters
    ----------
    w_t, w_0 : Tensor of shape (m, n), float64
        Trained matrix and base.

    Returns
    -------
    float
        ≥ 0; NaN where W_0 is the zero matrix.

    Examples
    --------
    >>> frobenius_drift(2.0 * torch.eye(3), torch.eye(3))
    1.0
    """
    base = torch.linalg.matrix_norm(w_0)
    return (torch.linalg.matrix_norm(w_t - w_0) / base).item() if base > 0 else float("nan")
