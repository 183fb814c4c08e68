"""What docs/figure2.md says of the authors' conventions, on rows whose layers are known."""

import numpy as np
import pandas as pd
import pytest

from tests.benchmarks.authors_plot import (
    authors_labels,
    common_mean,
    papers_methods,
    report,
    side_by_side,
)
from tests.figures.rows import drift_rows, four_methods


def test_their_labels_are_the_layers_of_a_model_of_32_layers():
    rows = drift_rows(layers=32, steps=(10,))

    assert (authors_labels(rows) == rows["layer"]).all()


@pytest.mark.parametrize(("layers", "wrong"), [(12, 12), (30, 30), (80, 128)])
def test_their_labels_name_other_layers_elsewhere(layers, wrong):
    rows = drift_rows(layers=layers, steps=(10,))

    labels = authors_labels(rows)

    # q_proj comes first, so its first 32 layers are right; no layer beyond 31 can be.
    assert (labels != rows["layer"]).sum() == wrong
    assert f"{wrong} of {2 * layers} matrices" in report(rows)
    if layers == 30:
        of_v = labels[rows["module"] == "v_proj"]
        assert list(of_v) == [30, 31, *range(28)]


def test_their_mean_is_over_the_matrices_of_all_modules():
    rows = pd.DataFrame(
        {
            "run": "a",
            "method": "lora",
            "module": ["q_proj", "v_proj", "v_proj"],
            "layer": [0, 0, 1],
            "step": 10,
            "delta_sigma": [1.0, 2.0, 6.0],
            "delta_d": [0.4, 0.1, 0.1],
        }
    )

    mean = common_mean(rows)

    assert tuple(mean.loc[10]) == pytest.approx((3.0, 0.2))


def test_the_papers_methods_are_drawn_in_its_order_and_any_run_where_there_are_none():
    rows = pd.concat([four_methods(layers=2, steps=(10,)), drift_rows("x", "dora", layers=2)])
    chosen = papers_methods(rows.reset_index(drop=True))

    assert list(dict.fromkeys(chosen["method"])) == ["partial-ft", "lora", "sorsa-noreg", "sorsa"]
    assert len(papers_methods(drift_rows("x", "dora"))) == len(drift_rows("x", "dora"))


def test_both_figures_stand_in_one_image():
    image = side_by_side(drift_rows(layers=3, steps=(0, 10, 20)))

    assert image.ndim == 3 and image.shape[2] == 3
    middle = image.shape[1] // 2
    for half in (image[:, :middle], image[:, middle:]):
        assert np.unique(half).size > 20
