"""The trajectory figure as a description: rows in, points, paths, labels and limits out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spectra.figures.noise import box_sentence, noise_floor, reach
from spectra.figures.selection import by_run, clean, module_order, select_rows
from spectra.figures.style import lettering

# On shared axes a panel that uses less than this part of both axes gets an enlarged inset.
_INSET_BELOW = 0.4


@dataclass(frozen=True)
class Limits:
    """What an axis pair shows."""

    x: tuple[float, float]
    y: tuple[float, float]


@dataclass(frozen=True)
class LayerPath:
    """One matrix over the steps: its numbered points.

    Attributes
    ----------
    module : str
    layer : int
        Also the marker of every point.
    steps : tuple of int
    delta_sigma, delta_d, kappa : tuple of float, as long as `steps`
        ΔΣ in the unit of the weights, ΔD between 0 and 1; κ is NaN where it is not known.
    """

    module: str
    layer: int
    steps: tuple[int, ...]
    delta_sigma: tuple[float, ...]
    delta_d: tuple[float, ...]
    kappa: tuple[float, ...]


@dataclass(frozen=True)
class MeanPath:
    """Mean ΔΣ and ΔD over the layers of one module; its first point is the origin, step 0."""

    module: str
    steps: tuple[int, ...]
    delta_sigma: tuple[float, ...]
    delta_d: tuple[float, ...]


@dataclass(frozen=True)
class TrajectoryPanel:
    """One run.

    Attributes
    ----------
    run : str
    title : str
        The method, and the run's name where another panel has the same method.
    paths : tuple of LayerPath
    means : tuple of MeanPath
        One a module.
    noise : (float, float) or None
        ΔΣ and ΔD that rounding for storage alone would give, each the median over the layers
        of the noisier module; 0.0 where there is none in that direction or it is not known, and
        the other is then a strip across the panel.
    unrelated : tuple of float
        ΔD of unrelated bases, one a shape of matrix, ascending.
    limits : Limits
    inset : Limits or None
        The panel's own range, where the shared one would show it too small to read.
    """

    run: str
    title: str
    paths: tuple[LayerPath, ...]
    means: tuple[MeanPath, ...]
    noise: tuple[float, float] | None
    unrelated: tuple[float, ...]
    limits: Limits
    inset: Limits | None

    @property
    def numbers(self) -> int:
        """How many numbered points the panel holds."""
        return sum(len(path.steps) for path in self.paths)

    @property
    def inset_place(self) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of the inset as parts of the panel, clear of the data."""
        if self.inset is None:
            return (0.0, 0.0, 1.0, 1.0)
        left = 0.2 + max(self.inset.x[1] / self.limits.x[1], 0.1)
        bottom = 0.16 + max(self.inset.y[1] / self.limits.y[1], 0.1)
        return (left, bottom, 0.98 - left, 0.98 - bottom)


@dataclass(frozen=True)
class Trajectory:
    """The whole figure: a panel a run.

    Attributes
    ----------
    panels : tuple of TrajectoryPanel
    modules : tuple of str
        In the order of their styles.
    steps : tuple of int
        Every step drawn, ascending; the colour scale runs from its first to its last.
    shared : bool
        Whether all panels have the same limits.
    caption : str
        What must be said beside the axes, among it the level of unrelated bases when it lies
        outside every panel.
    """

    panels: tuple[TrajectoryPanel, ...]
    modules: tuple[str, ...]
    steps: tuple[int, ...]
    shared: bool
    caption: str


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


def describe_trajectory(
    drift: pd.DataFrame,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    axes: str = "shared",
) -> Trajectory:
    """Turn drift rows into the description of `spectra.figures.trajectory`, which see."""
    if axes not in ("shared", "free"):
        raise ValueError(f'axes must be "shared" or "free", got {axes!r}.')
    modules = [modules] if isinstance(modules, str) else modules
    modules = None if modules is None else list(modules)
    rows = select_rows(drift, ["delta_sigma", "delta_d"], modules, layers, steps)
    order = module_order(rows, modules)
    parts = list(by_run(rows, drift))
    noises = [_noise(part) for _, _, part in parts]
    own = [_limits(part, noise) for (_, _, part), noise in zip(parts, noises, strict=True)]
    common = Limits(
        (min(o.x[0] for o in own), max(o.x[1] for o in own)),
        (min(o.y[0] for o in own), max(o.y[1] for o in own)),
    )
    panels = []
    for (run, title, part), noise, limits in zip(parts, noises, own, strict=True):
        small = limits.x[1] < _INSET_BELOW * common.x[1] and limits.y[1] < (
            _INSET_BELOW * common.y[1]
        )
        panels.append(
            TrajectoryPanel(
                run=run,
                title=title,
                paths=tuple(_layer_paths(part, order)),
                means=tuple(_mean_paths(part, order)),
                noise=noise,
                unrelated=_unrelated(part),
                limits=common if axes == "shared" else limits,
                inset=limits if axes == "shared" and small else None,
            )
        )
    return Trajectory(
        panels=tuple(panels),
        modules=tuple(order),
        steps=tuple(int(s) for s in np.unique(rows["step"])),
        shared=axes == "shared",
        caption=_caption(panels, order, [_modules_differ(part) for _, _, part in parts]),
    )


