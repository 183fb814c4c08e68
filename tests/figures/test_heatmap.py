"""Heat maps of drift, tested on their charts."""

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from spectra.figures.chart import Chart, Heat, Line, Panel
from spectra.figures.heatmaps import describe_heatmap
from tests.figures.rows import drift_rows, four_methods


def heat_of(panel: Panel) -> Heat:
    (heat,) = (m for m in panel.marks if isinstance(m, Heat))
    return heat


def struck(panel: Panel) -> set[tuple[int, float]]:
    """Return (layer, step) of every cell that a line strikes through."""
    heat, cells = heat_of(panel), set()
    for line in (m for m in panel.marks if isinstance(m, Line)):
        ends = np.column_stack([line.x, line.y])
        for (left, y), (right, same) in zip(ends[::3], ends[1::3], strict=True):
            assert y == same
            cells |= {(int(y), x) for x in heat.x if left < x < right}
    return cells


def test_a_panel_a_run_and_module_with_a_cell_a_row():
    rows = four_methods(layers=3)

    chart = describe_heatmap(rows, "delta_sigma")

    assert [p.title for p in chart.panels] == [
        f"{m} · {p}"
        for m in ("sorsa", "sorsa-noreg", "lora", "partial-ft")
        for p in ("q_proj", "v_proj")
    ]
    for panel in chart.panels:
        heat = heat_of(panel)
        method, module = panel.title.split(" · ")
        own = rows[(rows["method"] == method) & (rows["module"] == module)]
        table = own.pivot(index="layer", columns="step", values="delta_sigma")
        assert list(heat.x) == list(table.columns) and list(heat.y) == list(table.index)
        np.testing.assert_array_equal(heat.values, table)
        assert heat.pick is not None
        assert (heat.pick.run, heat.pick.module) == (method, module)
        assert heat.pick.layers == (0, 1, 2) and heat.pick.steps == tuple(table.columns)
    assert chart.link_x and chart.link_y and chart.columns == 2


def test_layers_run_upwards_from_their_own_first_and_a_missing_one_is_a_gap():
    rows = drift_rows(layers=8, modules=("q_proj",))
    rows = rows[~rows["layer"].isin([0, 1, 5])]

    chart = describe_heatmap(rows)

    (panel,) = chart.panels
    assert panel.y.limits == (1.5, 7.5)
    assert list(heat_of(panel).y) == [2, 3, 4, 5, 6, 7]
    assert np.isnan(heat_of(panel).values[3]).all()
    assert "Without a value: 3 cells." in chart.caption


def test_cells_below_their_own_noise_floor_are_struck_through_and_counted():
    rows = drift_rows(layers=3, modules=("q_proj",), steps=(0, 10, 20, 30))
    rows["delta_d"] = rows["step"] / 100 + rows["layer"] / 1000
    # Layer 0: 0.1 at step 10 alone; layer 1: two steps; layer 2: an adapter, without a floor.
    rows["d_noise"] = rows["layer"].map({0: 0.1, 1: 0.25, 2: 0.0})

    chart = describe_heatmap(rows)

    (panel,) = chart.panels
    assert struck(panel) == {(0, 10), (1, 10), (1, 20)}
    assert "3 of 12 cells are struck through" in chart.caption
    assert "(0.1 to 0.25)" in chart.caption


def test_a_noise_floor_below_every_cell_is_named_and_one_above_all_too():
    rows = drift_rows(noise=True)

    below = describe_heatmap(rows.assign(delta_d=0.5))
    above = describe_heatmap(rows.assign(delta_d=1e-4))

    assert "Every cell lies above the noise floor (0.006)." in below.caption
    # Of the base itself every drift is 0, which is above no floor.
    start = rows.assign(delta_d=rows["step"].map({10: 0.0}).fillna(0.5), step=rows["step"] - 10)
    assert "Every cell after step 0 lies above" in describe_heatmap(start).caption
    assert not any(struck(p) for p in below.panels)
    assert "All cells are struck through" in above.caption
    assert sum(len(struck(p)) for p in above.panels) == len(rows)
    assert "noise floor" not in describe_heatmap(rows, "kappa").caption
    assert "noise floor of ΔD" in describe_heatmap(rows.assign(delta_u=0.1), "delta_u").caption


def test_infinite_values_keep_their_cells_and_are_counted():
    rows = drift_rows(layers=4, modules=("q_proj",)).assign(kappa=10.0)
    rows.loc[rows["layer"] == 1, "kappa"] = np.inf
    rows.loc[rows["layer"] == 2, "kappa"] = 5e4

    chart = describe_heatmap(rows, "kappa")

    assert chart.bar is not None and chart.bar.log
    assert chart.bar.limits == pytest.approx((10, 5e4))
    assert "Of 12 cells: 3 infinite, in the highest colour." in chart.caption
    assert np.isinf(heat_of(chart.panels[0]).values[1]).all()


