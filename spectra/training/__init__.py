"""The bundled trainer: data, settings, methods by name, the training loop.

What needs Transformers and PEFT is in its modules, so that `prompts`, `generate` and `settings`
import without them.
"""

from spectra.training.prompts import PROMPT
from spectra.training.settings import TrainSettings, table_2

__all__ = ["PROMPT", "TrainSettings", "table_2"]
