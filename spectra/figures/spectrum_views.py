"""The whole spectrum of every layer at a glance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import pandas as pd

from spectra.figures.arrays import Group, choose_arrays, groups
from spectra.figures.captions import sentences
from spectra.figures.chart import Chart
from spectra.figures.drawing import draw
from spectra.figures.export import Backend
from spectra.figures.selection import MOST_PANELS, module_names
from spectra.figures.spectrum_counts import density_chart, share_chart
from spectra.figures.spectrum_curves import energy_chart, values_chart
from spectra.figures.spectrum_facts import size_sentence, within_sentence

WITHIN = (0.1, 1.1)
"""The range in which 99% of Gemma 2 9B's singular values were found to lie (survey note 003)."""

# Each takes the groups of every panel and a range, and gives the chart and sentences for its
# caption.
_CHARTS = {
    "values": values_chart,
    "density": density_chart,
    "energy": energy_chart,
    "share": share_chart,
}
VIEWS = tuple(_CHARTS)


def spectrum(
    arrays: pd.DataFrame,
    *,
    view: str = "values",
    within: tuple[float, float] | None = None,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    backend: Backend = "plotly",
    dark: bool = False,
    preset: str | None = None,
) -> Any:
    """Draw the whole spectrum of every layer, a panel a run and module.

    Parameters
    ----------
    arrays : DataFrame
        `Run.read_spectrum()` of one or more runs, concatenated: columns run, method, module,
        step, layer and sigma, arrays of length k; where present, sigma_change (σ_t − σ_0) gives
        the base's.
    view : {"values", "density", "energy", "share"}
        ``"values"``: σᵢ against i, a line a layer. ``"density"``: how many singular values of a
        layer lie at a size, layer against log σ, and all of them pooled. ``"energy"``: the share
        of Σσ² that the i largest hold, against i/k. ``"share"``: the share of the singular values
        that lie `within` a range, by layer.
    within : (float, float), optional
        Ends of that range, both included, in the unit of the weights; 0.1 to 1.1 in the view
        ``"share"``. The other views mark it and count what lies in it.
    modules, layers : iterable, optional
        Draw only these; all by default.
    steps : iterable of int, optional
        By default the last of each run. Of several, ``"values"`` and ``"energy"`` draw the last
        and, dashed, the first; ``"density"`` too, of all layers together; ``"share"`` all.
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    dark : bool
        Colours for a dark background (plotly only).
    preset : str, optional
        Width and fonts of a venue (matplotlib only).

    Returns
    -------
    plotly.graph_objects.Figure or matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is nothing to draw, a column is missing, two runs share a name, there are more
        than 16 panels, or an option is unknown.

    Notes
    -----
    The caption answers with numbers whether the values fall into "large" and "small" ones, as
    PiSSA (arXiv:2404.02948) and MiLoRA (arXiv:2406.09044) name them: how far the largest is from
    the smallest, what share of the energy Σσ² the r largest hold, and the widest gap between
    neighbours. It does not say what counts as large.
    """
    return draw(
        describe_spectrum(
            arrays, view=view, within=within, modules=modules, layers=layers, steps=steps
        ),
        backend,
        dark=dark,
        preset=preset,
    )


def describe_spectrum(
    arrays: pd.DataFrame,
    *,
    view: str = "values",
    within: tuple[float, float] | None = None,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
) -> Chart:
    """Turn rows into the chart of `spectrum`, which see."""
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}.")
    if within is not None and not 0 <= within[0] < within[1]:
        raise ValueError(
            f"within must be two numbers, 0 ≤ low < high, got {within[0]:g} to {within[1]:g}."
        )
    modules = module_names(modules)
    within = WITHIN if within is None and view == "share" else within
    rows, empty = choose_arrays(arrays, modules, layers, steps)
    panels = len(rows[["run", "method", "module"]].drop_duplicates())
    if panels > MOST_PANELS:
        raise ValueError(
            f"{rows['run'].nunique()} runs × {rows['module'].nunique()} modules would be {panels} "
            f"panels; more than {MOST_PANELS} cannot be read. Choose fewer runs or modules."
        )
    found = groups(rows, arrays, modules)
    stacks = [tuple(s) for _, s in groupby(found, key=lambda group: (group.run, group.title))]
    chart, told = _CHARTS[view](stacks, within)
    last = [stack[-1] for stack in stacks]
    return replace(
        chart,
        caption=sentences(
            _step_sentence(last),
            *told,
            within_sentence(last, within),
            size_sentence(last),
            f"Without singular values: {empty} of the chosen matrices." if empty else "",
        ),
    )


def _step_sentence(last: Sequence[Group]) -> str:
    steps = sorted({group.step for group in last})
    return f"Step {', '.join(map(str, steps))}."
