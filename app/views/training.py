"""Page: what training recorded, over the steps or against another quantity."""

import streamlit as st
from dashboard_choices import choose_many, choose_one, choose_range, choose_scale
from dashboard_export import take_along
from dashboard_parts import narrowed, open_page, show
from dashboard_rows import read_training
from dashboard_sweeps import show_values

from spectra import figures
from spectra.figures.training_curves import describe_training
from spectra.store import TRAINING_QUANTITIES

_USUAL = ("loss", "grad_norm")
_SMOOTHING = {
    "auto": "automatic",
    "1": "none",
    **{n: f"over {n} steps" for n in ("5", "10", "20", "50", "100")},
}

entries = open_page(
    "Training",
    "What training recorded at every step, a line a run; it says nothing about the weights.",
)
training = read_training(entries)
filled = [c for c in TRAINING_QUANTITIES if c in training and training[c].notna().any()]
if not filled:
    st.info("These runs recorded steps, but no quantity of them.")
    st.stop()


def axis_of(column: str) -> str:
    return "step" if column == "step" else figures.label_of(column).axis


def symbol_of(column: str) -> str:
    return "step" if column == "step" else figures.label_of(column).symbol


all_steps = [int(step) for step in sorted(training["step"].unique())]
with st.sidebar:
    columns = choose_many(
        "quantity",
        "Quantities",
        filled,
        show=symbol_of,
        default=[c for c in _USUAL if c in filled] or filled[:1],
    )
    against = choose_one("against", "Against", ["step", *filled], show=symbol_of)
    steps = choose_range("steps", "Steps", all_steps)
    smooth = choose_one("smooth", "Running mean", list(_SMOOTHING), show=_SMOOTHING.__getitem__)
    log = choose_scale()
columns = [c for c in columns if c != against] or columns
if not columns:
    st.info("Choose at least one quantity.")
    st.stop()

chosen = narrowed(steps, all_steps)
rows = training if chosen is None else training[training["step"].between(steps[0], steps[-1])]
options = {"log": log, "smooth": None if smooth == "auto" else int(smooth), "against": against}
shown = show(
    lambda: describe_training(rows, columns, **options),
    f"{', '.join(map(axis_of, columns))} against {axis_of(against)}, a line a run.",
    "training",
)
if any(entry.varies for entry in entries) and "loss" in filled:
    st.caption("At the end: the mean training loss of the last five recorded steps.")
    show_values(figures.final_losses(rows), entries, ["loss"])
take_along(
    "training",
    shown.chart,
    rows,
    "training",
    entries,
    columns=columns,
    steps=chosen,
    **options,
)
