"""The tuner: finds the target layers and replaces them."""

from __future__ import annotations

from typing import Any

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from spectra.methods.core.config import TunerConfig
from spectra.methods.core.layer import TunerLayer


class TunerModel(BaseTuner):
    """A model whose chosen linear layers are adapted; ``get_peft_model`` makes it."""

    tuner_layer_cls: type[TunerLayer[Any]]
    target_module_mapping = {
        model: list(names)
        for model, names in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.items()
    }

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: TunerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear):
            raise ValueError(
                f"{self.tuner_layer_cls.method} adapts torch.nn.Linear layers, but {current_key} "
                f"is a {type(base).__name__}. Leave it out with exclude_modules."
            )
        layer = self.tuner_layer_cls(target, adapter_name, peft_config, key=current_key)
        if adapter_name not in self.active_adapters:
            # An adapter added beside the active one is not trained until it is made active.
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def register(config: type[TunerConfig], model: type[TunerModel]) -> None:
    """Make a tuner known to PEFT, for making, saving and loading adapters."""
    PEFT_TYPE_TO_CONFIG_MAPPING[config.method] = config  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[config.method] = model  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[config.method] = model.prefix  # type: ignore[index]
