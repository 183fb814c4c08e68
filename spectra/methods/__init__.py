"""Fine-tuning methods, as PEFT tuners; importing this registers them with PEFT."""

from spectra.methods.sorsa import (
    SorsaConfig,
    SorsaLinear,
    SorsaModel,
    add_regularizer_gradient,
    orthonormal_regularizer,
)

__all__ = [
    "SorsaConfig",
    "SorsaLinear",
    "SorsaModel",
    "add_regularizer_gradient",
    "orthonormal_regularizer",
]
