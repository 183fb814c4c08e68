"""What a trajectory figure draws of one run: paths, numbers, noise floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectra.figures import style
from spectra.figures.chart import (
    Axis,
    Floats,
    Hover,
    Ink,
    Line,
    Mark,
    Numbers,
    Pick,
    Rule,
    Zone,
)
from spectra.figures.labels import label_of
from spectra.figures.noise import noise_floor, reach
from spectra.figures.selection import Blocks, blocks, clean, joined, thin_places, thin_steps

Limits = tuple[tuple[float, float], tuple[float, float]]
"""Of ΔΣ, and of ΔD."""

# More markers on a path hide it; then some are left that tell the modules apart.
_MOST_MARKERS, _FEW_MARKERS = 14, 6


def unrelated_level(rows: float, cols: float) -> float:
    """ΔD that two unrelated orthonormal bases would have.

    Unit vectors drawn at random in R^d overlap by √(2/(πd)) in mean absolute value (for large
    d), so ΔD ≈ 1 − (√(2/(πm)) + √(2/(πn)))/2 for a matrix of m rows and n columns.

    Parameters
    ----------
    rows, cols : float
        m and n, at least 1.

    Returns
    -------
    float
        Between 0 and 1; 0.9875 for 4096 × 4096.
    """
    left, right = math.sqrt(2 / (math.pi * rows)), math.sqrt(2 / (math.pi * cols))
    return 1 - (left + right) / 2


@dataclass(frozen=True)
class Look:
    """What all panels share; `ends` are the first and last step of the colour scale."""

    modules: tuple[str, ...]
    x: Axis
    ends: tuple[int, int]
    until: int

    def axes(self, limits: Limits) -> tuple[Axis, Axis]:
        """Return the axes of a panel."""
        label = label_of("delta_d")
        return (
            Axis(self.x.label, self.x.symbol, limits[0]),
            Axis(label.axis, label.symbol, limits[1]),
        )


class RunPaths:
    """One run's rows, its noise floors and what the panel must hold."""

    def __init__(self, run: str, title: str, part: pd.DataFrame, modules: tuple[str, ...]) -> None:
        self.run, self.title, self.part = run, title, part
        self.block: Blocks = blocks(part, modules)
        self.sigma, self.d = self.block.of("delta_sigma"), self.block.of("delta_d")
        self.floors = noise_floor(part, "delta_sigma"), noise_floor(part, "delta_d")
        self.matrices = int(np.isfinite(self.d).any(axis=1).sum())
        self.unrelated = _unrelated(part)

    @property
    def noise(self) -> tuple[float, float]:
        """ΔΣ and ΔD of the noise floor, 0 where there is none or it is not known."""
        return tuple(f.level if f.level > 0 else 0.0 for f in self.floors)  # type: ignore[return-value]

    @property
    def mixed(self) -> bool:
        """Whether modules differ in their floors."""
        return any(f.mixed for f in self.floors)

    @property
    def limits(self) -> Limits:
        """What the points of all layers need."""
        return (
            padded(float(np.nanmax(self.sigma)), self.noise[0]),
            padded(float(np.nanmax(self.d)), self.noise[1]),
        )

    @property
    def mean_limits(self) -> Limits:
        """What the mean paths alone need."""
        ends = [self.mean(i)[1:] for i in range(len(self.d)) if np.isfinite(self.d[i]).any()]
        x, y = (max(float(path[i].max()) for path in ends) for i in (0, 1))
        return padded(x, self.noise[0]), padded(y, self.noise[1])

    @property
    def inside(self) -> bool:
        """Whether a box or strip is drawn and no point lies outside."""
        across, up = (floor or math.inf for floor in self.noise)
        return any(self.noise) and bool(np.nanmax(self.sigma) <= across and np.nanmax(self.d) <= up)

    def drawn(self, per_step: int, budget: float, until: int) -> NDArray[Any]:
        """Return which steps to draw: thinned as for the whole run, then those up to `until`."""
        kept = thin_steps(self.block.steps, per_step, int(budget))
        last = self.block.steps[self.block.steps <= until][-1:]
        return np.isin(self.block.steps, np.union1d(kept[kept <= until], last))

    def moved(self) -> NDArray[Any]:
        """Return which points to number.

        At step 0 nothing has moved: the origin stands for it, not a heap of numbers upon it.
        """
        with np.errstate(invalid="ignore"):
            return np.isfinite(self.d) & (
                (self.block.steps > 0)[:, None] | (self.sigma != 0) | (self.d != 0)
            )

    def mean(self, module: int) -> tuple[NDArray[Any], Floats, Floats]:
        """Return steps, ΔΣ and ΔD of the mean path of a module, from the origin on."""
        there = np.isfinite(self.d[module])
        count = there.sum(axis=1)
        steps = self.block.steps[count > 0]
        x, y = (
            np.where(there, values[module], 0.0).sum(axis=1)[count > 0] / count[count > 0]
            for values in (self.sigma, self.d)
        )
        early = steps <= 0
        if not x[early].any() and not y[early].any():
            steps, x, y = steps[~early], x[~early], y[~early]
        return np.append(0, steps), np.append(0.0, x), np.append(0.0, y)