def _layer_paths(part: pd.DataFrame, order: tuple[str, ...]) -> Iterable[LayerPath]:
    kappa = part["kappa"] if "kappa" in part else pd.Series(np.nan, index=part.index)
    # At step 0 nothing has moved: the origin stands for it, not a heap of numbers upon it.
    moved = (part["step"] > 0) | (part["delta_sigma"] != 0) | (part["delta_d"] != 0)
    part = part.assign(kappa=kappa)[moved]
    for module in order:
        of_module = part[part["module"] == module]
        for layer, path in of_module.groupby("layer", sort=True):
            yield LayerPath(
                module=module,
                layer=int(str(layer)),
                steps=tuple(int(s) for s in path["step"]),
                delta_sigma=tuple(path["delta_sigma"].astype(float)),
                delta_d=tuple(path["delta_d"].astype(float)),
                kappa=tuple(path["kappa"].astype(float)),
            )


def _mean_paths(part: pd.DataFrame, order: tuple[str, ...]) -> Iterable[MeanPath]:
    for module in order:
        of_module = part[part["module"] == module]
        if of_module.empty:
            continue
        mean = of_module.groupby("step", sort=True)[["delta_sigma", "delta_d"]].mean()
        if (mean.loc[mean.index <= 0] == 0).all(axis=None):
            mean = mean.loc[mean.index > 0]
        yield MeanPath(
            module=module,
            steps=(0, *(int(s) for s in mean.index)),
            delta_sigma=(0.0, *mean["delta_sigma"].astype(float)),
            delta_d=(0.0, *mean["delta_d"].astype(float)),
        )


def _limits(part: pd.DataFrame, noise: tuple[float, float] | None) -> Limits:
    # Room for half a number beyond the outermost points, and for the origin's dot.
    def padded(high: float, floor: float) -> tuple[float, float]:
        high = high if high > 0 else floor or 1e-12
        return reach((-0.045 * high, 1.07 * high), [floor])

    across, up = noise or (0.0, 0.0)
    return Limits(
        padded(float(part["delta_sigma"].max()), across), padded(float(part["delta_d"].max()), up)
    )


def _noise(part: pd.DataFrame) -> tuple[float, float] | None:
    across, up = (noise_floor(part, column).level for column in ("delta_sigma", "delta_d"))
    noise = (across if across > 0 else 0.0, up if up > 0 else 0.0)
    return noise if any(noise) else None


def _modules_differ(part: pd.DataFrame) -> bool:
    return any(noise_floor(part, column).mixed for column in ("delta_sigma", "delta_d"))


def _all_inside(panel: TrajectoryPanel) -> bool:
    """Whether a box or strip is drawn and no point lies outside."""
    if panel.noise is None:
        return False
    across, up = (floor or math.inf for floor in panel.noise)
    return all(max(p.delta_sigma) <= across and max(p.delta_d) <= up for p in panel.paths)


def _unrelated(part: pd.DataFrame) -> tuple[float, ...]:
    if not {"rows", "cols"} <= set(part.columns):
        return ()
    shapes = part[["rows", "cols"]].dropna().drop_duplicates()
    levels = {
        round(unrelated_level(float(m), float(n)), 3)
        for m, n in zip(shapes["rows"], shapes["cols"], strict=True)
        if m > 0 and n > 0
    }
    return tuple(sorted(levels))


def _caption(panels: list[TrajectoryPanel], order: tuple[str, ...], mixed: list[bool]) -> str:
    if len(order) > 1:
        fonts = ", ".join(f"{clean(m)} {lettering(i)[2]}" for i, m in enumerate(order))
        sentences = [f"Numbers are layers ({fonts})."]
    else:
        sentences = [f"Numbers are layers of {clean(order[0])}."]
    levels = sorted({level for panel in panels for level in panel.unrelated})
    if levels:
        span = f"{levels[0]:.3f}" + (f"–{levels[-1]:.3f}" if len(levels) > 1 else "")
        drawn = any(lv <= p.limits.y[1] for p in panels for lv in p.unrelated)
        where = "the dotted line" if drawn else "above these axes"
        sentences.append(f"Unrelated bases would have ΔD ≈ {span} ({where}).")
    floors = [(p.title, p.noise, m) for p, m in zip(panels, mixed, strict=True) if p.noise]
    if floors:
        sentences.append(box_sentence(floors, [p.title for p in panels if _all_inside(p)]))
    if any(panel.inset for panel in panels):
        sentences.append("Insets enlarge the range near the origin.")
    return " ".join(sentences)
