"""Taking a figure along: files for paper, its rows, its caption and the command that makes it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st
from dashboard_choices import choose_one
from dashboard_runs import RunEntry

from spectra import figures
from spectra.figures import style
from spectra.figures.chart import Chart
from spectra.figures.drawing import draw

_NO_PRESET = "none"
_SUFFIXES = (".pdf", ".svg", ".pgf", ".png")


def take_along(
    name: str,
    chart: Chart,
    rows: pd.DataFrame,
    figure: str,
    entries: Sequence[RunEntry],
    *,
    among: Mapping[str, Sequence[int]] | None = None,
    tidy: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    **options: Any,
) -> None:
    """Offer the figure and its rows as files, its caption, and the command that makes it.

    Parameters
    ----------
    name : str
        Of the files.
    chart : Chart
        What is on the screen; the files hold the same.
    rows : DataFrame
        What it shows, for the CSV file.
    figure : str
        Of `spectra plot`.
    entries : sequence of RunEntry
        The chosen runs; those without rows are left out of the command.
    among : mapping, optional
        Which layers and steps there are, as `figures.plot_command` takes it.
    tidy : callable, optional
        Makes the rows of the CSV file from `rows`; called on a click.
    **options
        Of the figure, as its function takes them.
    """
    with st.container(horizontal=True, vertical_alignment="bottom"):
        preset = _choose_preset()
        for suffix in _SUFFIXES:
            st.download_button(
                suffix[1:].upper(),
                _printed(chart, preset, suffix),
                file_name=f"{name}{suffix}",
                on_click="ignore",
                icon=":material/download:",
                key=f"take-{name}{suffix}",
            )
        st.download_button(
            "CSV",
            lambda: (rows if tidy is None else tidy(rows)).to_csv(index=False).encode(),
            file_name=f"{name}.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/table:",
            key=f"take-{name}.csv",
        )
    if chart.caption:
        st.caption("Its caption, to copy:")
        st.code(chart.caption, language=None, wrap_lines=True)
    st.caption("The same figure from the command line:")
    drawn = set(rows["run"].unique())
    runs = [entry.path for entry in entries if entry.label in drawn]
    if preset:
        options["preset"] = preset
    words = figures.plot_command(figure, runs, f"{name}.pdf", among=among, **options)
    st.code(shlex.join(words), language="bash", wrap_lines=True)


def _printed(chart: Chart, preset: str | None, suffix: str) -> Callable[[], bytes]:
    # Called on a click: drawing for paper takes seconds, which the page need not wait.
    return lambda: figures.to_bytes(draw(chart, "matplotlib", preset=preset), suffix)


def _choose_preset() -> str | None:
    chosen = choose_one(
        "preset",
        "Size",
        [_NO_PRESET, *style.PRESETS],
        show=lambda p: f"{style.PAPER_WIDTH} inches, with caption" if p == _NO_PRESET else p,
    )
    return None if chosen == _NO_PRESET else chosen
