"""Playing the steps of a figure one after another."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st
from dashboard_choices import choose_step, set_step

_FRAME_SECONDS = 0.6
_FRAMES = 40
"""Pictures of a playback at most: of 200 steps, every fifth is shown."""
_PLAYING, _SHOWN_AT = "spectra-playing", "spectra-frame-shown-at"


def choose_until(steps: Sequence[int]) -> int:
    """Show a slider over the steps and a button that plays them; return the step to draw up to.

    Playing begins anew where the last step is shown, and ends at it. Call `play_on` after the
    figure.
    """
    steps = sorted(steps)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        playing = st.session_state.get(_PLAYING, False)
        until = choose_step(steps, "until", "Up to step") if len(steps) > 1 else steps[0]

        def toggled() -> None:
            st.session_state[_PLAYING] = not playing
            if not playing and until == steps[-1]:
                set_step(steps[0], steps, "until")

        if len(steps) > 1:
            st.button(
                "Stop" if playing else "Play",
                key="play-button",
                icon=":material/stop:" if playing else ":material/play_arrow:",
                on_click=toggled,
                help="Draws the steps one after another; the axes stay.",
            )
    return until


def play_on(steps: Sequence[int], until: int) -> None:
    """Go on to the next step in a moment, where the steps are being played."""
    if not st.session_state.get(_PLAYING, False):
        return
    steps = sorted(steps)
    st.session_state[_SHOWN_AT] = time.monotonic()
    if until >= steps[-1]:
        st.session_state[_PLAYING] = False
        st.rerun()

    @st.fragment(run_every=_FRAME_SECONDS)
    def advance() -> None:
        # The first call is within the page's own run, when the picture has just been sent.
        if time.monotonic() - st.session_state[_SHOWN_AT] < _FRAME_SECONDS / 2:
            return
        stride = max(1, len(steps) // _FRAMES)
        place = min(steps.index(until) + stride, len(steps) - 1)
        set_step(steps[place], steps, "until")
        st.rerun()

    advance()
