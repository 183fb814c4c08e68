"""The trajectory figure, tested on its chart."""

import math

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from spectra.figures import describe_trajectory, style
from spectra.figures.chart import Frame, Ink, Line, Numbers, Rule
from spectra.figures.selection import MOST_LINE_POINTS, MOST_NUMBERS
from tests.figures.marks import (
    entry,
    numbered,
    of_kind,
    segments,
    steps_of,
    thick,
    zone,
)
from tests.figures.rows import METHODS, drift_rows, four_methods


def corner(panel):
    """ΔΣ and ΔD of the noise floor, 0 where a strip runs through; None without any."""
    found = zone(panel)
    return None if found is None else (found.x[1] or 0.0, found.y[1] or 0.0)


def step_colours(panel):
    """The place on the colour map by step."""
    pairs = [(m.pick.steps, m.places) for m in of_kind(panel, Numbers) if m.pick is not None]
    return {s: p for steps, places in pairs for s, p in zip(steps, places, strict=True)}


def test_every_run_has_a_panel_called_by_its_method():
    chart = describe_trajectory(four_methods(layers=3))

    assert [p.title for p in chart.panels] == list(METHODS)
    for panel, run in zip(chart.panels, METHODS, strict=True):
        shown = panel.inset.panel if panel.inset else panel
        assert {m.pick.run for m in of_kind(shown, Numbers) if m.pick} == {run}


def test_runs_of_one_method_are_told_apart_by_name():
    rows = pd.concat([drift_rows("a", "lora"), drift_rows("b", "lora"), drift_rows("c", "pissa")])

    titles = [p.title for p in describe_trajectory(rows).panels]

    assert titles == ["lora · a", "lora · b", "pissa"]


def test_points_are_the_rows_and_their_marker_is_the_layer():
    rows = drift_rows(layers=5)

    (panel,) = describe_trajectory(rows).panels

    expected = {(r.module, r.layer, r.step): (r.delta_sigma, r.delta_d) for r in rows.itertuples()}
    assert numbered(panel) == expected


def test_categorical_columns_draw_the_same_chart():
    rows = four_methods(layers=3)
    keys = ["run", "method", "module"]

    plain, categorical = (
        describe_trajectory(rows),
        describe_trajectory(rows.astype(dict.fromkeys(keys, "category"))),
    )

    assert [p.title for p in categorical.panels] == [p.title for p in plain.panels]
    assert [numbered(p) for p in categorical.panels] == [numbered(p) for p in plain.panels]
    assert categorical.caption == plain.caption


def test_rows_may_come_in_any_order():
    rows = four_methods(layers=3)
    shuffled = rows.sample(frac=1, random_state=0)

    of_shuffled = {p.title: numbered(p) for p in describe_trajectory(shuffled, axes="free").panels}

    for panel in describe_trajectory(rows, axes="free").panels:
        assert of_shuffled[panel.title] == numbered(panel)


def test_both_renderers_write_the_layer_as_marker():
    rows = drift_rows(layers=3, modules=("q_proj",))

    screen = figures.trajectory(rows)
    paper = figures.trajectory(rows, backend="matplotlib")

    on_screen = [t for trace in screen.data if trace.mode == "text" for t in trace.text]
    on_paper = [t.get_text() for t in paper.axes[0].texts]
    assert sorted(on_screen) == sorted(on_paper) == sorted(["0", "1", "2"] * 3)


def test_layers_are_joined_from_the_origin_in_the_order_of_steps():
    rows = drift_rows(layers=2, modules=("q_proj",), steps=(10, 20, 40))

    (panel,) = describe_trajectory(rows).panels

    (paths,) = [m for m in of_kind(panel, Line) if m.ink.kind == "grey"]
    expected = [
        ((0.0, *path["delta_sigma"]), (0.0, *path["delta_d"])) for _, path in rows.groupby("layer")
    ]
    assert segments(paths) == expected


def test_mean_path_is_the_mean_over_layers_of_one_module():
    rows = drift_rows(layers=6)

    chart = describe_trajectory(rows)

    assert [e.name for e in chart.entries] == ["q_proj, mean of layers", "v_proj, mean of layers"]
    for module in ("q_proj", "v_proj"):
        mean = thick(chart, chart.panels[0], module)
        expected = rows[rows["module"] == module].groupby("step")
        np.testing.assert_allclose(mean.x[1:], expected["delta_sigma"].mean())
        np.testing.assert_allclose(mean.y[1:], expected["delta_d"].mean())
        assert steps_of(mean)[1:] == list(expected.groups)


