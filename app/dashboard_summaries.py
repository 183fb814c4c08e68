"""A row a run for the Overview: how far it is and where it stands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st
from dashboard_rows import read_run_drift, read_run_training
from dashboard_runs import FileState, RunEntry

from spectra import figures

_SUMMARIES_HELD = 512
_SPARKS = 60
"""Points of a sparkline at most; it is some eighty pixels wide."""
_COLUMNS = ("delta_sigma", "delta_d", "kappa")


@dataclass(frozen=True)
class Summary:
    """What the Overview says of a run; None where it is not known.

    Attributes
    ----------
    recorded, analysed : int or None
        Steps with a snapshot, and steps with drift rows.
    last_step : int or None
        Of the drift rows.
    delta_sigma, delta_d : float or None
        Means over the matrices of the last step.
    kappa : float or None
        Their median.
    loss : float or None
        Mean training loss of the last recorded steps.
    drift_path, loss_path : tuple of float
        Mean ΔD, and the loss, over the steps.
    problem : str
        Why the run cannot be read, or empty.
    """

    recorded: int | None = None
    analysed: int | None = None
    last_step: int | None = None
    delta_sigma: float | None = None
    delta_d: float | None = None
    kappa: float | None = None
    loss: float | None = None
    drift_path: tuple[float, ...] = ()
    loss_path: tuple[float, ...] = ()
    problem: str = ""


def summarise(entry: RunEntry, module: str | None = None) -> Summary:
    """Return a run's summary, of one module or of all of its matrices."""
    if entry.problem:
        return Summary(problem=entry.problem)
    recorded = _count_snapshots(entry)
    try:
        return _summarise(
            str(entry.path), entry.drift_files, entry.training_files, module, recorded, entry
        )
    except (OSError, ValueError, KeyError) as error:
        return Summary(recorded=recorded, problem=str(error))


def modules_of(entries: Sequence[RunEntry]) -> list[str]:
    """Return the modules that the runs which can be read hold, by name."""
    found: set[str] = set()
    for entry in entries:
        try:
            found.update(_modules(str(entry.path), entry.drift_files, entry))
        except (OSError, ValueError, KeyError):
            continue  # its row says why
    return sorted(found)


# The files' state is in the keys, so that a run is summed up again only where it grew.
@st.cache_resource(max_entries=_SUMMARIES_HELD, show_spinner=False)
def _summarise(
    path: str,
    drift_files: FileState,
    training_files: FileState,
    module: str | None,
    recorded: int | None,
    _entry: RunEntry,
) -> Summary:
    drift = read_run_drift(_entry, _COLUMNS)
    training = read_run_training(_entry)
    losses = training[["run", "step", "loss"]].dropna()
    final = figures.final_losses(losses)["loss"].tolist()
    known: dict[str, object] = {
        "recorded": recorded,
        "loss": final[0] if final else None,
        "loss_path": _spark(losses["loss"].tolist()),
    }
    if module is not None:
        drift = drift[drift["module"] == module]
    if drift.empty:
        return Summary(analysed=0, **known)  # type: ignore[arg-type]
    by_step = drift.groupby("step", sort=True)
    means = by_step[["delta_sigma", "delta_d"]].mean()
    last = means.iloc[-1]
    return Summary(
        analysed=len(means),
        last_step=int(means.index[-1]),
        delta_sigma=_number(last["delta_sigma"]),
        delta_d=_number(last["delta_d"]),
        kappa=_number(drift.loc[drift["step"] == means.index[-1], "kappa"].median()),
        drift_path=_spark(means["delta_d"].dropna().tolist()),
        **known,  # type: ignore[arg-type]
    )


@st.cache_resource(max_entries=_SUMMARIES_HELD, show_spinner=False)
def _modules(path: str, drift_files: FileState, _entry: RunEntry) -> tuple[str, ...]:
    return tuple(map(str, read_run_drift(_entry, _COLUMNS)["module"].unique()))


def _count_snapshots(entry: RunEntry) -> int | None:
    """Return how many steps lie in the run as snapshots; None where it has none of its own."""
    try:
        with os.scandir(entry.run.snapshots_path) as files:
            return sum(f.name.startswith("step-") and f.name[0] != "." for f in files) or None
    except OSError:
        return None


def _number(value: float) -> float | None:
    return float(value) if value == value else None


def _spark(values: list[float]) -> tuple[float, ...]:
    """Return values thinned evenly to a sparkline's points, the last one always kept."""
    stride = max(1, -(-len(values) // _SPARKS))
    kept = values[::-1][::stride][::-1]
    return tuple(float(v) for v in kept)
