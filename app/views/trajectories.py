"""Page: where the singular values and vectors of every layer went."""

from functools import partial

import streamlit as st
from dashboard_choices import choose_many, choose_one, choose_range
from dashboard_parts import ask_for_analysis, open_page, range_words, read_tables, show, take_along
from dashboard_runs import read_drift
from dashboard_sweeps import show_values

from spectra import figures

entries = open_page(
    "Trajectories",
    "Right: singular values changed. Up: singular vectors turned. A number is a layer, its colour "
    "the step; the thick line is the mean over the layers, from the base at the origin.",
)
drift, without = read_tables(entries, read_drift)
ask_for_analysis(without)
if drift.empty:
    st.stop()

all_layers, all_steps = sorted(drift["layer"].unique()), sorted(drift["step"].unique())
with st.sidebar:
    modules = choose_many("module", "Modules", sorted(drift["module"].unique()))
    layers = choose_range("layers", "Layers", all_layers)
    steps = choose_range("steps", "Steps", all_steps)
    axes = choose_one(
        "axes",
        "Axes",
        ["shared", "free"],
        show=lambda a: {"shared": "the same in every panel", "free": "each panel its own"}[a],
    )
if not modules:
    st.info("Choose at least one module in the sidebar.")
    st.stop()

rows = drift[
    drift["module"].isin(modules)
    & drift["layer"].between(layers[0], layers[-1])
    & drift["step"].between(steps[0], steps[-1])
]
draw = partial(figures.trajectory, rows, axes=axes)
show(draw, "Drift of singular vectors against drift of singular values, a panel a run.")

st.caption("At the last step: mean ΔΣ and ΔD over the layers, and the median condition number κ.")
show_values(figures.final_values(rows), entries, ["delta_sigma", "delta_d"])
take_along(
    "trajectory",
    draw,
    rows,
    [
        "trajectory",
        *(entry.path for entry in entries if entry not in without),
        "--modules",
        ",".join(modules),
        *range_words("--layers", layers, all_layers),
        *range_words("--steps", steps, all_steps),
        *(["--axes", axes] if axes != "shared" else []),
    ],
)
