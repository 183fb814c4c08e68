"""Conditioning over the steps, and Theorem 5's ratio, tested on their charts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from spectra.figures.chart import Band, Chart, Line, Panel, Rule
from spectra.figures.conditioning import COLUMNS, describe_conditioning
from spectra.figures.kappa_ratios import describe_kappa_ratio
from spectra.figures.selection import MOST_LINE_POINTS

HOSTILE = "<b>%{x}</b> $\\int$ *a* \x07 " + "x" * 200


def rows(
    run: str = "a", method: str = "sorsa", *, modules: tuple[str, ...] = ("q_proj",), **values: Any
) -> pd.DataFrame:
    """Rows of 5 layers at 4 steps; a quantity is a function of layer and step."""
    grid = [(m, s, n) for m in modules for s in (0, 10, 20, 40) for n in range(5)]
    table = pd.DataFrame(grid, columns=["module", "step", "layer"])
    for name in COLUMNS:
        given = values.get(name, lambda layer, step: 2.0 + layer + step)
        table[name] = np.nan if given is None else given(table["layer"], table["step"])
    return table.assign(run=run, method=method)


def untrained(run: str = "b", method: str = "lora", **values: Any) -> pd.DataFrame:
    """Rows of a run without factors of SORSA's kind."""
    given: dict[str, Any] = dict.fromkeys(COLUMNS[1:])
    return rows(run, method, **(given | values))


def lines(panel: Panel) -> list[Line]:
    return [mark for mark in panel.marks if isinstance(mark, Line)]


def panel_of(chart: Chart, title: str) -> Panel:
    return next(panel for panel in chart.panels if panel.title == title)


def test_a_panel_a_quantity_and_a_line_a_run() -> None:
    chart = describe_conditioning(pd.concat([rows("a"), rows("b", "sorsa-noreg")]))

    assert [p.title for p in chart.panels] == [
        "κ", "κ_p", "κ_u", "κ_v", "‖U_pᵀU_p − I‖", "‖V_pᵀV_p − I‖",
    ]  # fmt: skip
    assert [e.name for e in chart.entries] == ["sorsa", "sorsa-noreg"]
    for panel in chart.panels:
        assert [line.entry for line in lines(panel)] == [e.key for e in chart.entries]
        assert len({(line.ink, line.dash) for line in lines(panel)}) == 2


def test_condition_numbers_have_their_median_and_orthonormality_its_mean() -> None:
    # Of 1, 2, 4, 8, 16: median 4, mean 6.2.
    skewed: dict[str, Any] = {name: lambda layer, step: 2.0**layer + step for name in COLUMNS}

    chart = describe_conditioning(rows(**skewed))

    for panel in chart.panels:
        (line,) = lines(panel)
        middle = 4.0 if panel.title.startswith("κ") else 6.2
        np.testing.assert_allclose(line.y, middle + np.array([0, 10, 20, 40]))
        (band,) = [m for m in panel.marks if isinstance(m, Band)]
        np.testing.assert_allclose(band.low, 1 + np.array([0, 10, 20, 40]))
        np.testing.assert_allclose(band.high, 16 + np.array([0, 10, 20, 40]))


def test_the_caption_names_the_quantities_that_are_shaded_where_others_are_not() -> None:
    few = describe_conditioning(rows())
    others = pd.concat([untrained(name) for name in "bcdef"])
    mixed = describe_conditioning(pd.concat([rows(), others]))

    assert "Shaded: smallest to largest layer." in few.caption
    assert not any(isinstance(m, Band) for m in panel_of(mixed, "κ").marks)
    named = "κ_p, κ_u, κ_v, ‖U_pᵀU_p − I‖, ‖V_pᵀV_p − I‖"
    assert f"Shaded ({named}): smallest to largest layer." in mixed.caption


def test_the_median_of_an_even_number_of_layers_lies_between_the_middle_two() -> None:
    table = rows(kappa=lambda layer, step: 2.0**layer)

    (panel,) = describe_conditioning(table, ["kappa"], layers=range(4)).panels

    np.testing.assert_allclose(lines(panel)[0].y, 3.0)


