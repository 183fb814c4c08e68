"""SORSA: singular values and orthonormal regularized singular vectors adaptation."""

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from spectra.methods.sorsa.config import PEFT_TYPE, SorsaConfig
from spectra.methods.sorsa.layer import SorsaLinear
from spectra.methods.sorsa.model import SorsaModel
from spectra.methods.sorsa.regularizer import add_regularizer_gradient, orthonormal_regularizer

PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = SorsaConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = SorsaModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = SorsaModel.prefix  # type: ignore[index]

__all__ = [
    "SorsaConfig",
    "SorsaLinear",
    "SorsaModel",
    "add_regularizer_gradient",
    "orthonormal_regularizer",
]
