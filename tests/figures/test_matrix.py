"""One matrix against its base, tested on its chart; truth is a dense SVD."""

import math

import numpy as np
import pandas as pd
import pytest

from spectra.figures.arrays import peaks
from spectra.figures.chart import Band, Chart, Heat, Line, Numbers, Panel, Rule, Zone
from spectra.figures.matrices import describe_matrix
from tests.figures.known_arrays import changed_matrix, falling, with_arrays
from tests.figures.test_heatmap import draws

VALUES, CHANGE, OVERLAP, TURN = (
    "singular values",
    "change of values",
    "overlap with the base",
    "turn of each vector",
)


def describe(drift: pd.DataFrame, arrays: pd.DataFrame) -> Chart:
    return describe_matrix(drift, arrays, module="q_proj", layer=3, step=40)


def panel(chart: Chart, title: str) -> Panel:
    (found,) = (p for p in chart.panels if p.title == title)
    return found


def lines(found: Panel) -> dict[str, Line]:
    return {m.entry: m for m in found.marks if isinstance(m, Line)}


def shaded(found: Panel, k: int) -> set[int]:
    """Return the indices (from 1) under the upright shading."""
    bands = [m for m in found.marks if isinstance(m, Band)]
    at = np.arange(1, k + 1)
    return {
        int(i)
        for band in bands
        for i in at
        for left, right in zip(band.x[::4], band.x[3::4], strict=True)
        if left < i < right
    }


def with_values(values: np.ndarray, base: np.ndarray, noise: float | None = None) -> Chart:
    """Describe a matrix of these singular values whose vectors did not turn."""
    drift, arrays = changed_matrix(len(values), len(values), noise=noise)
    ones = np.ones(len(values), dtype=np.float32)
    arrays = with_arrays(
        arrays, sigma=values, sigma_change=values - base, overlap_u=ones, overlap_v=ones
    )
    return describe(drift, arrays)


def test_every_panel_holds_what_a_dense_svd_finds():
    drift, arrays = changed_matrix(24, 18)
    row = arrays.iloc[0]

    chart = describe(drift, arrays)

    values = lines(panel(chart, VALUES))
    np.testing.assert_array_equal(values["trained"].x, np.arange(1, 19))
    np.testing.assert_array_equal(values["trained"].y, row["sigma"])
    np.testing.assert_allclose(values["base"].y, row["sigma"] - row["sigma_change"], rtol=1e-6)
    change = lines(panel(chart, CHANGE))["trained"]
    np.testing.assert_array_equal(change.y, row["sigma_change"])
    for title, expected in ((OVERLAP, lambda o: o), (TURN, lambda o: 1 - o.astype(float))):
        sides = lines(panel(chart, title))
        np.testing.assert_array_equal(sides["left"].y, expected(row["overlap_u"]))
        np.testing.assert_array_equal(sides["right"].y, expected(row["overlap_v"]))
    left, right = chart.panels[4:]
    for found, column in ((left, "leading_u"), (right, "leading_v")):
        (heat,) = found.marks
        assert isinstance(heat, Heat) and found.square
        np.testing.assert_array_equal(heat.values, row[column].reshape(16, 16))
        # The base's vectors go down, as rows of a matrix do.
        assert found.y.limits == (16.5, 0.5) and found.x.limits == (0.5, 16.5)
    assert chart.bar is not None and chart.bar.limits == (0, 1)


def test_the_vectors_that_turned_most_are_named():
    drift, arrays = changed_matrix(40, 40)
    overlap = np.ones(40)
    overlap[[4, 20, 33]] = 0.2, 0.6, 0.9
    arrays = with_arrays(arrays, overlap_u=np.ones(40), overlap_v=overlap.astype(np.float32))

    chart = describe(drift, arrays)

    (numbers,) = (m for m in panel(chart, TURN).marks if isinstance(m, Numbers))
    assert numbers.texts == ("5", "21", "34")
    assert "side that turned farther: 5 (0.8), 21 (0.4), 34 (0.1)." in chart.caption
    assert "77 of 80 overlaps are 1 to within float32" in chart.caption


