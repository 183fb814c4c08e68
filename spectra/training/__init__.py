"""The bundled trainer: data, settings, methods by name, the training loop.

What needs Transformers and PEFT is in its modules, so that `methods`, `prompts`, `generate` and
`settings` import without them.
"""

from spectra.training.methods import METHODS, Method
from spectra.training.prompts import PROMPT
from spectra.training.settings import PRESETS, TrainSettings, preset, table_2

__all__ = ["METHODS", "PRESETS", "PROMPT", "Method", "TrainSettings", "preset", "table_2"]
