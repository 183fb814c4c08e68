"""Curves of drift over the steps, tested on their charts."""

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from spectra.figures import describe_layer_curves, describe_run_curves
from spectra.figures.chart import Band, Line
from spectra.figures.selection import MOST_LINE_POINTS
from spectra.store import DRIFT_QUANTITIES, TRAINING_QUANTITIES
from tests.figures.marks import band, entry, layer_curves, of_kind, thick
from tests.figures.rows import drift_rows, four_methods


def test_every_quantity_of_the_schema_has_a_label():
    assert set(figures.LABELS) == {*DRIFT_QUANTITIES, *TRAINING_QUANTITIES}


def test_every_label_says_how_to_read_the_quantity():
    assert all(label.symbol and label.reading for label in figures.LABELS.values())
    assert len({label.axis for label in figures.LABELS.values()}) == len(figures.LABELS)


def test_intruder_dimensions_are_named_with_their_k_and_epsilon():
    assert figures.label_of("intruders").axis == "intruder dimensions (k = 10, ε = 0.5)"


def test_a_panel_a_run_and_a_line_a_layer():
    rows = four_methods(layers=3)

    chart = describe_layer_curves(rows, "delta_d")

    runs = ["sorsa", "sorsa-noreg", "lora", "partial-ft"]
    assert [p.title for p in chart.panels] == runs
    for panel, run in zip(chart.panels, runs, strict=True):
        drawn = layer_curves(panel)
        assert set(drawn) == {(m, layer) for m in ("q_proj", "v_proj") for layer in range(3)}
        for (module, layer), (steps, values) in drawn.items():
            of_layer = rows[
                (rows["run"] == run) & (rows["module"] == module) & (rows["layer"] == layer)
            ]
            assert steps == tuple(of_layer["step"])
            assert values == tuple(of_layer["delta_d"])


def test_a_click_on_a_layers_line_names_its_matrix():
    rows = drift_rows("a", layers=40, steps=(10, 20))

    (panel,) = describe_layer_curves(rows, "delta_d").panels

    values = rows.set_index(["module", "layer", "step"])["delta_d"]
    for line in of_kind(panel, Line):
        if line.pick is None:
            continue
        assert line.pick.run == "a"
        there = np.isfinite(line.y)
        keys = zip(np.array(line.pick.layers)[there], np.array(line.pick.steps)[there], strict=True)
        assert [values[line.pick.module, layer, step] for layer, step in keys] == list(
            line.y[there]
        )


def test_lines_of_alike_layers_are_drawn_at_once_and_neighbours_have_alike_colours():
    (panel,) = describe_layer_curves(drift_rows(layers=80), "delta_d").panels

    lines = [line for line in of_kind(panel, Line) if line.pick is not None]
    assert len(lines) == 2 * 16
    places = [(np.mean(line.pick.layers), line.ink.place) for line in lines if line.pick]
    assert max(abs(layer / 79 - place) for layer, place in places) < 1 / 16
    assert len(layer_curves(panel)) == 160


def test_thick_line_is_the_mean_of_one_module_and_the_band_its_range():
    rows = drift_rows(layers=5)

    chart = describe_layer_curves(rows, "delta_sigma")

    assert [e.name for e in chart.entries] == ["q_proj, mean", "v_proj, mean"]
    for module in ("q_proj", "v_proj"):
        steps = rows[rows["module"] == module].groupby("step")["delta_sigma"]
        np.testing.assert_allclose(thick(chart, chart.panels[0], module).y, steps.mean())
        shaded = band(chart, chart.panels[0], module)
        assert tuple(shaded.low) == tuple(steps.min())
        assert tuple(shaded.high) == tuple(steps.max())


def test_no_band_is_drawn_where_none_is_asked_for():
    for describe in (describe_layer_curves, describe_run_curves):
        chart = describe(drift_rows(), "delta_sigma", band=False)
        assert not any(of_kind(panel, Band) for panel in chart.panels)
        assert "Shaded" not in chart.caption