@pytest.mark.parametrize("recorded_origin", [True, False])
def test_mean_path_starts_once_at_the_origin(recorded_origin):
    rows = drift_rows(steps=(0, 10, 20) if recorded_origin else (10, 20))

    chart = describe_trajectory(rows)

    for module in ("q_proj", "v_proj"):
        mean = thick(chart, chart.panels[0], module)
        assert steps_of(mean) == [0, 10, 20]
        assert (mean.x[0], mean.y[0]) == (0.0, 0.0)
    assert {step for *_, step in numbered(chart.panels[0])} == {10, 20}


def test_a_base_that_already_moved_at_step_0_is_shown():
    rows = drift_rows(steps=(0, 10), layers=2)
    rows.loc[rows["step"] == 0, ["delta_sigma", "delta_d"]] = [1e-4, 1e-2]

    chart = describe_trajectory(rows)

    mean = thick(chart, chart.panels[0], "q_proj")
    assert steps_of(mean) == [0, 0, 10]
    assert tuple(mean.y[:2]) == (0.0, 0.01)
    assert {step for *_, step in numbered(chart.panels[0])} == {0, 10}


def test_modules_layers_and_steps_restrict_what_is_drawn():
    rows = drift_rows(layers=6, steps=(10, 20, 40))

    chart = describe_trajectory(
        rows, modules=["v_proj"], layers=(n for n in (2, 3)), steps=[20, 40]
    )

    assert [e.name for e in chart.entries] == ["v_proj, mean of layers"]
    assert chart.bar is not None
    assert chart.bar.ticks == (20.0, 40.0)
    assert set(numbered(chart.panels[0])) == {
        ("v_proj", layer, step) for layer in (2, 3) for step in (20, 40)
    }


def test_shared_axes_hold_every_panel_and_enlarge_the_small_ones():
    shared = describe_trajectory(four_methods(layers=4))
    free = describe_trajectory(four_methods(layers=4), axes="free")

    assert shared.link_x and shared.link_y
    assert not free.link_x and not free.link_y
    assert len({(p.x.limits, p.y.limits) for p in shared.panels}) == 1
    assert len({(p.x.limits, p.y.limits) for p in free.panels}) == 4
    assert [p.title for p in shared.panels if p.inset] == ["sorsa", "sorsa-noreg"]
    assert not any(p.inset for p in free.panels)
    for panel in (*shared.panels, *free.panels):
        places = np.array([*numbered(panel).values()] or [(0.0, 0.0)])
        assert places[:, 0].max() < panel.x.limits[1]
        assert places[:, 1].max() < panel.y.limits[1]


def test_an_inset_shows_the_numbers_that_the_small_view_leaves_out():
    rows = four_methods(layers=4)

    panel = describe_trajectory(rows).panels[0]

    assert panel.inset is not None
    assert not numbered(panel)
    assert len(numbered(panel.inset.panel)) == (rows["run"] == "sorsa").sum()
    (frame,) = of_kind(panel, Frame)
    assert (frame.x, frame.y) == (panel.inset.panel.x.limits, panel.inset.panel.y.limits)
    left, bottom, width, height = panel.inset.place
    # Clear of what it enlarges, and within the panel.
    assert left > frame.x[1] / panel.x.limits[1]
    assert bottom > frame.y[1] / panel.y.limits[1]
    assert left + width <= 1 and bottom + height <= 1


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
    assert not of_kind(above.panels[0], Rule)
    assert "the dotted line" in inside.caption
    levels = [figures.unrelated_level(4096, n) for n in (1024, 4096)]
    assert [rule.y for rule in of_kind(inside.panels[0], Rule)] == pytest.approx(levels, abs=5e-4)


def test_noise_floor_is_the_median_and_absent_where_unknown():
    with_noise, without = drift_rows(noise=True), drift_rows(noise=False)

    assert corner(describe_trajectory(with_noise).panels[0]) == (1.5e-4, 6e-3)
    assert corner(describe_trajectory(without).panels[0]) is None


def test_rows_without_vectors_are_left_out():
    rows = drift_rows(layers=3)
    rows.loc[rows["layer"] == 1, "delta_d"] = np.nan

    (panel,) = describe_trajectory(rows).panels

    assert {layer for _, layer, _ in numbered(panel)} == {0, 2}


