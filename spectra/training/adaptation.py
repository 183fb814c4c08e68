"""From a method's name to a model whose right parameters are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import peft
from torch import Tensor, nn
from transformers import PreTrainedModel

import spectra.methods as tuners
from checkpoints_index import clean_name, locate, matches
from spectra.training.methods import METHODS
from spectra.training.residuals import residual_lora
from spectra.training.settings import TrainSettings


def adapt(
    model: PreTrainedModel,
    settings: TrainSettings,
    initial: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Return `model` made ready for the method of `settings`.

    Parameters
    ----------
    model : PreTrainedModel
        With the weights W_0; changed in place.
    settings : TrainSettings
        Method, modules, rank and the like.
    initial : mapping of str to Tensor, optional
        Of a method that rewrites the base: the factors that the run began with, from
        `spectra.training.residuals.initial_factors`, if it is continued.

    Raises
    ------
    ValueError
        If the rank is too large, or no layer is called like `modules`.
    """
    names = [clean_name(n) for n, p in model.named_parameters() if p.ndim == 2]
    if not any(locate(n) and matches(n, settings.modules) for n in names):
        raise ValueError(
            f"No layer of the model is called {' or '.join(settings.modules)}; it has e.g. "
            f"{', '.join(names[1:4])}. Name yours with --modules."
        )
    method = METHODS[settings.method]
    if method.trains_everything:
        return model.requires_grad_(True)
    if settings.method == "partial-ft":
        return _partial_ft(model, settings)
    config = _CONFIGS[settings.method](settings)
    config.target_modules = set(_targets(model, settings))
    # Without it PEFT's forward goes past its AdaLoRA model, which adds the regularizer.
    config.task_type = "CAUSAL_LM"
    if method.rewrites_base:
        return residual_lora(model, config, initial)
    return peft.get_peft_model(model, config)


def block_layers(model: PreTrainedModel) -> list[str]:
    """Return the paths of all linear layers within the model's blocks."""
    return [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear) and locate(n)]


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
    """Return plain names as they are; PEFT knows none of our patterns: those are full names."""
    patterns = settings.modules
    if not any(set(pattern) & set("*?[.:-") for pattern in patterns):
        return list(patterns)
    return [name for name in block_layers(model) if matches(name, patterns)]


def _lora(settings: TrainSettings, **changes: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        **changes,
    )


def _adalora(settings: TrainSettings) -> peft.AdaLoraConfig:
    options = settings.options
    return peft.AdaLoraConfig(
        init_r=options["init_rank"],
        target_r=settings.rank,
        # PEFT divides by the initial rank: so the scaling is alpha/rank, as everywhere.
        lora_alpha=settings.alpha / settings.rank * options["init_rank"],
        deltaT=options["interval"],
        orth_reg_weight=options["orthogonal"],
        # Known when training begins; the callback sets what goes with it.
        total_step=1,
    )


# What PEFT is told, but for the layers.
_CONFIGS: dict[str, Callable[[TrainSettings], Any]] = {
    "lora": _lora,
    "rslora": lambda s: _lora(s, use_rslora=True),
    "dora": lambda s: _lora(s, use_dora=True),
    "olora": lambda s: _lora(s, init_lora_weights="olora"),
    "pissa": lambda s: _lora(s, init_lora_weights="pissa"),
    "adalora": _adalora,
    "sorsa": lambda s: tuners.SorsaConfig(r=s.rank),
    "sorsa-noreg": lambda s: tuners.SorsaConfig(r=s.rank),
    "milora": lambda s: tuners.MiloraConfig(r=s.rank),
    "svf": lambda s: tuners.SvfConfig(),
    "svft": lambda s: tuners.SvftConfig(seed=s.seed, **s.options),
    "lora-xs": lambda s: tuners.LoraXsConfig(r=s.rank, **s.options),
}
