"""What every solver returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
