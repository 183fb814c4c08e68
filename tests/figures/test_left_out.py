"""Runs that a figure does not draw are named in its caption."""

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from tests.figures.rows import drift_rows

NO_TRAINING = pd.DataFrame({"run": [], "method": [], "step": []})


@pytest.mark.parametrize(
    "describe",
    [
        figures.describe_trajectory,
        lambda rows: figures.describe_trajectory(rows, overlay=True),
        lambda rows: figures.describe_trajectory(rows.assign(sigma_0_mean=1.0), relative=True),
        lambda rows: figures.describe_curves(rows, "delta_d"),
        lambda rows: figures.describe_curves(rows, "delta_d", overlay=True),
        lambda rows: figures.describe_heatmap(rows, "delta_d"),
        lambda rows: figures.describe_compare(rows, NO_TRAINING, "delta_d"),
    ],
)
def test_a_run_of_values_only_is_named_where_vectors_are_drawn(describe):
    whole = drift_rows("whole", "lora")
    values_only = drift_rows("values-only", "sorsa").assign(delta_d=np.nan)

    caption = describe(pd.concat([whole, values_only], ignore_index=True)).caption

    assert "Without ΔD in what is chosen, so not drawn: values-only." in caption
    assert "not drawn" not in describe(whole).caption


def test_a_run_without_a_base_is_named_once():
    with_base = drift_rows("new", "lora").assign(sigma_0_mean=1.0)
    without = drift_rows("old", "sorsa").assign(sigma_0_mean=np.nan)

    caption = figures.describe_trajectory(
        pd.concat([with_base, without], ignore_index=True), relative=True
    ).caption

    assert caption.count("old") == 1
