"""Spectra: what fine-tuning did to a model's singular spectrum.

Names are loaded when they are first used, so that importing the package costs nothing and the
core works without Transformers, PEFT and Streamlit.
"""

from __future__ import annotations

import importlib
from typing import Any

# Every public name and where it lives, with the extra that it needs beyond the core.
_PUBLIC = {
    "Recorder": ("spectra.recording", None),
    "SpectraCallback": ("spectra.recording.callback", "train"),
    "LightningCallback": ("spectra.recording.lightning", "lightning"),
    "Alert": ("spectra.recording.alerts", None),
    "SorsaConfig": ("spectra.methods", "train"),
    "SorsaRegularizerCallback": ("spectra.training.regularizer", "train"),
    "orthonormal_regularizer": ("spectra.methods", "train"),
    "add_regularizer_gradient": ("spectra.methods", "train"),
    "analyze": ("spectra.analysis", None),
    "estimate": ("spectra.analysis", None),
    "watch": ("spectra.analysis", None),
    "export": ("spectra.exporting", "train"),
    "Run": ("spectra.store", None),
    "find_runs": ("spectra.store", None),
    "figures": ("spectra.figures", None),
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'spectra' has no attribute {name!r}")
    module_name, extra = _PUBLIC[name]
    module = load(module_name, extra)
    value = module if module_name == f"spectra.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


def load(module: str, extra: str | None) -> Any:
    """Import a module of ours; if a library is missing, say which extra brings it.

    Raises
    ------
    ModuleNotFoundError
        If the extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").split(".")[0] in ("spectra", "checkpoints_index"):
            raise
        raise ModuleNotFoundError(
            f"{module} needs {error.name}, which is not installed. Install Spectra with its "
            f'extra "{extra}": pip install ".[{extra}]" in a clone.',
            name=error.name,
        ) from error