def test_an_infinite_condition_number_counts_as_the_largest() -> None:
    def broken(worst: int) -> Any:
        return lambda layer, step: (1.0 + layer).where((layer < worst) | (step < 20), np.inf)

    few = describe_conditioning(rows(kappa=broken(3)), ["kappa"])
    most = describe_conditioning(rows(kappa=broken(2)), ["kappa"])

    np.testing.assert_allclose(lines(few.panels[0])[0].y, 3.0)  # of 1, 2, 3, ∞, ∞
    np.testing.assert_allclose(lines(most.panels[0])[0].y, [3.0, 3.0, np.nan, np.nan])
    assert "Infinite (σ_min = 0): 4 of κ" in few.caption
    assert "Infinite (σ_min = 0): 6 of κ" in most.caption
    (band,) = [m for m in few.panels[0].marks if isinstance(m, Band)]
    assert band.high.max() == few.panels[0].y.limits[1]  # it runs off the axis


def test_runs_without_trained_factors_are_named_and_only_their_own_quantities_drawn() -> None:
    chart = describe_conditioning(pd.concat([rows(), untrained("b"), untrained("c", "dora")]))

    assert len(lines(panel_of(chart, "κ"))) == 3
    assert len(lines(panel_of(chart, "κ_p"))) == 1
    assert "Without κ_p, κ_u, κ_v, ‖U_pᵀU_p − I‖, ‖V_pᵀV_p − I‖: lora, dora." in chart.caption


def test_a_quantity_that_no_run_has_is_named_not_drawn() -> None:
    chart = describe_conditioning(untrained())

    assert [p.title for p in chart.panels] == ["κ"]
    assert "No chosen run has κ_p, κ_u, κ_v" in chart.caption


def test_few_lines_share_a_panel_and_modules_differ_by_their_dashes() -> None:
    modules = ("q_proj", "v_proj")
    chart = describe_conditioning(
        pd.concat([rows("a", modules=modules), rows("b", "noreg", modules=modules)]), ["kappa_u"]
    )

    (panel,) = chart.panels
    of_runs = {line.entry: line.ink for line in lines(panel)}
    assert len(lines(panel)) == 4 and len(set(of_runs.values())) == 2
    dashes = {line.hover.head.split(" · ")[1]: line.dash for line in lines(panel) if line.hover}
    assert dashes["q_proj"] != dashes["v_proj"]
    assert [e.name for e in chart.entries] == ["sorsa", "noreg", "q_proj", "v_proj"]
    assert [e.dash for e in chart.entries[2:]] == list(dashes.values())


def test_many_lines_have_a_panel_a_module_each_of_its_own_range() -> None:
    modules = ("q_proj", "v_proj")
    parts = [rows(f"r{i}", f"m{i}", modules=modules) for i in range(5)]
    table = pd.concat(parts)
    table.loc[table["module"] == "q_proj", "kappa"] *= 1000

    chart = describe_conditioning(table, ["kappa", "ortho_u"])

    assert [p.title for p in chart.panels] == [
        "κ · q_proj", "κ · v_proj", "‖U_pᵀU_p − I‖ · q_proj", "‖U_pᵀU_p − I‖ · v_proj",
    ]  # fmt: skip
    assert chart.columns == 2
    assert all(len(lines(p)) == 5 for p in chart.panels)
    assert chart.panels[0].y.limits[1] > 100 * chart.panels[1].y.limits[1]


def test_condition_numbers_over_two_decades_get_a_logarithmic_axis() -> None:
    wide = rows(kappa=lambda layer, step: 10.0**layer, ortho_u=lambda layer, step: 0.0 * layer)

    chart = describe_conditioning(wide, ["kappa", "kappa_u"])

    assert panel_of(chart, "κ").y.log and not panel_of(chart, "κ_u").y.log
    assert not describe_conditioning(wide, ["kappa"], log=False).panels[0].y.log
    assert describe_conditioning(wide, ["kappa_u"], log=True).panels[0].y.log
    with pytest.raises(ValueError, match="needs values above 0, but ortho_u has none"):
        describe_conditioning(wide, ["ortho_u"], log=True)


def test_orthonormal_factors_are_at_one_and_not_blown_up_to_their_rounding() -> None:
    exact = rows(kappa_u=lambda layer, step: 1 + 1e-9 * layer)

    (panel,) = describe_conditioning(exact, ["kappa_u"]).panels

    low, high = panel.y.limits
    assert low < 1 < high and high - low > 1e-4
    assert Rule(y=1.0) in panel.marks


