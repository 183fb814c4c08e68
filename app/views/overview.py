"""Page: every run in ROOT, its state and where it stands."""

import pandas as pd
import streamlit as st
from dashboard_choices import choose_elsewhere, choose_one
from dashboard_markup import escape, one_line
from dashboard_pages import PAGES, view
from dashboard_parts import open_root
from dashboard_rows import warn
from dashboard_summaries import modules_of, summarise

_ALL = "all matrices"
_LONG_NAME = 28
_PROBLEMS_TOLD = 5  # the table's last column tells all
_ROWS_SHOWN = 25  # a longer table scrolls by itself
_STATES = {"growing": "● growing", "interrupted": "◌ interrupted", "finished": "finished"}

listing = open_root(
    "Overview",
    "A row a run. ΔΣ and ΔD are means over the matrices of its last step, κ is their median: how "
    "far the singular values and vectors have moved from the base, not how good the run is.",
)
entries = listing.entries
readable = [entry for entry in entries if not entry.problem]
with st.sidebar:
    module = choose_one("of", "Means over", [_ALL, *modules_of(readable)])

rows = []
for entry in entries:
    found = summarise(entry, None if module == _ALL else module)
    state = _STATES.get(entry.state, entry.state)
    rows.append(
        {
            "run": one_line(entry.label),
            "method": one_line(entry.method),
            "state": "✕ unreadable" if found.problem else state,
            "drift_path": list(found.drift_path),
            "delta_d": found.delta_d,
            "delta_sigma": found.delta_sigma,
            "kappa": found.kappa,
            "loss": found.loss,
            "loss_path": list(found.loss_path),
            "last_step": found.last_step,
            "analysed": found.analysed,
            "recorded": found.recorded,
            "base": one_line(entry.base),
            "problem": one_line(found.problem),
        }
    )
table = pd.DataFrame(rows)
nothing = [name for name in ("problem", "recorded", "base") if not table[name].any()]
bases = set(table.loc[table["problem"] == "", "base"])
# Said once: at a laptop's width the table ends before this column.
one_base = len(bases) == 1 and len(rows) > 1 and "base" not in nothing
if one_base:
    nothing.append("base")
table = table.drop(columns=nothing)

number, line = st.column_config.NumberColumn, st.column_config.LineChartColumn
chosen = st.dataframe(
    table,
    hide_index=True,
    height="content" if len(rows) <= _ROWS_SHOWN else "auto",
    key="overview-table",
    on_select="rerun",
    selection_mode="multi-row",
    alt="A row a run: its state, drift, loss and steps.",
    column_config={
        "run": st.column_config.TextColumn(
            "run",
            pinned=True,
            width="medium" if max(len(row["run"]) for row in rows) > _LONG_NAME else None,
        ),
        # A scale a run: on a common one, the run that moves most leaves the others flat.
        "drift_path": line(
            "ΔD curve",
            width="small",
            y_min=0.0,
            help="Mean ΔD over the steps, from 0; every run has its own scale.",
        ),
        "delta_d": number("ΔD", format="%.3g", help="Mean ΔD of the last step, 0 to 1."),
        "delta_sigma": number(
            "ΔΣ", format="%.3g", help="Mean ΔΣ of the last step, in the unit of the weights."
        ),
        "kappa": number("κ", format="%.3g", help="Median condition number of the last step."),
        "loss": number(
            "loss",
            format="%.3f",
            help="Mean training loss of the last five recorded steps, nats per token.",
        ),
        "loss_path": line(
            "loss curve", width="small", help="Training loss; every run has its own scale."
        ),
        "last_step": number("last step", format="%d"),
        "analysed": number("analysed", format="%d", help="Steps with drift rows."),
        "recorded": number("recorded", format="%d", help="Steps with a snapshot of the run's own."),
        "problem": st.column_config.TextColumn("why unreadable", width="large"),
    },
)

told = zip(entries, (str(row["problem"]) for row in rows), strict=True)
for entry, problem in [pair for pair in told if pair[1]][:_PROBLEMS_TOLD]:
    warn(entry, problem)

if one_base:
    st.caption(f"All of them start from the base {escape(*bases)}\\.")
picked = [entries[i] for i in chosen["selection"]["rows"] if i < len(entries)]
usable = [entry.label for entry in picked if not entry.problem]
if not usable:
    st.caption("Tick runs at the left of the table to open them on another page.")
with st.container(horizontal=True):
    for page, title in PAGES.items():
        if page != "overview" and st.button(title, key=f"open-{page}", disabled=not usable):
            # Labels are those of all runs; the choice of a sweep made earlier does not hide them.
            choose_elsewhere("sweep")
            choose_elsewhere("run", *usable)
            choose_elsewhere("one run")
            st.switch_page(view(page))

if listing.sweeps:
    st.caption("Sweeps, and how many of their runs are where:")
    st.text("\n".join(f"{one_line(sweep.label)}: {sweep.progress}" for sweep in listing.sweeps))
for problem in listing.problems:
    st.warning(f"A sweep is not shown as one: {escape(problem)}")
