"""What every page has: the choice of runs, their state, refreshing, and taking a figure along."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from dashboard_choices import choose_many
from dashboard_runs import RunEntry, list_runs, root_folder
from dashboard_sweeps import SweepEntry, choose_sweep, list_sweeps

from spectra import figures

_REFRESH_SECONDS = 5
# Where nothing grows, a run may still begin.
_IDLE_SECONDS = 30
_STATE_MARKS = {"growing": "● growing", "interrupted": "◌ interrupted", "finished": "finished"}


def escape(text: object) -> str:
    """Return text that Markdown shows as it stands; names of runs are data, not mark-up."""
    one_line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:&\"'=/^@])", r"\\\1", one_line)


def open_page(title: str, reading: str) -> list[RunEntry]:
    """Write the page's head and return the runs chosen in the sidebar; stop if there are none."""
    st.header(title, anchor=False)
    st.caption(reading)
    root = root_folder()
    if root is None:
        st.error("Say which folder holds the runs:")
        st.code("spectra dashboard ROOT", language="bash")
        st.stop()
    try:
        entries = list_runs(root)
        sweeps, unreadable = list_sweeps(root)
    except FileNotFoundError as error:
        st.error(escape(error))
        st.stop()
    _watch(entries, sweeps)
    if not entries:
        st.info(f"There are no runs in {escape(root)} yet. Make one with any of these:")
        st.code(
            "spectra demo\n"
            f"spectra train --model MODEL --method sorsa --data DATA --out {_quoted(root)}/a\n"
            f"spectra analyze CHECKPOINTS --base MODEL --out {_quoted(root)}/a",
            language="bash",
        )
        st.stop()
    readable = [e for e in entries if not e.problem]
    for entry in entries:
        if entry.problem:
            warn(entry, entry.problem)
    for problem in unreadable:
        st.warning(f"A sweep is not shown as one: {escape(problem)}")
    if not readable:
        st.stop()
    with st.sidebar:
        labels = {e.label: e for e in choose_sweep(sweeps, readable)}
        chosen = choose_many("run", "Runs", list(labels))
        # st.text, not Markdown: a run's name is shown as it is.
        st.text("\n".join(_one_line(labels[label]) for label in chosen))
    if not chosen:
        st.info("Choose at least one run in the sidebar.")
        st.stop()
    return [labels[label] for label in chosen]


def read_tables(
    entries: Sequence[RunEntry], read: Callable[[RunEntry], pd.DataFrame]
) -> tuple[pd.DataFrame, list[RunEntry]]:
    """Return the rows of all runs that can be read, and the runs that have none yet."""
    tables, without = [], []
    for entry in entries:
        try:
            table = read(entry)
        except (OSError, ValueError, KeyError) as error:
            warn(entry, str(error))
            continue
        if table.empty:
            without.append(entry)
        else:
            tables.append(table)
    return (pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()), without


def ask_for_analysis(without: Sequence[RunEntry]) -> None:
    """Say which runs have no drift rows yet, and the command that computes them."""
    if without:
        names = ", ".join(escape(entry.label) for entry in without)
        st.info(f"Recorded but not analysed yet: {names}. To compute the drift:")
        st.code("\n".join(f"spectra analyze {_quoted(e.path)}" for e in without), language="bash")


def warn(entry: RunEntry, problem: str) -> None:
    """Say in one line that a run is left out, and why."""
    st.warning(f"{escape(entry.label)} is left out: {escape(problem)}")


def is_dark() -> bool:
    """Whether the page is dark."""
    return st.context.theme.type == "dark"


def show(draw: Callable[..., Any], description: str) -> None:
    """Draw a figure for the screen, or say in one line why there is none."""
    try:
        figure = draw(backend="plotly", dark=is_dark())
    except ValueError as error:
        st.info(escape(error))
        st.stop()
    # The figure brings its own colours for either theme; the ground is the page's.
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)")
    st.plotly_chart(
        figure, width="stretch", theme=None, config=figures.SCREEN_CONFIG, alt=description
    )


def take_along(
    name: str,
    draw: Callable[..., Any],
    rows: pd.DataFrame,
    command: Sequence[object],
) -> None:
    """Offer the figure and its rows as files, and the command that makes the same figure."""

    def content(suffix: str) -> Callable[[], bytes]:
        # Called on a click: drawing for paper takes seconds, which the page need not wait.
        return lambda: figures.to_bytes(draw(backend="matplotlib"), suffix)

    with st.container(horizontal=True):
        for suffix in (".pdf", ".svg", ".png"):
            st.download_button(
                suffix[1:].upper(),
                content(suffix),
                file_name=f"{name}{suffix}",
                on_click="ignore",
                icon=":material/download:",
                key=f"take-{name}{suffix}",
            )
        st.download_button(
            "CSV",
            lambda: rows.to_csv(index=False).encode(),
            file_name=f"{name}.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/table:",
            key=f"take-{name}.csv",
        )
    st.caption("The same figure from the command line:")
    words = ["spectra", "plot", *map(str, command), "--out", f"{name}.pdf"]
    st.code(shlex.join(words), language="bash", wrap_lines=True)


def range_words(option: str, chosen: range, values: Sequence[int]) -> list[str]:
    """Return the words of a command that choose a range; none where it is everything."""
    if chosen[0] <= values[0] and chosen[-1] >= values[-1]:
        return []
    return [option, f"{chosen[0]}-{chosen[-1]}"]


def _watch(entries: list[RunEntry], sweeps: list[SweepEntry]) -> None:
    """Draw the page again when a run appears, or a file of one or of a sweep changes."""
    root = root_folder()
    growing = any(entry.state == "growing" for entry in entries)

    @st.fragment(run_every=_REFRESH_SECONDS if growing or not entries else _IDLE_SECONDS)
    def look() -> None:
        try:
            now = (list_runs(root), list_sweeps(root)[0]) if root else ([], [])
        except OSError:
            return
        if now != (entries, sweeps):
            st.rerun()

    look()


def _one_line(entry: RunEntry) -> str:
    text = f"{entry.label}: {entry.method}, {_STATE_MARKS.get(entry.state, entry.state)}"
    return " ".join(text.split())


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
