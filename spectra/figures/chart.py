"""A figure as plain data: what stands where and what it means, before any library draws it.

Every figure is described once as a `Chart`; `matplotlib_renderer` draws it for paper and
`plotly_renderer` for the screen. A renderer knows marks, never quantities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Map = Literal["step", "layer", "size", "turn"]
"""Colour maps: of the steps, of the layers, of a size from 0 up, of a change around 0."""


@dataclass(frozen=True)
class Ink:
    """A colour by its meaning; `style.colour` knows its shade on paper and on a dark screen.

    Attributes
    ----------
    kind : str
        ``"run"`` or ``"module"``, told apart by number; ``"step"`` or ``"layer"``, a place on a
        colour map; ``"grey"`` for what lies behind the data; ``"text"``.
    place : float
        Which run or module, counting from 0; or where on the map, from 0 to 1.
    """

    kind: Literal["run", "module", "step", "layer", "grey", "text"]
    place: float = 0.0


GREY = Ink("grey")


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    Attributes
    ----------
    label : str
        What stands beside it, with the unit.
    symbol : str
        The short name, for what a pointer shows.
    limits : (float, float)
        The first may be the larger, of an axis that runs downwards.
    log : bool
    integer : bool
        Whether it counts (steps, layers, indices), so that no tick lies between.
    ticks : tuple of (float, str)
        Places and labels, where the renderer shall not choose its own.
    """

    label: str
    symbol: str
    limits: tuple[float, float]
    log: bool = False
    integer: bool = False
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Pick:
    """The matrices behind the points of a mark, for a click; one entry a point.

    Attributes
    ----------
    run, module : str
    layers, steps : tuple of int
    """

    run: str
    module: str
    layers: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Hover:
    """What a pointer shows of a point, beside its place on the axes.

    Attributes
    ----------
    head : str
        First line: which run, module or layer this is.
    columns : tuple of (str, array)
        Names, and a value a point.
    """

    head: str
    columns: tuple[tuple[str, Floats], ...] = ()


@dataclass(frozen=True)
class Line:
    """Points joined by a line; NaN in `y` breaks it.

    Attributes
    ----------
    x, y : array of float
    ink : Ink
    width : float
        Points (1/72 inch) on paper.
    dash : str
        One of `style.DASHES`.
    opacity : float
    marker : str
        One of `style.MARKERS` at every point; a line of a single point gets one anyway.
    rim : bool
        Whether a rim of the ground's colour keeps it apart from what it crosses.
    entry : str
        Key of the legend entry that it belongs to; a click there hides it.
    hover : Hover or None
        None where a pointer shows nothing.
    pick : Pick or None
    """

    x: Floats
    y: Floats
    ink: Ink
    width: float = 1.2
    dash: str = "solid"
    opacity: float = 1.0
    marker: str = ""
    rim: bool = False
    entry: str = ""
    hover: Hover | None = None
    pick: Pick | None = None


@dataclass(frozen=True)
class Band:
    """The area between `low` and `high` over `x`."""

    x: Floats
    low: Floats
    high: Floats
    ink: Ink
    opacity: float = 0.12
    entry: str = ""


@dataclass(frozen=True)
class Numbers:
    """Points marked by short texts: layers by their numbers.

    Attributes
    ----------
    x, y : array of float
    texts : tuple of str
    places : array of float
        Where each stands on the colour map, 0 to 1.
    map : {"step", "layer"}
    lettering : int
        Which of `style.LETTERINGS`.
    size : float or None
        Points; None where the renderer shall make them fit.
    ink : Ink or None
        One colour for all of them, instead of the map's.
    entry, hover, pick
        As of `Line`.
    """

    x: Floats
    y: Floats
    texts: tuple[str, ...]
    places: Floats
    map: Map = "step"
    lettering: int = 0
    size: float | None = None
    ink: Ink | None = None
    entry: str = ""
    hover: Hover | None = None
    pick: Pick | None = None


