"""Fine-tuning methods, as PEFT tuners; importing this registers them with PEFT."""

from spectra.methods.lora_xs import LoraXsConfig, LoraXsLinear, LoraXsModel
from spectra.methods.milora import MiloraConfig, MiloraLinear, MiloraModel
from spectra.methods.sorsa import (
    SorsaConfig,
    SorsaLinear,
    SorsaModel,
    add_regularizer_gradient,
    orthonormal_regularizer,
)

__all__ = [
    "LoraXsConfig",
    "LoraXsLinear",
    "LoraXsModel",
    "MiloraConfig",
    "MiloraLinear",
    "MiloraModel",
    "SorsaConfig",
    "SorsaLinear",
    "SorsaModel",
    "add_regularizer_gradient",
    "orthonormal_regularizer",
]
