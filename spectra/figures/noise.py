"""The noise floor, grey in every figure of ΔΣ or ΔD: what rounding for storage alone gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spectra.figures.labels import label_of
from spectra.figures.style import tick

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


def noise_floor(rows: pd.DataFrame, column: str) -> Floor:
    """Return the floor of `column` in the rows of one run."""
    source, *_ = _FLOORS.get(column, ("",))
    if source not in rows:
        return Floor(math.nan)
    values = pd.to_numeric(rows[source]).astype(float)
    known = np.isfinite(values)
    medians = values[known].groupby(rows.loc[known, "module"]).median()
    if medians.empty:
        return Floor(math.nan)
    return Floor(float(medians.max()), mixed=len({short(m) for m in medians}) > 1)


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
    lines: Iterable[tuple[Sequence[int], Sequence[float]]],
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
    lines : iterable of (steps, values)
        The panel's curves, which the label keeps away from.
    """
    level = max((f.level for f in floors if f.level > 0), default=0.0)
    top = _place(level, limits, log) if level > 0 else 0.0
    if top <= 0:
        return None
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


def noise_sentence(
    column: str,
    panels: Sequence[Sequence[Floor]],
    runs: Sequence[tuple[str, Floor]],
    limits: tuple[float, float],
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
    """
    drawn = [max(f.level for f in floors if f.level > 0) for floors in panels if _any(floors)]
    if not drawn:
        return ""
    span = _span(drawn)
    _, own, relation = _FLOORS[column]
    if max(drawn) <= limits[0]:
        return f"The noise floor{own} ({span}) lies below the axis."
    mixed = any(f.mixed for floors in panels for f in floors)
    noisiest = "; the noisiest module's" if mixed else ""
    sentence = f"Grey: noise floor{own} ({span}{noisiest}), {_MEANING}{relation}."
    if any(_differ(floors) for floors in panels):
        sentence += f" It is the largest of the runs': {_by_level(runs)}."
    return sentence


def box_sentence(
    runs: Sequence[tuple[str, tuple[float, float], bool]], inside: Sequence[str]
) -> str:
    """Return what the caption of a trajectory says of the grey boxes and strips.

    Parameters
    ----------
    runs : sequence of (title, (ΔΣ, ΔD), bool)
        Floors of the panels that have any, 0 where there is none in that direction; and whether
        the run's modules differ.
    inside : sequence of str
        Titles of the panels without a point outside.
    """
    if not runs:
        return ""
    forms = {"box" if min(noise) > 0 else "strip" for _, noise, _ in runs}
    values = []
    for i, column in enumerate(("delta_sigma", "delta_d")):
        levels = [noise[i] for _, noise, _ in runs if noise[i] > 0]
        if levels:
            values.append(f"{label_of(column).symbol} {_span(levels)}")
    noisiest = "; the noisiest module's" if any(mixed for *_, mixed in runs) else ""
    sentence = (
        f"Grey {' or '.join(sorted(forms))}: noise floor ({', '.join(values)}{noisiest}), "
        f"{_MEANING}."
    )
    if inside:
        sentence += f" All of {_names(inside)} lies within it."
    return sentence


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
    return ", ".join(f"{level} ({_names(titles)})" for level, titles in names.items())


def _names(titles: Sequence[str]) -> str:
    if len(titles) <= _MOST_NAMES:
        return ", ".join(titles)
    return f"{', '.join(titles[: _MOST_NAMES - 1])} and {len(titles) - _MOST_NAMES + 1} more"


def _place(value: float, limits: tuple[float, float], log: bool) -> float:
    """Where `value` stands on an axis: 0 at its bottom, 1 at its top."""
    low, high = limits
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _emptiest(
    centres: dict[str, float],
    lines: Iterable[tuple[Sequence[int], Sequence[float]]],
    limits: tuple[float, float],
    log: bool,
) -> tuple[str, str]:
    """Return the place and side of a label that no curve crosses, or as few as can be.

    `centres` holds the height of the label's middle by place, the preferred place first.
    """
    curves = [(s, [_place(v, limits, log) for v in values]) for s, values in lines if len(s)]
    first = min((s[0] for s, _ in curves), default=0)
    last = max((s[-1] for s, _ in curves), default=0)
    width = (last - first) * _LABEL_WIDTH
    best, most = ("", ""), -1.0
    for place, centre in centres.items():
        for side, start in (("right", last - width), ("left", first)):
            under = np.linspace(start, start + width, 9)
            heights = [np.interp(under, s, p, left=np.nan, right=np.nan) for s, p in curves]
            gap = float(np.nanmin(np.abs(np.concatenate([*heights, [np.inf]]) - centre)))
            # Once it is clear of every curve, more room makes it no easier to read.
            gap = min(gap, 0.75 * _LABEL_HEIGHT)
            if gap > most:
                best, most = (place, side), gap
    return best