def test_final_values_are_the_ends_of_the_mean_paths():
    rows = four_methods(layers=3)
    rows.loc[0, "kappa"] = math.inf

    table = figures.final_values(rows)

    chart = describe_trajectory(rows)
    ends = {
        (panel.title, module): (float(mean.x[-1]), float(mean.y[-1]))
        for panel in chart.panels
        for module in ("q_proj", "v_proj")
        for mean in [thick(chart, panel, module)]
    }
    assert len(table) == len(ends) == 8
    for row in table.to_dict("records"):
        # Two sums of the same numbers, in two orders.
        expected = pytest.approx(ends[row["run"], row["module"]], rel=1e-12)
        assert (row["delta_sigma"], row["delta_d"]) == expected
    assert set(table["step"]) == {781}
    assert np.isfinite(table["kappa"]).all()


def test_overlaid_runs_share_a_panel_in_their_own_colours_with_the_last_layers_numbered():
    rows = four_methods(layers=3)

    chart = describe_trajectory(rows, overlay=True)

    (panel,) = chart.panels
    assert [e.name for e in chart.entries] == [*METHODS, "q_proj", "v_proj"]
    markers = {e.name: e.marker for e in chart.entries if e.marker}
    for i, run in enumerate(METHODS):
        lines = [m for m in of_kind(panel, Line) if m.entry == entry(chart, run)]
        assert [m.marker for m in lines] == [markers["q_proj"], markers["v_proj"]]
        assert {(m.ink, m.dash) for m in lines} == {(Ink("run", i), style.dash(i))}
        for line, module in zip(lines, ("q_proj", "v_proj"), strict=True):
            of_module = rows[(rows["run"] == run) & (rows["module"] == module)]
            np.testing.assert_allclose(line.y[1:], of_module.groupby("step")["delta_d"].mean())
    for mark in of_kind(panel, Numbers):
        assert mark.ink is not None and mark.pick is not None
        assert mark.ink.place == list(METHODS).index(mark.pick.run)
        assert set(mark.pick.steps) == {781}
    assert len(of_kind(panel, Numbers)) == 8
    assert chart.bar is None


def test_overlaid_runs_of_too_many_layers_are_paths_alone_on_axes_of_their_own():
    chart = describe_trajectory(four_methods(layers=100, steps=(10,)), overlay=True)

    (panel,) = chart.panels
    assert not of_kind(panel, Numbers)
    assert "too many to number" in chart.caption
    farthest = max(line.x.max() for line in of_kind(panel, Line))
    assert farthest < panel.x.limits[1] < 1.1 * farthest


def test_overlaid_runs_show_the_largest_floor():
    rows = pd.concat([drift_rows("a", "lora"), drift_rows("b", "sorsa", noise=True)])

    chart = describe_trajectory(rows, overlay=True)

    assert corner(chart.panels[0]) == (1.5e-4, 6e-3)
    assert "the largest of the runs'" in chart.caption


def test_relative_drift_is_divided_by_the_mean_singular_value_of_each_base():
    rows = drift_rows(layers=3, noise=True)
    rows["sigma_0_mean"] = 0.5 + rows["layer"]

    absolute, relative = (describe_trajectory(rows, relative=r) for r in (False, True))

    assert relative.panels[0].x.label == "ΔΣ / mean σ₀"
    plain, divided = numbered(absolute.panels[0]), numbered(relative.panels[0])
    for key, (x, y) in plain.items():
        assert divided[key] == pytest.approx((x / (0.5 + key[1]), y))
    # The median over the layers of 1.5e-4 / (0.5, 1.5, 2.5).
    assert corner(relative.panels[0]) == pytest.approx((1e-4, 6e-3))
    assert "ΔΣ / mean σ₀ 1e−4" in relative.caption


def test_a_run_without_the_bases_mean_is_named_where_others_have_it():
    rows = pd.concat([drift_rows("a", "lora"), drift_rows("b", "sorsa")])
    rows["sigma_0_mean"] = np.where(rows["run"] == "a", 0.5, np.nan)

    chart = describe_trajectory(rows, relative=True)

    assert [p.title for p in chart.panels] == ["lora"]
    assert "not drawn: b; analyse again" in chart.caption


