"""The noise floor in every figure of ΔΣ and ΔD, tested on the charts."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spectra.figures import describe_layer_curves, describe_run_curves, describe_trajectory
from spectra.figures.chart import Band, Line, Note, Panel
from spectra.figures.noise import Floor, floor_marks
from tests.figures.marks import finite, layer_curves, note, of_kind, thick, zone
from tests.figures.rows import drift_rows, four_methods

FLOORED = {
    "delta_sigma": 1.5e-4,
    "delta_d": 6e-3,
    "delta_u": 6e-3,
    "delta_v": 6e-3,
    "matched_d": 6e-3,
}
"""What `drift_rows` gives as the floor of every column that has one."""
DESCRIBE: list[Any] = [describe_layer_curves, describe_run_curves]


def with_floors(rows, sigma_noise, d_noise):
    return rows.assign(sigma_noise=sigma_noise, d_noise=d_noise)


def level(panel: Panel) -> float | None:
    """Up to where the panel of a curve is grey, from its bottom and its whole width."""
    found = zone(panel)
    if found is None:
        return None
    assert (found.x, found.y[0]) == ((None, None), None)
    return found.y[1]


def corner(panel: Panel) -> tuple[float, float] | None:
    """ΔΣ and ΔD up to which a trajectory's panel is grey; 0 where a strip runs through it."""
    found = zone(panel)
    return None if found is None else (found.x[1] or 0.0, found.y[1] or 0.0)


def two_runs(first, second):
    """Rows of runs a (lora) and b (partial-ft), with these floors of ΔΣ."""
    return pd.concat(
        [
            with_floors(drift_rows("a", "lora"), first, 0.0),
            with_floors(drift_rows("b", "partial-ft"), second, 0.0),
        ]
    )


@pytest.mark.parametrize("floors", [(0.0, 0.0), (np.nan, np.nan), (0.0, np.nan)])
def test_no_floor_or_an_unknown_one_draws_nothing_and_is_not_mentioned(floors):
    rows = with_floors(drift_rows(), *floors)

    trajectory = describe_trajectory(rows)
    curves = [d(rows, c) for d in DESCRIBE for c in ("delta_sigma", "delta_d")]

    assert zone(trajectory.panels[0]) is None
    assert all(zone(panel) is None for c in curves for panel in c.panels)
    assert not any(of_kind(panel, Note) for c in curves for panel in c.panels)
    for caption in (trajectory.caption, *(c.caption for c in curves)):
        assert "noise" not in caption
        assert "Grey" not in caption


def test_a_floor_of_one_axis_alone_is_a_strip():
    across = describe_trajectory(with_floors(drift_rows(), 1.5e-4, 0.0))
    up = describe_trajectory(with_floors(drift_rows(), np.nan, 6e-3))

    assert corner(across.panels[0]) == (1.5e-4, 0.0)
    assert corner(up.panels[0]) == (0.0, 6e-3)
    assert "Grey strip: noise floor (ΔΣ 1.5e−4)," in across.caption
    assert "Grey strip: noise floor (ΔD 0.006)," in up.caption


def test_floor_is_the_median_over_layers_of_the_noisiest_module():
    rows = drift_rows(layers=3, noise=True)
    # A layer of its own kind does not carry the median; a module of its own kind is not averaged.
    rows["sigma_noise"] = np.where(rows["module"] == "q_proj", 1e-4, 3e-4)
    rows.loc[rows["layer"] == 2, "sigma_noise"] = 1.0

    trajectory = describe_trajectory(rows)
    curves = describe_layer_curves(rows, "delta_sigma")

    assert corner(trajectory.panels[0]) == (3e-4, 6e-3)
    assert level(curves.panels[0]) == 3e-4
    assert "the noisiest module's" in trajectory.caption
    assert "the noisiest module's" in curves.caption


def test_a_trajectory_that_never_leaves_the_noise_is_said_to():
    rows = pd.concat([drift_rows("a", "lora"), drift_rows("b", "sorsa", reach=0.01)])

    description = describe_trajectory(with_floors(rows, 3e-4, 0.02))

    assert "All of sorsa lies within it." in description.caption


@pytest.mark.parametrize("describe", DESCRIBE)
@pytest.mark.parametrize("column", FLOORED)
def test_curves_of_drift_have_a_band_up_to_the_floor(describe, column):
    rows = drift_rows(noise=True)
    rows[column] = rows["delta_sigma" if column == "delta_sigma" else "delta_d"]

    description = describe(rows, column)

    for panel in description.panels:
        assert level(panel) == FLOORED[column]
        assert note(panel).text == "noise floor"
    assert "Grey: noise floor" in description.caption


