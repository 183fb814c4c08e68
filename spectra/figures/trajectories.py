"""Where the singular values and vectors went: ΔΣ against ΔD, step after step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectra.figures import style
from spectra.figures.captions import sentences
from spectra.figures.chart import (
    Axis,
    Chart,
    ColourBar,
    Entry,
    Frame,
    Ink,
    Inset,
    Mark,
    Panel,
    Rule,
)
from spectra.figures.drawing import draw
from spectra.figures.export import Backend
from spectra.figures.labels import label_of
from spectra.figures.left_out import left_out_sentence
from spectra.figures.noise import Floor, box_sentence, shows
from spectra.figures.selection import (
    MOST_LINE_POINTS,
    MOST_NUMBERS,
    by_run,
    clean,
    module_names,
    module_order,
    select_rows,
    thinning_sentence,
)
from spectra.figures.trajectory_marks import (
    Limits,
    Look,
    RunPaths,
    ground,
    layer_numbers,
    layer_paths,
    mean_paths,
    module_key,
    noise_zone,
    run_key,
    unrelated_rules,
)

# On shared axes a panel that uses less than this part of both axes gets an enlarged inset.
_INSET_BELOW = 0.4
# Points of the mean paths and of the layers' faint ones, over all panels: a browser draws them
# in some hundredths of a second.
_MOST_MEAN_POINTS, _MOST_PATH_POINTS = 3_000, 5_000
# In more panels than these each is small: where some numbers must go, fewer can be told apart.
_LARGE_PANELS = 4
_MOST_NUMBERS_OF_MANY = 600
# More numbers than this at one step, over all panels, and only some of the layers are numbered.
_MOST_AT_ONCE = 1_000
# More numbers than this in the one panel of all runs hide one another and the paths.
_MOST_OVERLAID_NUMBERS = 400
_MOST_TICKS = 9
_READING = (
    "Each path starts at the base, at the origin: to the right the singular values changed, "
    "upwards the singular vectors turned."
)


def trajectory(
    drift: pd.DataFrame,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    axes: str = "shared",
    overlay: bool = False,
    relative: bool = False,
    until: int | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Draw where the singular values and vectors went: ΔΣ against ΔD, a panel a run.

    A point is one matrix at one step; its marker is the layer's number, its colour the step. A
    layer's points are joined by a faint line, the mean over the layers of one module by a thick
    one. Every path starts at the origin, the base.

    Parameters
    ----------
    drift : DataFrame
        Rows of one or more runs: columns run, method, module, step, layer, delta_sigma (unit of
        the weights), delta_d; and, where present, kappa, rows, cols, sigma_noise, d_noise,
        sigma_0_mean. Rows without ΔΣ or ΔD are not drawn. Run, method and module may be
        categorical.
    modules : iterable of str, optional
        Draw only these, in this order of styles; all by default.
    layers, steps : iterable of int, optional
        Draw only these, for example ``range(0, 12)``; all by default.
    axes : {"shared", "free"}
        Whether all panels have one range. A panel much smaller than the others then gets an
        enlarged inset.
    overlay : bool
        All runs in one panel: their mean paths in the runs' colours and dashes, the markers
        telling modules apart; layers only as numbers, at the last step drawn.
    relative : bool
        Divide ΔΣ, and its noise floor, by the mean singular value of each matrix' base
        (``sigma_0_mean``), so that matrices of unlike scale compare.
    until : int, optional
        Draw only the steps up to this one, on the axes and the colour scale of all of them: one
        moment of the run, for playback.
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    dark : bool
        Colours for a dark background (plotly only).
    preset : str, optional
        Width and fonts of a venue, one of `style.PRESETS` (matplotlib only).

    Returns
    -------
    plotly.graph_objects.Figure or matplotlib.figure.Figure
        The latter 6.75 inches wide, the width of two columns, without a preset.

    Raises
    ------
    ValueError
        If there is nothing to draw, a column is missing, two runs share a name, an option is
        unknown, or no run has what `relative` divides by.

    Notes
    -----
    The mean is taken for every module by itself: q_proj and v_proj move differently, and their
    common mean is a path that neither took. The caption gives the ΔD of unrelated bases
    (`unrelated_level`). A grey box reaches to what rounding for storage alone would give (the
    median over the layers of the noisiest module), or a strip where only one of ΔΣ and ΔD has
    such a floor. The figure describes drift; it does not rank runs.

    Of many steps only some have numbers, and only some points stand on a path; the last always
    does, and the caption says how many.

    References
    ----------
    Cao, SORSA, arXiv:2409.00055, Figure 2.
    """
    chart = describe_trajectory(
        drift,
        modules=modules,
        layers=layers,
        steps=steps,
        axes=axes,
        overlay=overlay,
        relative=relative,
        until=until,
    )
    return draw(chart, backend, dark=dark, preset=preset)


