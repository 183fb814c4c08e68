"""Choosing rows and thinning steps."""

import numpy as np
import pandas as pd
import pytest

from spectra.figures.selection import blocks, by_run, joined, module_order, select_rows, thin_steps
from tests.figures.rows import drift_rows, four_methods

KEYS = ["run", "method", "module"]


def categorical(rows):
    return rows.astype(dict.fromkeys(KEYS, "category"))


@pytest.mark.parametrize("kind", [categorical, lambda rows: rows])
def test_rows_come_run_after_run_in_the_order_of_steps(kind):
    rows = kind(four_methods(layers=3).sample(frac=1, random_state=0))

    chosen = select_rows(rows, ["delta_d"], ["v_proj"], range(1, 10**9), [50, 781, 9])

    expected = rows[
        (rows["module"] == "v_proj") & (rows["layer"] >= 1) & rows["step"].isin([50, 781])
    ]
    assert sorted(chosen.index) == sorted(expected.index)
    assert chosen.loc[expected.index].equals(expected)
    assert list(dict.fromkeys(chosen["run"])) == list(dict.fromkeys(rows["run"]))
    for _, _, part in by_run(chosen, rows):
        assert part["run"].nunique() == 1
        assert part["step"].is_monotonic_increasing


def test_only_the_columns_asked_for_are_kept():
    chosen = select_rows(drift_rows(), ["delta_d"], None, None, None, ["kappa", "absent"])

    assert list(chosen) == ["run", "method", "module", "layer", "step", "delta_d", "kappa"]


@pytest.mark.parametrize("kind", [categorical, lambda rows: rows])
def test_a_run_of_an_unknown_method_is_called_by_its_name(kind):
    rows = pd.concat([drift_rows("a"), drift_rows("b").assign(method=None)], ignore_index=True)

    chosen = select_rows(kind(rows), ["delta_d"], None, None, None)

    assert [title for _, title, _ in by_run(chosen, kind(rows))] == ["sorsa", "b"]


def test_modules_of_other_rows_do_not_occur():
    rows = categorical(drift_rows())

    chosen = select_rows(rows, ["delta_d"], ["v_proj"], None, None)

    assert module_order(chosen, None) == ("v_proj",)
    assert module_order(chosen, ["q_proj", "v_proj"]) == ("v_proj",)


def test_a_row_that_stands_twice_is_found_among_large_numbers_too():
    rows = drift_rows(layers=2, steps=(10, 10**12))
    rows["layer"] = rows["layer"] * 10**9

    assert len(select_rows(rows, ["delta_d"], None, None, None)) == 8
    with pytest.raises(ValueError, match="both called 'a'"):
        select_rows(pd.concat([rows, rows.tail(1)]), ["delta_d"], None, None, None)


@pytest.mark.parametrize("count", [1, 2, 7, 100, 999])
@pytest.mark.parametrize("budget", [0, 1, 10, 50, 10_000])
def test_thinned_steps_fit_the_budget_and_keep_the_last(count, budget):
    steps = np.arange(count) * 5 + 5

    kept = thin_steps(steps, 3, budget)

    assert kept[-1] == steps[-1]
    assert set(kept) <= set(steps)
    assert len(kept) == min(count, max(budget // 3, 1))
    if len(kept) > 1:
        gaps = np.diff(np.append(0, kept)) / 5
        assert gaps.max() - gaps.min() <= 1


def test_blocks_put_every_row_in_its_place():
    rows = drift_rows(layers=3, steps=(10, 20)).drop(index=4).sample(frac=1, random_state=0)

    block = blocks(rows, ("v_proj", "q_proj"))

    values = block.of("delta_d")
    assert values.shape == (2, 2, 3)
    assert np.isnan(values).sum() == 1
    for row in rows.itertuples():
        place = (
            block.modules.index(row.module),
            list(block.steps).index(row.step),
            list(block.layers).index(row.layer),
        )
        assert values[place] == row.delta_d


def test_joined_lines_have_a_gap_after_each_and_leave_out_missing_points():
    x = np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    y = np.array([[5.0, np.nan, np.nan], [6.0, np.nan, 7.0]])
    layer = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])

    places, values, layers = joined(x, y, layer)

    np.testing.assert_array_equal(places, [1, 2, np.nan, 2, np.nan])
    np.testing.assert_array_equal(values, [5, 6, np.nan, 7, np.nan])
    np.testing.assert_array_equal(layers, [0, 0, 0, 2, 2])
