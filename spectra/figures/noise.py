"""The noise floor, grey in every figure of ΔΣ or ΔD: what rounding for storage alone gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from spectra.figures.captions import listed
from spectra.figures.chart import Note, Zone
from spectra.figures.labels import label_of
from spectra.figures.selection import codes
from spectra.figures.style import tick

Lines = Iterable[tuple[ArrayLike, ArrayLike]]
"""Curves as (x, y), each ascending in x; NaN breaks one, so that several may stand in one pair."""

_FLOORS = {
    "delta_sigma": ("sigma_noise", "", ""),
    "delta_d": ("d_noise", "", ""),
    "delta_u": ("d_noise", " of ΔD", ", the mean of left and right"),
    "delta_v": ("d_noise", " of ΔD", ", the mean of left and right"),
    "matched_d": ("d_noise", " of ΔD", "; that of matched ΔD is not above it"),
}
"""Column of the floor of a drawn column; whose it is where not its own, and how the two relate."""
_MEANING = "what rounding for storage alone gives"
# An axis is stretched to a floor above the data where the data keep two thirds of it.
_REACH = 1.5
# What a line of small letters and the air around it take of a panel's height, and a label of its
# width, in the smallest panels that are drawn.
_LABEL_HEIGHT, _LABEL_WIDTH = 0.08, 0.4
# A band thinner than this part of the panel's height is no more than the axis' own line.
_SEEN = 0.004
_MOST_NAMES = 4


@dataclass(frozen=True)
class Floor:
    """The noise floor of some rows of one run.

    Attributes
    ----------
    level : float
        Median over the rows of a module; the largest, where modules differ. 0.0 where nothing
        is rounded (adapters), NaN where it is not known.
    mixed : bool
        Whether modules differ.
    """

    level: float
    mixed: bool = False


@dataclass(frozen=True)
class NoiseBand:
    """The grey band of a panel of curves, from the bottom of the axis up to `level`.

    Attributes
    ----------
    level : float
        In the unit of the axis; may lie above it, and then all of the panel is grey.
    label : str
        The words in the panel.
    place : str
        Where the words stand: ``"inside"``, under the band's edge; ``"over"`` it, where the band
        is too thin for them or full of curves; at the ``"top"`` of the panel where the edge lies
        above it.
    side : str
        ``"left"`` or ``"right"``: the end at which the words are farther from the curves.
    reading : str
        One sentence on what the band is.
    """

    level: float
    label: str
    place: str
    side: str
    reading: str


def noise_floor(rows: pd.DataFrame, column: str, module: str | None = None) -> Floor:
    """Return the floor of `column` in the rows of one run, or of one of its modules."""
    source, *_ = _FLOORS.get(column, ("",))
    if source not in rows:
        return Floor(math.nan)
    values = rows[source].to_numpy(dtype=float, na_value=math.nan)
    modules, names = codes(rows["module"])
    known = np.isfinite(values)
    chosen = [i for i, name in enumerate(names) if module in (None, name)]
    levels = [values[known & (modules == i)] for i in chosen]
    medians = [float(np.median(of_module)) for of_module in levels if len(of_module)]
    if not medians:
        return Floor(math.nan)
    return Floor(max(medians), mixed=len({short(m) for m in medians}) > 1)


def floor_column(column: str) -> str:
    """Return the name of the column that holds the floor of `column`; empty where it has none."""
    return _FLOORS.get(column, ("",))[0]


def reach(
    limits: tuple[float, float], floors: Iterable[float], log: bool = False
) -> tuple[float, float]:
    """Stretch the limits of an axis to the highest floor that is not far above the data."""
    low, high = limits
    for floor in sorted(f for f in floors if f > 0):
        # One part in a hundred above the edge: it is seen to end there.
        if floor > high and _place(floor, limits, log) <= _REACH:
            high = floor * 1.01 if not log else floor * (floor / low) ** 0.01
    return low, high


def noise_band(
    column: str,
    floors: Sequence[Floor],
    limits: tuple[float, float],
    log: bool,
    lines: Lines,
) -> NoiseBand | None:
    """Describe the band of a panel, or return None where there is nothing to draw.

    Parameters
    ----------
    column : str
    floors : sequence of Floor
        Of every run in the panel; the band reaches to the largest.
    limits : (float, float)
        Of the vertical axis.
    log : bool
        Whether that axis is logarithmic.
    lines : iterable of (array, array)
        The panel's curves, which the label keeps away from; see `Lines`.
    """
    level = max((f.level for f in floors if f.level > 0), default=0.0)
    if not _seen(level, limits, log):
        return None
    top = _place(level, limits, log)
    # A run of a lower floor, an adapter say, may be above its own within this band.
    label = "largest noise floor" if _differ(floors) else "noise floor"
    if top > 1:
        label, centres = f"all below {label} {short(level)}", {"top": 1 - _LABEL_HEIGHT / 2}
    else:
        centres = {"inside": top - _LABEL_HEIGHT / 2} if top >= _LABEL_HEIGHT else {}
        if top <= 1 - _LABEL_HEIGHT:
            centres["over"] = top + _LABEL_HEIGHT / 2
    _, own, relation = _FLOORS[column]
    whose = "; the largest of the runs in this panel" if _differ(floors) else ""
    place, side = _emptiest(centres, lines, limits, log)
    return NoiseBand(
        level=level,
        label=label,
        place=place,
        side=side,
        reading=f"Noise floor{own}, {short(level)}: {_MEANING}{relation}{whose}.",
    )


def floor_marks(
    column: str,
    floors: Sequence[Floor],
    limits: tuple[float, float],
    log: bool,
    lines: Lines,
) -> tuple[Zone | Note, ...]:
    """Return the marks of `noise_band`, which see: the grey band and its words, or nothing."""
    band = noise_band(column, floors, limits, log, lines)
    return () if band is None else band_marks(band)


def band_marks(band: NoiseBand) -> tuple[Zone, Note]:
    """Return what draws a band: it reaches down however far the panel is zoomed."""
    inside = band.place != "top"
    return (
        Zone(y=(None, band.level), edge=inside),
        Note(
            band.label,
            y=band.level if inside else None,
            side="left" if band.side == "left" else "right",
            over=band.place == "over",
            reading=band.reading,
        ),
    )


def noise_sentence(
    column: str,
    panels: Sequence[Sequence[Floor]],
    runs: Sequence[tuple[str, Floor]],
    limits: tuple[float, float],
    log: bool = False,
) -> str:
    """Return what a caption says of the bands; nothing where there are none.

    Parameters
    ----------
    column : str
    panels : sequence of sequences of Floor
        The floors that each panel holds.
    runs : sequence of (title, Floor)
    limits : (float, float)
        Of the vertical axes.
    log : bool
        Whether these are logarithmic.
    """
    drawn = [max(f.level for f in floors if f.level > 0) for floors in panels if _any(floors)]
    if not drawn:
        return ""
    span = _span(drawn)
    _, own, relation = _FLOORS[column]
    if max(drawn) <= limits[0]:
        return f"The noise floor{own} ({span}) lies below the axis."
    if not _seen(max(drawn), limits, log):
        return f"The noise floor{own} ({span}), {_MEANING}{relation}, is too small to be seen."
    mixed = any(f.mixed for floors in panels for f in floors)
    noisiest = "; the noisiest module's" if mixed else ""
    sentence = f"Grey: noise floor{own} ({span}{noisiest}), {_MEANING}{relation}."
    if any(_differ(floors) for floors in panels):
        sentence += f" It is the largest of the runs': {_by_level(runs)}."
    return sentence


def box_sentence(
    runs: Sequence[tuple[str, tuple[float, float], bool]],
    inside: Sequence[str],
    sigma: str = "ΔΣ",
    seen: bool = True,
) -> str:
    """Return what the caption of a trajectory says of the grey boxes and strips.

    Parameters
    ----------
    runs : sequence of (title, (ΔΣ, ΔD), bool)
        Floors of the panels that have any, 0 where there is none in that direction; and whether
        the run's modules differ.
    inside : sequence of str
        Titles of the panels without a point outside.
    sigma : str
        What the horizontal axis shows.
    seen : bool
        Whether any is large enough to be seen (`shows`).
    """
    if not runs:
        return ""
    forms = {"box" if min(noise) > 0 else "strip" for _, noise, _ in runs}
    values = []
    for i, symbol in enumerate((sigma, label_of("delta_d").symbol)):
        levels = [noise[i] for _, noise, _ in runs if noise[i] > 0]
        if levels:
            values.append(f"{symbol} {_span(levels)}")
    noisiest = "; the noisiest module's" if any(mixed for *_, mixed in runs) else ""
    floor = f"noise floor ({', '.join(values)}{noisiest}), {_MEANING}"
    if not seen:
        return f"The {floor}, is too small to be seen."
    sentence = f"Grey {' or '.join(sorted(forms))}: {floor}."
    if inside:
        sentence += f" All of {listed(inside, _MOST_NAMES)} lies within it."
    return sentence


def shows(
    noise: tuple[float, float], limits: tuple[tuple[float, float], tuple[float, float]]
) -> bool:
    """Whether the box or strip of a trajectory is seen on axes of these limits."""
    across, up = (
        level <= 0 or _seen(level, axis, log=False)
        for level, axis in zip(noise, limits, strict=True)
    )
    # A box without breadth or height is a line along an axis.
    return any(level > 0 for level in noise) and across and up


def short(level: float) -> str:
    """Return a floor in two digits, as on an axis."""
    if math.isnan(level):
        return "unknown"
    return tick(float(f"{level:.2g}"), powers=not 1e-3 <= level < 1e5)


def _any(floors: Sequence[Floor]) -> bool:
    return any(f.level > 0 for f in floors)


def _differ(floors: Sequence[Floor]) -> bool:
    return _any(floors) and len({short(f.level) for f in floors}) > 1


def _span(levels: Sequence[float]) -> str:
    low, high = short(min(levels)), short(max(levels))
    return low if low == high else f"{low} to {high}"


def _by_level(runs: Sequence[tuple[str, Floor]]) -> str:
    """Return for example ``0.006 (sorsa, lora), 0 (dora), unknown (x)``: largest first."""
    names: dict[str, list[str]] = {}
    for title, floor in sorted(
        runs, key=lambda run: -run[1].level if run[1].level >= 0 else math.inf
    ):
        names.setdefault(short(floor.level), []).append(title)
    return ", ".join(f"{level} ({listed(titles, _MOST_NAMES)})" for level, titles in names.items())


def _place(value: float, limits: tuple[float, float], log: bool) -> float:
    """Where `value` stands on an axis: 0 at its bottom, 1 at its top."""
    low, high = limits
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _places(
    values: NDArray[np.float64], limits: tuple[float, float], log: bool
) -> NDArray[np.float64]:
    low, high = limits
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(values / low) / math.log(high / low)
    return (values - low) / (high - low)


def _seen(level: float, limits: tuple[float, float], log: bool) -> bool:
    """Whether a band up to `level` is more than a line along the bottom of its panel."""
    if level <= 0:
        return False
    if log:
        return level > limits[0]
    return level - max(limits[0], 0.0) >= _SEEN * (limits[1] - limits[0])


def _emptiest(
    centres: dict[str, float],
    lines: Lines,
    limits: tuple[float, float],
    log: bool,
) -> tuple[str, str]:
    """Return the place and side of a label that no curve crosses, or as few as can be.

    `centres` holds the height of the label's middle by place, the preferred place first.
    """
    x, y = _joined(lines)
    known = x[np.isfinite(y)]
    first, last = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    y = _places(y, limits, log)
    width = (last - first) * _LABEL_WIDTH
    best, most = ("", ""), -1.0
    under = {"right": last - width, "left": first}
    heights = {side: _heights(x, y, np.linspace(s, s + width, 9)) for side, s in under.items()}
    for place, centre in centres.items():
        for side, crossed in heights.items():
            gap = float(np.abs(crossed - centre).min(initial=math.inf))
            # Once it is clear of every curve, more room makes it no easier to read.
            gap = min(gap, 0.75 * _LABEL_HEIGHT)
            if gap > most:
                best, most = (place, side), gap
    return best


def _joined(lines: Lines) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return all lines as one, with a gap after each."""
    xs: list[NDArray[np.float64]] = []
    ys: list[NDArray[np.float64]] = []
    for x, y in lines:
        xs += [np.asarray(x, dtype=float), np.array([math.nan])]
        ys += [np.asarray(y, dtype=float), np.array([math.nan])]
    return (np.concatenate(xs), np.concatenate(ys)) if xs else (np.empty(0), np.empty(0))


def _heights(
    x: NDArray[np.float64], y: NDArray[np.float64], under: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the heights at which lines pass over the places `under` of the horizontal axis."""
    if not len(x):
        return x
    # A lone point, or one that ends its line, is a segment of no length.
    x = np.stack([x, np.append(np.where(np.isfinite(y[1:]), x[1:], x[:-1]), x[-1])])
    y = np.stack([y, np.append(np.where(np.isfinite(y[1:]), y[1:], y[:-1]), y[-1])])
    found = []
    for place in under:
        here = (x.min(axis=0) <= place) & (place <= x.max(axis=0))
        run, rise = x[1, here] - x[0, here], y[1, here] - y[0, here]
        share = np.divide(place - x[0, here], run, out=np.zeros_like(run), where=run != 0)
        found.append(y[0, here] + share * rise)
    heights = np.concatenate(found)
    return heights[np.isfinite(heights)]
