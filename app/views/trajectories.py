"""Page: where the singular values and vectors of every layer went."""

from functools import partial

import streamlit as st
from dashboard_choices import (
    choose_flag,
    choose_layers,
    choose_modules,
    choose_one,
    choose_range,
    set_choice,
)
from dashboard_export import take_along
from dashboard_parts import Picked, narrowed, open_page, show
from dashboard_playback import choose_until, play_on
from dashboard_rows import read_drift
from dashboard_sweeps import show_values

from spectra import figures
from spectra.figures.trajectories import describe_trajectory

_AXES = {"shared": "the same in every panel", "free": "each panel its own"}

entries = open_page(
    "Trajectories",
    "Where the singular values and vectors of every layer went. A number is a layer, its colour "
    "the step; a thick line is the mean over the layers.",
)
with st.sidebar:
    overlay = choose_flag("overlay", "All runs in one panel", "Instead of a panel a run.")
    relative = choose_flag(
        "relative", "Relative ΔΣ", "ΔΣ divided by the base's mean singular value: no unit."
    )
drift = read_drift(
    entries, figures.needed_columns("trajectory", "drift", {"relative": relative}) or ()
)
all_layers = [int(layer) for layer in sorted(drift["layer"].unique())]
all_steps = [int(step) for step in sorted(drift["step"].unique())]
with st.sidebar:
    axes = choose_one("axes", "Axes", list(_AXES), show=_AXES.__getitem__)
    modules = choose_modules(drift["module"].unique())
    layers = choose_layers(all_layers)
    steps = choose_range("steps", "Steps", all_steps)

rows = drift[
    drift["module"].isin(modules)
    & drift["layer"].isin(layers)
    & drift["step"].between(steps[0], steps[-1])
]
drawn_steps = [step for step in all_steps if step in steps]


def pick(picks: list[Picked]) -> None:
    """Narrow the layers to those that were clicked or boxed."""
    set_choice("layers", figures.write_numbers({p.layer for p in picks}))


with st.container(horizontal=True, vertical_alignment="bottom"):
    until = choose_until(drawn_steps)
    if len(layers) < len(all_layers):
        st.button(
            f"Show all {len(all_layers)} layers",
            key="all-layers",
            icon=":material/filter_alt_off:",
            on_click=set_choice,
            args=("layers",),
        )
options = {
    "modules": modules if len(modules) < drift["module"].nunique() else None,
    "axes": axes,
    "overlay": overlay,
    "relative": relative,
    "until": until if until < drawn_steps[-1] else None,
}
shown = show(
    partial(describe_trajectory, rows, **options),
    "Drift of singular vectors against drift of singular values, a panel a run.",
    "trajectory",
    on_pick=pick,
)
st.caption("Click a number, or draw a box around some, to keep only those layers.")

st.caption(f"At step {until}: mean ΔΣ and ΔD over the layers, and the median condition number κ.")
show_values(figures.final_values(rows[rows["step"] <= until]), entries, ["delta_sigma", "delta_d"])
take_along(
    "trajectory",
    shown.chart,
    rows,
    "trajectory",
    entries,
    among={"layers": all_layers, "steps": all_steps},
    layers=layers if len(layers) < len(all_layers) else None,
    steps=narrowed(steps, all_steps),
    **options,
)
play_on(drawn_steps, until)
