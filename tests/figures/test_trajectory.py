"""The trajectory figure, tested on its description."""

import math

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from spectra.figures import describe_trajectory
from tests.figures.rows import METHODS, drift_rows, four_methods


def test_every_run_has_a_panel_called_by_its_method():
    panels = describe_trajectory(four_methods(layers=3)).panels

    assert [p.title for p in panels] == list(METHODS)
    assert [p.run for p in panels] == list(METHODS)


def test_runs_of_one_method_are_told_apart_by_name():
    rows = pd.concat([drift_rows("a", "lora"), drift_rows("b", "lora"), drift_rows("c", "pissa")])

    titles = [p.title for p in describe_trajectory(rows).panels]

    assert titles == ["lora · a", "lora · b", "pissa"]


def test_points_are_the_rows_and_their_marker_is_the_layer():
    rows = drift_rows(layers=5)

    (panel,) = describe_trajectory(rows).panels

    drawn = {
        (path.module, path.layer, step): (x, y)
        for path in panel.paths
        for step, x, y in zip(path.steps, path.delta_sigma, path.delta_d, strict=True)
    }
    expected = {(r.module, r.layer, r.step): (r.delta_sigma, r.delta_d) for r in rows.itertuples()}
    assert drawn == expected


def test_both_renderers_write_the_layer_as_marker():
    rows = drift_rows(layers=3, modules=("q_proj",))

    screen = figures.trajectory(rows)
    paper = figures.trajectory(rows, backend="matplotlib")

    on_screen = [t for trace in screen.data if trace.mode == "text" for t in trace.text]
    on_paper = [t.get_text() for t in paper.axes[0].texts]
    assert sorted(on_screen) == sorted(on_paper) == sorted(["0", "1", "2"] * 3)


def test_mean_path_is_the_mean_over_layers_of_one_module():
    rows = drift_rows(layers=6)

    (panel,) = describe_trajectory(rows).panels

    assert [m.module for m in panel.means] == ["q_proj", "v_proj"]
    for mean in panel.means:
        expected = rows[rows["module"] == mean.module].groupby("step")
        np.testing.assert_allclose(mean.delta_sigma[1:], expected["delta_sigma"].mean())
        np.testing.assert_allclose(mean.delta_d[1:], expected["delta_d"].mean())
        assert list(mean.steps[1:]) == list(expected.groups)


@pytest.mark.parametrize("recorded_origin", [True, False])
def test_mean_path_starts_once_at_the_origin(recorded_origin):
    rows = drift_rows(steps=(0, 10, 20) if recorded_origin else (10, 20))

    (panel,) = describe_trajectory(rows).panels

    for mean in panel.means:
        assert mean.steps == (0, 10, 20)
        assert (mean.delta_sigma[0], mean.delta_d[0]) == (0.0, 0.0)
    assert all(0 not in path.steps for path in panel.paths)


def test_a_base_that_already_moved_at_step_0_is_shown():
    rows = drift_rows(steps=(0, 10), layers=2)
    rows.loc[rows["step"] == 0, ["delta_sigma", "delta_d"]] = [1e-4, 1e-2]

    (panel,) = describe_trajectory(rows).panels

    assert panel.means[0].steps == (0, 0, 10)
    assert panel.means[0].delta_d[:2] == (0.0, 0.01)
    assert all(0 in path.steps for path in panel.paths)


def test_modules_layers_and_steps_restrict_what_is_drawn():
    rows = drift_rows(layers=6, steps=(10, 20, 40))

    description = describe_trajectory(rows, modules=["v_proj"], layers=range(2, 4), steps=[20, 40])

    assert description.modules == ("v_proj",)
    assert description.steps == (20, 40)
    assert {(p.module, p.layer) for p in description.panels[0].paths} == {
        ("v_proj", 2),
        ("v_proj", 3),
    }


def test_shared_axes_hold_every_panel_and_enlarge_the_small_ones():
    shared = describe_trajectory(four_methods(layers=4))
    free = describe_trajectory(four_methods(layers=4), axes="free")

    assert len({p.limits for p in shared.panels}) == 1
    assert len({p.limits for p in free.panels}) == 4
    assert [p.title for p in shared.panels if p.inset] == ["sorsa", "sorsa-noreg"]
    assert not any(p.inset for p in free.panels)
    for panel in (*shared.panels, *free.panels):
        assert all(max(path.delta_sigma) < panel.limits.x[1] for path in panel.paths)
        assert all(max(path.delta_d) < panel.limits.y[1] for path in panel.paths)


def test_unrelated_level_is_that_of_random_bases():
    # Orthonormal bases of random Gaussian matrices; 96 columns of 96 overlaps each, so the
    # standard error of the mean overlap is about 0.06/96.
    rng = np.random.default_rng(0)
    d = 96
    left, right = (np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2))

    measured = 1 - np.abs(left.T @ right).mean()

    assert figures.unrelated_level(d, d) == pytest.approx(measured, abs=0.003)


def test_unrelated_level_is_in_the_caption_or_in_the_panel():
    far = drift_rows(reach=3.0)
    far["delta_d"] = 0.99

    above = describe_trajectory(drift_rows())
    inside = describe_trajectory(far)

    assert "0.981–0.988 (above these axes)" in above.caption
    assert "the dotted line" in inside.caption


def test_noise_floor_is_the_median_and_absent_where_unknown():
    with_noise, without = drift_rows(noise=True), drift_rows(noise=False)

    assert describe_trajectory(with_noise).panels[0].noise == (1.5e-4, 6e-3)
    assert describe_trajectory(without).panels[0].noise is None


def test_rows_without_vectors_are_left_out():
    rows = drift_rows(layers=3)
    rows.loc[rows["layer"] == 1, "delta_d"] = np.nan

    (panel,) = describe_trajectory(rows).panels

    assert {p.layer for p in panel.paths} == {0, 2}


def test_final_values_are_the_ends_of_the_mean_paths():
    rows = four_methods(layers=3)
    rows.loc[0, "kappa"] = math.inf

    table = figures.final_values(rows)

    ends = {
        (p.run, m.module): (m.delta_sigma[-1], m.delta_d[-1])
        for p in describe_trajectory(rows).panels
        for m in p.means
    }
    assert len(table) == len(ends) == 8
    for row in table.to_dict("records"):
        # Two sums of the same numbers, in two orders.
        expected = pytest.approx(ends[row["run"], row["module"]], rel=1e-12)
        assert (row["delta_sigma"], row["delta_d"]) == expected
    assert set(table["step"]) == {781}
    assert np.isfinite(table["kappa"]).all()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (drift_rows().iloc[:0], {}, "no drift rows.*spectra analyze"),
        (drift_rows().drop(columns="delta_d"), {}, "no column delta_d"),
        (drift_rows(), {"modules": ["k_proj"]}, "hold modules q_proj, v_proj; layers 0–3"),
        (drift_rows(), {"modules": []}, "No drift rows match"),
        (drift_rows().assign(delta_d=np.nan), {}, "--values-only"),
        (pd.concat([drift_rows(), drift_rows()]), {}, "both called 'a'"),
        (drift_rows(), {"axes": "log"}, "axes must be"),
        (drift_rows(), {"backend": "bokeh"}, "backend must be"),
    ],
)
def test_what_cannot_be_drawn_is_said(rows, options, message):
    with pytest.raises(ValueError, match=message):
        figures.trajectory(rows, **options)