def test_a_pair_that_turned_into_each_other_has_one_label():
    drift, arrays = changed_matrix(40, 40)
    overlap = np.ones(40, dtype=np.float32)
    overlap[[10, 11]] = 0.5, 0.4
    arrays = with_arrays(arrays, overlap_u=overlap, overlap_v=overlap)

    (numbers,) = (m for m in panel(describe(drift, arrays), TURN).marks if isinstance(m, Numbers))

    assert numbers.texts == ("11–12",)


def test_indices_closer_than_the_solvers_resolve_are_shaded():
    base = falling(12)
    base[5] = base[4] * (1 - 1e-6)

    chart = with_values(base, base)

    assert shaded(panel(chart, OVERLAP), 12) == shaded(panel(chart, TURN), 12) == {5, 6}
    assert "Shaded upright: 2 of 12 indices" in chart.caption
    assert "Davis–Kahan" in chart.caption


def test_a_gap_below_the_storage_noise_is_shaded_in_the_base_or_in_the_trained():
    base = np.array([10.0, 8.0, 6.0, 4.0, 2.0, 1.0])
    trained = np.array([10.0, 8.0, 7.9, 4.0, 2.0, 1.0])
    base[1] = 9.95

    chart = with_values(trained, base, noise=0.2)

    # 1 and 2 in the base, 2 and 3 in the trained.
    assert shaded(panel(chart, OVERLAP), 6) == {1, 2, 3}
    assert "within 0.2 of a neighbour's" in chart.caption
    assert shaded(panel(with_values(trained, base, noise=0.01), OVERLAP), 6) == set()


def test_names_leave_out_vectors_that_are_arbitrary():
    drift, arrays = changed_matrix(12, 12)
    sigma = falling(12)
    sigma[5] = sigma[4]
    overlap = np.ones(12)
    overlap[[4, 5, 9]] = 0.1, 0.1, 0.7
    stored = overlap.astype(np.float32)
    arrays = with_arrays(
        arrays, sigma=sigma, sigma_change=np.zeros(12), overlap_u=stored, overlap_v=stored
    )

    chart = describe(drift, arrays)

    assert "Turned most of those not shaded" in chart.caption and ": 10 (0.3)." in chart.caption


def test_noise_floors_are_drawn_on_both_changes():
    drift, arrays = changed_matrix(noise=0.003)

    chart = describe(drift, arrays)

    (zone,) = (m for m in panel(chart, CHANGE).marks if isinstance(m, Zone))
    assert zone.y == (-0.003, 0.003)
    assert [m.y for m in panel(chart, TURN).marks if isinstance(m, Zone)] == [(None, 0.003)]
    assert chart.caption.count("noise floor 0.003") == 2
    without = describe(*changed_matrix())
    assert not [m for p in without.panels for m in p.marks if isinstance(m, Zone)]


def test_the_level_of_unrelated_vectors_is_that_of_each_side():
    drift, arrays = changed_matrix(300, 75, size=3.0)

    found = panel(describe(drift, arrays), OVERLAP)

    levels = [m.y for m in found.marks if isinstance(m, Rule)]
    rng = np.random.default_rng(1)
    for level, d in zip(levels, (300, 75), strict=True):
        pairs = rng.standard_normal((2, 4000, d))
        pairs /= np.linalg.norm(pairs, axis=2, keepdims=True)
        measured = np.abs((pairs[0] * pairs[1]).sum(axis=1)).mean()
        # 4000 samples know the mean to 1.2%; the formula is exact up to 1/(4d).
        assert level == pytest.approx(measured, rel=0.04)
        assert level == pytest.approx(math.sqrt(2 / (math.pi * d)))


def test_values_only_draws_the_values_and_says_what_adds_the_rest():
    drift, arrays = changed_matrix()
    arrays = arrays.assign(overlap_u=None, overlap_v=None, leading_u=None, leading_v=None)

    chart = describe(drift.assign(delta_d=np.nan), arrays)

    assert [p.title for p in chart.panels] == [VALUES, CHANGE]
    assert "--values-only" in chart.caption and "spectra analyze RUN" in chart.caption
    assert "ΔD" not in chart.caption and chart.bar is None


