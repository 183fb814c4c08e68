"""Colours, dashes and sizes: what both renderers share, so that one figure looks alike twice."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spectra.figures.chart import Ink, Map

PAPER_WIDTH = 6.75
"""Width of a figure across two columns, inches."""
FONT_SIZE = 9.0
"""Size of axis labels and titles on paper, points."""
SMALL_FONT_SIZE = 7.0
"""Size of tick labels, legends and captions on paper, points."""
PNG_DPI = 300
PAPER_COLUMNS, SCREEN_COLUMNS = 3, 2
"""Panels in a row where there are many: a page must not grow long, a screen scrolls."""
FONT = "DejaVu Sans"
"""Comes with Matplotlib and has the Greek letters, so a figure looks the same everywhere."""


@dataclass(frozen=True)
class Preset:
    """How a figure is set for one place in one venue's papers.

    Attributes
    ----------
    width : float
        Inches, exactly.
    size : float
        Font size of axis labels and titles, points.
    small : float
        Font size of tick labels and the legend, points.
    fonts : tuple of str
        Families; a letter that the first lacks is taken from the next.
    """

    width: float
    size: float
    small: float
    # Times-like, as all four venues' papers are. It lacks most sub- and superscripts; DejaVu has
    # them. Both come with Matplotlib.
    fonts: tuple[str, ...] = ("STIXGeneral", "DejaVu Serif")


# Captions are set in 9 or 10 points at all four; a figure's letters are a little smaller. A half
# leaves a gap between two figures that stand side by side.
PRESETS = {
    # iclr2025_conference.sty: \textwidth 5.5in.
    "iclr": Preset(5.5, 9, 8),
    "iclr-half": Preset(2.7, 8, 7),
    # neurips_2025.sty: \newgeometry{textheight=9in, textwidth=5.5in, …}.
    "neurips": Preset(5.5, 9, 8),
    "neurips-half": Preset(2.7, 8, 7),
    # icml2025.sty: \setlength\textwidth{6.75in}, \setlength\columnsep{0.25in}; captions in 9 pt.
    "icml-1": Preset(3.25, 8, 7),
    "icml-2": Preset(6.75, 9, 8),
    # acl.sty: a4paper, margin=2.5cm, \setlength\columnsep{0.6cm}: 16 cm and 7.7 cm.
    "acl-1": Preset(7.7 / 2.54, 8, 7),
    "acl-2": Preset(16 / 2.54, 9, 8),
}
"""Presets by the venue's name; ``-1`` is one column of two, ``-half`` half of one."""

# Anchors of Matplotlib's viridis and plasma, evenly spaced from 0 to 1.
_VIRIDIS = (
    "#440154 #482878 #3e4989 #31688e #26828e #1f9e89 #35b779 #6ece58 #b5de2b #fde725"
).split()
_PLASMA = (
    "#0d0887 #46039f #7201a8 #9c179e #bd3786 #d8576b #ed7953 #fb9f3a #fdca26 #f0f921"
).split()
# The ends of a map that vanish on paper (yellow) or on a dark screen (deep blue) are left out.
_ON_LIGHT = (0.0, 0.82)
_ON_DARK = (0.3, 1.0)

# Paths through OKLab (Ottosson 2020) in equal steps. Nothing, or no change, is near the ground's
# own lightness, and yet no part of it: an empty cell looks otherwise.
_SIZES_ON_LIGHT = (
    "#cff0ed #a3ddde #74c9d2 #51b1cd #3c97c7 #377cbd #3961aa #3b4695 #3b3074 #331e51"
).split()
_SIZES_ON_DARK = (
    "#413267 #464587 #445ba4 #4174b9 #3e8eca #3fa8d1 #52c0d5 #78d5d7 #a4e8dd #cefae9"
).split()
_TURNS_ON_LIGHT = (
    "#0e4786 #2b72b0 #5c9ccf #a1c3dd #e0e4e6 #e3b69b #d88350 #b35727 #86310d"
).split()
_TURNS_ON_DARK = ("#97ddf9 #5db2e6 #4688bf #45627d #3b3d40 #7e5541 #bf6d3d #ea9753 #fbd094").split()

# Found by a search over hue and chroma at six lightnesses that greys tell apart: the two most
# alike differ by 8 or more (CIEDE2000) for colour-blind eyes too. Of Okabe and Ito's palette
# three colours are too faint on white for a line. Lightness alternates so that the three runs of
# one dash are far apart in grey; see `dash`.
_RUNS_ON_LIGHT = ("#00349A", "#C5441A", "#3B8F52", "#9B005C", "#785546", "#009BDB")
_RUNS_ON_DARK = ("#4477DD", "#FF9266", "#8FD694", "#CC5C9C", "#B8991A", "#A6EEFF")
# The same search away from the hues of viridis, over whose numbers these lines run; black or
# white first. The two most alike of the eight differ by 17 or more (CIE 1976).
_MODULES_ON_LIGHT = ("#111111 #D9541E #8A00B0 #713400 #91898E #970050 #64985F #4357FA").split()
_MODULES_ON_DARK = ("#F5F5F5 #FFB066 #F83CC1 #A9BF00 #8A8A8A #CA6D47 #DA3E00 #FB8BFF").split()

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Plotly's names; `matplotlib_renderer` translates them."""
MARKERS = ("circle", "square", "triangle-up", "diamond", "x")
LETTERINGS = (
    ("normal", "normal", "upright"),
    ("italic", "normal", "italic"),
    ("normal", "bold", "bold"),
    ("italic", "bold", "bold italic"),
)
"""(style, weight, name) of the layer numbers, by module."""


