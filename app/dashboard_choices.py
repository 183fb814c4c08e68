"""What the user chose, kept in the URL: a link opens the same view in anyone's session.

A parameter that is absent means "all", or the default; so what a growing run adds is shown unless
the user narrowed the choice. Unknown values in a link are ignored. Streamlit empties the URL when
the page changes, so the session remembers the choices too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import streamlit as st

T = TypeVar("T")

_MEMORY = "spectra-choices"


def choose_many(
    name: str,
    label: str,
    options: Sequence[str],
    show: Callable[[str], str] = str,
    default: Sequence[str] | None = None,
) -> list[str]:
    """Show a multiple choice and return what is chosen; `default` or all `options` by default."""
    usual = list(options if default is None else default)
    wanted = _recall(name)
    chosen = [option for option in options if option in (wanted or [])]
    if not chosen and wanted != [""]:
        chosen = usual
    key = _fill(name, chosen)

    def changed() -> None:
        now = st.session_state[key]
        # An empty choice is a choice: without a mark in the URL it would read as "all".
        _remember(name, None if set(now) == set(usual) else (now or [""]))

    return st.multiselect(label, options, key=key, format_func=show, on_change=changed)


def choose_one(
    name: str,
    label: str,
    options: Sequence[str],
    show: Callable[[str], str] = str,
    default: str | None = None,
) -> str:
    """Show a single choice and return it; `default` or the first of `options` by default."""
    first = default if default is not None and default in options else options[0]
    wanted = (_recall(name) or [first])[-1]
    key = _fill(name, wanted if wanted in options else first)

    def changed() -> None:
        now = st.session_state[key]
        _remember(name, None if now == first else [now])

    return st.selectbox(label, options, key=key, format_func=show, on_change=changed)


def choose_range(name: str, label: str, values: Sequence[int]) -> range:
    """Show a range over the sorted `values` and return it; open at the ends by default."""
    values = [int(v) for v in values]
    lowest, highest = values[0], values[-1]
    if lowest == highest:
        return range(lowest, highest + 1)
    low, high = _parse_range((_recall(name) or [""])[-1])
    inside = [
        v for v in values if (low is None or v >= low) and (high is None or v <= high)
    ] or list(values)
    shown = (inside[0], inside[-1])
    # A slider learns from `value` that it has two ends. New data give it new ends and a new key.
    key = f"choice-{name}-{lowest}-{highest}"
    if key in st.session_state and st.session_state[key] != shown:
        st.session_state[key] = shown

    def changed() -> None:
        first, last = st.session_state[key]
        # An end that was not moved stays open, so that later steps of a growing run are shown.
        start = "" if first == lowest else str(first)
        stop = "" if last == highest else str(last)
        _remember(name, [f"{start}-{stop}"] if start or stop else None)

    first, last = st.select_slider(label, values, value=shown, key=key, on_change=changed)
    return range(first, last + 1)


def choose_flag(name: str, label: str, explanation: str) -> bool:
    """Show a switch, off by default, and return whether it is on."""
    key = _fill(name, _recall(name) == ["on"])

    def changed() -> None:
        _remember(name, ["on"] if st.session_state[key] else None)

    return st.toggle(label, key=key, help=explanation, on_change=changed)


def _recall(name: str) -> list[str] | None:
    memory = st.session_state.setdefault(_MEMORY, {})
    if name in st.query_params:
        memory[name] = st.query_params.get_all(name)
    elif name in memory:
        st.query_params[name] = memory[name]
    return memory.get(name)


def _remember(name: str, values: list[str] | None) -> None:
    memory = st.session_state.setdefault(_MEMORY, {})
    if values is None:
        memory.pop(name, None)
        st.query_params.pop(name, None)
    else:
        memory[name] = list(values)
        st.query_params[name] = list(values)


def _fill(name: str, value: object) -> str:
    """Set the widget to what the URL says, which is the one truth, and return its key."""
    key = f"choice-{name}"
    if st.session_state.get(key) != value:
        st.session_state[key] = value
    return key


def _parse_range(text: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"(\d{0,12})-(\d{0,12})", text, re.ASCII)
    if match is None:
        return None, None
    start, stop = match.groups()
    return int(start) if start else None, int(stop) if stop else None
