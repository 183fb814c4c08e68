"""SORSA's regularizer inside Transformers' ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spectra.methods import add_regularizer_gradient
from spectra.training.settings import Reduction


class SorsaRegularizerCallback(TrainerCallback):
    """Adds (γ/η_d) ∇L_reg to the gradients before every optimizer step (Eq. 10).

    Works with Transformers' ``Trainer`` and TRL's trainers unchanged. The trainer has clipped
    the task's gradient by then, so the regularizer stays out of clipping, as in the authors'
    code. To clip the sum of both instead, as the paper's formula would have it, give
    `max_grad_norm` here and set the trainer's own ``max_grad_norm=0``.

    Parameters
    ----------
    gamma : float
        γ ≥ 0; Table 2 has 5e-4, Table 3 4e-4. With 0 nothing is added.
    max_lr : float, optional
        η_d; the trainer's ``learning_rate`` by default.
    reduction : {"mean", "sum"}
        Mean over all factors (the default, the authors' code) or sum over matrices (Eq. 8).
    squared : bool
        Square the norms, as the author's later explanation does.
    max_grad_norm : float, optional
        Clip task and regularizer together to this norm.
    on_value : callable of (step, loss), optional
        Told L_reg before each step.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Eqs. 8 to 10.

    Examples
    --------
    >>> Trainer(..., callbacks=[SorsaRegularizerCallback(gamma=5e-4)])  # doctest: +SKIP
    """

    def __init__(
        self,
        gamma: float,
        *,
        max_lr: float | None = None,
        reduction: Reduction = "mean",
        squared: bool = False,
        max_grad_norm: float | None = None,
        on_value: Callable[[int, float], None] | None = None,
    ) -> None:
        self.gamma = gamma
        self.max_lr = max_lr
        self.reduction: Reduction = reduction
        self.squared = squared
        self.max_grad_norm = max_grad_norm
        self.on_value = on_value

    def on_pre_optimizer_step(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if model is None:
            return
        loss = add_regularizer_gradient(
            model,
            self.gamma,
            self.max_lr or args.learning_rate,
            squared=self.squared,
            reduction=self.reduction,
        )
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_grad_norm)
        if self.on_value is not None:
            self.on_value(state.global_step + 1, loss)
