"""The SORSA tuner: finds the target layers and replaces them."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from spectra.methods.sorsa.config import SorsaConfig
from spectra.methods.sorsa.layer import SorsaLinear


class SorsaModel(BaseTuner):
    """A model whose chosen linear layers are adapted by SORSA; ``get_peft_model`` makes it.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Section 4.
    """

    prefix: str = "sorsa_"
    tuner_layer_cls = SorsaLinear
    target_module_mapping = {
        model: list(names)
        for model, names in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.items()
    }

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: SorsaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, SorsaLinear):
            target.update_layer(adapter_name, peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear):
            raise ValueError(
                f"SORSA adapts torch.nn.Linear layers, but {current_key} is a "
                f"{type(base).__name__}. Leave it out with exclude_modules."
            )
        layer = SorsaLinear(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            # An adapter added beside the active one is not trained until it is made active.
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)
