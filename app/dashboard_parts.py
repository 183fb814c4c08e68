"""What every page has: its head, the choice of runs, following them, and showing a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import streamlit as st
from dashboard_choices import asked_for, choose_flag, choose_many, choose_one, hand_over
from dashboard_markup import escape, one_line
from dashboard_rows import quoted, warn
from dashboard_runs import RunEntry, list_runs, root_folder
from dashboard_sweeps import SweepEntry, choose_sweep, list_sweeps

from spectra import figures
from spectra.figures.chart import Chart
from spectra.figures.drawing import draw

_REFRESH_SECONDS = 3
# Where nothing grows, a run may still begin.
_IDLE_SECONDS = 20
_STATE_MARKS = {"growing": "● growing", "interrupted": "◌ interrupted"}
_PROBLEMS_SHOWN = 3
_LONGEST_NAME = 255  # of a folder; a link may hold anything
RUNS_SHOWN = 6
"""Runs that a page shows before the user chose: more are a wall of small panels."""


class Listing(NamedTuple):
    """What lies in ROOT.

    Attributes
    ----------
    root : Path
    entries : tuple of RunEntry
        Those that cannot be read included.
    sweeps : list of SweepEntry
    problems : list of str
        What is wrong with sweeps that cannot be read.
    """

    root: Path
    entries: tuple[RunEntry, ...]
    sweeps: list[SweepEntry]
    problems: list[str]


class Picked(NamedTuple):
    """A matrix that the user clicked on."""

    run: str
    module: str
    layer: int
    step: int


class Shown(NamedTuple):
    """A figure on the page, and what was just clicked on it (empty in any other rerun)."""

    chart: Chart
    picks: list[Picked]


def open_root(title: str, reading: str) -> Listing:
    """Write the page's head and return what lies in ROOT; stop if there is nothing."""
    st.subheader(title, anchor=False)
    st.caption(reading)
    root = root_folder()
    if root is None:
        st.error("Say which folder holds the runs:")
        st.code("spectra dashboard ROOT", language="bash")
        st.stop()
    try:
        entries = list_runs(root)
        sweeps, problems = list_sweeps(root)
    except OSError as error:
        st.error(escape(error))
        st.stop()
    growing = any(entry.state == "growing" for entry in entries)
    with st.sidebar:
        held = growing and choose_flag(
            "hold",
            "Hold still",
            "A growing run is drawn anew at each of its steps, which ends a zoom. This waits with "
            "it until you choose something.",
        )
    if not held:
        _watch(root, entries, sweeps, growing)
    if not entries:
        st.info(f"There are no runs in {escape(root)} yet. Make one with any of these:")
        st.code(
            "spectra demo\n"
            f"spectra train --model MODEL --method sorsa --data DATA --out {quoted(root)}/a\n"
            f"spectra analyze CHECKPOINTS --base MODEL --out {quoted(root)}/a",
            language="bash",
        )
        st.stop()
    return Listing(root, entries, sweeps, problems)


def open_page(
    title: str, reading: str, *, single: bool = False, at_most: int | None = RUNS_SHOWN
) -> list[RunEntry]:
    """Write the page's head and return the runs chosen in the sidebar; stop if there are none.

    Parameters
    ----------
    title, reading : str
        The page's name, and a line on what it shows and how to read it.
    single : bool
        Whether the page shows one run.
    at_most : int, optional
        Runs chosen before the user chose.
    """
    listing = open_root(title, reading)
    readable = [e for e in listing.entries if not e.problem]
    _tell_problems(listing)
    if not readable:
        st.stop()
    with st.sidebar:
        labels = {e.label: e for e in choose_sweep(listing.sweeps, readable)}
        if not labels:
            st.info("None of this sweep's runs has begun. Choose another sweep, or wait.")
            st.stop()
        if single:
            # Of those chosen where a page shows several; and looking at one leaves them chosen.
            hand_over("run", "one run")
            chosen = [choose_one("run", "Run", list(labels), memory="one run")]
            asked = asked_for("run", "one run")
        else:
            chosen = choose_many("run", "Runs", list(labels), default=list(labels)[:at_most])
            asked = asked_for("run")
            if len(chosen) < len(labels):
                st.caption(f"{len(chosen)} of {len(labels)} runs shown.")
        # st.text, not Markdown: a run's name is shown as it is.
        if told := "\n".join(filter(None, (_tell_state(labels[label]) for label in chosen))):
            st.text(told)
    # Those of another sweep, and of unreadable ones that are told above, are there.
    there = {*labels, *(name for e in listing.entries for name in (e.label, e.path.name))}
    _tell_gone([name for name in asked if name not in there])
    if not chosen:
        st.info("Choose at least one run in the sidebar.")
        st.stop()
    return [labels[label] for label in chosen]


