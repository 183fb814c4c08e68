"""The hook: what to record of a model in training, when, and the snapshot writer.

`SpectraCallback` is in `spectra.recording.callback`, because it needs Transformers.
"""

from spectra.recording.recorder import Recorder

__all__ = ["Recorder"]
