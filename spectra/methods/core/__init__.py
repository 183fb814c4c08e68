"""What every tuner shares: its settings, the frame of its layer, and its model."""

from spectra.methods.core.config import TunerConfig
from spectra.methods.core.layer import TunerLayer
from spectra.methods.core.model import TunerModel, register

__all__ = ["TunerConfig", "TunerLayer", "TunerModel", "register"]
