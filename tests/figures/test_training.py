"""What training recorded, tested on its chart."""

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from spectra.figures import describe_training
from spectra.figures.chart import Line
from spectra.figures.selection import MOST_LINE_POINTS
from tests.figures.marks import entry, of_kind, thick
from tests.figures.rows import training_rows


def faint(chart, panel, run):
    """The record behind a smoothed line."""
    return [m for m in of_kind(panel, Line) if m.entry == entry(chart, run) and m.width < 1.2]


def test_training_draws_a_panel_a_quantity_with_every_run():
    rows = pd.concat([training_rows("a", "sorsa", 50), training_rows("b", "lora", 60)])

    chart = describe_training(rows)

    assert [p.title for p in chart.panels] == ["training loss", "gradient norm"]
    assert [e.name for e in chart.entries] == ["sorsa", "lora"]
    for panel, column in zip(chart.panels, ("loss", "grad_norm"), strict=True):
        for run, name in (("a", "sorsa"), ("b", "lora")):
            of_run = rows[rows["run"] == run]
            line = thick(chart, panel, name)
            assert tuple(line.x) == tuple(of_run["step"])
            assert tuple(line.y) == tuple(of_run[column])
            assert not faint(chart, panel, name)


def test_long_training_is_smoothed_over_the_record_it_shows():
    rows = training_rows(steps=400)

    chart = describe_training(rows, ["loss"])
    unsmoothed = describe_training(rows, ["loss"], smooth=1)

    strong = thick(chart, chart.panels[0], "sorsa").y
    (record,) = faint(chart, chart.panels[0], "sorsa")
    assert tuple(record.y) == tuple(rows["loss"])
    assert tuple(thick(unsmoothed, unsmoothed.panels[0], "sorsa").y) == tuple(rows["loss"])
    assert np.std(np.diff(strong)) < np.std(np.diff(record.y)) / 3
    assert strong[200] == pytest.approx(rows["loss"][195:205].mean())


def test_what_is_recorded_now_and_then_is_not_smoothed_with_the_rest():
    rows = training_rows(steps=400)
    rows = pd.concat([rows.head(1).assign(step=0, loss=np.nan), rows], ignore_index=True)
    rows["perplexity"] = (500 - rows["step"]).where(rows["step"] % 100 == 0)

    chart = describe_training(rows, ["loss", "perplexity"])

    loss, evaluated = (thick(chart, panel, "sorsa") for panel in chart.panels)
    assert loss.x[0] == 1 and faint(chart, chart.panels[0], "sorsa")
    assert list(evaluated.x) == [0, 100, 200, 300, 400]
    assert not faint(chart, chart.panels[1], "sorsa")
    assert list(evaluated.y) == [500, 400, 300, 200, 100]
    assert "training loss: Strong: mean of 10 recorded steps" in chart.caption


def test_a_quantity_nobody_recorded_is_named_not_drawn():
    rows = training_rows().assign(grad_norm=np.nan)

    chart = describe_training(rows)

    assert [p.title for p in chart.panels] == ["training loss"]
    assert "Not recorded: gradient norm." in chart.caption


def test_one_quantity_stands_against_another_in_the_order_of_the_steps():
    rows = training_rows(steps=40).sample(frac=1, random_state=0)
    in_order = rows.sort_values("step")

    chart = describe_training(rows, ["grad_norm"], against="loss")

    line = thick(chart, chart.panels[0], "sorsa")
    assert chart.panels[0].x.label == "training loss (nats per token)"
    assert tuple(line.x) == tuple(in_order["loss"])
    assert tuple(line.y) == tuple(in_order["grad_norm"])
    # A loss goes up and down: the line follows time, not the axis.
    assert (np.diff(line.x) < 0).any() and (np.diff(line.x) > 0).any()