@dataclass(frozen=True)
class Heat:
    """Cells whose colours are values, by the chart's colour bar.

    Attributes
    ----------
    x, y : array of float, ascending
        The cells' middles; cells meet half-way.
    values : array of shape (len(y), len(x))
        NaN where there is nothing; what lies beyond the colour bar has the colour of that end.
    symbol : str
        What the values are, for a pointer.
    head : str
    pick : Pick or None
        Here `layers` are those of `y` and `steps` those of `x`.
    """

    x: Floats
    y: Floats
    values: Floats
    symbol: str
    head: str = ""
    pick: Pick | None = None


@dataclass(frozen=True)
class Zone:
    """A shaded part of the panel, such as a noise floor.

    Attributes
    ----------
    x, y : (float or None, float or None)
        Its sides; None for the edge of the panel, however far it is zoomed.
    edge : bool
        Whether its upper side is drawn as a line.
    """

    x: tuple[float | None, float | None] = (None, None)
    y: tuple[float | None, float | None] = (None, None)
    edge: bool = False
    ink: Ink = GREY
    opacity: float = 0.22


@dataclass(frozen=True)
class Rule:
    """A straight line across the panel at one `x` or one `y`."""

    x: float | None = None
    y: float | None = None
    dash: str = "dot"
    width: float = 0.9
    ink: Ink = GREY


@dataclass(frozen=True)
class Frame:
    """The outline of a part of the panel that an inset enlarges."""

    x: tuple[float, float]
    y: tuple[float, float]


@dataclass(frozen=True)
class Note:
    """Words in the panel.

    Attributes
    ----------
    text : str
    y : float or None
        Height of the edge that it stands at, in the axis' unit; None for the panel's top.
    side : {"left", "right"}
    over : bool
        Whether it stands above that edge, or hangs below it.
    reading : str
        What a pointer shows.
    """

    text: str
    y: float | None = None
    side: Literal["left", "right"] = "left"
    over: bool = False
    reading: str = ""


Mark = Line | Band | Numbers | Heat | Zone | Rule | Frame | Note


@dataclass(frozen=True)
class Panel:
    """One pair of axes with what is drawn in it, later marks above earlier ones.

    Attributes
    ----------
    title : str
    x, y : Axis
    marks : tuple of Mark
    square : bool
        Whether a unit of `x` is as long as one of `y`.
    inset : Inset or None
    """

    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    square: bool = False
    inset: Inset | None = None


@dataclass(frozen=True)
class Inset:
    """A smaller panel within a panel.

    Attributes
    ----------
    place : (float, float, float, float)
        Left, bottom, width and height as parts of the outer panel.
    panel : Panel
    """

    place: tuple[float, float, float, float]
    panel: Panel


@dataclass(frozen=True)
class Entry:
    """One line of the legend; `key` is what the marks' `entry` names."""

    key: str
    name: str
    ink: Ink
    dash: str = "solid"
    marker: str = ""
    width: float = 1.4
    lettering: int = 0


@dataclass(frozen=True)
class ColourBar:
    """The scale of a colour map.

    Attributes
    ----------
    label : str
    map : Map
    limits : (float, float)
    log : bool
    ticks : tuple of float
        Empty where the renderer shall choose them.
    integer : bool
    """

    label: str
    map: Map
    limits: tuple[float, float]
    log: bool = False
    ticks: tuple[float, ...] = ()
    integer: bool = True


@dataclass(frozen=True)
class Chart:
    """A whole figure.

    Attributes
    ----------
    panels : tuple of Panel
    entries : tuple of Entry
        The legend.
    bar : ColourBar or None
    reading : str
        One line on how to read the figure; pages show it above.
    caption : str
        What must be said beside the axes: noise floors, what was left out, what thick lines are.
        Drawn below the figure, unless a venue's preset leaves it to the paper's own caption.
    link_x, link_y : bool
        Whether the panels have one range, zoom together, and have labels at the outer sides only.
    columns : int or None
        Panels in a row; None for the renderer's usual number.
    """

    panels: tuple[Panel, ...]
    entries: tuple[Entry, ...] = ()
    bar: ColourBar | None = None
    reading: str = ""
    caption: str = ""
    link_x: bool = False
    link_y: bool = False
    columns: int | None = field(default=None)