def describe_trajectory(
    drift: pd.DataFrame,
    *,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    axes: str = "shared",
    overlay: bool = False,
    relative: bool = False,
    until: int | None = None,
) -> Chart:
    """Turn drift rows into the chart of `spectra.figures.trajectory`, which see."""
    if axes not in ("shared", "free"):
        raise ValueError(f'axes must be "shared" or "free", got {axes!r}.')
    modules = module_names(modules)
    left_out = _without_base(drift) if relative else []
    columns = ["delta_sigma", "delta_d", *(["sigma_0_mean"] if relative else [])]
    rows = select_rows(
        drift, columns, modules, layers, steps, ["kappa", "rows", "cols", "sigma_noise", "d_noise"]
    )
    if relative:
        rows = _relative(rows)
    order = module_order(rows, modules)
    runs = [RunPaths(*named, order) for named in by_run(rows, drift)]
    all_steps = np.unique(rows["step"].to_numpy())
    last = int(all_steps[-1]) if until is None else until
    look = Look(
        modules=order,
        x=Axis(*_sigma_label(relative), (0.0, 1.0)),
        ends=(int(all_steps[0]), int(all_steps[-1])),
        until=last,
    )
    chart = _overlay(runs, look) if overlay else _panels(runs, look, axes == "shared")
    with_base = drift[drift["sigma_0_mean"].notna()] if relative else drift
    told = [
        chart.caption,
        left_out_sentence(rows, with_base, ["delta_sigma", "delta_d"]),
    ]
    if left_out:
        told.append(
            f"Without the base's mean singular value, not drawn: {', '.join(left_out)}; analyse "
            "again."
        )
    if last < look.ends[1]:
        told.append(f"Drawn up to step {last} of {look.ends[1]}.")
    return Chart(
        panels=chart.panels,
        entries=chart.entries,
        bar=chart.bar,
        reading=_READING,
        caption=sentences(*told),
        link_x=chart.link_x,
        link_y=chart.link_y,
    )


