"""Page: any quantity of the drift table, of every layer and step."""

from functools import partial

import streamlit as st
from dashboard_choices import (
    choose_elsewhere,
    choose_flag,
    choose_layers,
    choose_modules,
    choose_one,
    choose_range,
    choose_scale,
)
from dashboard_export import take_along
from dashboard_markup import escape
from dashboard_pages import view
from dashboard_parts import Picked, narrowed, open_page, show
from dashboard_rows import read_drift

from spectra import figures
from spectra.figures.heatmaps import describe_heatmap
from spectra.store import DRIFT_QUANTITIES

_VIEWS = {"map": "heat map of a run", "curves": "curves over the steps"}

with st.sidebar:
    kind = choose_one("view", "View", list(_VIEWS), show=_VIEWS.__getitem__, side_by_side=True)
    column = choose_one(
        "column",
        "Quantity",
        list(DRIFT_QUANTITIES),
        show=lambda c: figures.label_of(c).axis,
        default="delta_d",
    )
as_map = kind == "map"
entries = open_page(
    "Layers",
    f"{escape(DRIFT_QUANTITIES[column])}\\. Which layers move, and when?",
    single=as_map,
)
figure = "heatmap" if as_map else "curves"
drift = read_drift(entries, figures.needed_columns(figure, "drift", {"column": column}) or ())
all_layers = [int(layer) for layer in sorted(drift["layer"].unique())]
all_steps = [int(step) for step in sorted(drift["step"].unique())]
with st.sidebar:
    modules = choose_modules(drift["module"].unique())
    layers = choose_layers(all_layers)
    steps = choose_range("steps", "Steps", all_steps)
    overlay = not as_map and choose_flag(
        "overlay", "Runs over one another", "A panel a module and a line a run, with its range."
    )
    log = choose_scale(label="Scale of the values")

rows = drift[
    drift["module"].isin(modules)
    & drift["layer"].isin(layers)
    & drift["step"].between(steps[0], steps[-1])
]
options = {
    "column": column,
    "modules": modules if len(modules) < drift["module"].nunique() else None,
    "log": log,
}
if as_map:
    describe = partial(describe_heatmap, rows, **options)
else:
    describe = partial(
        figures.describe_run_curves if overlay else figures.describe_layer_curves, rows, **options
    )
    options["overlay"] = overlay


def open_matrix(picked: Picked) -> None:
    """Open the page of the matrix that was clicked on."""
    choose_elsewhere("one run", picked.run)
    choose_elsewhere("one module", picked.module)
    choose_elsewhere("layer", picked.layer)
    # The last step is left open, so that the page follows a run that grows.
    choose_elsewhere("step", *([] if picked.step == all_steps[-1] else [picked.step]))
    st.switch_page(view("matrix"))


shown = show(
    describe,
    f"{figures.label_of(column).axis} of every layer over the steps.",
    figure,
    pick=as_map,
)
if shown.picks:
    open_matrix(shown.picks[0])
if as_map:
    st.caption("Click a cell to open its matrix.")
take_along(
    f"{figure}-{column}",
    shown.chart,
    rows,
    figure,
    entries,
    among={"layers": all_layers, "steps": all_steps},
    layers=layers if len(layers) < len(all_layers) else None,
    steps=narrowed(steps, all_steps),
    **options,
)
