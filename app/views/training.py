"""Page: what training recorded over the steps."""

from functools import partial

import streamlit as st
from dashboard_choices import choose_many, choose_range
from dashboard_parts import escape, open_page, range_words, read_tables, show, take_along
from dashboard_runs import read_training
from dashboard_sweeps import show_values

from spectra import figures
from spectra.store import TRAINING_QUANTITIES

entries = open_page(
    "Training curves",
    "What training recorded at every step, a line a run; it says nothing about the weights.",
)
training, without = read_tables(entries, read_training)
if without:
    names = ", ".join(escape(entry.label) for entry in without)
    st.info(
        f"Without recorded training: {names}\\. Runs made by `spectra analyze` from checkpoints "
        "have none; pass `loss=` and `grad_norm=` to `Recorder.step` to record them."
    )
filled = [c for c in TRAINING_QUANTITIES if c in training and training[c].notna().any()]
if not filled:
    st.stop()

all_steps = sorted(training["step"].unique())
with st.sidebar:
    usual = [c for c in ("loss", "grad_norm") if c in filled] or filled
    columns = choose_many(
        "quantity",
        "Quantities",
        filled,
        show=lambda c: figures.label_of(c).symbol,
        default=usual,
    )
    steps = choose_range("steps", "Steps", all_steps)
if not columns:
    st.info("Choose at least one quantity in the sidebar.")
    st.stop()

rows = training[training["step"].between(steps[0], steps[-1])]
draw = partial(figures.training, rows, columns)
show(draw, "Recorded training quantities over the steps, a line a run.")
if any(entry.varies for entry in entries) and "loss" in filled:
    st.caption("At the end: the mean training loss of the last five recorded steps.")
    show_values(figures.final_losses(rows), entries, ["loss"])
take_along(
    "training",
    draw,
    rows,
    [
        "training",
        *(entry.path for entry in entries if entry not in without),
        "--column",
        ",".join(columns),
        *range_words("--steps", steps, all_steps),
    ],
)