def test_rows_of_an_earlier_version_draw_what_they_hold():
    drift, arrays = changed_matrix()

    chart = describe(drift, arrays[["run", "method", "module", "layer", "step", "sigma",
                                    "overlap_u", "overlap_v"]])  # fmt: skip

    assert [p.title for p in chart.panels] == [VALUES, OVERLAP, TURN]
    assert list(lines(panel(chart, VALUES))) == ["trained"]
    assert "the base's singular values and the overlaps of the leading vectors" in chart.caption
    assert "spectra analyze RUN" in chart.caption


def test_without_a_drift_row_the_arrays_are_drawn_alone():
    drift, arrays = changed_matrix(noise=0.1)

    chart = describe(drift.iloc[:0], arrays)

    assert len(chart.panels) == 6 and "noise" not in chart.caption


def test_what_did_not_move_is_drawn_and_said():
    drift, arrays = changed_matrix(size=0.0)

    chart = describe(drift, arrays)

    assert "No vector turned measurably." in chart.caption
    assert not [m for m in panel(chart, TURN).marks if isinstance(m, Numbers)]


def test_thousands_of_indices_are_thinned_and_their_peaks_stay():
    k = 4096
    sigma = falling(k)
    overlap = np.full(k, 0.99) + 1e-3 * np.sin(np.arange(k))
    overlap[[0, 777, k - 1]] = 0.97, 0.2, 0.5
    change = np.zeros(k)
    change[[1234, 3001]] = 0.5, -0.4
    drift, arrays = changed_matrix(8, 8)
    arrays = with_arrays(
        arrays, sigma=sigma, sigma_change=change, overlap_u=overlap, overlap_v=overlap
    )

    chart = describe(drift, arrays)

    curve = lines(panel(chart, OVERLAP))["left"]
    drawn = dict(zip(curve.x, curve.y, strict=True))
    assert drawn[778] == 0.2 and drawn[1] == 0.97 and drawn[k] == 0.5
    moved = lines(panel(chart, CHANGE))["trained"]
    assert (moved.y.max(), moved.y.min()) == (0.5, -0.4)
    points = sum(len(m.x) for p in chart.panels for m in p.marks if isinstance(m, Line | Band))
    assert points <= 10_000


@pytest.mark.parametrize("k", [1, 4, 999, 1000, 1001, 4096])
def test_peaks_keep_ends_and_extremes(k):
    values = np.random.default_rng(k).standard_normal(k)
    values[k // 2] = np.nan

    kept = peaks(values, 1000)

    known = np.flatnonzero(~np.isnan(values))
    assert len(kept) <= 1000 and (np.diff(kept) > 0).all()
    assert set(kept) <= set(known)
    if len(known):
        assert {known[0], known[-1], np.nanargmax(values), np.nanargmin(values)} <= set(kept)


def test_one_matrix_is_of_one_run():
    drift, arrays = changed_matrix()
    other = changed_matrix(run="b")[1]

    with pytest.raises(ValueError, match="one run, got rows of 2: a, b"):
        describe(drift, pd.concat([arrays, other]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 50}, "No spectra match the chosen modules, layers and steps"),
        ({"sigma": None}, "no finite singular values"),
        ({"sigma": [np.full(18, np.nan)]}, "no finite singular values"),
    ],
)
def test_a_matrix_that_is_not_there_is_said(change, message):
    drift, arrays = changed_matrix()
    arrays = arrays.assign(**change)

    with pytest.raises(ValueError, match=message):
        describe(drift, arrays)


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
@pytest.mark.parametrize("k", [1, 300])
def test_it_draws(k, backend):
    assert draws(describe(*changed_matrix(k, k, noise=1e-3)), backend)


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
def test_names_are_data(backend):
    name = "</script><img src=x onerror=alert(1)> $\\frac{1}{$ %{x} \x00" + "long" * 60
    drift, arrays = changed_matrix(8, 8, run=name, method=name, module=name)

    content = draws(describe_matrix(drift, arrays, module=name, layer=3, step=40), backend)

    assert b"<img src=x" not in content
