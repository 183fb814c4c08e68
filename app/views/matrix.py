"""Page: one matrix at one step against its base."""

from functools import partial

import pandas as pd
import streamlit as st
from dashboard_choices import choose_one, choose_step, set_choice, set_step
from dashboard_export import take_along
from dashboard_parts import open_page, show
from dashboard_rows import read_arrays, read_drift

from spectra import figures
from spectra.figures.matrices import describe_matrix
from spectra.store import DRIFT_QUANTITIES

_BY_INDEX = ("sigma", "sigma_change", "overlap_u", "overlap_v")
_ARRAYS = (*_BY_INDEX, "leading_u", "leading_v")
_FACTS = ("rows", "cols", "dtype", "solver")

(entry,) = open_page(
    "Matrix",
    "One weight matrix W_t at one step: which of its singular values changed from the base's, and "
    "which singular vectors turned.",
    single=True,
)
drift = read_drift([entry], (*DRIFT_QUANTITIES, *_FACTS))
with st.sidebar:
    module = choose_one(
        "module", "Module", sorted(map(str, drift["module"].unique())), memory="one module"
    )
of_module = drift[drift["module"] == module]
layers = [int(layer) for layer in sorted(of_module["layer"].unique())]
with st.sidebar:
    layer = int(choose_one("layer", "Layer", list(map(str, layers))))
of_matrix = of_module[of_module["layer"] == layer]
steps = [int(step) for step in of_matrix["step"]]


def neighbour(label: str, icon: str, values: list[int], now: int, by: int, name: str) -> None:
    """Show a button that goes to the neighbouring layer or step."""
    place = values.index(now) + by
    there = 0 <= place < len(values)
    st.button(
        label,
        key=f"{name}{by:+d}",
        icon=icon,
        disabled=not there,
        on_click=set_step if name == "step" else set_choice,
        args=((values[place], values) if name == "step" else (name, values[place]))
        if there
        else (),
    )


with st.container(horizontal=True, vertical_alignment="bottom"):
    neighbour("Layer", ":material/arrow_back:", layers, layer, -1, "layer")
    neighbour("Layer", ":material/arrow_forward:", layers, layer, 1, "layer")
    step = choose_step(steps)
    neighbour("Step", ":material/arrow_back:", steps, step, -1, "step")
    neighbour("Step", ":material/arrow_forward:", steps, step, 1, "step")


def a_row_an_index(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a singular value, its index counted from 1."""
    known = [name for name in _BY_INDEX if name in rows and rows[name].notna().all()]
    counted = [list(range(1, len(sigma) + 1)) for sigma in rows["sigma"]]
    index = pd.Series(counted, index=rows.index, dtype=object)
    keys = rows.drop(columns=[name for name in _ARRAYS if name in rows])
    return keys.assign(index=index, **rows[known]).explode(["index", *known])


arrays = read_arrays(entry, steps=[step], modules=[module], layers=[layer], columns=_ARRAYS)
options = {"module": module, "layer": layer, "step": step}
shown = show(
    partial(describe_matrix, of_matrix, arrays, **options),
    f"Layer {layer} of {module} at step {step} against its base.",
    "matrix",
)

row = of_matrix[of_matrix["step"] == step].iloc[0]
st.caption(
    f"All that is known of this matrix at step {step}. Solver: {row['solver']}; its residual is "
    "the last row: the numbers are no more exact than that."
)
known = [name for name in DRIFT_QUANTITIES if name in row and pd.notna(row[name])]
st.dataframe(
    pd.DataFrame(
        {
            "quantity": [figures.label_of(name).axis for name in known],
            "value": [float(row[name]) for name in known],
            "meaning": [DRIFT_QUANTITIES[name] for name in known],
        }
    ),
    hide_index=True,
    column_config={"value": st.column_config.NumberColumn("value", format="%.6g")},
)
take_along("matrix", shown.chart, arrays, "matrix", [entry], tidy=a_row_an_index, **options)