def _panels(runs: Sequence[RunPaths], look: Look, shared: bool) -> Chart:
    common = _common([run.limits for run in runs])
    small = [
        shared
        and all(own[1] < _INSET_BELOW * all_[1] for own, all_ in zip(r.limits, common, strict=True))
        for r in runs
    ]
    pairs = len(runs) + sum(small)
    every = -(-sum(run.matrices for run in runs) // _MOST_AT_ONCE)
    all_points = sum(run.matrices * len(run.block.steps) for run in runs)
    thin = len(runs) > _LARGE_PANELS and all_points > MOST_NUMBERS
    most = _MOST_NUMBERS_OF_MANY if thin else MOST_NUMBERS
    # Paths of few steps are drawn whole.
    path_points = _MOST_PATH_POINTS if all_points > _MOST_PATH_POINTS else MOST_LINE_POINTS
    panels, numbered, pathed = [], [], []
    for run, enlarge in zip(runs, small, strict=True):
        numbers = run.drawn(-(-run.matrices // every), most / len(runs), look.until)
        # Beside its steps, a path has the origin and the gap after it.
        points = path_points / pairs - 2 * run.matrices
        paths = run.drawn(run.matrices, points, look.until)
        numbered.append(int(numbers.sum()))
        pathed.append(int(paths.sum()))
        limits = common if shared else run.limits
        behind = (*ground(run, limits), *layer_paths(run, look, paths))
        means = mean_paths(run, look, _MOST_MEAN_POINTS / pairs)
        inset = None
        # Where an inset shows the numbers, the small view shows the paths alone.
        marks: tuple[Mark, ...] = (*behind, *means)
        if enlarge:
            marks = (*marks, Frame(*run.limits))
            inside = (
                *ground(run, run.limits),
                *layer_paths(run, look, paths),
                *layer_numbers(run, look, numbers, every),
                *means,
            )
            inset = Inset(
                _inset_place(run.limits, common), Panel("", *look.axes(run.limits), inside)
            )
        else:
            marks = (*behind, *layer_numbers(run, look, numbers, every), *means)
        panels.append(Panel(run.title, *look.axes(limits), marks, inset=inset))
    entries = tuple(
        Entry(
            module_key(i),
            f"{clean(module)}, mean of layers",
            Ink("module", i),
            dash=style.dash(i),
            marker=style.marker(i),
            width=1.5,
            lettering=i,
        )
        for i, module in enumerate(look.modules)
    )
    all_steps = np.unique(np.concatenate([run.block.steps for run in runs]))
    longest = max(len(run.block.steps[run.block.steps <= look.until]) for run in runs)
    return Chart(
        panels=tuple(panels),
        entries=entries,
        bar=_step_bar(all_steps),
        caption=sentences(
            _lettering_sentence(look.modules),
            f"Of {every} layers one is numbered." if every > 1 else "",
            thinning_sentence("Numbers at", max(numbered), longest),
            thinning_sentence("Layers' paths through", max(pathed), longest),
            _unrelated_sentence(runs, panels),
            box_sentence(
                [(r.title, r.noise, r.mixed) for r in runs if any(r.noise)],
                [r.title for r in runs if r.inside],
                look.x.symbol,
                any(
                    shows(r.noise, r.limits if enlarge or not shared else common)
                    for r, enlarge in zip(runs, small, strict=True)
                ),
            ),
            "Insets enlarge the range near the origin." if any(small) else "",
        ),
        link_x=shared,
        link_y=shared,
    )


def _overlay(runs: Sequence[RunPaths], look: Look) -> Chart:
    numbers = sum(run.matrices for run in runs) <= _MOST_OVERLAID_NUMBERS
    limits = _common([run.limits if numbers else run.mean_limits for run in runs])
    ends = [run.drawn(run.matrices, run.matrices, look.until) for run in runs]
    several = len(look.modules) > 1
    floors = [Floor(max(run.noise[i] for run in runs)) for i in (0, 1)]
    noise = floors[0].level, floors[1].level
    marks: list[Mark] = [*noise_zone(noise), *unrelated_rules(runs, limits)]
    budget = MOST_LINE_POINTS / len(runs)
    for i, run in enumerate(runs):
        marks += mean_paths(run, look, budget, run_index=i)
    if numbers:
        # Above the paths, which all come together where they start and part where they end.
        for i, (run, end) in enumerate(zip(runs, ends, strict=True)):
            marks += layer_numbers(run, look, end, 1, run_index=i)
    entries = [
        Entry(run_key(i), run.title, Ink("run", i), dash=style.dash(i), width=1.6)
        for i, run in enumerate(runs)
    ]
    if several:
        entries += [
            Entry(
                module_key(i), clean(m), Ink("text"), marker=style.marker(i), width=0, lettering=i
            )
            for i, m in enumerate(look.modules)
        ]
    what = "Lines: mean of the layers of one module."
    if numbers:
        what += " " + _lettering_sentence(look.modules, " at the last step drawn")
    else:
        what += " Layers are too many to number: choose some, or draw a panel a run."
    differ = len({run.noise for run in runs}) > 1
    panel = Panel("", *look.axes(limits), tuple(marks))
    return Chart(
        panels=(panel,),
        entries=tuple(entries),
        caption=sentences(
            what,
            _unrelated_sentence(runs, [panel]),
            box_sentence(
                [("", noise, any(r.mixed for r in runs))] if any(noise) else [],
                [],
                look.x.symbol,
                shows(noise, limits),
            ),
            "It is the largest of the runs'." if differ and any(noise) else "",
        ),
    )


def _without_base(drift: pd.DataFrame) -> list[str]:
    """Return the runs without a mean singular value of the base; raise where none has one."""
    known = drift["sigma_0_mean"].notna() if "sigma_0_mean" in drift else None
    if known is None or not known.any():
        raise ValueError(
            "The rows have no mean singular value of the base (sigma_0_mean), by which "
            "relative=True divides: they were analysed by an earlier version. Analyse again: "
            "spectra analyze RUN."
        )
    with_base = {str(run) for run in drift.loc[known, "run"].unique()}
    return [clean(run) for run in drift["run"].unique() if str(run) not in with_base]


def _relative(rows: pd.DataFrame) -> pd.DataFrame:
    scaled = {"delta_sigma": rows["delta_sigma"] / rows["sigma_0_mean"]}
    if "sigma_noise" in rows:
        scaled["sigma_noise"] = rows["sigma_noise"] / rows["sigma_0_mean"]
    return rows.assign(**scaled)


def _sigma_label(relative: bool) -> tuple[str, str]:
    if relative:
        return "ΔΣ / mean σ₀", "ΔΣ / mean σ₀"
    return label_of("delta_sigma").axis, label_of("delta_sigma").symbol


def _common(limits: Sequence[Limits]) -> Limits:
    x, y = ((min(o[i][0] for o in limits), max(o[i][1] for o in limits)) for i in (0, 1))
    return x, y


def _inset_place(
    own: Limits,
    common: Limits,
) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of the inset as parts of the panel, clear of the data."""
    left = 0.2 + max(own[0][1] / common[0][1], 0.1)
    bottom = 0.16 + max(own[1][1] / common[1][1], 0.1)
    return (left, bottom, 0.98 - left, 0.98 - bottom)


def _step_bar(steps: NDArray[Any]) -> ColourBar | None:
    low, high = float(steps[0]), float(steps[-1])
    if low == high:
        return None
    ticks = tuple(map(float, steps)) if len(steps) <= _MOST_TICKS else ()
    return ColourBar("step", "step", (low, high), ticks=ticks)


def _lettering_sentence(modules: tuple[str, ...], where: str = "") -> str:
    if len(modules) == 1:
        return f"Numbers{where} are layers of {clean(modules[0])}."
    fonts = ", ".join(f"{clean(m)} {style.lettering(i)[2]}" for i, m in enumerate(modules))
    return f"Numbers{where} are layers ({fonts})."


def _unrelated_sentence(runs: Sequence[RunPaths], panels: Sequence[Panel]) -> str:
    levels = sorted({level for run in runs for level in run.unrelated})
    if not levels:
        return ""
    span = f"{levels[0]:.3f}" + (f"–{levels[-1]:.3f}" if len(levels) > 1 else "")
    drawn = any(isinstance(mark, Rule) for panel in panels for mark in panel.marks)
    where = "the dotted line" if drawn else "above these axes"
    return f"Unrelated bases would have ΔD ≈ {span} ({where})."