def test_a_step_that_a_layer_lacks_is_bridged_and_does_not_count_in_the_mean():
    rows = drift_rows(layers=2, modules=("q_proj",), steps=(10, 20, 30))
    rows["delta_d"] = [0.1, 0.2, 0.3, 0.5, 0.6, 0.7]
    rows = rows[~((rows["layer"] == 1) & (rows["step"] == 20))]

    chart = describe_layer_curves(rows, "delta_d")

    assert layer_curves(chart.panels[0])["q_proj", 1] == ((10.0, 30.0), (0.5, 0.7))
    assert tuple(thick(chart, chart.panels[0], "mean").y) == pytest.approx((0.3, 0.2, 0.5))


def test_overlaid_runs_stand_in_a_panel_a_module():
    rows = four_methods(layers=3)

    chart = describe_run_curves(rows, "delta_d")

    runs = ["sorsa", "sorsa-noreg", "lora", "partial-ft"]
    assert [p.title for p in chart.panels] == ["q_proj", "v_proj"]
    assert [e.name for e in chart.entries] == runs
    for panel in chart.panels:
        for run in runs:
            of_run = rows[(rows["run"] == run) & (rows["module"] == panel.title)]
            means = of_run.groupby("step")["delta_d"].mean()
            np.testing.assert_allclose(thick(chart, panel, run).y, means)


def test_a_run_without_a_module_has_no_line_in_its_panel():
    rows = pd.concat([drift_rows("a", "lora"), drift_rows("b", "sorsa", modules=("v_proj",))])

    chart = describe_run_curves(rows, "delta_d")

    drawn = [{m.entry for m in of_kind(panel, Line)} for panel in chart.panels]
    assert drawn == [{entry(chart, "lora")}, {entry(chart, "lora"), entry(chart, "sorsa")}]


def test_condition_numbers_over_two_decades_get_a_logarithmic_axis_and_a_median():
    rows = drift_rows(layers=4)
    rows["kappa"] = 10.0 ** (1 + rows["layer"])

    wide = describe_layer_curves(rows, "kappa")
    narrow = describe_layer_curves(rows[rows["layer"] < 2], "kappa")

    assert wide.panels[0].y.log and "Thick: median" in wide.caption
    assert set(thick(wide, wide.panels[0], "q_proj").y) == {(100 + 1000) / 2}
    assert not narrow.panels[0].y.log and "Thick: mean" in narrow.caption
    assert not describe_layer_curves(rows, "kappa", log=False).panels[0].y.log


def test_infinite_condition_numbers_are_left_out_and_counted():
    rows = drift_rows(layers=4)
    rows.loc[rows["layer"] == 2, "kappa"] = np.inf

    chart = describe_layer_curves(rows, "kappa")

    assert {layer for _, layer in layer_curves(chart.panels[0])} == {0, 1, 3}
    assert "6 infinite values are left out" in chart.caption


@pytest.mark.parametrize("describe", [describe_layer_curves, describe_run_curves])
def test_many_steps_are_thinned_to_a_budget_that_keeps_the_last(describe):
    rows = four_methods(layers=4, steps=tuple(range(1, 901)))

    chart = describe(rows, "delta_d")

    lines = [m for panel in chart.panels for m in of_kind(panel, Line)]
    bands = [m for panel in chart.panels for m in of_kind(panel, Band)]
    points = sum(len(m.x) for m in lines) + 2 * sum(len(m.x) for m in bands)
    assert points <= 1.05 * MOST_LINE_POINTS
    assert {float(np.nanmax(m.x)) for m in lines} == {900.0}
    assert "of 900 steps, the last among them" in chart.caption


def test_lines_of_too_many_layers_are_left_to_the_shaded_range():
    rows = four_methods(layers=130, steps=(10, 20))

    chart = describe_layer_curves(rows, "delta_d")

    assert not any(layer_curves(panel) for panel in chart.panels)
    assert all(len(of_kind(panel, Band)) == 2 for panel in chart.panels)
    assert "1040 lines of layers are too many to draw" in chart.caption
    assert chart.bar is None


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