@pytest.mark.parametrize("describe", DESCRIBE)
@pytest.mark.parametrize("column", ["kappa", "sigma_max", "sigma_noise", "d_noise"])
def test_other_curves_have_no_band(describe, column):
    assert all(zone(p) is None for p in describe(drift_rows(noise=True), column).panels)


def test_the_floor_of_delta_d_under_another_column_is_called_that():
    rows = drift_rows(noise=True)
    rows["matched_d"] = rows["delta_d"]

    assert "Grey: noise floor of ΔD (0.006)" in describe_layer_curves(rows, "matched_d").caption


def test_a_band_does_not_move_the_axis_that_shows_it():
    with_noise, without = (drift_rows(steps=(1, 10, 40), noise=n) for n in (True, False))

    for describe, log in ((d, log) for d in DESCRIBE for log in (False, True)):
        noisy, plain = (describe(r, "delta_sigma", log=log) for r in (with_noise, without))
        assert [zone(c.panels[0]) is None for c in (noisy, plain)] == [False, True]
        assert noisy.panels[0].y == plain.panels[0].y


def test_overlaid_runs_show_the_largest_floor_and_the_caption_names_each():
    rows = pd.concat(
        [two_runs(1.5e-4, 3e-4), with_floors(drift_rows("c", "sorsa"), np.nan, np.nan)]
    )

    description = describe_run_curves(rows, "delta_sigma")

    assert [level(p) for p in description.panels] == [3e-4, 3e-4]
    assert note(description.panels[0]).text == "largest noise floor"
    assert "the largest of the runs" in note(description.panels[0]).reading
    assert (
        "It is the largest of the runs': 3e−4 (partial-ft), 1.5e−4 (lora), unknown (sorsa)."
    ) in description.caption


def test_an_adapter_over_a_full_checkpoint_is_said_to_have_no_floor():
    description = describe_run_curves(two_runs(0.0, 3e-4), "delta_sigma")

    assert "3e−4 (partial-ft), 0 (lora)." in description.caption


def test_overlaid_runs_of_one_floor_are_not_listed():
    description = describe_run_curves(two_runs(3e-4, 3e-4), "delta_sigma")

    assert "the largest" not in description.caption
    assert "the largest" not in note(description.panels[0]).reading


def test_every_run_with_a_panel_of_its_own_has_its_own_floor():
    description = describe_layer_curves(two_runs(0.0, 3e-4), "delta_sigma")

    assert [level(p) for p in description.panels] == [None, 3e-4]
    assert "the largest" not in description.caption


@pytest.mark.parametrize("log", [False, True])
def test_an_axis_is_stretched_to_a_floor_just_above_the_data(log):
    rows = drift_rows()
    floor = 1.2 * rows["delta_sigma"].max()

    description = describe_layer_curves(with_floors(rows, floor, 0.0), "delta_sigma", log=log)

    assert floor < description.panels[0].y.limits[1] < 1.1 * floor
    words = note(description.panels[0])
    assert (words.y, words.over) == (floor, False)


@pytest.mark.parametrize("log", [False, True])
def test_a_floor_far_above_the_data_is_said_and_does_not_crush_them(log):
    rows = drift_rows()
    plain = describe_layer_curves(rows, "delta_sigma", log=log)

    far = describe_layer_curves(with_floors(rows, 7.0, 0.0), "delta_sigma", log=log)

    assert far.panels[0].y == plain.panels[0].y
    assert level(far.panels[0]) == 7.0
    assert note(far.panels[0]).y is None
    assert note(far.panels[0]).text == "all below noise floor 7"


def test_a_floor_below_a_logarithmic_axis_is_said_and_not_drawn():
    rows = with_floors(drift_rows(), 1e-12, 0.0)

    description = describe_layer_curves(rows, "delta_sigma", log=True)

    assert zone(description.panels[0]) is None
    assert "The noise floor (1e−12) lies below the axis." in description.caption


def test_a_floor_too_small_to_be_seen_is_said_and_leaves_the_panel_alone():
    rows = with_floors(drift_rows(), 1e-12, 1e-12)

    curves = describe_layer_curves(rows, "delta_sigma")
    trajectory = describe_trajectory(rows)

    assert zone(curves.panels[0]) is None
    assert not of_kind(curves.panels[0], Note)
    sentence = "what rounding for storage alone gives, is too small to be seen."
    assert f"The noise floor (1e−12), {sentence}" in curves.caption
    # Of a trajectory the box is there, for whoever zooms in.
    assert corner(trajectory.panels[0]) == (1e-12, 1e-12)
    assert f"The noise floor (ΔΣ 1e−12, ΔD 1e−12), {sentence}" in trajectory.caption
    assert "Grey" not in curves.caption + trajectory.caption


