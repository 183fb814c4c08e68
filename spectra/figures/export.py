"""Figures to bytes and to files, the same bytes for the same data."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from spectra.figures.style import PNG_DPI, matplotlib_settings

Backend = Literal["matplotlib", "plotly"]

_BACKENDS: dict[str, Backend] = {
    ".pdf": "matplotlib",
    ".svg": "matplotlib",
    ".pgf": "matplotlib",
    ".png": "matplotlib",
    ".html": "plotly",
}
SCREEN_CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "showSendToCloud": False,
    "doubleClick": "reset",
    "modeBarButtonsToRemove": ["autoScale2d"],
}
"""Plotly's options wherever a figure is shown: no logo, no button that uploads the data, and a
double click goes back to the axes as drawn, not to whatever would show every mark."""

# Names inside an SVG are hashes salted with this, instead of with a random number.
_SALT = "spectra"


# An SVG names its fonts and holds none: where they are missing, those of like widths serve.
_SVG_FONTS = {
    b"'DejaVu Sans'": b"'DejaVu Sans', Verdana, sans-serif",
    b"'STIXGeneral', 'DejaVu Serif'": (
        b"'STIXGeneral', 'STIX Two Text', 'Times New Roman', Times, 'DejaVu Serif', serif"
    ),
}


def backend_for(path: Path | str) -> Backend:
    """Return the renderer that a file of this name needs.

    Parameters
    ----------
    path : Path or str
        Ends in .pdf, .svg, .pgf or .png (``"matplotlib"``) or in .html (``"plotly"``).

    Raises
    ------
    ValueError
        If it ends in anything else.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _BACKENDS:
        raise ValueError(
            f"A figure is written as .pdf, .svg, .pgf, .png or .html, got {str(path)!r}. "
            "Give a file name with one of these endings."
        )
    return _BACKENDS[suffix]


def to_bytes(figure: Any, suffix: str) -> bytes:
    """Return the content of the file that `save` would write.

    Parameters
    ----------
    figure : matplotlib or plotly Figure
    suffix : str
        ``".pdf"``, ``".svg"``, ``".pgf"`` or ``".png"`` of a matplotlib figure, ``".html"`` of a
        plotly one.

    Raises
    ------
    ValueError
        If the figure's renderer cannot write that format.
    """
    wanted = backend_for(f"figure{suffix}")
    is_plotly = hasattr(figure, "to_html")
    if is_plotly != (wanted == "plotly"):
        raise ValueError(
            f"A {'plotly' if is_plotly else 'matplotlib'} figure cannot be written as {suffix}. "
            f'Draw it with backend="{wanted}".'
        )
    if is_plotly:
        return _html(figure).encode()
    return _printed(figure, suffix.lower().lstrip("."))


def save(figure: Any, path: Path | str) -> Path:
    r"""Write a figure to `path`, whole or not at all.

    The same data give the same bytes: no date, no random names. Fonts are embedded (PDF), text
    stays text (PDF, SVG, PGF), and an HTML page holds all it needs, so that it opens without a
    network. A PGF picture is read by ``\input`` in a document that says ``\usepackage{pgf}``; its
    words are set in the document's fonts, and no LaTeX is needed to write it.

    Parameters
    ----------
    figure : matplotlib or plotly Figure
        As `trajectory`, `curves` and `training` return it; see `backend_for`.
    path : Path or str
        Ends in .pdf, .svg, .pgf, .png or .html. Its folder is created; an existing file is
        replaced.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        If the ending does not fit the figure's renderer.
    OSError
        If the file cannot be written; an earlier one of that name is untouched.
    """
    path = Path(path)
    write_whole(path, to_bytes(figure, path.suffix or str(path)))
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".spectra-tmp-", suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _printed(figure: Any, form: str) -> bytes:
    metadata: dict[str, dict[str, str | None]] = {
        "pdf": {"CreationDate": None},
        "svg": {"Date": None},
        "png": {},
    }
    options = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": _SALT}
    with matplotlib_settings(options):
        if form == "pgf":
            from spectra.figures.pgf import picture

            return picture(figure).encode()
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, metadata=metadata[form], dpi=PNG_DPI)
    content = buffer.getvalue()
    if form == "svg":
        for fonts, wider in _SVG_FONTS.items():
            content = content.replace(b"font-family: %b;" % fonts, b"font-family: %b;" % wider)
    return content


def _html(figure: Any) -> str:
    from plotly.io import to_html

    from spectra.figures.screen_hover import without_picks

    return str(
        to_html(
            without_picks(figure.to_dict()),
            include_plotlyjs=True,
            full_html=True,
            div_id="spectra-figure",
            config=SCREEN_CONFIG | {"responsive": True},
            validate=False,
        )
    )