def ground(run: RunPaths, limits: Limits) -> tuple[Mark, ...]:
    """Return what lies behind a run's paths."""
    return (*noise_zone(run.noise), *unrelated_rules([run], limits))


def noise_zone(noise: tuple[float, float]) -> tuple[Zone, ...]:
    """Return the grey box of the noise floor, or the strip where it has one direction only."""
    if not any(noise):
        return ()
    # A strip reaches over the whole panel, however far it is zoomed.
    across, up = ((0.0, level) if level else (None, None) for level in noise)
    return (Zone(x=across, y=up),)


def unrelated_rules(runs: Sequence[RunPaths], limits: Limits) -> list[Rule]:
    """Return dotted lines at the ΔD of unrelated bases, where the panel reaches them."""
    levels = sorted({level for run in runs for level in run.unrelated})
    low, high = limits[1]
    return [Rule(y=level) for level in levels if low < level <= high]


def layer_paths(run: RunPaths, look: Look, drawn: NDArray[Any]) -> list[Line]:
    """Return the faint paths of the layers, those of a module as one line; `drawn` by step."""
    lines = []
    steps = int(drawn.sum())
    # Many faint lines make a dark surface.
    opacity = 0.35 * min(1.0, math.sqrt(60 / run.matrices))
    for i in range(len(look.modules)):
        # The origin before the first step; a layer that has no step yet has no path.
        some = np.where(np.isfinite(run.d[i]).any(axis=0), 0.0, np.nan)[None]
        x, y = (np.vstack([some, values[i][drawn]]) for values in (run.sigma, run.d))
        if steps and np.isfinite(y[1:]).any():
            path = joined(x, y)
            lines.append(
                Line(path[0], path[1], Ink("grey"), 0.4, opacity=opacity, entry=module_key(i))
            )
    return lines


def layer_numbers(
    run: RunPaths, look: Look, drawn: NDArray[Any], every: int, run_index: int | None = None
) -> list[Numbers]:
    """Return the numbers of every `every`-th layer; in the run's colour, if it has an index."""
    kappa = run.block.of("kappa") if "kappa" in run.part else np.full(run.d.shape, np.nan)
    shown = run.moved() & drawn[:, None] & (run.block.layers % every == 0)
    found = []
    for i, module in enumerate(look.modules):
        step, layer = np.nonzero(shown[i])
        if not len(step):
            continue
        steps, layers = run.block.steps[step], run.block.layers[layer]
        name = clean(module) if run_index is None else f"{run.title} · {clean(module)}"
        found.append(
            Numbers(
                x=run.sigma[i][shown[i]],
                y=run.d[i][shown[i]],
                texts=tuple(map(str, layers.tolist())),
                places=_fractions(steps, look.ends),
                lettering=i,
                ink=None if run_index is None else Ink("run", run_index),
                entry=module_key(i) if run_index is None else run_key(run_index),
                hover=Hover(
                    name,
                    (
                        ("layer", layers.astype(float)),
                        ("step", steps.astype(float)),
                        ("κ", kappa[i][shown[i]]),
                    ),
                ),
                pick=Pick(run.run, module, tuple(layers.tolist()), tuple(steps.tolist())),
            )
        )
    return found


