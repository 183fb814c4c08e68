"""Folders of runs, and the dashboard's pages over them under Streamlit's AppTest."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.testing.v1 import AppTest

from spectra.store import TRAINING_QUANTITIES, Run
from tests.figures.rows import drift_rows, training_rows

APP = Path(__file__).parents[2] / "app"
# A first script run imports Plotly and reads the files; a busy machine takes its time.
PATIENCE_SECONDS = 60
HOSTILE = "<img src=x onerror=alert(1)> **bold** $x$ :red[r] [a](http:b) %{x}"


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def write_run(
    root: Path,
    name: str,
    method: str = "sorsa",
    *,
    finished: bool = True,
    analysed: bool = True,
    trained: bool = True,
    arrays: bool = False,
    **rows: Any,
) -> Run:
    """Write a run whose drift rows are those of `drift_rows`, which takes `rows`."""
    run = Run(root / name)
    run.update_settings(method=method, **({"state": "finished"} if finished else {}))
    if analysed:
        add_steps(run, method, arrays=arrays, **rows)
    if trained:
        kept = training_rows(name, method, 20).drop(columns=["run", "method"])
        empty = dict.fromkeys(set(TRAINING_QUANTITIES) - set(kept), float("nan"))
        run.write_training(records(kept.assign(**empty)))
    return run


def add_steps(run: Run, method: str = "sorsa", *, arrays: bool = False, **rows: Any) -> None:
    """Append drift rows, and the singular values and overlaps behind them."""
    frame = drift_rows(run.name, method, **rows)
    run.drift.append(records(frame))
    if arrays:
        keys = frame[["run", "method", "module", "step", "layer"]]
        run.spectrum.append([row | matrix_arrays(row["step"]) for row in records(keys)])


def matrix_arrays(step: int, rank: int = 24) -> dict[str, list[float]]:
    """Arrays of a matrix whose singular values grew by a hundredth of a part a step."""
    base = np.geomspace(8.0, 0.05, rank)
    change = base * 1e-4 * step
    overlap = 1 - np.linspace(0.0, 0.4, rank) * min(step / 100, 1)
    leading = np.eye(16) * overlap[:16]
    return {
        "sigma": (base + change).tolist(),
        "sigma_change": change.tolist(),
        "overlap_u": overlap.tolist(),
        "overlap_v": overlap.tolist(),
        "leading_u": leading.ravel().tolist(),
        "leading_v": leading.ravel().tolist(),
    }


def open_page(root: Path, page: str = "trajectories", app: Path = APP, **query: Any) -> AppTest:
    """Open a page in a session of its own, as a link with these parameters does."""
    sys.argv = ["main.py", str(root)]
    forget_listings()
    test = AppTest.from_file(str(app / "main.py"), default_timeout=PATIENCE_SECONDS)
    for name, value in query.items():
        test.query_params[name] = value
    if page != "overview":
        test.switch_page(f"views/{page}.py")
    return test.run()


def look_again(test: AppTest) -> AppTest:
    """Draw the page again, a while later."""
    forget_listings()
    return test.run()


def forget_listings() -> None:
    """What a page knows of the folders stands for a second, and a test has no second."""
    for module, listing in (
        ("dashboard_runs", "_walk"),
        ("dashboard_runs", "_list_runs"),
        ("dashboard_sweeps", "_list_sweeps"),
    ):
        if module in sys.modules:  # which the app's own script puts on the path
            getattr(sys.modules[module], listing).clear()


@contextmanager
def as_started() -> Iterator[None]:
    """Leave the process as it was: a page's script changes where Python looks for modules."""
    arguments, path = list(sys.argv), list(sys.path)
    try:
        yield
    finally:
        sys.argv[:], sys.path[:] = arguments, path
        st.cache_resource.clear()


def said(test: AppTest) -> str:
    elements = (*test.info, *test.warning, *test.error, *test.caption, *test.text, *test.code)
    return "\n".join(e.value for e in elements)


def drawn(test: AppTest) -> list[dict[str, Any]]:
    """Return the figures on the page, as Plotly's JSON."""
    return [json.loads(e.proto.spec) for e in test.get("plotly_chart")]


def titles(figure: dict[str, Any]) -> list[str]:
    """Return what is written above the panels and within them."""
    notes = figure["layout"].get("annotations", [])
    return [note["text"] for note in notes if note.get("xref") != "paper"]
