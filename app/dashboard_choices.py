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

from spectra import figures

_MEMORY = "spectra-choices"
_OWNERS = "spectra-names-in-the-url"
_PAGE = "spectra-page"
_FEW_MODULES = 3
_USUAL_MODULES = ("q_proj", "v_proj")


def choose_many(
    name: str,
    label: str,
    options: Sequence[str],
    show: Callable[[str], str] = str,
    default: Sequence[str] | None = None,
) -> list[str]:
    """Show a multiple choice and return what is chosen; `default` or all `options` by default.

    In the order of `options`, however it was clicked together, so that a link gives the same.
    """
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

    picked = st.multiselect(label, options, key=key, format_func=show, on_change=changed)
    return [option for option in options if option in picked]


def choose_one(
    name: str,
    label: str,
    options: Sequence[str],
    show: Callable[[str], str] = str,
    default: str | None = None,
    *,
    side_by_side: bool = False,
    explanation: str | None = None,
    memory: str = "",
) -> str:
    """Show a single choice and return it; `default` or the first of `options` by default.

    Parameters
    ----------
    name : str
        In the URL.
    label : str
    options : sequence of str
    show : callable
        What is shown of an option.
    default : str, optional
    side_by_side : bool
        Whether all options are seen at once, for two or three of them.
    explanation : str, optional
    memory : str
        What the session calls the choice, where pages of the same name in the URL must not share
        it: the one module of a page does not narrow the modules of another.
    """
    first = default if default is not None and default in options else options[0]
    wanted = [option for option in _recall(name, memory) or [] if option in options]
    key = _fill(memory or name, wanted[0] if wanted else first)

    def changed() -> None:
        now = st.session_state[key]
        # A page's own choice is kept even where it is the first, or it would be handed over anew.
        _remember(name, None if now == first and not memory else [now], memory)

    if side_by_side:
        return st.radio(
            label,
            options,
            key=key,
            format_func=show,
            on_change=changed,
            horizontal=True,
            help=explanation,
        )
    return st.selectbox(
        label, options, key=key, format_func=show, on_change=changed, help=explanation
    )


def choose_modules(present: Sequence[str]) -> list[str]:
    """Show the choice of modules, and stop the page where none is chosen.

    All by default if they are few, else q_proj and v_proj, which the paper looks at.
    """
    options = sorted(map(str, present))
    usual = options
    if len(options) > _FEW_MODULES:
        usual = [m for m in options if m in _USUAL_MODULES] or options[: len(_USUAL_MODULES)]
    chosen = choose_many("module", "Modules", options, default=usual)
    if not chosen:
        st.info("Choose at least one module.")
        st.stop()
    if hidden := len(options) - len(chosen):
        st.caption(f"{hidden} of {len(options)} modules hidden.")
    return chosen


def choose_layers(present: Sequence[int], name: str = "layers") -> list[int]:
    """Show a text such as ``0-11`` or ``3,5,7`` and return the layers that it names.

    All of `present` by default, and where the text names none of them, which is then said.
    """
    layers = sorted(int(layer) for layer in present)
    there = figures.write_numbers(layers)
    key = _fill(name, (_recall(name) or [""])[-1])

    def changed() -> None:
        text = str(st.session_state[key]).strip()
        _remember(name, [text] if text else None)

    text = st.text_input(
        "Layers",
        key=key,
        placeholder=f"all: {there}",
        help="Such as 0-11 or 3,5,7; empty for all.",
        on_change=changed,
    ).strip()
    if not text:
        return layers
    try:
        wanted = set(figures.parse_numbers(text))
    except ValueError as error:
        st.warning(f"{escape(error)} All layers are shown.")
        return layers
    chosen = [layer for layer in layers if layer in wanted]
    if not chosen:
        st.warning(f"There are layers {there}, none of those named. All layers are shown.")
    return chosen or layers


def choose_step(steps: Sequence[int], name: str = "step", label: str = "Step") -> int:
    """Show a slider over the recorded `steps` and return the chosen one; the last by default."""
    steps = sorted(int(step) for step in steps)
    wanted = (_recall(name) or [""])[-1]
    chosen = next((step for step in steps if str(step) == wanted), steps[-1])
    if len(steps) == 1:
        return chosen
    key = _fill(name, chosen)

    def changed() -> None:
        # The last stays open, so that a growing run is followed.
        set_step(st.session_state[key], steps, name)

    return st.select_slider(label, steps, key=key, on_change=changed)


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


