"""From a method's name to a model whose right parameters are trained."""

from __future__ import annotations

from collections.abc import Callable

import peft
from torch import nn
from transformers import PreTrainedModel

from checkpoints_index import clean_name, locate, matches
from spectra.methods import SorsaConfig
from spectra.training.settings import TrainSettings


def _sorsa(model: PreTrainedModel, settings: TrainSettings) -> nn.Module:
    config = SorsaConfig(r=settings.rank, target_modules=_targets(model, settings))
    return peft.get_peft_model(model, config)


def _lora(model: PreTrainedModel, settings: TrainSettings) -> nn.Module:
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        target_modules=_targets(model, settings),
    )
    return peft.get_peft_model(model, config)


def _partial_ft(model: PreTrainedModel, settings: TrainSettings) -> nn.Module:
    for name, parameter in model.named_parameters():
        place = locate(clean_name(name))
        parameter.requires_grad_(
            parameter.ndim == 2
            and place is not None
            and matches(clean_name(name), settings.modules)
        )
    return model


def _targets(model: PreTrainedModel, settings: TrainSettings) -> list[str]:
    """Return plain names as they are; PEFT knows no globs, so those become full names."""
    if not any(set(pattern) & set("*?[.") for pattern in settings.modules):
        return list(settings.modules)
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and locate(name) and matches(name, settings.modules)
    ]


METHODS: dict[str, Callable[[PreTrainedModel, TrainSettings], nn.Module]] = {
    "sorsa": _sorsa,
    "sorsa-noreg": _sorsa,
    "lora": _lora,
    "partial-ft": _partial_ft,
}
"""Every method of the trainer: makes the chosen layers of a model trainable, freezes the rest."""


def adapt(model: PreTrainedModel, settings: TrainSettings) -> nn.Module:
    """Return `model` made ready for the method of `settings`.

    Raises
    ------
    ValueError
        If the method is unknown, the rank too large, or no layer is called like `modules`.
    """
    if settings.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {settings.method!r}.")
    names = [clean_name(n) for n, p in model.named_parameters() if p.ndim == 2]
    if not any(locate(n) and matches(n, settings.modules) for n in names):
        raise ValueError(
            f"No layer of the model is called {' or '.join(settings.modules)}; it has e.g. "
            f"{', '.join(names[1:4])}. Name yours with --modules."
        )
    return METHODS[settings.method](model, settings)
