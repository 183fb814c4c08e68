"""The pages, in the order of the menu."""

from __future__ import annotations

from pathlib import Path

_VIEWS = Path(__file__).resolve().parent / "views"

PAGES = {
    "overview": "Overview",
    "trajectories": "Trajectories",
    "layers": "Layers",
    "matrix": "Matrix",
    "spectrum": "Spectrum",
    "conditioning": "Conditioning",
    "training": "Training",
    "compare": "Compare",
}
"""Title of every page by the name of its file, which is also its part of the URL."""


def view(page: str) -> Path:
    """Return the file of a page."""
    return _VIEWS / f"{page}.py"