def choose_number_range(
    name: str, low_label: str, high_label: str, explanation: str | None = None
) -> tuple[float | None, float | None]:
    """Show two numbers, the ends of a range, and return them ascending; an empty one is open."""
    low, high = _parse_ends((_recall(name) or [""])[-1])
    keys = _fill(f"{name}-low", low), _fill(f"{name}-high", high)

    def changed() -> None:
        first, last = (
            "" if end is None else f"{end:.10g}" for end in (st.session_state[key] for key in keys)
        )
        _remember(name, [f"{first}:{last}"] if first or last else None)

    for column, label, key in zip(st.columns(2), (low_label, high_label), keys, strict=True):
        with column:
            st.number_input(
                label, value=None, key=key, format="%.4g", help=explanation, on_change=changed
            )
    if low is not None and high is not None and low > high:
        return high, low
    return low, high


def choose_flag(name: str, label: str, explanation: str) -> bool:
    """Show a switch, off by default, and return whether it is on."""
    key = _fill(name, _recall(name) == ["on"])

    def changed() -> None:
        _remember(name, ["on"] if st.session_state[key] else None)

    return st.toggle(label, key=key, help=explanation, on_change=changed)


def choose_scale(name: str = "scale", label: str = "Axis of the values") -> bool | None:
    """Show the choice of a linear or logarithmic axis; None where the figure chooses, as usual."""
    texts = {"auto": "automatic", "linear": "linear", "log": "logarithmic"}
    chosen = choose_one(name, label, list(texts), show=texts.__getitem__)
    return None if chosen == "auto" else chosen == "log"


def enter_page(page: str) -> None:
    """Forget what the widgets of another page held, before a page is drawn.

    A widget of the same key is a new one there and begins empty, while Streamlit still gives the
    old one's value under that key; the choices themselves are in the URL and the session.
    """
    if st.session_state.get(_PAGE) != page:
        for key in [key for key in st.session_state if str(key).startswith("choice-")]:
            del st.session_state[key]
        st.session_state[_PAGE] = page


def set_choice(name: str, *values: object) -> None:
    """Choose for the user, in a callback or before the widget is shown; no value: the default."""
    _remember(name, [str(value) for value in values] or None)


def choose_elsewhere(memory: str, *values: object) -> None:
    """Choose for the user what another page then begins with; no value: its default.

    The URL stays that of this page, to which the browser's Back leads.
    """
    remembered = st.session_state.setdefault(_MEMORY, {})
    remembered.pop(memory, None)
    if values:
        remembered[memory] = [str(value) for value in values]


def hand_over(name: str, memory: str) -> None:
    """Begin a page's own choice (see `choose_one`) with the first of what other pages chose."""
    remembered = st.session_state.setdefault(_MEMORY, {})
    if name in remembered and memory not in remembered:
        remembered[memory] = remembered[name][:1]


def asked_for(name: str, memory: str = "") -> list[str]:
    """Return what the link or the user asks for of a choice, whether there is such an option."""
    remembered = st.session_state.get(_MEMORY, {})
    return [value for value in remembered.get(memory or name, []) if value]


def set_step(step: int, steps: Sequence[int], name: str = "step") -> None:
    """Choose one of the recorded `steps` for the user; the last is "whichever is the last"."""
    set_choice(name, *([] if step == max(steps) else [step]))


def _recall(name: str, memory: str = "") -> list[str] | None:
    remembered = st.session_state.setdefault(_MEMORY, {})
    owners = st.session_state.setdefault(_OWNERS, {})
    mine = memory or name
    owner = owners.get(name, mine)
    there = st.query_params.get_all(name)
    owners[name] = mine
    if there and (owner == mine or there != remembered.get(owner)):
        remembered[mine] = there
    elif mine in remembered:
        st.query_params[name] = remembered[mine]
    else:
        # Nothing, or what another choice of this name left there: one view's run, another's runs.
        st.query_params.pop(name, None)
    return remembered.get(mine)


def _remember(name: str, values: list[str] | None, memory: str = "") -> None:
    remembered = st.session_state.setdefault(_MEMORY, {})
    if values is None:
        remembered.pop(memory or name, None)
        st.query_params.pop(name, None)
    else:
        remembered[memory or name] = list(values)
        st.query_params[name] = list(values)


def _fill(name: str, value: object) -> str:
    """Set the widget to what the URL says, which is the one truth, and return its key."""
    key = f"choice-{name}"
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value
    return key


def _parse_range(text: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"(\d{0,12})-(\d{0,12})", text, re.ASCII)
    if match is None:
        return None, None
    start, stop = match.groups()
    return int(start) if start else None, int(stop) if stop else None


def _parse_ends(text: str) -> tuple[float | None, float | None]:
    match = re.fullmatch(r"([-+.\de]{0,24}):([-+.\de]{0,24})", text, re.ASCII)
    if match is None:
        return None, None
    low, high = match.groups()
    try:
        return float(low) if low else None, float(high) if high else None
    except ValueError:
        return None, None
