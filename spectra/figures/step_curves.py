"""Quantities of drift over the steps: one line a layer, or one line a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectra.figures import style
from spectra.figures.captions import sentences
from spectra.figures.chart import (
    Axis,
    Band,
    Chart,
    ColourBar,
    Entry,
    Floats,
    Hover,
    Ink,
    Line,
    Mark,
    Panel,
    Pick,
)
from spectra.figures.drawing import draw
from spectra.figures.export import Backend
from spectra.figures.labels import LOG_FROM_RATIO, RATIOS, label_of
from spectra.figures.left_out import left_out_sentence
from spectra.figures.noise import floor_marks, noise_floor, noise_sentence
from spectra.figures.scales import ValueScale, padded, spans, value_scale
from spectra.figures.selection import (
    MOST_LINE_POINTS,
    Blocks,
    blocks,
    by_run,
    clean,
    joined,
    module_names,
    module_order,
    select_rows,
    thin_steps,
    thinning_sentence,
)

# More lines than this are a thicket on paper and slow on screen; the shaded range says as much.
_MOST_LAYER_LINES = 1_000
# Lines of one colour are drawn at once; more shades than this of a map nobody tells apart.
_MOST_SHADES = 16
_MOST_LAYER_TRACES = 320
_MOST_TICKS = 9


def curves(
    drift: pd.DataFrame,
    column: str,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    overlay: bool = False,
    band: bool = True,
    log: bool | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Draw one column of drift over the steps.

    Parameters
    ----------
    drift : DataFrame
        Rows of one or more runs: columns run, method, module, step, layer and `column`; run,
        method and module may be categorical.
    column : str
        What to draw, for example ``"kappa"``; in the unit that `LABELS` names.
    modules, layers, steps : iterable, optional
        Draw only these; all by default.
    overlay : bool
        False: a panel a run, a thin line a layer. True: a panel a module, a line a run.
    band : bool
        Shade from the smallest to the largest layer.
    log : bool, optional
        Logarithmic vertical axis; by default for condition numbers that span over two
        decades.
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    dark : bool
        Colours for a dark background (plotly only).
    preset : str, optional
        Width and fonts of a venue, one of `style.PRESETS` (matplotlib only).

    Returns
    -------
    plotly.graph_objects.Figure or matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is nothing to draw, a column is missing, two runs share a name, or `log` is
        asked for a column without a value above 0.

    Notes
    -----
    The thick line is the mean over the layers of one module, and the median on a logarithmic
    axis, where one ill-conditioned layer would carry the mean. Infinite values are left out, and
    values of 0 lie below a logarithmic axis; the caption counts both. Where there are too many
    layers for lines of their own, or too many steps for a point at each, the caption says so.

    Where rows have a noise floor of ΔΣ or ΔD (`sigma_noise`, `d_noise`), it is drawn as a grey
    band from the bottom of the axis: the median over the layers of the noisiest module, and of
    the noisiest run where several share a panel; the caption then names each run's.
    """
    chart = describe_curves(
        drift,
        column,
        modules=modules,
        layers=layers,
        steps=steps,
        overlay=overlay,
        band=band,
        log=log,
    )
    return draw(chart, backend, dark=dark, preset=preset)


def describe_curves(
    drift: pd.DataFrame,
    column: str,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    overlay: bool = False,
    band: bool = True,
    log: bool | None = None,
) -> Chart:
    """Turn drift rows into the chart of `curves`, which see."""
    describe = describe_run_curves if overlay else describe_layer_curves
    return describe(drift, column, modules=modules, layers=layers, steps=steps, band=band, log=log)