def test_a_big_figure_is_thinned_and_keeps_the_last_step() -> None:
    steps = np.arange(0, 3000)
    table = pd.DataFrame({"step": np.repeat(steps, 2), "layer": np.tile([0, 1], len(steps))})
    table = table.assign(module="q_proj", **dict.fromkeys(COLUMNS, 2.0))
    table = pd.concat([table.assign(run=r, method=r) for r in "ab"])

    chart = describe_conditioning(table)

    drawn = [m for p in chart.panels for m in p.marks if isinstance(m, Line | Band)]
    points = sum(len(m.x) * (1 if isinstance(m, Line) else 2) for m in drawn)
    assert MOST_LINE_POINTS / 2 < points <= MOST_LINE_POINTS
    assert all(m.x[-1] == 2999 for m in drawn)
    assert "of 3000 steps" in chart.caption


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (untrained(), ["kappa_p", "ortho_u"], "SORSA's trained factors.*choose kappa"),
        (rows(), ["kappa_x"], "no column kappa_x"),
        (rows(), [], "no column to draw"),
        (rows().assign(kappa="high"), ["kappa"], "holds no numbers"),
        (rows().iloc[:0], ["kappa"], "no drift rows"),
        (pd.concat([rows(), rows()]), ["kappa"], "Two runs are both called 'a'"),
    ],
)
def test_what_has_no_conditioning_is_said(table, columns, message) -> None:
    with pytest.raises(ValueError, match=message):
        figures.conditioning(table, columns)


def pair(ratio: Any, **others: Any) -> pd.DataFrame:
    """A regularized run whose κ_p is `ratio` times that of the other one."""

    def plain(layer: pd.Series, step: pd.Series) -> pd.Series:
        return 3.0 + layer

    def reg(layer: pd.Series, step: pd.Series) -> pd.Series:
        return plain(layer, step) * ratio(layer, step)

    return pd.concat(
        [rows("reg", kappa_p=reg, **others), rows("plain", "sorsa-noreg", kappa_p=plain, **others)]
    )


def split(line: Line) -> list[np.ndarray]:
    """Return the pieces of a line between its gaps."""
    gaps = np.flatnonzero(np.isnan(line.y))
    return [piece[np.isfinite(piece)] for piece in np.split(line.y, gaps)]


def test_the_ratio_is_of_one_layer_at_one_step_and_its_middle_geometric() -> None:
    # Two layers at half, two at twice, one at one: the geometric mean is 1, the mean 1.2.
    factors = np.array([0.5, 2.0, 0.5, 2.0, 1.0])
    table = pair(lambda layer, step: np.where(step == 0, 1.0, factors[layer]))

    chart = describe_kappa_ratio(table.sample(frac=1, random_state=0), [("reg", "plain")])

    (panel,) = chart.panels
    faint, thick = lines(panel)
    np.testing.assert_allclose(thick.x, [0, 10, 20, 40])
    np.testing.assert_allclose(thick.y, 1.0)
    assert len(split(faint)) == 5
    for piece, factor in zip(split(faint), factors, strict=True):
        np.testing.assert_allclose(piece, [1.0, factor, factor, factor])
    assert Rule(y=1.0) in panel.marks
    assert chart.entries[0].name == "sorsa / sorsa-noreg"


def test_a_click_on_a_layers_ratio_names_its_matrix() -> None:
    table = pair(lambda layer, step: 1.0 + 0 * layer, modules=("q_proj", "v_proj"))

    for panel in describe_kappa_ratio(table, [("reg", "plain")]).panels:
        faint, _ = lines(panel)
        pick = faint.pick
        assert pick is not None
        assert (pick.run, pick.module) == ("reg", panel.title)
        assert len(pick.layers) == len(pick.steps) == len(faint.x)
        known = np.isfinite(faint.y)
        assert list(np.array(pick.layers)[known]) == [n for n in range(5) for _ in range(4)]
        np.testing.assert_array_equal(np.array(pick.steps)[known], faint.x[known])