# Matplotlib's settings are global, and the dashboard draws downloads in threads of their own.
_MATPLOTLIB_LOCK = threading.RLock()


@contextmanager
def matplotlib_settings(settings: Mapping[Any, object]) -> Iterator[None]:
    """Apply Matplotlib `settings` within the block, for one thread at a time."""
    import matplotlib as mpl

    with _MATPLOTLIB_LOCK, mpl.rc_context(dict(settings)), warnings.catch_warnings():
        # A run named in a script that the font lacks is drawn as boxes; the rest stands.
        warnings.filterwarnings("ignore", message=r"Glyph [\s\S]* missing from")
        yield


def step_colours(dark: bool = False) -> list[str]:
    """Return anchors of the colour map of the steps (viridis), first step to last."""
    return _between(_VIRIDIS, *(_ON_DARK if dark else _ON_LIGHT))


def layer_colours(dark: bool = False) -> list[str]:
    """Return anchors of the colour map of the layers (plasma), first layer to last."""
    return _between(_PLASMA, *(_ON_DARK if dark else _ON_LIGHT))


def map_colours(name: Map, dark: bool = False) -> list[str]:
    """Return evenly spaced anchors of a colour map, lowest value first, as ``#rrggbb``."""
    if name == "step":
        return step_colours(dark)
    if name == "layer":
        return layer_colours(dark)
    if name == "size":
        return _SIZES_ON_DARK if dark else _SIZES_ON_LIGHT
    return _TURNS_ON_DARK if dark else _TURNS_ON_LIGHT


def module_colour(index: int, dark: bool = False) -> str:
    """Return the colour of the `index`-th module's mean path."""
    colours = _MODULES_ON_DARK if dark else _MODULES_ON_LIGHT
    return colours[index % len(colours)]


def run_colour(index: int, dark: bool = False) -> str:
    """Return the colour of the `index`-th run; with `dash` it differs for the first 36 runs."""
    colours = _RUNS_ON_DARK if dark else _RUNS_ON_LIGHT
    return colours[index % len(colours)]


def dash(index: int) -> str:
    """Return the line style of the `index`-th run or module.

    Every further round of the colours is moved against the dashes by two, so that runs of one
    dash differ in lightness also in grey.
    """
    rounds = index // len(_RUNS_ON_LIGHT)
    return DASHES[(index + 2 * rounds + rounds // 3) % len(DASHES)]


def marker(index: int) -> str:
    """Return the marker of the `index`-th module's mean path."""
    return MARKERS[index % len(MARKERS)]


def lettering(index: int) -> tuple[str, str, str]:
    """Return style, weight and name of the numbers of the `index`-th module."""
    return LETTERINGS[index % len(LETTERINGS)]


def colour(ink: Ink, dark: bool = False) -> str:
    """Return the shade of an ink, as ``#rrggbb``."""
    if ink.kind == "run":
        return run_colour(int(ink.place), dark)
    if ink.kind == "module":
        return module_colour(int(ink.place), dark)
    if ink.kind == "step":
        return blend(step_colours(dark), ink.place)
    if ink.kind == "layer":
        return blend(layer_colours(dark), ink.place)
    if ink.kind == "text":
        return "#e8e8e8" if dark else "#222222"
    return "#888888"


def blend(anchors: list[str], fraction: float) -> str:
    """Return the colour at `fraction` (0 to 1) of evenly spaced `anchors`, as ``#rrggbb``."""
    place = min(max(fraction, 0.0), 1.0) * (len(anchors) - 1)
    low = min(math.floor(place), len(anchors) - 2)
    share = place - low
    pairs = zip(_channels(anchors[low]), _channels(anchors[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def fraction(value: float, limits: tuple[float, float]) -> float:
    """Return where `value` lies between `limits`; 1 where they are equal."""
    low, high = limits
    return 1.0 if high <= low else (value - low) / (high - low)


def columns_for(panels: int, most: int) -> int:
    """Return how many panels stand in a row, `most` where there are five or more."""
    return {1: 1, 2: 2, 3: 3, 4: 2}.get(panels, most)


def number_size(numbers: int, area: float) -> float:
    """Return the font size of layer numbers, points, so that they fit.

    Parameters
    ----------
    numbers : int
        How many stand in the fullest panel.
    area : float
        The panel's area in square inches.

    Returns
    -------
    float
        Between 3.2, still told apart when the page is enlarged, and 7.
    """
    # A number of size s covers about 0.9 s² square points; they may fill a sixth of the panel.
    return float(min(7.0, max(3.2, math.sqrt(area * 72**2 / 6 / 0.9 / max(numbers, 1)))))


def power_of_ten(value: float) -> str:
    """Return a tick of a logarithmic axis as plain text, for example ``10⁻³``."""
    exponent = round(math.log10(value))
    digits = str(abs(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{'⁻' if exponent < 0 else ''}{digits}"


def tick(value: float, powers: bool) -> str:
    """Return a tick of a linear axis: ``0.002``, or ``2e−5`` where the axis needs `powers`."""
    if value == 0:
        return "0"
    text = f"{value:.6g}"
    if powers:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


def _between(anchors: list[str], low: float, high: float) -> list[str]:
    return [blend(anchors, low + (high - low) * i / 9) for i in range(10)]


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
