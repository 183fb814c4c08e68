"""Page: any quantity of the drift table over the steps."""

from functools import partial

import streamlit as st
from dashboard_choices import choose_flag, choose_many, choose_one, choose_range
from dashboard_parts import ask_for_analysis, open_page, range_words, read_tables, show, take_along
from dashboard_runs import read_drift

from spectra import figures
from spectra.store import DRIFT_QUANTITIES

entries = open_page(
    "Metrics over steps",
    "One quantity of every layer over the steps; the thick line is the middle of the layers.",
)
drift, without = read_tables(entries, read_drift)
ask_for_analysis(without)
if drift.empty:
    st.stop()

filled = [c for c in DRIFT_QUANTITIES if c in drift and drift[c].notna().any()]
if not filled:
    st.info("The rows of these runs hold no quantity to draw.")
    st.stop()
all_layers, all_steps = sorted(drift["layer"].unique()), sorted(drift["step"].unique())
with st.sidebar:
    column = choose_one(
        "column", "Quantity", filled, show=lambda c: figures.label_of(c).axis, default="delta_d"
    )
    modules = choose_many("module", "Modules", sorted(drift["module"].unique()))
    layers = choose_range("layers", "Layers", all_layers)
    steps = choose_range("steps", "Steps", all_steps)
    overlay = choose_flag(
        "overlay", "Runs over one another", "A panel a module and a line a run, with its range."
    )
    log = choose_flag("log", "Logarithmic axis", "Values of 0 lie below it.")
if not modules:
    st.info("Choose at least one module in the sidebar.")
    st.stop()

st.text(DRIFT_QUANTITIES[column])
rows = drift[
    drift["module"].isin(modules)
    & drift["layer"].between(layers[0], layers[-1])
    & drift["step"].between(steps[0], steps[-1])
]
draw = partial(figures.curves, rows, column, overlay=overlay, log=True if log else None)
show(draw, f"{figures.label_of(column).axis} over the steps.")
take_along(
    f"curves-{column}",
    draw,
    rows,
    [
        "curves",
        *(entry.path for entry in entries if entry not in without),
        "--column",
        column,
        "--modules",
        ",".join(modules),
        *range_words("--layers", layers, all_layers),
        *range_words("--steps", steps, all_steps),
        *(["--overlay"] if overlay else []),
        *(["--log"] if log else []),
    ],
)
