"""SORSA's orthonormal regularizer (Eq. 8) and the update rule that uses it (Eq. 10)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    groups = _alike(trained_factors(model))
    if not groups:
        return torch.zeros(())
    squares = [_errors(group).square().sum((1, 2)) for group in groups]
    sums = [
        _of_squares(q, group[0], squared, smooth).sum()
        for q, group in zip(squares, groups, strict=True)
    ]
    total = torch.stack([t.to(sums[0].device) for t in sums]).sum()
    return total / sum(map(len, groups)) if reduction == "mean" else total


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
    groups = _alike(trained_factors(model))
    share = 1 / max(1, sum(map(len, groups))) if reduction == "mean" else 1.0
    sums = []
    for group in groups:
        with torch.no_grad():
            errors = _errors(group)
        # G = XXᵀ − I of a factor X of shape (r, n) gives d‖G‖²/dX = 4 G X; what is made of ‖G‖²
        # is one number a factor. So no graph is kept, and all but two products a factor is done
        # for all of them at once: 15 ms instead of 35 a step (120 factors of SmolLM2, r = 64).
        squares = errors.square().sum((1, 2)).requires_grad_()
        with torch.enable_grad():
            total = _of_squares(squares, group[0], squared, smooth).sum()
        sums.append(total.detach())
        if gamma != 0:
            (slopes,) = torch.autograd.grad(total, squares)
            with torch.no_grad():
                errors *= (4 * gamma / max_lr * share * slopes)[:, None, None]
                for factor, error in zip(group, errors, strict=True):
                    factor.add_gradient(error)
    if not sums:
        return 0.0
    return share * float(torch.stack([t.to(sums[0].device) for t in sums]).sum())


class TrainedFactor:
    """One trained factor of one matrix, U_p or V_p.

    Attributes
    ----------
    parameter : nn.Parameter
        U_p of shape (m, r) or V_pᵀ of shape (r, n).
    rank : int
        r.
    """

    def __init__(self, parameter: nn.Parameter, transposed: bool) -> None:
        self.parameter = parameter
        self._transposed = transposed
        self.rank = parameter.shape[0 if transposed else 1]

    def gram(self) -> Tensor:
        """UᵀU of shape (r, r), at least in float32."""
        with torch.autocast(self.parameter.device.type, enabled=False):
            return self._wide() @ self._wide().T

    def add_gradient(self, error: Tensor) -> None:
        """Add E Uᵀ (or E V_pᵀ) for E of shape (r, r) to what is trained's gradient."""
        parameter = self.parameter
        if not parameter.requires_grad:
            return
        with torch.autocast(parameter.device.type, enabled=False):
            gradient = error @ self._wide()
        gradient = (gradient if self._transposed else gradient.T).to(parameter.dtype)
        if parameter.grad is None:
            parameter.grad = gradient.contiguous()
        else:
            parameter.grad.add_(gradient)

    def _wide(self) -> Tensor:
        wide = self.parameter if self._transposed else self.parameter.T
        return wide.float() if wide.dtype in (torch.float16, torch.bfloat16) else wide


def trained_factors(model: nn.Module) -> Iterator[TrainedFactor]:
    """Yield U_p and V_p of every SORSA layer's active adapters."""
    for layer in model.modules():
        if isinstance(layer, SorsaLinear):
            for name in layer.active_adapters:
                if name in layer.sorsa_u:
                    yield TrainedFactor(layer.sorsa_u[name], transposed=False)
                    yield TrainedFactor(layer.sorsa_vh[name], transposed=True)


def _alike(factors: Iterable[TrainedFactor]) -> list[list[TrainedFactor]]:
    """Group factors of one rank, dtype and device."""
    groups: dict[object, list[TrainedFactor]] = {}
    for factor in factors:
        p = factor.parameter
        groups.setdefault((factor.rank, p.dtype, p.device), []).append(factor)
    return list(groups.values())


def _errors(group: Sequence[TrainedFactor]) -> Tensor:
    """UᵀU − I of every factor; shape (count, r, r)."""
    grams = torch.stack([factor.gram() for factor in group])
    return grams - torch.eye(grams.shape[-1], dtype=grams.dtype, device=grams.device)


def _of_squares(squares: Tensor, one: TrainedFactor, squared: bool, smooth: bool) -> Tensor:
    """Make ‖UᵀU − I‖_F², shape (count,), of factors like `one` into their terms of L_reg."""
    if squared:
        return squares
    # The square root is taken only where it is used: its own gradient at 0 is not finite.
    if not smooth:
        exact = squares == 0
        return torch.where(exact, squares, squares.masked_fill(exact, 1.0).sqrt())
    delta = _NOISE_MULTIPLE * torch.finfo(one.parameter.dtype).eps * one.rank**0.5
    norms = squares.clamp(min=delta**2).sqrt()
    return torch.where(squares < delta**2, squares / (2 * delta) + delta / 2, norms)
