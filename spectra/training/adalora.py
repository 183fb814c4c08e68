"""AdaLoRA's rank allocation inside Transformers' ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spectra.store import whole_file
from spectra.training.settings import TrainSettings

_STATE = "adalora.pt"
_ADAPTER = "default"
# What the allocator has learned of every entry of the factors: the last sensitivity, and the
# moving averages of it and of its uncertainty.
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLoraCallback(TrainerCallback):
    """Calls what AdaLoRA's paper has beside the loss, and keeps it through interruptions.

    PEFT's ``AdaLoraModel`` adds the orthogonal regularizer to the loss of every forward pass,
    so that under gradient accumulation it would count once for every part of the batch: here it
    counts once a step. And it leaves the rank allocation to the loop, after the optimizer's step
    and before the gradients are cleared.

    Parameters
    ----------
    settings : TrainSettings
        Of a run with ``method="adalora"``.
    parts : callable
        How many losses of forward passes are added up, and not averaged, in the step that begins.
    on_loss : callable of (step, loss, regularizer)
        Told each step's loss without the regularizer, and the regularizer without its weight.

    References
    ----------
    Zhang et al., AdaLoRA, arXiv:2303.10512, Algorithm 1.
    """

    def __init__(
        self,
        settings: TrainSettings,
        parts: Callable[[], int],
        on_loss: Callable[[int, float, float], None],
    ) -> None:
        self._options = settings.options
        self._parts = parts
        self._on_loss = on_loss
        self._regularizer = 0.0
        # In the configuration, PEFT would save only the ranks that are left. That cannot be loaded
        # into a model that is being trained, and elsewhere PEFT warns of it. Without, the others
        # are saved as the zeros that they are.
        self._ranks: dict[str, list[bool]] | None = None

    def on_train_begin(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        config, total = model.peft_config[_ADAPTER], state.max_steps
        config.total_step = total
        config.tinit = int(self._options["initial_share"] * total)
        config.tfinal = int(self._options["final_share"] * total)
        if total - config.tfinal - config.tinit < 2:
            raise ValueError(
                f"adalora must have two steps or more between its initial and its final phase; of "
                f"{total} steps they take {config.tinit} and {config.tfinal}. Give more steps, or "
                "lower initial_share or final_share."
            )
        if state.global_step > 0:
            self._restore(model, _checkpoint(args, state) / _STATE)

    def on_step_begin(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        model.peft_config[_ADAPTER].orth_reg_weight = self._options["orthogonal"] / self._parts()
        device = args.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=args.bf16):
            self._regularizer = float(_regularizer(model))

    def on_optimizer_step(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        config = model.peft_config[_ADAPTER]
        config.rank_pattern = self._ranks
        model.base_model.update_and_allocate(state.global_step + 1)
        self._ranks, config.rank_pattern = config.rank_pattern, None

    def on_log(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            task = float(logs["loss"]) - self._options["orthogonal"] * self._regularizer
            self._on_loss(state.global_step, task, self._regularizer)

    def on_save(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        allocator = model.base_model.rankallocator
        averages = {name: getattr(allocator, name) for name in _AVERAGES}
        with whole_file(_checkpoint(args, state) / _STATE) as temporary:
            torch.save({"averages": averages, "ranks": self._ranks}, temporary)

    def on_train_end(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        model.peft_config[_ADAPTER].orth_reg_weight = self._options["orthogonal"]

    def _restore(self, model: Any, path: Path) -> None:
        stored = torch.load(path, weights_only=True, map_location=model.device)
        for name, averages in stored["averages"].items():
            setattr(model.base_model.rankallocator, name, averages)
        self._ranks = stored["ranks"]


def _regularizer(model: nn.Module) -> Tensor:
    """Return the mean of ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F, as PEFT adds it."""
    terms = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            terms.append(torch.norm(gram - torch.eye(len(gram), device=gram.device), p="fro"))
    return torch.stack(terms).mean()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