def test_a_floor_is_seen_where_an_inset_enlarges_it():
    rows = pd.concat([drift_rows("a", "lora"), drift_rows("b", "sorsa", reach=0.001)])

    caption = describe_trajectory(with_floors(rows, 2e-6, 3e-4)).caption

    assert "Grey box: noise floor (ΔΣ 2e−6, ΔD 3e−4)" in caption


def test_nothing_but_noise_is_drawn_on_an_axis_that_shows_the_floor():
    rows = drift_rows(noise=True).assign(delta_sigma=0.0, delta_d=0.0)

    trajectory = describe_trajectory(rows)
    curves = describe_layer_curves(rows, "delta_sigma")

    assert trajectory.panels[0].x.limits[1] == pytest.approx(1.07 * 1.5e-4)
    assert curves.panels[0].y.limits == pytest.approx((-0.02 * 1.5e-4, 1.05 * 1.5e-4))


@pytest.mark.parametrize(
    ("height", "expected"),
    [
        # The band's height is 0.12 of the panel, its label's 0.08: with a level curve …
        (0.08, (True, "right")),  # … through the band
        (0.17, (False, "right")),  # … just above it
        (0.4, (False, "right")),  # … far away
    ],
)
def test_the_label_stands_where_no_curve_runs(height, expected):
    # One layer stays at `height` of the axis, another reaches its top, so that it has limits.
    rows = drift_rows(layers=2, modules=("q_proj",), steps=(10, 20, 40))
    at = np.where(rows["layer"] == 0, height, 1.0)
    rows["delta_sigma"] = -0.02 + 1.07 * at
    floor = -0.02 + 1.07 * 0.12

    noise = note(describe_layer_curves(with_floors(rows, floor, 0.0), "delta_sigma").panels[0])

    assert (noise.over, noise.side) == expected


def test_the_label_changes_sides_where_curves_end_in_the_noise():
    rows = drift_rows(layers=1, modules=("q_proj",), steps=tuple(range(10, 110, 10)))
    rows["delta_sigma"] = np.linspace(1.0, 0.1, 10)

    noise = note(describe_layer_curves(with_floors(rows, 0.2, 0.0), "delta_sigma").panels[0])

    assert noise.side == "left"


@pytest.mark.parametrize("describe", DESCRIBE)
def test_zeros_lie_below_a_logarithmic_axis_and_are_counted(describe):
    rows = drift_rows(layers=3, steps=(0, 10, 20), noise=True)
    rows.loc[rows["step"] == 0, "delta_sigma"] = 0.0
    positive = rows.loc[rows["step"] > 0, "delta_sigma"]

    description = describe(rows, "delta_sigma", log=True)

    assert "Below the axis: 6 values of 0." in description.caption
    for panel in description.panels:
        assert all(set(steps) == {10, 20} for steps, _ in layer_curves(panel).values())
        assert all(min(values) >= positive.min() for _, values in layer_curves(panel).values())
        thick_lines = [m for m in of_kind(panel, Line) if m.pick is None]
        assert thick_lines
        bands = of_kind(panel, Band)
        drawn = [(m.x, m.y) for m in thick_lines]
        drawn += [(m.x, y) for m in bands for y in (m.low, m.high)]
        for x, y in drawn:
            assert tuple(x) == (10.0, 20.0)
            assert finite(y)
            assert min(y) >= positive.min() > 0


def test_the_median_on_a_logarithmic_axis_counts_the_layers_at_zero():
    rows = drift_rows(layers=3, modules=("q_proj",), steps=(10,))
    rows["delta_sigma"] = [0.0, 1.0, 2.0]

    chart = describe_layer_curves(rows, "delta_sigma", log=True)

    assert tuple(thick(chart, chart.panels[0], "median").y) == (1.0,)


def test_exact_rows_do_not_keep_residuals_from_a_logarithmic_axis():
    rows = four_methods(layers=2)
    rows["residual"] = np.where(rows["step"] == 50, 0.0, 10.0 ** -(8 + 4 * rows["layer"]))

    description = describe_layer_curves(rows, "residual")

    assert description.panels[0].y.log
    assert "Below the axis: 16 values of 0." in description.caption


def test_words_keep_clear_of_lines_joined_over_gaps_as_of_lines_by_themselves():
    x, low, high = np.array([0.0, 10.0]), np.array([0.1, 0.1]), np.array([0.9, 0.9])
    gap = [math.nan]
    one = [(np.concatenate([x, gap, x]), np.concatenate([low, gap, high]))]
    two = [(x, low), (x, high)]

    for floor in (0.08, 0.14, 0.5, 0.94):
        marks = [
            floor_marks("delta_d", [Floor(floor)], (0.0, 1.0), False, lines) for lines in (one, two)
        ]
        assert marks[0] == marks[1]
