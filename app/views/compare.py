"""Page: methods beside each other, the mean of their seeds with its band; and a table of ends."""

import shlex
from functools import partial

import pandas as pd
import streamlit as st
from dashboard_choices import (
    choose_layers,
    choose_modules,
    choose_one,
    choose_range,
    choose_scale,
)
from dashboard_export import take_along
from dashboard_parts import narrowed, open_page, show
from dashboard_rows import read_drift, read_run_training

from spectra import figures
from spectra.figures.comparison import describe_compare
from spectra.store import DRIFT_QUANTITIES, TRAINING_QUANTITIES, group_labels, run_names

_BY = {"step": "step", "tokens": "tokens seen", "loss": "training loss", "seconds": "time"}
_OF_THE_TABLE = ("delta_sigma", "delta_d", "kappa")

entries = open_page(
    "Compare",
    "A line a method: the mean over the runs that differ in their seed only, with the standard "
    "deviation between them; it describes how far methods move the weights, not which is better.",
    at_most=None,
)


def read_all_training() -> pd.DataFrame:
    """Return the training rows there are; a run without any is compared by its steps."""
    found = []
    for entry in entries:
        try:
            found.append(read_run_training(entry))
        except (OSError, ValueError):
            continue  # its drift rows are told of
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["run", "step"])


def name_of(column: str) -> str:
    quantity = column.removesuffix("_sd")
    return figures.label_of(quantity).symbol if quantity == column else "sd"


training = read_all_training()
of_training = [c for c in TRAINING_QUANTITIES if c in training and training[c].notna().any()]
with st.sidebar:
    column = choose_one(
        "compared",
        "Quantity",
        [*DRIFT_QUANTITIES, *of_training],
        show=lambda c: figures.label_of(c).axis,
        default="delta_d",
    )
wanted = set(figures.needed_columns("compare", "drift", {"column": column}) or ())
drift = read_drift(entries, tuple(sorted(wanted | set(_OF_THE_TABLE) | {"sigma_noise", "d_noise"})))
# Runs without rows must not tell those apart that are drawn.
entries = [entry for entry in entries if entry.label in set(drift["run"].unique())]
runs = [entry.run for entry in entries]
# The store knows runs by names of its own, where two folders share a name.
labels = dict(zip(run_names(runs), (entry.label for entry in entries), strict=True))
groups = {labels[name]: label for name, label in group_labels(runs).items()}
all_modules = sorted(map(str, drift["module"].unique()))
all_layers = [int(layer) for layer in sorted(drift["layer"].unique())]
all_steps = [int(step) for step in sorted(drift["step"].unique())]
with st.sidebar:
    known = [by for by in _BY if by == "step" or by in of_training]
    by = choose_one("by", "Aligned by", known, show=_BY.__getitem__)
    modules = choose_modules(all_modules)
    layers = choose_layers(all_layers)
    steps = choose_range("steps", "Steps", all_steps)
    log = choose_scale()

chosen = {
    "modules": None if modules == all_modules else modules,
    "layers": None if layers == all_layers else layers,
}
options = {"by": by, "steps": narrowed(steps, all_steps), "log": log} | chosen
among = {"layers": all_layers, "steps": all_steps}
shown = show(
    lambda: describe_compare(drift, training, column, groups=groups, **options),
    f"{figures.label_of(column).axis} of every method against the {_BY[by]}.",
    "compare",
)
take_along(
    f"compare-{column}",
    shown.chart,
    drift,
    "compare",
    entries,
    among=among,
    column=column,
    **options,
)

st.subheader("Where the methods ended", anchor=False)
try:
    table = figures.comparison_table(drift, training, groups, **chosen)
except ValueError as error:
    st.text(str(error))
    st.stop()
known = [column for column in map(str, table.columns) if table[column].notna().any()]
st.dataframe(
    table[known],
    hide_index=True,
    alt="A row a method and module: mean and deviation of what is measured at the last step.",
    column_config={
        column: st.column_config.NumberColumn(name_of(column), format="%.4g")
        for column in known
        if column not in ("group", "module", "seeds", "step")
    },
)
paths = [entry.path for entry in entries]


def command(ending: str) -> str:
    words = figures.plot_command("table", paths, f"methods{ending}", among=among, **chosen)
    return shlex.join(words)


def content(ending: str) -> bytes:
    return figures.table_bytes(table, ending, command=command(ending))


with st.container(horizontal=True):
    for ending, name in ((".tex", "LaTeX"), (".csv", "CSV")):
        st.download_button(
            name,
            partial(content, ending),
            file_name=f"methods{ending}",
            on_click="ignore",
            icon=":material/table:",
            key=f"take-table{ending}",
        )
st.caption("The same table from the command line:")
st.code(command(".tex"), language="bash", wrap_lines=True)
