"""SORSA: singular values and orthonormal regularized singular vectors adaptation."""

from spectra.methods.core.model import register
from spectra.methods.sorsa.config import SorsaConfig
from spectra.methods.sorsa.layer import SorsaLinear
from spectra.methods.sorsa.model import SorsaModel
from spectra.methods.sorsa.regularizer import add_regularizer_gradient, orthonormal_regularizer

register(SorsaConfig, SorsaModel)

__all__ = [
    "SorsaConfig",
    "SorsaLinear",
    "SorsaModel",
    "add_regularizer_gradient",
    "orthonormal_regularizer",
]
