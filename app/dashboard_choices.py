"""What the user chose, kept in the URL: a link opens the same view in anyone's session.

A parameter that is absent means "all", or the default; so what a growing run adds is shown unless
the user narrowed the choice. Unknown values in a link are ignored. Streamlit empties the URL when
the page changes, so the session remembers the choices too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import streamlit as st
from dashboard_markup import escape

_MEMORY = "spectra-choices"
_FEW_MODULES = 3
_USUAL_MODULES = ("q_proj", "v_proj")

LAST = "last"
"""In a link: the last recorded step, whichever that is by then."""


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


def choose_scale(name: str = "scale", label: str = "Axis of the values") -> bool | None:
    """Show the choice of a linear or logarithmic axis; None where the figure chooses, as usual."""
    texts = {"auto": "as the values ask for", "linear": "linear", "log": "logarithmic"}
    chosen = choose_one(name, label, list(texts), show=texts.__getitem__)
    return None if chosen == "auto" else chosen == "log"


def choose_layers(present: Sequence[int], name: str = "layers") -> list[int]:
    """Show a text such as ``0-11`` or ``3,5,7`` and return the layers that it names.

    All of `present` by default, and where the text says nothing that can be followed.
    """
    present = sorted(int(layer) for layer in present)
    everything = write_numbers(present)
    key = _fill(name, (_recall(name) or [""])[-1])

    def changed() -> None:
        text = str(st.session_state[key]).strip()
        _remember(name, [text] if text else None)

    text = st.text_input(
        "Layers",
        key=key,
        placeholder=f"all: {everything}",
        help="Such as 0-11 or 3,5,7; empty for all.",
        on_change=changed,
    ).strip()
    if not text:
        return present
    try:
        wanted = parse_numbers(text)
    except ValueError as error:
        st.warning(f"{escape(error)} All layers are shown.")
        return present
    chosen = [layer for layer in present if layer in wanted]
    if not chosen:
        st.warning(f"None of these layers is there, only {everything}. All layers are shown.")
    return chosen or present


def choose_step(steps: Sequence[int], name: str = "step", label: str = "Step") -> int:
    """Show a slider over the recorded `steps` and return the chosen one; the last by default."""
    steps = sorted(int(step) for step in steps)
    wanted = (_recall(name) or [LAST])[-1]
    chosen = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 13 else None
    if chosen not in steps:
        chosen = steps[-1]
    if len(steps) == 1:
        return chosen
    key = _fill(name, chosen)

    def changed() -> None:
        now = st.session_state[key]
        # The last stays open, so that a growing run is followed.
        _remember(name, None if now == steps[-1] else [str(now)])

    return st.select_slider(label, steps, key=key, on_change=changed)


def choose_number_range(
    name: str, low_label: str, high_label: str, explanation: str = ""
) -> tuple[float | None, float | None]:
    """Show two numbers, the ends of a range; an empty one is open."""
    low, high = _parse_ends((_recall(name) or [""])[-1])
    low_key, high_key = _fill(f"{name}-low", low), _fill(f"{name}-high", high)

    def changed() -> None:
        ends = (st.session_state[low_key], st.session_state[high_key])
        first, last = ("" if end is None else f"{end:.10g}" for end in ends)
        _remember(name, [f"{first}:{last}"] if first or last else None)

    left, right = st.columns(2)
    with left:
        low = st.number_input(
            low_label, value=None, key=low_key, format="%.4g", help=explanation, on_change=changed
        )
    with right:
        high = st.number_input(
            high_label, value=None, key=high_key, format="%.4g", help=explanation, on_change=changed
        )
    if low is not None and high is not None and low > high:
        st.warning("The lower end lies above the upper one; they are taken the other way round.")
        low, high = high, low
    return low, high


def choose_modules(present: Sequence[str]) -> list[str]:
    """Show the choice of modules; all by default if they are few, else q_proj and v_proj."""
    present = [str(module) for module in present]
    usual = present
    if len(present) > _FEW_MODULES:
        usual = [m for m in present if m in _USUAL_MODULES] or present[: len(_USUAL_MODULES)]
    chosen = choose_many("module", "Modules", present, default=usual)
    if hidden := len(present) - len(chosen):
        st.caption(f"{hidden} of {len(present)} modules hidden.")
    return chosen


def set_choice(name: str, *values: object) -> None:
    """Make a choice for the user, in a callback or before its widget is shown; none for default."""
    _remember(name, [str(value) for value in values] or None)


def parse_numbers(text: str) -> set[int]:
    """Return the numbers that a text such as ``0-11`` or ``3,5,7`` names.

    Raises
    ------
    ValueError
        If it is no such text.
    """
    numbers: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part, re.ASCII)
        if match is None:
            raise ValueError(f"Layers are written like 0-11 or 3,5,7, not {text[:40]!r}.")
        first = int(match[1])
        numbers.update(range(first, int(match[2] or first) + 1))
    return numbers


def write_numbers(values: Sequence[int]) -> str:
    """Return sorted numbers as ``0-11`` or ``3,5,7``."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)


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


def _parse_ends(text: str) -> tuple[float | None, float | None]:
    ends = text.split(":")
    if len(ends) != 2:
        return None, None
    try:
        low, high = (float(end) if end else None for end in ends)
    except ValueError:
        return None, None
    return (
        (low, high) if all(end is None or abs(end) < 1e30 for end in (low, high)) else (None, None)
    )