def test_zeros_have_the_lowest_colour_of_a_logarithmic_scale():
    rows = drift_rows(layers=2, modules=("q_proj",), steps=(0, 10, 20))

    chart = describe_heatmap(rows, "delta_d", log=True)

    assert chart.bar is not None
    positive = rows.loc[rows["step"] > 0, "delta_d"]
    assert chart.bar.limits == pytest.approx((positive.min(), positive.max()))
    assert "Of 6 cells: 2 of 0, in the lowest colour." in chart.caption


@pytest.mark.parametrize(
    ("low", "high", "log"), [(1.0, 50.0, False), (1e-5, 1.0, True), (0.0, 0.0, False)]
)
def test_wide_ranges_get_logarithmic_colours_by_themselves(low, high, log):
    rows = drift_rows(layers=20)
    rows["delta_d"] = np.geomspace(low, high, len(rows)) if low else 0.0

    bar = describe_heatmap(rows).bar

    assert bar is not None and bar.log == log
    assert bar.limits[0] < bar.limits[1]
    by_hand = describe_heatmap(rows, log=False).bar
    assert by_hand is not None and not by_hand.log


def test_a_lone_outlier_does_not_take_the_scale_and_is_named():
    rows = drift_rows(layers=80, steps=tuple(range(10, 60, 10)), modules=("q_proj",))
    rows["delta_d"] = np.linspace(0.1, 0.2, len(rows))
    rows.loc[17, "delta_d"] = 5.0

    chart = describe_heatmap(rows)

    assert chart.bar is not None and chart.bar.limits[1] < 0.21
    assert "above the scale (up to 5)" in chart.caption
    # Of few cells none can be left out.
    few = describe_heatmap(rows[rows["layer"] < 10]).bar
    assert few is not None and few.limits[1] == 5.0


def test_a_change_of_both_signs_is_coloured_around_zero():
    rows = drift_rows().assign(matched_d=lambda r: r["delta_d"] - 0.1)

    bar = describe_heatmap(rows, "matched_d").bar

    assert bar is not None and bar.map == "turn"
    assert bar.limits[0] == -bar.limits[1]


def test_many_steps_are_thinned_and_the_last_is_kept():
    rows = drift_rows(layers=2, modules=("q_proj",), steps=tuple(range(5, 1005, 5)))

    chart = describe_heatmap(rows)

    heat = heat_of(chart.panels[0])
    assert len(heat.x) == 60 and heat.x[-1] == 1000
    kept = rows[rows["step"].isin(heat.x)].pivot(index="layer", columns="step", values="delta_d")
    np.testing.assert_array_equal(heat.values, kept)
    assert "60 of 200 steps" in chart.caption
    # Fewer asked for are all drawn.
    assert "steps" not in describe_heatmap(rows, steps=range(0, 101)).caption


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ("nothing", {}, "no column nothing"),
        ("dtype", {}, "holds no numbers"),
        ("delta_d", {"modules": ["k_proj"]}, "No drift rows match"),
        ("sigma_noise", {}, "have no value of sigma_noise"),
        ("zero", {"log": True}, "need values above 0"),
        ("infinite", {}, "is infinite"),
    ],
)
def test_what_cannot_be_drawn_is_said(column, options, message):
    rows = drift_rows().assign(zero=0.0, infinite=np.inf)

    with pytest.raises(ValueError, match=message):
        describe_heatmap(rows, column, **options)


def test_more_panels_than_can_be_read_are_refused():
    rows = pd.concat([drift_rows(f"run{i}", "lora", layers=1) for i in range(9)])

    with pytest.raises(ValueError, match=r"9 runs × 2 modules would be 18 .* fewer runs or mod"):
        describe_heatmap(rows)

    assert len(describe_heatmap(rows, modules="q_proj").panels) == 9


def draws(chart: Chart, backend: figures.Backend) -> bytes:
    from spectra.figures.drawing import draw

    suffix = ".svg" if backend == "matplotlib" else ".html"
    return figures.to_bytes(draw(chart, backend), suffix)


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
@pytest.mark.parametrize("layers", [1, 80])
def test_it_draws(layers, backend):
    rows = four_methods(layers=layers, steps=(0, 10, 20), noise=True, modules=("q_proj",))
    rows.loc[rows.index[0], "kappa"] = np.inf

    assert draws(describe_heatmap(rows, "delta_d"), backend)
    assert draws(describe_heatmap(rows[rows["step"] == 20], "kappa"), backend)


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
def test_names_are_data(backend):
    name = "</script><img src=x onerror=alert(1)> $\\frac{1}{$ %{x} \x00" + "long" * 60
    rows = drift_rows(name, name, modules=(name,), layers=2)

    content = draws(describe_heatmap(rows), backend)

    assert b"<img src=x" not in content
