"""Page: condition numbers and orthonormality over the steps, and their ratio for paired runs."""

import streamlit as st
from dashboard_choices import (
    choose_layers,
    choose_many,
    choose_modules,
    choose_one,
    choose_range,
    choose_scale,
)
from dashboard_export import take_along
from dashboard_markup import escape
from dashboard_parts import narrowed, open_page, show
from dashboard_rows import read_drift

from spectra import figures
from spectra.figures.conditioning import describe_conditioning
from spectra.figures.kappa_ratios import describe_kappa_ratio
from spectra.store import regularized_pairs, run_names

_COLUMNS = ("kappa", "kappa_p", "kappa_u", "kappa_v", "ortho_u", "ortho_v")
_RATIOS = ("kappa_p", "kappa", "kappa_u", "kappa_v")
_VIEWS = {"steps": "over the steps", "ratio": "ratio of pairs (Thm. 5)"}
_NOBODY = "none"
_BETWEEN = " / "

entries = open_page(
    "Conditioning",
    "κ = σ_max/σ_min, 1 at best, of the whole matrix W and of the trained parts W_p, U_p and V_p; "
    "and how far U_p and V_p are from orthonormal, 0 at best.",
)
with st.sidebar:
    view = choose_one(
        "view", "View", list(_VIEWS), show=_VIEWS.__getitem__, memory="view of conditioning"
    )


def label_of(column: str) -> str:
    return figures.label_of(column).axis


def symbol_of(column: str) -> str:
    return figures.label_of(column).symbol


def choose_pairs() -> list[tuple[str, str]]:
    """Show the pairs that the runs make by themselves, and a pair of the user's own."""
    runs = [entry.run for entry in entries]
    # The store knows runs by names of its own, where two folders share a name.
    labels = dict(zip(run_names(runs), (entry.label for entry in entries), strict=True))
    found = {
        f"{labels[a]}{_BETWEEN}{labels[b]}": (labels[a], labels[b])
        for a, b in regularized_pairs(runs)
    }
    names = [entry.label for entry in entries]
    chosen = choose_many("pair", "Regularized / unregularized", list(found)) if found else []
    first = choose_one("regularized", "Another pair: regularized", [_NOBODY, *names])
    second = choose_one("unregularized", "and unregularized", [_NOBODY, *names])
    pairs = [found[name] for name in chosen]
    if first != _NOBODY and second != _NOBODY and (first, second) not in pairs:
        pairs.append((first, second))
    return pairs


pairs: list[tuple[str, str]] = []
with st.sidebar:
    if view == "ratio":
        pairs = choose_pairs()
        columns = [choose_one("ratio-of", "Ratio of", _RATIOS, show=label_of)]
    else:
        columns = list(_COLUMNS)
if view == "ratio" and not pairs:
    st.info(
        "None of the chosen runs is a regularized one (method sorsa) with a twin (sorsa\\-noreg) "
        "of the same seed and settings\\. Choose more runs, or a pair of your own, in the "
        "sidebar\\."
    )
    st.stop()

drift = read_drift(entries, columns)
all_modules = sorted(map(str, drift["module"].unique()))
all_layers = [int(layer) for layer in sorted(drift["layer"].unique())]
all_steps = [int(step) for step in sorted(drift["step"].unique())]
with st.sidebar:
    if view == "steps":
        filled = [c for c in columns if c in drift and drift[c].notna().any()]
        columns = choose_many("condition", "Quantities", filled, show=symbol_of)
    modules = choose_modules(all_modules)
    layers = choose_layers(all_layers)
    steps = choose_range("steps", "Steps", all_steps)
    log = choose_scale() if view == "steps" else None
if not columns:
    st.info("Choose at least one quantity.")
    st.stop()

options = {
    "modules": None if modules == all_modules else modules,
    "layers": None if layers == all_layers else layers,
    "steps": narrowed(steps, all_steps),
}
if view == "ratio":
    shown = show(
        lambda: describe_kappa_ratio(drift, pairs, columns[0], **options),
        f"Ratio of {label_of(columns[0])} with to without the regularizer, over the steps.",
        "kappa-ratio",
    )
    by_label = {entry.label: entry for entry in entries}
    inside = {label for pair in pairs for label in pair}
    take_along(
        f"{columns[0]}-ratio",
        shown.chart,
        drift[drift["run"].isin(inside)],
        "kappa-ratio",
        [by_label[label] for pair in pairs for label in pair],
        among={"layers": all_layers, "steps": all_steps},
        column=columns[0],
        **options,
    )
    st.stop()

missing = [label_of(c) for c in _COLUMNS if c not in filled]
if missing:
    st.caption(
        escape(f"No run has {', '.join(missing)}: only methods that train U_p and V_p have them.")
    )
shown = show(
    lambda: describe_conditioning(drift, columns, log=log, **options),
    "Condition numbers and orthonormality errors over the steps.",
    "conditioning",
)
take_along(
    "conditioning",
    shown.chart,
    drift,
    "conditioning",
    entries,
    among={"layers": all_layers, "steps": all_steps},
    columns=columns,
    log=log,
    **options,
)
