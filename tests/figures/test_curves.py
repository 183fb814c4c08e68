"""Curves over the steps, tested on their descriptions."""

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from spectra.figures import describe_layer_curves, describe_run_curves, describe_training
from spectra.store import DRIFT_QUANTITIES, TRAINING_QUANTITIES
from tests.figures.rows import drift_rows, four_methods, training_rows


def test_every_quantity_of_the_schema_has_a_label():
    assert set(figures.LABELS) == {*DRIFT_QUANTITIES, *TRAINING_QUANTITIES}


def test_every_label_says_how_to_read_the_quantity():
    assert all(label.symbol and label.reading for label in figures.LABELS.values())
    assert len({label.axis for label in figures.LABELS.values()}) == len(figures.LABELS)


def test_intruder_dimensions_are_named_with_their_k_and_epsilon():
    assert figures.label_of("intruders").axis == "intruder dimensions (k = 10, ε = 0.5)"


def test_a_panel_a_run_and_a_line_a_layer():
    rows = four_methods(layers=3)

    description = describe_layer_curves(rows, "delta_d")

    assert [p.run for p in description.panels] == ["sorsa", "sorsa-noreg", "lora", "partial-ft"]
    for panel in description.panels:
        assert [(m, layer) for m, layer, _ in panel.layers] == [
            (m, layer) for m in ("q_proj", "v_proj") for layer in range(3)
        ]
        for module, layer, curve in panel.layers:
            of_layer = rows[
                (rows["run"] == panel.run) & (rows["module"] == module) & (rows["layer"] == layer)
            ]
            assert curve.values == tuple(of_layer["delta_d"])


def test_thick_line_is_the_mean_of_one_module_and_the_band_its_range():
    rows = drift_rows(layers=5)

    description = describe_layer_curves(rows, "delta_sigma")

    for module, curve in description.panels[0].centres:
        steps = rows[rows["module"] == module].groupby("step")["delta_sigma"]
        np.testing.assert_allclose(curve.values, steps.mean())
        assert curve.low == tuple(steps.min())
        assert curve.high == tuple(steps.max())
    assert description.centre == "mean"


def test_overlaid_runs_stand_in_a_panel_a_module():
    description = describe_run_curves(four_methods(layers=3), "delta_d")

    assert [p.title for p in description.panels] == ["q_proj", "v_proj"]
    assert description.runs == ("sorsa", "sorsa-noreg", "lora", "partial-ft")
    assert [[i for i, _ in p.curves] for p in description.panels] == [[0, 1, 2, 3]] * 2


def test_condition_numbers_over_two_decades_get_a_logarithmic_axis_and_a_median():
    rows = drift_rows(layers=4)
    rows["kappa"] = 10.0 ** (1 + rows["layer"])

    wide = describe_layer_curves(rows, "kappa")
    narrow = describe_layer_curves(rows[rows["layer"] < 2], "kappa")

    assert (wide.log, wide.centre) == (True, "median")
    assert (narrow.log, narrow.centre) == (False, "mean")
    assert not describe_layer_curves(rows, "kappa", log=False).log


def test_infinite_condition_numbers_are_left_out_and_counted():
    rows = drift_rows(layers=4)
    rows.loc[rows["layer"] == 2, "kappa"] = np.inf

    description = describe_layer_curves(rows, "kappa")

    assert {layer for _, layer, _ in description.panels[0].layers} == {0, 1, 3}
    assert "6 infinite values are left out" in description.caption


def test_training_draws_a_panel_a_quantity_with_every_run():
    rows = pd.concat([training_rows("a", "sorsa", 50), training_rows("b", "lora", 60)])

    description = describe_training(rows)

    assert [p.title for p in description.panels] == ["training loss", "gradient norm"]
    assert description.runs == ("sorsa", "lora")
    for panel, column in zip(description.panels, ("loss", "grad_norm"), strict=True):
        for index, curve in panel.curves:
            of_run = rows[rows["run"] == "ab"[index]]
            assert curve.values == tuple(of_run[column])
            assert curve.raw == ()


def test_long_training_is_smoothed_over_the_record_it_shows():
    rows = training_rows(steps=400)

    (_, curve) = describe_training(rows, ["loss"]).panels[0].curves[0]
    (_, plain) = describe_training(rows, ["loss"], smooth=1).panels[0].curves[0]

    assert curve.raw == plain.values == tuple(rows["loss"])
    assert np.std(np.diff(curve.values)) < np.std(np.diff(curve.raw)) / 3
    assert curve.values[200] == pytest.approx(rows["loss"][195:205].mean())


def test_what_is_recorded_now_and_then_is_not_smoothed_with_the_rest():
    rows = training_rows(steps=400)
    rows = pd.concat([rows.head(1).assign(step=0, loss=np.nan), rows], ignore_index=True)
    rows["perplexity"] = (500 - rows["step"]).where(rows["step"] % 100 == 0)

    description = describe_training(rows, ["loss", "perplexity"])

    loss, evaluated = (panel.curves[0][1] for panel in description.panels)
    assert loss.steps[0] == 1 and loss.raw
    assert list(evaluated.steps) == [0, 100, 200, 300, 400] and not evaluated.raw
    assert list(evaluated.values) == [500, 400, 300, 200, 100]
    assert "training loss, strong: mean of 10 recorded steps" in description.caption


def test_a_quantity_nobody_recorded_is_named_not_drawn():
    rows = training_rows().assign(grad_norm=np.nan)

    description = describe_training(rows)

    assert [p.title for p in description.panels] == ["training loss"]
    assert "Not recorded: gradient norm." in description.caption


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ("nothing", {}, "no column nothing"),
        ("dtype", {}, "holds no numbers"),
        ("ortho_u", {"modules": ["k_proj"]}, "No drift rows match"),
        ("sigma_noise", {}, "have no value of sigma_noise"),
        ("zero", {"log": True}, "needs values above 0"),
        ("infinite", {}, "Every chosen value of infinite is infinite"),
    ],
)
def test_what_has_no_curve_is_said(column, options, message):
    rows = drift_rows().assign(zero=0.0, infinite=np.inf)

    with pytest.raises(ValueError, match=message):
        figures.curves(rows, column, **options)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (training_rows().iloc[:0], ("loss",), "no training rows"),
        (training_rows(), ("accuracy",), "no column accuracy"),
        (training_rows().assign(loss=np.nan), ("loss",), "no training rows with loss"),
    ],
)
def test_what_training_cannot_draw_is_said(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        figures.training(rows, columns)
