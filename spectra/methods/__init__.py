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
from spectra.methods.svf import SvfConfig, SvfLinear, SvfModel
from spectra.methods.svft import SvftConfig, SvftLinear, SvftModel

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
    "SvfConfig",
    "SvfLinear",
    "SvfModel",
    "SvftConfig",
    "SvftLinear",
    "SvftModel",
    "add_regularizer_gradient",
    "orthonormal_regularizer",
]
