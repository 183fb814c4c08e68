"""LoRAs that start from a part of W_0 and subtract it from the base: PiSSA and OLoRA.

What they train on is a residual, which nobody else has; so what a run gives back is written as a
plain LoRA on W_0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

_ADAPTER = "default"


def residual_lora(
    model: PreTrainedModel, config: peft.LoraConfig, initial: Mapping[str, Tensor] | None
) -> peft.PeftModel:
    """Return `model` with the LoRA and the residual base that PEFT makes of W_0.

    Parameters
    ----------
    model : PreTrainedModel
        With the weights W_0; changed in place.
    config : peft.LoraConfig
        With an `init_lora_weights` that rewrites the base.
    initial : mapping of str to Tensor, optional
        The initial factors, if they are known: a decomposition done again, on another machine or
        with another number of threads, might differ in signs and in the last bits, and so would
        the residual.

    Raises
    ------
    ValueError
        If the rank exceeds min(m, n) of a layer.
    """
    for name, layer in model.named_modules():
        if check_target_module_exists(config, name) and hasattr(layer, "weight"):
            limit = min(layer.weight.shape)
            if config.r > limit:
                raise ValueError(
                    f"rank must be at most min(m, n) = {limit} of {name}, got {config.r}."
                )
    if initial is None:
        return peft.get_peft_model(model, config)
    start, config.init_lora_weights = config.init_lora_weights, True
    adapted = peft.get_peft_model(model, config)
    config.init_lora_weights = start
    with torch.no_grad():
        for path, layer in _layers(adapted):
            a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            a.copy_(initial[f"{path}.lora_A"])
            b.copy_(initial[f"{path}.lora_B"])
            part = layer.scaling[_ADAPTER] * b @ a  # as PEFT multiplies, to the bit
            weight = layer.get_base_layer().weight
            weight.sub_(part.T if layer.fan_in_fan_out else part)
    return adapted


def initial_factors(adapted: nn.Module) -> dict[str, Tensor]:
    """Return copies of the factors of an adapter that has not been trained yet, by layer."""
    return {
        f"{path}.{name}": getattr(layer, name)[_ADAPTER].weight.detach().cpu().clone()
        for path, layer in _layers(adapted)
        for name in ("lora_A", "lora_B")
    }


def save_as_lora(adapted: Any, initial: Mapping[str, Tensor], folder: Path) -> None:
    """Write W_t − W_0 = s (B A − B_0 A_0) as a LoRA of rank 2r on W_0.

    Its factors are the trained and the initial ones side by side, so nothing is rounded. (PEFT's
    own conversion does the same, but only from files.)

    Parameters
    ----------
    adapted : PeftModel
        From `residual_lora`, trained.
    initial : mapping of str to Tensor
        From `initial_factors`.
    folder : Path
        Where to write; made if missing.
    """
    state = peft.get_peft_model_state_dict(adapted)
    tensors = {}
    for name, trained in state.items():
        path, factor, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        begun = initial[f"{path}.{factor}"]
        parts = [trained.cpu(), begun if factor == "lora_A" else -begun]
        tensors[name] = torch.cat(parts, dim=0 if factor == "lora_A" else 1).contiguous()
    config = copy.deepcopy(adapted.peft_config[_ADAPTER])
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    config.init_lora_weights = True
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _layers(adapted: nn.Module) -> list[tuple[str, Any]]:
    return [
        (name.removeprefix("base_model.model."), layer)
        for name, layer in adapted.named_modules()
        if isinstance(layer, LoraLayer)
    ]