def mean_paths(
    run: RunPaths, look: Look, budget: float, run_index: int | None = None
) -> list[Line]:
    """Return the modules' mean paths of at most `budget` points, with markers at some of them."""
    lines = []
    several = len(look.modules) > 1
    present = [i for i in range(len(look.modules)) if np.isfinite(run.d[i]).any()]
    for i in present:
        steps, x, y = run.mean(i)
        count = max(1, int(np.searchsorted(steps, look.until, side="right")))
        path, few = (
            _places(len(steps), count, most)
            for most in (max(1, int(budget) // len(present)), _FEW_MARKERS)
        )
        name = f"{clean(look.modules[i])}, mean of layers"
        if run_index is None:
            ink, dash, key = Ink("module", i), style.dash(i), module_key(i)
        else:
            ink, dash, key = Ink("run", run_index), style.dash(run_index), run_key(run_index)
            name = f"{run.title} · {name}"
        marker = style.marker(i if several or run_index is None else 0)
        crowded = len(path) > _MOST_MARKERS
        for shown, symbol in [(path, ""), (few, marker)] if crowded else [(path, marker)]:
            line = Line(
                x[shown],
                y[shown],
                ink,
                1.5,
                dash=dash,
                marker=symbol,
                rim=True,
                entry=key,
                hover=Hover(name, (("step", steps[shown].astype(float)),)),
            )
            # Markers alone have gaps between them.
            lines.append(_apart(line) if crowded and symbol else line)
    return lines


def _apart(line: Line) -> Line:
    """Return the points of a line, without what joins them."""
    assert line.hover is not None
    gap = np.full(len(line.x), np.nan)
    x, y = (np.column_stack([values, gap]).ravel() for values in (line.x, line.y))
    columns = tuple((name, np.repeat(values, 2)) for name, values in line.hover.columns)
    return replace(line, x=x, y=y, hover=Hover(line.hover.head, columns))


def _places(found: int, count: int, most: int) -> NDArray[np.intp]:
    """Return the first of `found` points, and those of them to draw among the first `count`."""
    kept = thin_places(found, most)
    return np.unique(np.concatenate([[0], kept[kept < count], [count - 1]]))


def padded(high: float, floor: float) -> tuple[float, float]:
    """Return the limits of an axis of values from 0 to `high`, and of a floor near these."""
    # Room for half a number beyond the outermost points, and for the origin's dot.
    high = high if high > 0 else floor or 1e-12
    return reach((-0.045 * high, 1.07 * high), [floor])


def _fractions(steps: NDArray[Any], ends: tuple[int, int]) -> Floats:
    low, high = ends
    return np.ones(len(steps)) if high <= low else (steps - low) / (high - low)


def _unrelated(part: pd.DataFrame) -> tuple[float, ...]:
    if not {"rows", "cols"} <= set(part.columns):
        return ()
    m, n = (part[c].to_numpy(dtype=float, na_value=np.nan) for c in ("rows", "cols"))
    known = (m > 0) & (n > 0)
    # Of each number by itself first: distinct pairs take longer to find.
    shapes = {
        (height, width)
        for height in pd.unique(m[known])
        for width in pd.unique(n[known & (m == height)])
    }
    return tuple(sorted({round(unrelated_level(*shape), 3) for shape in shapes}))


def module_key(index: int) -> str:
    """Return the key of a module's entry in the legend."""
    return f"module {index}"


def run_key(index: int) -> str:
    """Return the key of a run's entry in the legend."""
    return f"run {index}"
