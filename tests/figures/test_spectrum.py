"""Whole spectra, tested on their charts; truth is spectra whose sums are known."""

import numpy as np
import pandas as pd
import pytest

from spectra.figures.arrays import few_indices
from spectra.figures.chart import Chart, Heat, Line, Panel, Rule, Zone
from spectra.figures.spectrum_facts import directions, energy, widest_gap
from spectra.figures.spectrum_views import VIEWS, describe_spectrum
from tests.figures.known_arrays import falling, spectra_rows
from tests.figures.test_heatmap import draws


def layer_lines(panel: Panel) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return the curve of every layer, taken apart from the lines of one shade."""
    found = {}
    for line in panel.marks:
        if not isinstance(line, Line) or line.pick is None:
            continue
        gaps = np.flatnonzero(np.isnan(line.x))
        layers = np.split(np.array(line.pick.layers), gaps)
        for x, y, layer in zip(np.split(line.x, gaps), np.split(line.y, gaps), layers, strict=True):
            inner = ~np.isnan(x)
            (at,) = set(layer[inner].tolist())
            found[at] = (x[inner], y[inner])
    return found


def dashed(panel: Panel) -> list[Line]:
    return [m for m in panel.marks if isinstance(m, Line) and m.entry == "reference"]


def test_values_are_drawn_by_index_a_line_a_layer():
    rows = spectra_rows([falling(40, scale=1 + i) for i in range(5)])

    (panel,) = describe_spectrum(rows).panels

    curves = layer_lines(panel)
    assert sorted(curves) == [0, 1, 2, 3, 4]
    for i, (x, y) in curves.items():
        np.testing.assert_array_equal(x, np.arange(1, 41))
        np.testing.assert_allclose(y, falling(40, scale=1 + i), rtol=1e-6)
    assert panel.y.log and panel.x.integer
    assert panel.y.limits[0] < 0.01 and panel.y.limits[1] > 5


def test_matrices_of_unlike_size_share_a_relative_index():
    rows = pd.concat([spectra_rows([falling(40)]), spectra_rows([falling(10)], module="v_proj")])

    q, v = describe_spectrum(rows).panels

    np.testing.assert_allclose(layer_lines(q)[0][0], np.arange(1, 41) / 40)
    np.testing.assert_allclose(layer_lines(v)[0][0], np.arange(1, 11) / 10)


def test_many_layers_share_few_marks_and_clicks_know_their_layer():
    rows = spectra_rows([falling(2048, scale=1 + i) for i in range(80)])

    (panel,) = describe_spectrum(rows).panels

    marks = [m for m in panel.marks if isinstance(m, Line)]
    assert len(marks) <= 16 and sum(len(m.x) for m in marks) <= 20_100
    assert sorted(layer_lines(panel)) == list(range(80))
    for i, (_, y) in layer_lines(panel).items():
        assert y.max() == pytest.approx(1 + i) and y.min() == pytest.approx((1 + i) / 100)
    assert all(m.pick and len(m.pick.layers) == len(m.pick.steps) == len(m.x) for m in marks)


@pytest.mark.parametrize("k", [1, 2, 15, 16, 17, 64, 576, 4096])
def test_few_indices_keep_both_ends(k):
    kept = few_indices(k, 16)

    assert len(kept) <= 17 and kept[0] == 0 and kept[-1] == k - 1
    assert (np.diff(kept) > 0).all()


def test_the_base_is_dashed_where_it_is_known():
    rows = spectra_rows([falling(30), falling(30)], change=-0.005)

    for view, base in (
        ("values", falling(30) + 0.005),
        ("energy", [0.0, *energy(falling(30) + 0.005)]),
    ):
        chart = describe_spectrum(rows, view=view)
        (line,) = dashed(chart.panels[0])
        np.testing.assert_allclose(line.y[: len(base)], base, rtol=1e-5)
        assert "Dashed: base W_0." in chart.caption
    without = describe_spectrum(rows.drop(columns="sigma_change"))
    assert not dashed(without.panels[0]) and not without.entries
    assert "spectra analyze RUN" in without.caption


def test_of_several_steps_the_last_is_drawn_and_the_first_is_dashed():
    steps = pd.concat(
        [spectra_rows([falling(20, scale=1 + s)], step=s, change=0.1) for s in (0, 10, 20)]
    )

    alone = describe_spectrum(steps)
    several = describe_spectrum(steps, steps=[0, 10, 20])

    for chart in (alone, several):
        assert layer_lines(chart.panels[0])[0][1][0] == pytest.approx(21)
        assert "Step 20." in chart.caption
    assert dashed(several.panels[0])[0].y[0] == pytest.approx(1)
    assert dashed(alone.panels[0])[0].y[0] == pytest.approx(20.9)
    assert "Dashed: step 0." in several.caption


def test_energy_is_the_share_of_the_squares():
    # σ² = 6, 3, 1: together 10.
    rows = spectra_rows([np.sqrt([6.0, 3.0, 1.0])])

    chart = describe_spectrum(rows, view="energy")

    x, y = layer_lines(chart.panels[0])[0]
    np.testing.assert_allclose(x, [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(y, [0, 0.6, 0.9, 1.0], atol=1e-6)
    assert [m.y for m in chart.panels[0].marks if isinstance(m, Rule)] == [0.5, 0.9, 0.99]
    assert "median over matrices, 1/2/3 of 3 directions in q_proj." in chart.caption


@pytest.mark.parametrize(("part", "count"), [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100)])
def test_equal_values_hold_equal_energy(part, count):
    assert directions(np.ones(100), part) == count


def test_density_counts_every_value_once():
    rng = np.random.default_rng(0)
    spectra = [np.sort(10 ** rng.uniform(-2, 0, 500))[::-1] for _ in range(4)]

    chart = describe_spectrum(spectra_rows(spectra), view="density")

    pooled, panel = chart.panels
    (heat,) = panel.marks
    assert isinstance(heat, Heat) and list(heat.y) == [0, 1, 2, 3]
    width = heat.x[1] - heat.x[0]
    # All but the smallest 0.5%, which the axis leaves out (nine lie below the tenth of 2000); as
    # a density its integral is the share.
    shares = heat.values.sum(axis=1) * width
    np.testing.assert_allclose(shares.mean(), 0.995, atol=0.001)
    assert "Beyond the axis: 9 values." in chart.caption
    for layer, values in enumerate(spectra):
        edges = np.append(heat.x - width / 2, heat.x[-1] + width / 2)
        counts, _ = np.histogram(np.log10(values.astype(np.float32)), edges)
        # A value on an edge may be counted on either side of it.
        np.testing.assert_allclose(heat.values[layer] * width * 500, counts, atol=1.01)
    (curve,) = (m for m in pooled.marks if isinstance(m, Line))
    np.testing.assert_allclose(curve.y, heat.values.mean(axis=0))
    # Uniform over two decades: half of the values a decade.
    assert np.median(curve.y) == pytest.approx(0.5, rel=0.1)


def test_density_pools_every_run_with_its_base():
    rows = pd.concat(
        [spectra_rows([falling(50)], run=run, method=run, change=0.01) for run in ("a", "b")]
    )

    chart = describe_spectrum(rows, view="density")

    assert [p.title for p in chart.panels] == ["all layers", "a · q_proj", "b · q_proj"]
    assert [e.name for e in chart.entries] == ["a · q_proj", "b · q_proj"]
    curves = [m for m in chart.panels[0].marks if isinstance(m, Line)]
    assert [m.entry for m in curves] == ["0", "0", "1", "1"]
    assert "Dotted: base W_0." in chart.caption
    assert all(p.x == chart.panels[0].x for p in chart.panels)


def test_share_counts_what_lies_within_the_range():
    # Of 10 values, 0.1 and 1.1 included: 8 in layer 0, 5 in layer 1.
    first = np.array([1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.05])
    second = np.array([5, 4, 3, 2, 1, 0.9, 0.8, 0.7, 0.6, 0.01])
    rows = spectra_rows([first, second])

    chart = describe_spectrum(rows, view="share", within=(0.1, 1.1))
    narrow = describe_spectrum(rows, view="share", within=(2, 6))

    (line,) = (m for m in chart.panels[0].marks if isinstance(m, Line))
    np.testing.assert_array_equal(line.y, [0.8, 0.5])
    assert "lie 65% of q_proj's 20 singular values." in chart.caption
    (line,) = (m for m in narrow.panels[0].marks if isinstance(m, Line))
    np.testing.assert_array_equal(line.y, [0.0, 0.4])
    assert "From 2 to 6 lie 20%" in narrow.caption


def test_share_has_the_range_of_the_survey_and_a_line_a_step():
    rows = pd.concat(
        [spectra_rows([falling(10, 0.9)] * 3, step=s, change=0.0) for s in (0, 10, 20)]
    )

    chart = describe_spectrum(rows, view="share", steps=[0, 20])

    assert "From 0.1 to 1.1 lie 100%" in chart.caption
    steps = [m for m in chart.panels[0].marks if isinstance(m, Line) and m.pick]
    assert [set(m.pick.steps) for m in steps if m.pick] == [{0}, {20}]
    assert [m.ink.place for m in steps] == [0.0, 1.0]
    assert chart.bar is not None and chart.bar.limits == (0, 20)


def test_a_range_is_marked_in_the_other_views():
    rows = spectra_rows([falling(50)])

    values = describe_spectrum(rows, within=(0.1, 0.5))
    density = describe_spectrum(rows, view="density", within=(0.1, 0.5))

    assert [m.y for m in values.panels[0].marks if isinstance(m, Zone)] == [(0.1, 0.5)]
    (zone,) = (m for m in density.panels[0].marks if isinstance(m, Zone))
    assert zone.x == pytest.approx((-1, np.log10(0.5)))
    assert "From 0.1 to 0.5 lie 34% of q_proj's 50 singular values." in values.caption


@pytest.mark.parametrize(
    ("within", "words", "sides"),
    [
        ((0.1, np.inf), "From 0.1 up lie 100%", (0.1, None)),
        ((0, 1.1), "Up to 1.1", (None, 1.1)),
        # Beyond what float32 holds: nothing to warn of.
        ((0.1, 1e39), "From 0.1 to 1e+39 lie 100%", (0.1, 1e39)),
    ],
)
def test_a_range_may_be_open(within, words, sides):
    rows = spectra_rows([falling(50, decades=0.9)])

    values = describe_spectrum(rows, within=within)
    density = describe_spectrum(rows, view="density", within=within)

    assert (
        words in values.caption
        and words.lower() in describe_spectrum(rows, view="share", within=within).caption.lower()
    )
    assert [m.y for m in values.panels[0].marks if isinstance(m, Zone)] == [sides]
    (zone,) = (m for m in density.panels[0].marks if isinstance(m, Zone))
    assert [end is None for end in zone.x] == [side is None for side in sides]


def test_the_caption_says_how_large_and_small_values_differ():
    # 1 large value before 31 equal ones: 31·1 + 93² = 8680 of energy.
    split = np.array([93.0] + [1.0] * 31)
    flat = np.ones(32)

    caption = describe_spectrum(spectra_rows([split, flat])).caption

    assert "σ₁/σₖ 47 (1–93)" in caption
    held = (93**2 + 15) / (93**2 + 31)
    assert f"the 16 largest hold {50 * (held + 0.5):.3g}% (50%–{100 * held:.3g}%)" in caption
    assert "gaps among the first 95% of the indices: " in caption
    assert "widest gap σᵢ/σᵢ₊₁ 47 (1–93), at most at i = 1 of layer 0." in caption


def test_the_fall_at_the_end_is_no_gap_between_large_and_small():
    sigma = np.append(np.linspace(2, 1, 99), 1e-9)
    sigma[40:] /= 1.5

    assert widest_gap(sigma) == (pytest.approx(sigma[39] / sigma[40]), 40)


def test_zeros_lie_below_a_logarithmic_axis_and_are_counted():
    rows = spectra_rows([np.array([3.0, 2.0, 1.0, 0.0, 0.0])])

    chart = describe_spectrum(rows)

    assert "rounding of the largest: 2 values." in chart.caption
    assert "σ₁/σₖ ∞" in chart.caption
    assert chart.panels[0].y.limits[0] > 0.5
    assert "Beyond the axis: 2 values." in describe_spectrum(rows, view="density").caption


def test_matrices_without_values_are_counted():
    rows = spectra_rows([falling(8)] * 3)
    rows.at[1, "sigma"] = None

    chart = describe_spectrum(rows)

    assert sorted(layer_lines(chart.panels[0])) == [0, 2]
    assert "Without singular values: 1 of the chosen matrices." in chart.caption


def test_every_run_is_drawn_at_its_own_last_step():
    rows = pd.concat(
        [spectra_rows([falling(8)], run="a", step=s) for s in (0, 10)]
        + [spectra_rows([falling(8)], run="b", step=s) for s in (0, 30)]
    ).astype({"run": "category", "module": "category"})

    chart = describe_spectrum(rows)

    assert [p.marks[-1].pick.steps[0] for p in chart.panels] == [10, 30]  # type: ignore[union-attr]
    assert "Step 10, 30." in chart.caption


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": "sizes"}, "view must be one of values, density, energy, share"),
        ({"within": (1.0, 0.5)}, "0 ≤ low < high, got 1 to 0.5"),
        ({"within": (float("nan"), 1.0)}, "within must be two numbers"),
        ({"modules": ["k_proj"]}, "hold modules q_proj; layers 0–1; steps 40–40"),
        ({"steps": [7]}, "No spectra match"),
    ],
)
def test_what_cannot_be_drawn_is_said(options, message):
    rows = spectra_rows([falling(8)] * 2)

    with pytest.raises(ValueError, match=message):
        describe_spectrum(rows, **options)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("sigma", [None, [np.full(4, np.nan)], [np.zeros(4)], [np.empty(0)]])
def test_nothing_to_draw_is_one_clear_error(view, sigma):
    rows = spectra_rows([falling(4)]).assign(sigma=sigma)

    with pytest.raises(ValueError, match="no finite singular values above 0"):
        describe_spectrum(rows, view=view)


def test_no_rows_and_too_many_panels_are_said():
    rows = spectra_rows([falling(4)])
    many = pd.concat([spectra_rows([falling(4)], run=f"run{i}") for i in range(17)])

    with pytest.raises(ValueError, match="There are no spectra to draw"):
        describe_spectrum(rows.iloc[:0])
    with pytest.raises(ValueError, match="17 runs × 1 modules would be 17 panels"):
        describe_spectrum(many)
    with pytest.raises(ValueError, match="both called 'a'"):
        describe_spectrum(pd.concat([rows, rows]))


def described(layers: int, view: str) -> Chart:
    spectra = [falling(24, scale=1 + i) for i in range(layers)]
    rows = pd.concat([spectra_rows(spectra, change=0.001, step=s) for s in (0, 40)])
    return describe_spectrum(rows, view=view, steps=[0, 40], within=(0.1, 1.1))


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
@pytest.mark.parametrize(
    ("layers", "view"), [(1, "values"), (1, "density"), *((80, view) for view in VIEWS)]
)
def test_it_draws(layers, view, backend):
    assert draws(described(layers, view), backend)


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
@pytest.mark.parametrize("view", VIEWS)
def test_names_are_data(view, backend):
    name = "</script><img src=x onerror=alert(1)> $\\frac{1}{$ %{x} \x00" + "long" * 60
    rows = spectra_rows([falling(8)] * 2, run=name, method=name, module=name, change=0.01)

    assert b"<img src=x" not in draws(describe_spectrum(rows, view=view), backend)