def is_dark() -> bool:
    """Whether the page is dark."""
    return st.context.theme.type == "dark"


def show(
    describe: Callable[[], Chart],
    description: str,
    key: str,
    *,
    on_pick: Callable[[list[Picked]], None] | None = None,
    pick: bool = False,
) -> Shown:
    """Draw a figure for the screen with a line on how to read it, or say why there is none.

    Parameters
    ----------
    describe : callable
        Returns the chart; its ValueError is told, and the page stops.
    description : str
        What a screen reader says of it.
    key : str
        The figure's name on its page.
    on_pick : callable, optional
        Called with the clicked or boxed matrices, before the page is drawn anew: the place to
        `set_choice`. Given or not, `pick` makes the points clickable and the result has them.
    """
    try:
        chart = describe()
    except ValueError as error:
        st.info(escape(error))
        st.stop()
    if chart.reading:
        st.caption(escape(chart.reading))
    figure = draw(chart, "plotly", dark=is_dark())
    # The figure brings its own colours for either theme; the ground is the page's.
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)")
    options: dict[str, Any] = {}
    widget, fresh = f"figure-{key}", f"picked-{key}"

    def picked() -> None:
        picks = list(_picks(st.session_state[widget]))
        st.session_state[fresh] = picks
        if picks and on_pick is not None:
            on_pick(picks)

    if pick or on_pick is not None:
        options = {"on_select": picked, "selection_mode": ("points", "box"), "key": widget}
    st.plotly_chart(
        figure,
        width="stretch",
        theme=None,
        config=figures.SCREEN_CONFIG,
        alt=description,
        **options,
    )
    return Shown(chart, st.session_state.pop(fresh, []))


def narrowed(chosen: range, values: Sequence[int]) -> range | None:
    """Return a choice of steps as a figure's option: None where it is everything."""
    return None if chosen[0] <= values[0] and chosen[-1] >= values[-1] else chosen


def _picks(state: Any) -> Iterable[Picked]:
    for point in state["selection"]["points"]:
        data: Sequence[Any] = point.get("customdata") or ()
        if len(data) >= 4:
            yield Picked(str(data[0]), str(data[1]), int(data[2]), int(data[3]))


def _tell_problems(listing: Listing) -> None:
    broken = [e for e in listing.entries if e.problem]
    for entry in broken[:_PROBLEMS_SHOWN]:
        warn(entry, entry.problem)
    if more := len(broken) - _PROBLEMS_SHOWN:
        if more > 0:
            st.warning(f"{more} more runs cannot be read: the Overview says why.")
    for problem in listing.problems:
        st.warning(f"A sweep is not shown as one: {escape(problem)}")


def _tell_gone(names: Sequence[str]) -> None:
    """Say which of the runs that a link names are not there: others stand in their place."""
    for name in names[:_PROBLEMS_SHOWN]:
        st.warning(f"There is no run {escape(name[:_LONGEST_NAME])} here, or no longer\\.")
    if more := len(names[_PROBLEMS_SHOWN:]):
        st.warning(f"Nor {more} more of those that were chosen.")


def _watch(
    root: Path, entries: tuple[RunEntry, ...], sweeps: list[SweepEntry], growing: bool
) -> None:
    """Draw the page again when a run appears, or a file of one or of a sweep changes."""

    @st.fragment(run_every=_REFRESH_SECONDS if growing or not entries else _IDLE_SECONDS)
    def look() -> None:
        try:
            now = (list_runs(root), list_sweeps(root)[0])
        except OSError:
            return
        if now != (entries, sweeps):
            st.rerun()

    look()


def _tell_state(entry: RunEntry) -> str:
    """Return a line on a run that is not over; of the others the figure says all."""
    if entry.state not in _STATE_MARKS:
        return ""
    return one_line(f"{entry.label}: {entry.method}, {_STATE_MARKS[entry.state]}")
