"""LISA: all of a model is trained, but of its blocks only a few sampled ones at a time."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from checkpoints_index import clean_name, locate


class LisaCallback(TrainerCallback):
    """Freezes all blocks of the model but a few, and samples these anew every so many steps.

    Embeddings, head and final norm are always trained. Which blocks are, depends on the seed and
    the step alone, so that a resumed training needs no state. The optimizer must know all
    parameters: make it while all are trainable, as the ``Trainer`` does. It keeps the moments of
    the blocks that are frozen again, so the memory that it takes grows towards full fine-tuning's.

    Parameters
    ----------
    active_layers : int
        The paper's γ: how many blocks are trained at a time.
    interval : int
        The paper's K: for how many optimizer steps.
    seed : int
        Of the sampling.

    Raises
    ------
    ValueError
        If one of the counts is below 1.

    References
    ----------
    Pan et al., LISA, arXiv:2403.17919, Algorithm 1.
    """

    def __init__(self, active_layers: int, interval: int, seed: int) -> None:
        for name, value in (("active_layers", active_layers), ("interval", interval)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.active_layers = active_layers
        self.interval = interval
        self.seed = seed
        self._thawed: tuple[str, ...] | None = None

    def on_step_begin(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if model is None:
            return
        blocks = _blocks(model)
        chosen = self.sampled(state.global_step, sorted(blocks))
        if chosen == self._thawed:
            return
        self._thawed = chosen
        for name, parameters in blocks.items():
            for parameter in parameters:
                parameter.requires_grad_(name in chosen)

    def on_train_end(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if model is not None:
            model.requires_grad_(True)

    def check(self, model: nn.Module) -> None:
        """Refuse a model with too few blocks, which `sampled` would in the first step.

        Raises
        ------
        ValueError
            If there are fewer blocks than are to be trained.
        """
        self.sampled(0, sorted(_blocks(model)))

    def sampled(self, step: int, blocks: list[str]) -> tuple[str, ...]:
        """Return which of the blocks are trained in the step after `step` finished ones.

        Raises
        ------
        ValueError
            If there are fewer blocks than are to be trained.
        """
        if self.active_layers > len(blocks):
            raise ValueError(
                f"active_layers must be at most the model's {len(blocks)} blocks, got "
                f"{self.active_layers}."
            )
        draw = random.Random(f"{self.seed} {step // self.interval}")
        return tuple(sorted(draw.sample(blocks, self.active_layers)))


def _blocks(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each block, by the block's path."""
    blocks: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        name = clean_name(name)
        found = re.match(r"(.*?\.\d+)\.", name)
        if found and locate(name):
            blocks[found[1]].append(parameter)
    return dict(blocks)