@pytest.mark.parametrize("overlay", [False, True])
def test_an_earlier_moment_is_drawn_on_the_axes_and_colours_of_the_whole_run(overlay):
    rows = four_methods(layers=3)

    whole, early = (
        describe_trajectory(rows, overlay=overlay, until=until) for until in (None, 300)
    )

    assert early.bar == whole.bar
    for at_end, then in zip(whole.panels, early.panels, strict=True):
        assert (then.x, then.y) == (at_end.x, at_end.y)
        assert (then.inset is None) == (at_end.inset is None)
        if then.inset and at_end.inset:
            at_end, then = at_end.inset.panel, then.inset.panel
        assert max(step for *_, step in numbered(then)) == 300
        if not overlay:
            seen = {k: v for k, v in numbered(at_end).items() if k[2] <= 300}
            assert numbered(then) == seen
            assert step_colours(then).items() <= step_colours(at_end).items()
    assert "Drawn up to step 300 of 781." in early.caption


def test_before_the_first_step_only_the_origin_is_drawn():
    chart = describe_trajectory(drift_rows(), until=0)

    (panel,) = chart.panels
    assert not of_kind(panel, Numbers)
    assert [tuple(m.x) for m in of_kind(panel, Line)] == [(0.0,), (0.0,)]


def test_many_steps_are_thinned_to_a_budget_that_keeps_the_last():
    rows = four_methods(layers=20, steps=tuple(range(5, 505, 5)))

    chart = describe_trajectory(rows)

    numbers = points = 0
    for outer in chart.panels:
        for panel in [outer, *([outer.inset.panel] if outer.inset else [])]:
            numbers += len(numbered(panel))
            points += sum(len(m.x) for m in of_kind(panel, Line))
        shown = outer.inset.panel if outer.inset else outer
        assert {k for k in numbered(shown) if k[2] == 500} == {
            (m, layer, 500) for m in ("q_proj", "v_proj") for layer in range(20)
        }
        for module in ("q_proj", "v_proj"):
            lines = [m for m in of_kind(outer, Line) if m.entry == entry(chart, module)]
            path, markers = (m for m in lines if m.hover)
            assert steps_of(path)[-1] == steps_of(markers)[-1] == 500
            # A marker at every step would hide the path.
            assert not path.marker and markers.marker
            assert len(segments(markers)) < 10 < len(path.x)
    assert 0.5 * MOST_NUMBERS < numbers <= MOST_NUMBERS
    assert points <= MOST_LINE_POINTS
    assert "Numbers at 12 of 100 steps" in chart.caption


def test_of_too_many_matrices_only_some_layers_are_numbered():
    rows = four_methods(layers=140, steps=(10, 20))

    chart = describe_trajectory(rows, axes="free")

    # 4 runs of 280 matrices are 1,120 numbers a step, above 1,000.
    assert "Of 2 layers one is numbered." in chart.caption
    for panel in chart.panels:
        assert {layer for _, layer, _ in numbered(panel)} == set(range(0, 140, 2))
        (paths, _) = (m for m in of_kind(panel, Line) if m.ink.kind == "grey")
        assert len(segments(paths)) == 140


def test_a_growing_run_keeps_its_own_last_step():
    rows = pd.concat(
        [
            drift_rows("a", "lora", layers=20, steps=tuple(range(10, 1010, 10))),
            drift_rows("b", "sorsa", layers=20, steps=tuple(range(10, 340, 10))),
        ]
    )

    chart = describe_trajectory(rows, axes="free")

    assert [max(s for *_, s in numbered(p)) for p in chart.panels] == [1000, 330]


def test_a_hostile_name_stands_in_the_pick_alone():
    name = "<b>%{x}</b>\n$\\alpha$" + "y" * 200
    rows = drift_rows().assign(run=name, method=name)

    chart = describe_trajectory(rows)

    (panel,) = chart.panels
    assert "\n" not in panel.title and len(panel.title) <= 48
    assert {m.pick.run for m in of_kind(panel, Numbers) if m.pick} == {name}


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
        (drift_rows(), {"relative": True}, "analysed by an earlier version. Analyse again"),
        (drift_rows().assign(sigma_0_mean=np.nan), {"relative": True}, "Analyse again"),
    ],
)
def test_what_cannot_be_drawn_is_said(rows, options, message):
    with pytest.raises(ValueError, match=message):
        figures.trajectory(rows, **options)