def describe_layer_curves(
    drift: pd.DataFrame,
    column: str,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    band: bool = True,
    log: bool | None = None,
) -> Chart:
    """Turn drift rows into the chart of `spectra.figures.curves`, a panel a run."""
    rows, order, dropped = _finite_rows(drift, column, modules, layers, steps)
    runs = [(run, title, part, blocks(part, order)) for run, title, part in by_run(rows, drift)]
    floors = [noise_floor(part, column) for _, _, part, _ in runs]
    scale = _value_scale(rows[column], log, [f.level for f in floors])
    ends = (int(rows["layer"].min()), int(rows["layer"].max()))
    values = [block.of(column) for *_, block in runs]
    lines = sum(int(np.isfinite(v).any(axis=1).sum()) for v in values)
    traces = sum(int(np.isfinite(v).any(axis=(1, 2)).sum()) for v in values)
    some = lines <= _MOST_LAYER_LINES
    # A middle line has its band beside it: three points a step.
    per_step = max(1, (lines if some else 0) + traces * (3 if band else 1))
    kept = [thin_steps(block.steps, per_step, MOST_LINE_POINTS) for *_, block in runs]
    shades = max(4, min(_MOST_SHADES, _MOST_LAYER_TRACES // traces))
    panels = []
    for (run, title, _, block), value, floor, keep in zip(runs, values, floors, kept, strict=True):
        marks: list[Mark] = []
        centres: list[Mark] = []
        here = np.isin(block.steps, keep)
        for i, module in enumerate(order):
            middle = _middle(block, value[i], here, scale)
            if middle is None:
                continue
            if some:
                marks += _layer_lines(run, module, i, block, value[i], here, scale, ends, shades)
            centres += middle.marks(
                Ink("module", i), style.dash(i), f"module {i}", band, 0.07, 2.0,
                f"{clean(module)}, {scale.centre} of layers", rim=True,
            )  # fmt: skip
        drawn = [(m.x, m.y) for m in (marks or centres) if isinstance(m, Line)]
        noise = floor_marks(column, [floor], scale.limits, scale.log, drawn)
        # The shading of the noise lies behind the curves, its words above them.
        panels.append(
            Panel(title, _step_axis(rows), scale.axis(column), (*noise, *marks, *centres))
        )
    several = len(order) > 1
    label = label_of(column)
    bar = None
    if some and ends[0] < ends[1]:
        ticks = tuple(map(float, range(ends[0], ends[1] + 1)))
        bar = ColourBar(
            "layer", "layer", (float(ends[0]), float(ends[1])),
            ticks=ticks if len(ticks) <= _MOST_TICKS else (),
        )  # fmt: skip
    return Chart(
        panels=tuple(panels),
        entries=tuple(
            Entry(
                f"module {i}", f"{clean(m)}, {scale.centre}" if several else scale.centre,
                Ink("module", i), dash=style.dash(i), width=2.0,
            )
            for i, m in enumerate(order)
        ),  # fmt: skip
        bar=bar,
        reading=label.reading,
        caption=sentences(
            f"Thick: {scale.centre} over the layers.",
            "" if some else (
                f"Shaded: smallest to largest layer; {lines} lines of layers are too many to draw."
                if band else f"{lines} lines of layers are too many to draw."
            ),
            noise_sentence(
                column,
                [[f] for f in floors],
                [(title, f) for (_, title, _, _), f in zip(runs, floors, strict=True)],
                scale.limits,
                scale.log,
            ),
            _thinned(kept, [block for *_, block in runs]),
            scale.note,
            dropped,
        ),
        link_x=True,
        link_y=True,
    )  # fmt: skip


def describe_run_curves(
    drift: pd.DataFrame,
    column: str,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    band: bool = True,
    log: bool | None = None,
) -> Chart:
    """Turn drift rows into the chart of `spectra.figures.curves` with ``overlay=True``."""
    rows, order, dropped = _finite_rows(drift, column, modules, layers, steps)
    runs = [(run, title, part, blocks(part, order)) for run, title, part in by_run(rows, drift)]
    values = [block.of(column) for *_, block in runs]
    by_module = [
        [i for i, v in enumerate(values) if np.isfinite(v[m]).any()] for m in range(len(order))
    ]
    floors = [
        [noise_floor(runs[i][2], column, order[m]) for i in of_module]
        for m, of_module in enumerate(by_module)
    ]
    scale = _value_scale(rows[column], log, [f.level for of in floors for f in of])
    traces = sum(map(len, by_module))
    per_step = max(1, traces * (3 if band else 1))
    kept = [thin_steps(block.steps, per_step, MOST_LINE_POINTS) for *_, block in runs]
    here = [np.isin(block.steps, k) for (*_, block), k in zip(runs, kept, strict=True)]
    # Bands that lie over one another would add up to a dark one.
    opacity = min(0.12, 0.36 / len(runs))
    panels = []
    for m, (of_module, floors_here) in enumerate(zip(by_module, floors, strict=True)):
        bands: list[Mark] = []
        lines: list[Mark] = []
        for i in of_module:
            _, title, _, block = runs[i]
            middle = _middle(block, values[i][m], here[i], scale)
            if middle is not None:
                marks = middle.marks(
                    Ink("run", i), style.dash(i), f"run {i}", band, opacity, 1.4, title
                )
                bands += [mark for mark in marks if isinstance(mark, Band)]
                lines += [mark for mark in marks if isinstance(mark, Line)]
        drawn = [(mark.x, mark.y) for mark in lines if isinstance(mark, Line)]
        noise = floor_marks(column, floors_here, scale.limits, scale.log, drawn)
        panels.append(
            Panel(clean(order[m]), _step_axis(rows), scale.axis(column), (*noise, *bands, *lines))
        )
    return Chart(
        panels=tuple(panels),
        entries=run_entries([title for _, title, _, _ in runs]),
        reading=label_of(column).reading,
        caption=sentences(
            f"Lines: {scale.centre} over the layers.",
            "Shaded: smallest to largest layer." if band else "",
            noise_sentence(
                column,
                floors,
                [(title, noise_floor(part, column)) for _, title, part, _ in runs],
                scale.limits,
                scale.log,
            ),
            _thinned(kept, [block for *_, block in runs]),
            scale.note,
            dropped,
        ),
        link_x=True,
        link_y=True,
    )


def run_entries(titles: Sequence[str]) -> tuple[Entry, ...]:
    """Return the legend of runs laid over one another; marks name ``run 0`` and so on."""
    return tuple(
        Entry(f"run {i}", title, Ink("run", i), dash=style.dash(i))
        for i, title in enumerate(titles)
    )


@dataclass(frozen=True)
class _Middle:
    """The mean or median over the layers of one module, and their range."""

    x: Floats
    y: Floats
    low: Floats
    high: Floats

    def marks(
        self,
        ink: Ink,
        dash: str,
        key: str,
        band: bool,
        opacity: float,
        width: float,
        name: str,
        rim: bool = False,
    ) -> list[Mark]:
        line = Line(
            self.x, self.y, ink, width, dash=dash, rim=rim, entry=key,
            hover=Hover(name, (("smallest layer", self.low), ("largest layer", self.high))),
        )  # fmt: skip
        if not band:
            return [line]
        return [Band(self.x, self.low, self.high, ink, opacity, entry=key), line]


def _middle(
    block: Blocks, values: Floats, shown: NDArray[Any], scale: ValueScale
) -> _Middle | None:
    """Return the middle of a module's layers over the steps, None where it has no value."""
    values = values[shown]
    there = np.isfinite(values)
    some = there.any(axis=1)
    if not some.any():
        return None
    values, there = values[some], there[some]
    if scale.log:
        middle = np.median(values, axis=1) if there.all() else np.nanmedian(values, axis=1)
    else:
        middle = np.where(there, values, 0.0).sum(axis=1) / there.sum(axis=1)
    low, high = np.fmin.reduce(values, axis=1), np.fmax.reduce(values, axis=1)
    x = block.steps[shown][some].astype(float)
    if scale.log:
        # The median stands for all layers, those at 0 too; where it is 0 the axis cannot show it,
        # and a band from 0 starts at the bottom.
        above = middle > 0
        x, middle, high = x[above], middle[above], high[above]
        low = np.maximum(low[above], scale.limits[0])
    return _Middle(x, middle, low, high)


def _layer_lines(
    run: str,
    module: str,
    index: int,
    block: Blocks,
    values: Floats,
    shown: NDArray[Any],
    scale: ValueScale,
    ends: tuple[int, int],
    shades: int,
) -> list[Line]:
    """Return the thin lines of a module's layers, those of one shade as one."""
    values = np.where(values > 0, values, np.nan) if scale.log else values
    values = values[shown]
    steps, layers = np.broadcast_arrays(
        block.steps[shown][:, None].astype(float), block.layers[None].astype(float)
    )
    count = min(shades, ends[1] - ends[0] + 1)
    bins = (block.layers - ends[0]) * count // (ends[1] - ends[0] + 1)
    lines = []
    for shade in np.unique(bins):
        of = bins == shade
        x, y, layer, step = joined(steps[:, of], values[:, of], layers[:, of], steps[:, of])
        if not len(y):
            continue
        lines.append(
            Line(
                x, y, Ink("layer", 0.5 if count == 1 else float(shade) / (count - 1)), 0.6,
                dash=style.dash(index), opacity=0.65, entry=f"module {index}",
                hover=Hover(clean(module), (("layer", layer),)),
                pick=Pick(
                    run, module, tuple(layer.astype(int).tolist()), tuple(step.astype(int).tolist())
                ),
            )
        )  # fmt: skip
    return lines


def _finite_rows(
    drift: pd.DataFrame,
    column: str,
    modules: Iterable[str] | None,
    layers: Iterable[int] | None,
    steps: Iterable[int] | None,
) -> tuple[pd.DataFrame, tuple[str, ...], str]:
    modules = module_names(modules)
    rows = select_rows(drift, [column], modules, layers, steps, ["sigma_noise", "d_noise"])
    if not pd.api.types.is_numeric_dtype(rows[column]):
        raise ValueError(f"The column {column} holds no numbers, so it has no curve.")
    finite = np.isfinite(rows[column].to_numpy(dtype=float))
    if not finite.any():
        raise ValueError(
            f"Every chosen value of {column} is infinite (a condition number is where σ_min = 0), "
            "so there is no curve to draw."
        )
    left_out = int((~finite).sum())
    note = sentences(
        f"{left_out} infinite values are left out." if left_out else "",
        left_out_sentence(rows, drift, [column]),
    )
    rows = rows[finite] if left_out else rows
    return rows, module_order(rows, modules), note


def _value_scale(values: pd.Series, log: bool | None, floors: Sequence[float] = ()) -> ValueScale:
    """Return the vertical axis for finite `values` and noise `floors`."""
    if log is None:
        log = values.name in RATIOS and spans(values, LOG_FROM_RATIO)
    return value_scale(str(values.name), values.to_numpy(dtype=float), log, floors)


def _step_axis(rows: pd.DataFrame) -> Axis:
    steps = rows["step"]
    return Axis("step", "step", padded(float(steps.min()), float(steps.max())), integer=True)


def _thinned(kept: Sequence[NDArray[Any]], found: Sequence[Blocks]) -> str:
    most = max(len(block.steps) for block in found)
    return thinning_sentence("Lines through", max(map(len, kept)), most)
