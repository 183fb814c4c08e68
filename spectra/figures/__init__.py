"""Every figure once, from tidy rows: Matplotlib for paper, Plotly for screen.

Rows become a description (what is drawn, as plain data), and a renderer draws the description.
Importing this package loads neither plotting library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import pandas as pd

from spectra.figures.chart import Chart
from spectra.figures.comparison import compare
from spectra.figures.conditioning import conditioning
from spectra.figures.ends import final_losses, final_values, over_seeds
from spectra.figures.export import SCREEN_CONFIG, Backend, backend_for, save, to_bytes
from spectra.figures.heatmaps import heatmap
from spectra.figures.kappa_ratios import kappa_ratio
from spectra.figures.labels import LABELS, Label, label_of
from spectra.figures.matrices import matrix
from spectra.figures.spectrum_views import spectrum
from spectra.figures.step_curves import (
    describe_layer_curves,
    describe_run_curves,
    describe_training,
)
from spectra.figures.tables import (
    TABLE_ENDINGS,
    comparison_table,
    table_bytes,
    to_latex,
    write_table,
)
from spectra.figures.trajectories import describe_trajectory, unrelated_level

__all__ = [
    "LABELS",
    "SCREEN_CONFIG",
    "TABLE_ENDINGS",
    "Backend",
    "Chart",
    "Label",
    "backend_for",
    "compare",
    "comparison_table",
    "conditioning",
    "curves",
    "describe_layer_curves",
    "describe_run_curves",
    "describe_training",
    "describe_trajectory",
    "final_losses",
    "final_values",
    "heatmap",
    "kappa_ratio",
    "label_of",
    "matrix",
    "over_seeds",
    "save",
    "spectrum",
    "table_bytes",
    "to_bytes",
    "to_latex",
    "training",
    "trajectory",
    "unrelated_level",
    "write_table",
]


def trajectory(
    drift: pd.DataFrame,
    *,
    backend: Backend = "plotly",
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    axes: str = "shared",
    dark: bool = False,
) -> Any:
    """Draw where the singular values and vectors went: ΔΣ against ΔD, a panel a run.

    A point is one matrix at one step; its marker is the layer's number, its colour the step. A
    layer's points are joined by a faint line, the mean over the layers of one module by a thick
    one. Every path starts at the origin, the base.

    Parameters
    ----------
    drift : DataFrame
        Rows of one or more runs: columns run, method, module, step, layer, delta_sigma (unit of
        the weights), delta_d; and, where present, kappa, rows, cols, sigma_noise, d_noise. Rows
        without ΔΣ or ΔD are not drawn.
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    modules : iterable of str, optional
        Draw only these, in this order of styles; all by default.
    layers, steps : iterable of int, optional
        Draw only these, for example ``range(0, 12)``; all by default.
    axes : {"shared", "free"}
        Whether all panels have one range. A panel much smaller than the others then gets an
        enlarged inset.
    dark : bool
        Colours for a dark background (plotly only).

    Returns
    -------
    plotly.graph_objects.Figure or matplotlib.figure.Figure
        The latter 6.75 inches wide, the width of two columns.

    Raises
    ------
    ValueError
        If there is nothing to draw, a column is missing, two runs share a name, or an option is
        unknown.

    Notes
    -----
    The mean is taken for every module by itself: q_proj and v_proj move differently, and their
    common mean is a path that neither took. The caption gives the ΔD of unrelated bases
    (`unrelated_level`). A grey box reaches to what rounding for storage alone would give (the
    median over the layers of the noisiest module), or a strip where only one of ΔΣ and ΔD has
    such a floor. The figure describes drift; it does not rank runs.

    References
    ----------
    Cao, SORSA, arXiv:2409.00055, Figure 2.
    """
    description = describe_trajectory(drift, modules=modules, layers=layers, steps=steps, axes=axes)
    return _renderer(backend).draw_trajectory(description, dark=dark)


def curves(
    drift: pd.DataFrame,
    column: str,
    *,
    backend: Backend = "plotly",
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    overlay: bool = False,
    band: bool = True,
    log: bool | None = None,
    dark: bool = False,
) -> Any:
    """Draw one column of drift over the steps.

    Parameters
    ----------
    drift : DataFrame
        Rows of one or more runs: columns run, method, module, step, layer and `column`.
    column : str
        What to draw, for example ``"kappa"``; in the unit that `LABELS` names.
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    modules, layers, steps : iterable, optional
        Draw only these; all by default.
    overlay : bool
        False: a panel a run, a thin line a layer. True: a panel a module, a line a run.
    band : bool
        Shade from the smallest to the largest layer.
    log : bool, optional
        Logarithmic vertical axis; by default for condition numbers that span over two
        decades.
    dark : bool
        Colours for a dark background (plotly only).

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
    values of 0 lie below a logarithmic axis; the caption counts both.

    Where rows have a noise floor of ΔΣ or ΔD (`sigma_noise`, `d_noise`), it is drawn as a grey
    band from the bottom of the axis: the median over the layers of the noisiest module, and of
    the noisiest run where several share a panel; the caption then names each run's.
    """
    describe = describe_run_curves if overlay else describe_layer_curves
    description = describe(
        drift, column, modules=modules, layers=layers, steps=steps, band=band, log=log
    )
    renderer = _renderer(backend)
    draw = renderer.draw_run_curves if overlay else renderer.draw_layer_curves
    return draw(description, dark=dark)


def training(
    rows: pd.DataFrame,
    columns: Sequence[str] = ("loss", "grad_norm"),
    *,
    backend: Backend = "plotly",
    log: bool | None = None,
    smooth: int | None = None,
    dark: bool = False,
) -> Any:
    """Draw what training recorded over the steps, runs laid over one another.

    Parameters
    ----------
    rows : DataFrame
        Concatenated `Run.read_training()`: columns run, method, step and `columns`.
    columns : sequence of str
        A panel each; the loss (nats per token) and the gradient's norm by default. A column
        without any value is left out and named in the caption.
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    log : bool, optional
        Logarithmic vertical axes; linear by default.
    smooth : int, optional
        Recorded steps in the running mean that is drawn strong, over the faint record; 1 for
        none. By default none up to 80 steps, and a fortieth of the longest run beyond.
    dark : bool
        Colours for a dark background (plotly only).

    Returns
    -------
    plotly.graph_objects.Figure or matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is nothing to draw or a column is missing.

    References
    ----------
    Cao, SORSA, arXiv:2409.00055, Figure 3.
    """
    description = describe_training(rows, columns, log=log, smooth=smooth)
    return _renderer(backend).draw_run_curves(description, dark=dark)


def _renderer(backend: str) -> ModuleType:
    if backend == "plotly":
        from spectra.figures import plotly_renderer

        return plotly_renderer
    if backend == "matplotlib":
        from spectra.figures import matplotlib_renderer

        return matplotlib_renderer
    raise ValueError(f'backend must be "plotly" or "matplotlib", got {backend!r}.')
