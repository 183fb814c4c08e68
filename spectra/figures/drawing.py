"""From a chart to a figure of the asked-for library."""

from __future__ import annotations

from typing import Any

from spectra.figures.chart import Chart
from spectra.figures.export import Backend


def draw(
    chart: Chart, backend: Backend = "plotly", *, dark: bool = False, preset: str | None = None
) -> Any:
    """Draw a chart.

    Parameters
    ----------
    chart : Chart
    backend : {"plotly", "matplotlib"}
        Screen or paper.
    dark : bool
        Colours for a dark background (plotly only).
    preset : str, optional
        One of `style.PRESETS`: width and fonts of a venue (matplotlib only).

    Returns
    -------
    plotly.graph_objects.Figure or matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the backend or the preset is unknown.
    """
    if backend == "plotly":
        from spectra.figures import plotly_renderer

        return plotly_renderer.draw(chart, dark=dark)
    if backend == "matplotlib":
        from spectra.figures import matplotlib_renderer

        return matplotlib_renderer.draw(chart, preset=preset)
    raise ValueError(f'backend must be "plotly" or "matplotlib", got {backend!r}.')