def test_only_steps_with_both_values_are_drawn_against_another_column():
    rows = training_rows(steps=40)
    rows["perplexity"] = np.where(rows["step"] % 10 == 0, 60.0 - rows["step"], np.nan)
    rows["seconds"] = 2.5 * rows["step"]

    chart = describe_training(rows, ["perplexity"], against="seconds")

    line = thick(chart, chart.panels[0], "sorsa")
    assert list(line.x) == [25.0, 50.0, 75.0, 100.0]
    assert list(line.y) == [50.0, 40.0, 30.0, 20.0]
    assert line.hover is not None
    assert list(dict(line.hover.columns)["step"]) == [10, 20, 30, 40]
    low, high = chart.panels[0].x.limits
    assert low < 25 and 100 < high < 110


def test_a_noisy_horizontal_axis_is_averaged_like_the_vertical_one():
    rows = training_rows(steps=400)
    rows["tokens"] = 100.0 * rows["step"]

    against_loss = describe_training(rows, ["grad_norm"], against="loss")
    against_tokens = describe_training(rows, ["grad_norm"], against="tokens")

    x = thick(against_loss, against_loss.panels[0], "sorsa").x
    assert np.std(np.diff(x)) < np.std(np.diff(rows["loss"])) / 3
    assert against_loss.caption == (
        "Means of so many recorded steps: training loss 10, gradient norm 10."
    )
    assert not faint(against_loss, against_loss.panels[0], "sorsa")
    exact = thick(against_tokens, against_tokens.panels[0], "sorsa").x
    assert tuple(exact) == tuple(rows["tokens"])


def test_a_noisy_horizontal_axis_is_averaged_over_its_own_record():
    rows = training_rows(steps=400)
    rows["perplexity"] = np.where(rows["step"] % 100 == 0, 30.0, np.nan)

    chart = describe_training(rows, ["perplexity"], against="loss")

    # 400 steps are averaged by tens; the window of step 100, at place 99, is 94 to 103.
    x = thick(chart, chart.panels[0], "sorsa").x
    assert len(x) == 4
    assert x[0] == pytest.approx(rows["loss"][94:104].mean())


def test_perplexities_over_decades_get_a_logarithmic_axis_and_losses_do_not():
    rows = training_rows(steps=40)
    rows["perplexity"] = np.geomspace(25_000, 12, 40)
    rows["perplexity_other"] = np.linspace(25_000, 5_000, 40)
    rows["loss"] = np.log(rows["perplexity"])

    chart = describe_training(rows, ["perplexity", "perplexity_other", "loss"])

    assert [panel.y.log for panel in chart.panels] == [True, False, False]
    assert chart.panels[0].y.limits[0] > 0
    wanted = describe_training(rows, ["perplexity"], log=False)
    assert not wanted.panels[0].y.log


def test_a_long_record_is_thinned_and_keeps_its_spikes_and_its_end():
    rows = training_rows(steps=30_000)
    spike = 12_345
    rows.loc[spike, "loss"] = 50.0

    chart = describe_training(rows, ["loss"])

    panel = chart.panels[0]
    (record,) = faint(chart, panel, "sorsa")
    strong = thick(chart, panel, "sorsa")
    assert len(record.x) + len(strong.x) <= MOST_LINE_POINTS
    assert record.y.max() == 50.0
    assert record.x[record.y.argmax()] == rows.loc[spike, "step"]
    assert strong.x[-1] == record.x[-1] == 30_000
    assert "of 30000 steps, the last among them" in chart.caption


@pytest.mark.parametrize(
    ("rows", "columns", "options", "message"),
    [
        (training_rows().iloc[:0], ("loss",), {}, "no training rows"),
        (training_rows(), ("accuracy",), {}, "no column accuracy"),
        (training_rows(), ("loss",), {"against": "epoch"}, "no column epoch"),
        (training_rows(), ("loss",), {"against": "method"}, "method holds no numbers"),
        (training_rows().assign(loss=np.nan), ("loss",), {}, "no training rows with loss"),
        (training_rows(), ("loss",), {"smooth": 0}, "smooth must be at least 1"),
        (
            training_rows().assign(tokens=np.nan),
            ("loss",),
            {"against": "tokens"},
            "No step has a value of tokens together with one of loss",
        ),
        (pd.concat([training_rows(), training_rows()]), ("loss",), {}, "share a name"),
    ],
)
def test_what_training_cannot_draw_is_said(rows, columns, options, message):
    with pytest.raises(ValueError, match=message):
        figures.training(rows, columns, **options)
