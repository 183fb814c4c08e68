"""Where this machine keeps what can be made again: indices of folders, decompositions of bases."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$SPECTRA_CACHE``, else ``$XDG_CACHE_HOME/spectra``, else ``~/.cache/spectra``."""
    if named := os.environ.get("SPECTRA_CACHE"):
        return Path(named).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if Path(caches).is_absolute():  # others are to be ignored, says the specification
        return Path(caches) / "spectra"
    try:
        return Path.home() / ".cache" / "spectra"
    except RuntimeError:  # a user without a home: a folder that cannot be written
        return Path(os.devnull) / "spectra"
