"""SORSA's orthonormal regularizer (Eq. 8) and the update rule that uses it (Eq. 10)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from spectra.methods.sorsa.layer import SorsaLinear

Reduction = Literal["mean", "sum"]

# Below this many times the rounding noise ε√r of a factor, ‖UᵀU − I‖_F says nothing about
# training: float64 singular vectors rounded to float32 show 0.03 to 0.1 of it, a float32
# product UᵀU up to about 1 (SmolLM2's q_proj and v_proj, r = 16 to 128).
_NOISE_MULTIPLE = 16.0


def orthonormal_regularizer(
    model: nn.Module,
    *,
    squared: bool = False,
    reduction: Reduction = "mean",
    smooth: bool = True,
) -> Tensor:
    """Departure of all trained factors from orthonormality: the paper's L_reg.

    For every adapted matrix ‖U_pᵀU_p − I‖_F + ‖V_pᵀV_p − I‖_F (Eq. 8), put together over the
    model as `reduction` says. Differentiable, for any training loop; inside a Transformers
    ``Trainer`` use `spectra.SorsaRegularizerCallback`.

    Parameters
    ----------
    model : nn.Module
        With SORSA layers; the active adapters count.
    squared : bool
        Square each norm, as the author's later explanation of the paper does.
    reduction : {"mean", "sum"}
        ``"mean"``, the default, averages over all factors of all matrices, as the authors'
        library does; the published γ (5e-4, 4e-4) go with it. ``"sum"`` is the paper's formula
        for every matrix: the pull on each factor then does not depend on how many are adapted,
        and equals the mean's at γ divided by the number of factors.
    smooth : bool
        Let the norm's gradient vanish in rounding noise, as said below. ``False`` is Eq. 8 to the
        letter, and with it the authors' library step for step.

    Returns
    -------
    Tensor
        A float32 (or float64, as the factors) scalar ≥ 0; 0.0 without SORSA layers.

    Notes
    -----
    The norm in Eq. 8 is not squared. At orthonormal factors it has no gradient, and just off
    them, in rounding noise, its gradient has full length in an arbitrary direction: at the
    first step that was measured as 30 to 39% of the task's gradient. So below
    δ = 16 ε √r (1.5e-5 for float32 and r = 64), where ‖UᵀU − I‖_F is noise, the norm is
    continued by the parabola that meets it with equal value and slope,
    x ↦ x²/(2δ) + δ/2: the gradient falls to 0 with the distance. From δ on, value and gradient
    are Eq. 8's. `squared` needs none of this.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Eq. 8.
    """
    terms = [_term(factor, squared, smooth) for factor in trained_factors(model)]
    if not terms:
        return torch.zeros(())
    total = torch.stack([t.to(terms[0].device) for t in terms]).sum()
    return total / len(terms) if reduction == "mean" else total


def add_regularizer_gradient(
    model: nn.Module,
    gamma: float,
    max_lr: float,
    *,
    squared: bool = False,
    reduction: Reduction = "mean",
    smooth: bool = True,
) -> float:
    """Add (γ/η_d) ∇L_reg to the gradients of the trained factors: the update rule of Eq. 10.

    Call it once per optimizer step, between ``backward`` (and clipping, if the regularizer
    shall stay out of it, as in the authors' code) and ``optimizer.step``. One optimizer and one
    scheduler then serve both learning rates.

    Parameters
    ----------
    model : nn.Module
        With SORSA layers.
    gamma : float
        γ ≥ 0, the regularizer's learning rate. With 0 no gradient is touched.
    max_lr : float
        η_d > 0, the scheduler's maximum learning rate.
    squared, reduction, smooth
        As in `orthonormal_regularizer`.

    Returns
    -------
    float
        L_reg before the step, without γ.

    Raises
    ------
    ValueError
        If γ < 0 or η_d ≤ 0.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Eq. 10.
    """
    if gamma < 0 or max_lr <= 0:
        raise ValueError(f"gamma must be >= 0 and max_lr > 0, got {gamma} and {max_lr}.")
    value = partial(
        orthonormal_regularizer, model, squared=squared, reduction=reduction, smooth=smooth
    )
    factors = [f for f in trained_factors(model) if f.parameter.requires_grad]
    if gamma == 0 or not factors:
        with torch.no_grad():
            return float(value())
    with torch.enable_grad():
        loss = value()
        gradients = torch.autograd.grad(loss, [f.parameter for f in factors])
    for factor, gradient in zip(factors, gradients, strict=True):
        scaled = (gamma / max_lr) * gradient
        if factor.parameter.grad is None:
            factor.parameter.grad = scaled
        else:
            factor.parameter.grad.add_(scaled)
    return float(loss.detach())


class TrainedFactor:
    """One trained factor of one matrix, U_p or V_p.

    Attributes
    ----------
    parameter : nn.Parameter
        U_p of shape (m, r) or V_pᵀ of shape (r, n).
    """

    def __init__(self, parameter: nn.Parameter, transposed: bool) -> None:
        self.parameter = parameter
        self._transposed = transposed

    def gram(self) -> Tensor:
        """UᵀU of shape (r, r), at least in float32."""
        wide = self.parameter if self._transposed else self.parameter.T
        wide = wide.float() if wide.dtype in (torch.float16, torch.bfloat16) else wide
        return wide @ wide.T


def trained_factors(model: nn.Module) -> Iterator[TrainedFactor]:
    """Yield U_p and V_p of every SORSA layer's active adapters."""
    for layer in model.modules():
        if isinstance(layer, SorsaLinear):
            for name in layer.active_adapters:
                if name in layer.sorsa_u:
                    yield TrainedFactor(layer.sorsa_u[name], transposed=False)
                    yield TrainedFactor(layer.sorsa_vh[name], transposed=True)


def _term(factor: TrainedFactor, squared: bool, smooth: bool) -> Tensor:
    with torch.autocast(factor.parameter.device.type, enabled=False):
        gram = factor.gram()
        error = gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        if not (squared or smooth):
            return torch.linalg.matrix_norm(error)
        square = error.square().sum()
    if squared:
        return square
    epsilon = torch.finfo(factor.parameter.dtype).eps
    delta = _NOISE_MULTIPLE * epsilon * len(gram) ** 0.5
    # The square root is taken only where it is used: its own gradient at 0 is not finite.
    norm = square.clamp(min=delta**2).sqrt()
    return torch.where(square < delta**2, square / (2 * delta) + delta / 2, norm)
