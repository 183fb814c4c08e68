"""Matplotlib figures as PGF pictures, without a LaTeX to measure their words."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_pgf import RendererPgf
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

from spectra.figures.tex import DEFINITIONS, escape

_HEADER = r"""%% A figure by Spectra, to be read by \input in a document that says \usepackage{pgf}.
%% Its words are set in the document's own fonts.
\begingroup%
\makeatletter%
"""
_MACROS = (
    DEFINITIONS,
    # Left and bottom in inches; scale and rotation; sides; colour, font, words.
    r"\def\spectratext#1#2#3#4#5#6#7{\begin{pgfscope}\pgftransformshift{\pgfqpoint{#1in}{#2in}}"
    r"#3\pgftext[#4]{\color[HTML]{#5}#6\selectfont #7}\end{pgfscope}}",
    # Colour; left, bottom, width and height in inches.
    r"\def\spectracell#1#2#3#4#5{\definecolor{currentfill}{HTML}{#1}\pgfsetfillcolor{currentfill}"
    r"\pgfpathrectangle{\pgfqpoint{#2in}{#3in}}{\pgfqpoint{#4in}{#5in}}\pgfusepath{fill}}",
    r"\def\spectralineto#1#2{\pgfpathlineto{\pgfqpoint{#1in}{#2in}}}",
    r"\def\spectramoveto#1#2{\pgfpathmoveto{\pgfqpoint{#1in}{#2in}}}",
)
# A path's corners are most of a picture; a tenth of a thousandth of an inch is fine enough.
_CORNER = re.compile(r"\\pgfpath(lineto|moveto)\{\\pgfqpoint\{(-?[\d.]+)in\}\{(-?[\d.]+)in\}\}")
_FOOTER = r"""\end{pgfpicture}%
\makeatother%
\endgroup%
"""
# Computer Modern has no letters smaller than 5 points: below, larger ones are scaled.
_SMALLEST_FONT = 5.0
# Fine enough that letters fitted to pixels are as wide as on paper.
_MEASURED_DPI = 720
# Cells reach under their right and upper neighbours, inches: no hairlines of white between them.
_UNDERLAP = 0.004


def picture(figure: Figure) -> str:
    """Return `figure` as a PGF picture.

    Parameters
    ----------
    figure : matplotlib.figure.Figure

    Returns
    -------
    str
        LaTeX, the same for the same figure. All is drawn as paths: Matplotlib's own PGF would
        put images into files beside it.

    Notes
    -----
    Matplotlib's backend asks a running LaTeX how wide every word is, and needs one installed. Here
    they are measured in the figure's own fonts; the document's are as wide to a few per cent, and
    words stay centred or aligned where they were.
    """
    page = io.StringIO()
    page.write(_HEADER)
    for macro in _MACROS:
        page.write(f"{macro}%\n")
    width, height = figure.get_size_inches()
    page.write("\\begin{pgfpicture}%\n")
    page.write(
        f"\\pgfpathrectangle{{\\pgfpointorigin}}{{\\pgfqpoint{{{width:f}in}}{{{height:f}in}}}}%\n"
        "\\pgfusepath{use as bounding box, clip}%\n"
    )
    figure.draw(_Renderer(figure, page))
    page.write(_FOOTER)
    return _CORNER.sub(_short, page.getvalue())


def _short(corner: re.Match[str]) -> str:
    x, y = float(corner[2]), float(corner[3])
    return f"\\spectra{corner[1]}{{{x:.4f}}}{{{y:.4f}}}"


class _Renderer(RendererPgf):
    def __init__(self, figure: Figure, page: io.StringIO) -> None:
        super().__init__(figure, page)
        self._measurer = RendererAgg(1, 1, _MEASURED_DPI)
        # Lines of a broken text come one by one and do not tell to which side they are aligned.
        self._centred = {
            line
            for text in figure.findobj(Text)
            if text.get_horizontalalignment() == "center"
            for line in text.get_text().split("\n")
        }

    def get_text_width_height_descent(
        self, s: str, prop: FontProperties, ismath: Any
    ) -> tuple[float, float, float]:
        measures = self._measurer.get_text_width_height_descent(s, prop, False)
        width, height, descent = (m * self.dpi / _MEASURED_DPI for m in measures)
        return width, height, descent

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: FontProperties, angle: float,
        ismath: Any = False, mtext: Text | None = None,
    ) -> None:  # fmt: skip
        clip = gc.get_clip_rectangle()
        if clip is not None and not clip.contains(x, y):
            return
        left, bottom, sides = self._place(x, y, s, prop, angle, mtext)
        size = float(prop.get_size_in_points())
        scale = min(1.0, size / _SMALLEST_FONT)
        turn = f"\\pgftransformscale{{{scale:.4f}}}" if scale < 1 else ""
        turn += f"\\pgftransformrotate{{{angle:g}}}" if angle else ""
        font = f"\\fontsize{{{size / scale:.2f}bp}}{{{1.2 * size / scale:.2f}bp}}"
        font += r"\sffamily" if "Sans" in prop.get_family()[0] else r"\rmfamily"
        font += r"\itshape" if prop.get_style() != "normal" else ""
        font += r"\bfseries" if prop.get_weight() == "bold" else ""
        colour = to_hex(gc.get_rgb()[:3])[1:].upper()
        self.fh.write(
            f"\\spectratext{{{left:.4f}}}{{{bottom:.4f}}}{{{turn}}}{{{sides}}}"
            f"{{{colour}}}{{{font}}}{{{escape(s)}}}%\n"
        )

    def _place(
        self, x: float, y: float, s: str, prop: FontProperties, angle: float, mtext: Text | None
    ) -> tuple[float, float, str]:
        """Return where a text stands, inches, and which of its sides stand there."""
        sides = ["left", "base"]
        if mtext is not None and (angle == 0 or mtext.get_rotation_mode() == "anchor"):
            # As it was placed, so that it stays centred though the document's letters differ.
            place = mtext.get_transform().transform(mtext.get_unitless_position())
            across = {"left": "left", "right": "right", "center": ""}
            up = {"top": "top", "bottom": "bottom", "baseline": "base", "center": ""}
            height = up.get(mtext.get_verticalalignment())
            x, y = place[0], y if height is None else place[1]
            sides = [across[mtext.get_horizontalalignment()], "base" if height is None else height]
        elif s in self._centred:
            along = self.get_text_width_height_descent(s, prop, False)[0] / 2
            x, y = (
                x + along * math.cos(math.radians(angle)),
                y + along * math.sin(math.radians(angle)),
            )
            sides = ["base"]
        return x / self.dpi, y / self.dpi, ",".join(filter(None, sides))

    def draw_quad_mesh(
        self, gc: Any, master_transform: Any, meshWidth: int, meshHeight: int,  # noqa: N803
        coordinates: Any, offsets: Any, offsetTrans: Any, facecolors: Any,  # noqa: N803
        antialiased: bool, edgecolors: Any,
    ) -> None:  # fmt: skip
        corners = master_transform.transform(np.asarray(coordinates).reshape(-1, 2)) / self.dpi
        corners = corners.reshape(meshHeight + 1, meshWidth + 1, 2)
        across, up = corners[0, :, 0], corners[:, 0, 1]
        shades = np.broadcast_to(facecolors, (meshHeight * meshWidth, 4))
        shades = shades.reshape(meshHeight, meshWidth, 4)
        if np.ptp(across) == 0:
            # A colour bar that lies on its side runs down its columns.
            across, up = corners[:, 0, 0], corners[0, :, 1]
            shades = shades.swapaxes(0, 1)
        self.fh.write("\\begin{pgfscope}%\n")
        self._print_pgf_clip(gc)
        for row in range(len(shades)):
            low, high = sorted(up[row : row + 2])
            for start, end in _runs(shades[row]):
                shade = shades[row, start]
                if shade[3] == 0:
                    continue
                left, right = sorted((across[start], across[end]))
                width, height = right - left + _UNDERLAP, high - low + _UNDERLAP
                self.fh.write(
                    f"\\spectracell{{{to_hex(shade[:3])[1:].upper()}}}{{{left:.4f}}}{{{low:.4f}}}"
                    f"{{{width:.4f}}}{{{height:.4f}}}%\n"
                )
        self.fh.write("\\end{pgfscope}%\n")


def _runs(shades: Any) -> list[tuple[int, int]]:
    """Return where neighbours of one colour begin and end."""
    changes = np.flatnonzero((shades[1:] != shades[:-1]).any(axis=1)) + 1
    edges = [0, *(int(c) for c in changes), len(shades)]
    return list(zip(edges, edges[1:], strict=False))
