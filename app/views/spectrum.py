"""Page: the singular values of every layer, all of them at a glance."""

import pandas as pd
import streamlit as st
from dashboard_choices import (
    choose_layers,
    choose_modules,
    choose_number_range,
    choose_one,
    choose_range,
    choose_step,
)
from dashboard_export import take_along
from dashboard_parts import open_page, show
from dashboard_rows import read_arrays, read_drift

from spectra.figures.spectrum_views import describe_spectrum

_VIEWS = {
    "values": "σ against its index",
    "density": "how many lie at each size",
    "energy": "cumulative energy Σσ²",
    "share": "share within a range",
}
# A step's arrays are megabytes for a large model.
_MOST_STEPS = 12
_ARRAYS = ("sigma", "sigma_change")

(entry,) = open_page(
    "Spectrum",
    "All singular values σ of every matrix, in the unit of the weights: are there large and small "
    "ones, as PiSSA and MiLoRA assume, and does training change which?",
    single=True,
)
keys = read_drift([entry], [])
all_modules = sorted(map(str, keys["module"].unique()))
all_layers = [int(layer) for layer in sorted(keys["layer"].unique())]
all_steps = [int(step) for step in sorted(keys["step"].unique())]
with st.sidebar:
    view = choose_one(
        "view", "View", list(_VIEWS), show=_VIEWS.__getitem__, memory="view of the spectrum"
    )
    modules = choose_modules(all_modules)
    layers = choose_layers(all_layers)
    if view == "share":
        between = choose_range("steps", "Steps", all_steps)
        inside = [step for step in all_steps if step in between]
        # Evenly thinned, the last one kept.
        steps = inside[::-1][:: max(1, -(-len(inside) // _MOST_STEPS))][::-1]
        if len(steps) < len(inside):
            st.caption(f"{len(steps)} of {len(inside)} steps shown.")
    else:
        steps = [choose_step(all_steps)]
    low, high = choose_number_range(
        "within",
        "σ from",
        "to",
        "A range of σ: values in it are counted. 0.1 to 1.1 by default for shares.",
    )
within = None
if low is not None or high is not None:
    within = (max(low or 0.0, 0.0), float("inf") if high is None else high)
    if not within[0] < within[1]:
        st.warning("The range of σ is empty: its upper end must be above 0 and the lower one.")
        within = None
options = {
    "view": view,
    "within": within,
    "modules": None if modules == all_modules else modules,
    "layers": None if layers == all_layers else layers,
    "steps": steps,
}
arrays = read_arrays(entry, steps=steps, columns=_ARRAYS, modules=modules, layers=layers)
shown = show(
    lambda: describe_spectrum(arrays, **options),
    f"Singular values of every layer: {_VIEWS[view]}.",
    "spectrum",
)


def a_row_a_value(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a singular value, its index counted from 1."""
    known = [column for column in _ARRAYS if column in rows and rows[column].notna().all()]
    index = rows["sigma"].map(lambda sigma: list(range(1, len(sigma) + 1)))
    kept = rows.drop(columns=[c for c in _ARRAYS if c in rows and c not in known])
    return kept.assign(index=index).explode(["index", *known])


take_along(
    f"spectrum-{view}",
    shown.chart,
    arrays,
    "spectrum",
    [entry],
    tidy=a_row_a_value,
    among={"layers": all_layers, "steps": all_steps},
    **options | {"steps": None if steps == all_steps[-1:] and view != "share" else steps},
)