def test_several_pairs_lie_over_one_another() -> None:
    one = pair(lambda layer, step: 0.9 + 0 * layer)
    two = pair(lambda layer, step: 0.8 + 0 * layer)
    two["run"] = two["run"] + "-2"

    chart = describe_kappa_ratio(pd.concat([one, two]), [("reg", "plain"), ("reg-2", "plain-2")])

    (panel,) = chart.panels
    thick = lines(panel)[2:]
    assert [round(line.y[-1], 6) for line in thick] == [0.9, 0.8]
    assert len({line.ink for line in thick}) == 2
    assert len({entry.name for entry in chart.entries}) == 2


def test_what_only_one_run_of_a_pair_has_is_named() -> None:
    table = pair(lambda layer, step: 1.0 + 0 * layer)
    gone = (table["run"] == "reg") & ((table["step"] == 20) | (table["layer"] == 3))

    chart = describe_kappa_ratio(table[~gone], [("reg", "plain")])

    faint, thick = lines(chart.panels[0])
    assert list(thick.x) == [0, 10, 40] and len(split(faint)) == 4
    assert "Only sorsa-noreg has the step 20." in chart.caption
    assert "Only sorsa-noreg has the layer 3." in chart.caption


@pytest.mark.parametrize(("start", "said"), [(1.0 + 1e-6, False), (1.01, True)])
def test_a_pair_that_did_not_begin_alike_is_said(start: float, said: bool) -> None:
    table = pair(lambda layer, step: np.where(step == 0, start, 0.9))

    caption = describe_kappa_ratio(table, [("reg", "plain")]).caption

    assert ("did not begin with the same factors" in caption) == said


def test_infinite_condition_numbers_have_no_ratio() -> None:
    table = pair(lambda layer, step: np.where(layer == 1, np.inf, 0.5))

    chart = describe_kappa_ratio(table, [("reg", "plain")])

    faint, thick = lines(chart.panels[0])
    np.testing.assert_allclose(thick.y, 0.5)
    assert len(split(faint)) == 4
    assert "4 infinite values are left out" in chart.caption


def test_the_ratio_of_the_whole_weight_says_that_the_theorem_is_not_about_it() -> None:
    table = pair(lambda layer, step: 1.0 + 0 * layer)

    assert (
        "the theorem is about W_p"
        in describe_kappa_ratio(table, [("reg", "plain")], "kappa").caption
    )
    assert "the theorem is about W_p" not in describe_kappa_ratio(table, [("reg", "plain")]).caption


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([], {}, "There is no pair of runs"),
        ([("reg", "reg")], {}, "'reg' twice"),
        ([("reg", "gone")], {}, "no run 'gone'; they have"),
        ([("reg", "lora")], {}, "rows of lora have no value of kappa_p.*choose the column kappa"),
        ([("reg", "plain")], {"column": "delta_d"}, "must be a condition number"),
        ([("reg", "plain")], {"steps": [7]}, "No drift rows match"),
        ([("reg", "late")], {}, "no module, layer and step in common"),
        ([("reg", "infinite")], {}, "infinite"),
    ],
)
def test_what_is_no_pair_is_said(pairs, options, message) -> None:
    late = rows("late").assign(step=lambda t: t["step"] + 1)
    infinite = rows("infinite", kappa_p=lambda layer, step: np.inf + 0 * layer)
    table = pd.concat(
        [pair(lambda layer, step: 1.0 + 0 * layer), late, infinite, untrained("lora")]
    )

    with pytest.raises(ValueError, match=message):
        figures.kappa_ratio(table, pairs, **options)


@pytest.mark.parametrize("backend", ["plotly", "matplotlib"])
def test_both_renderers_draw_conditioning_of_hostile_names(backend: Any) -> None:
    table = pair(lambda layer, step: 0.9 + 0 * layer, modules=(HOSTILE, "v_proj"))
    table["method"] = HOSTILE
    table["run"] = table["run"] + HOSTILE

    assert figures.conditioning(table, backend=backend) is not None
    pairs = [(f"reg{HOSTILE}", f"plain{HOSTILE}")]
    assert figures.kappa_ratio(table, pairs, backend=backend) is not None
    for entry in describe_kappa_ratio(table, pairs).entries:
        assert len(entry.name) < 4 * 52 and entry.name.isprintable()
