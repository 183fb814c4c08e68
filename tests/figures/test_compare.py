"""Methods beside each other, tested on the charts: means and spreads in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spectra import figures
from spectra.figures.chart import Band, Chart, Line, Note, Panel, Zone
from spectra.figures.comparison import describe_compare
from spectra.figures.seeds import Series, against_loss, spread
from spectra.figures.selection import MOST_LINE_POINTS

EMPTY = pd.DataFrame({"run": [], "method": [], "step": []})
HOSTILE = "<b>%{x}</b> $\\int$ *a* \x07 " + "x" * 200
GROUPS = {"s1": "sorsa", "s2": "sorsa", "s3": "sorsa", "l1": "lora"}


def drift(
    run: str,
    value: Callable[[Any, Any], Any],
    *,
    method: str = "m",
    steps: Sequence[int] = (0, 10, 20, 40),
    modules: tuple[str, ...] = ("q_proj",),
    column: str = "delta_d",
    **others: Any,
) -> pd.DataFrame:
    """Rows of 4 layers whose `column` is a function of layer and step."""
    grid = [(m, s, n) for m in modules for s in steps for n in range(4)]
    table = pd.DataFrame(grid, columns=["module", "step", "layer"])
    table[column] = value(table["layer"], table["step"])
    return table.assign(run=run, method=method, **others)


def seeds(*slopes: float, **options: Any) -> pd.DataFrame:
    """Runs s1, s2, … whose layers' mean grows with the step at these slopes."""

    def growing(slope: float) -> Callable[[Any, Any], Any]:
        return lambda layer, step: slope * step * (layer + 1) / 2.5

    return pd.concat(
        [drift(f"s{i}", growing(slope), **options) for i, slope in enumerate(slopes, start=1)]
    )


def training(run: str, steps: Iterable[int], **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"step": list(steps)} | columns).assign(run=run, method="m")


def lines(panel: Panel) -> list[Line]:
    return [mark for mark in panel.marks if isinstance(mark, Line)]


def only_line(chart: Chart) -> Line:
    (panel,) = chart.panels
    (line,) = lines(panel)
    return line


def test_a_line_is_the_mean_over_seeds_and_its_band_their_sample_deviation() -> None:
    chart = describe_compare(seeds(1e-3, 2e-3, 6e-3), EMPTY, groups=GROUPS)

    line, step = only_line(chart), np.array([0, 10, 20, 40])
    np.testing.assert_allclose(line.x, step)
    np.testing.assert_allclose(line.y, 3e-3 * step)
    deviation = math.sqrt((4 + 1 + 9) / 2) * 1e-3 * step  # of 1, 2, 6 about 3
    (band,) = [m for m in chart.panels[0].marks if isinstance(m, Band)]
    np.testing.assert_allclose(band.high, (3e-3 * step + deviation))
    assert "sorsa 3 seeds" in chart.caption and "standard deviation of the sample" in chart.caption
    assert [e.name for e in chart.entries] == ["sorsa"]


def test_one_seed_has_no_band_and_is_named() -> None:
    table = pd.concat([seeds(1e-3, 2e-3), drift("l1", lambda layer, step: 1e-3 * step)])

    chart = describe_compare(table, EMPTY, groups=GROUPS)

    assert [e.name for e in chart.entries] == ["sorsa", "lora"]
    bands = [m for m in chart.panels[0].marks if isinstance(m, Band)]
    assert [b.entry for b in bands] == [chart.entries[0].key]
    assert "One seed, no band: lora." in chart.caption


def test_runs_without_a_group_stand_alone_whatever_they_are_called() -> None:
    table = pd.concat([seeds(1e-3, 2e-3), drift("sorsa", lambda layer, step: 5e-3 * step)])

    ungrouped = describe_compare(table, EMPTY)
    grouped = describe_compare(table, EMPTY, groups={"s1": "sorsa", "s2": "sorsa"})

    assert len(lines(ungrouped.panels[0])) == 3
    assert not [m for m in ungrouped.panels[0].marks if isinstance(m, Band)]
    ends = [line.y[-1] for line in lines(grouped.panels[0])]
    np.testing.assert_allclose(ends, [1.5e-3 * 40, 5e-3 * 40])


def test_a_panel_a_module_and_modules_are_not_averaged() -> None:
    table = seeds(1e-3, 3e-3, modules=("q_proj", "v_proj"))
    table.loc[table["module"] == "v_proj", "delta_d"] *= 10

    chart = describe_compare(table, EMPTY, groups=GROUPS, modules=["v_proj", "q_proj"])

    assert [p.title for p in chart.panels] == ["v_proj", "q_proj"]
    ends = [lines(p)[0].y[-1] for p in chart.panels]
    np.testing.assert_allclose(ends, [0.8, 0.08])


def test_condition_numbers_have_the_median_of_their_layers() -> None:
    layers = np.array([1.0, 2, 4, 100])
    parts = [
        drift("s1", lambda layer, step: layers[layer], column="kappa"),
        drift("s2", lambda layer, step: 3 * layers[layer], column="kappa"),
    ]

    chart = describe_compare(pd.concat(parts), EMPTY, "kappa", groups=GROUPS, log=False)

    np.testing.assert_allclose(only_line(chart).y, (3 + 9) / 2)


def test_seeds_at_other_steps_are_interpolated_as_far_as_both_reach() -> None:
    one = drift("s1", lambda layer, step: 1e-3 * step + 0 * layer, steps=(0, 10, 30))
    two = drift("s2", lambda layer, step: 3e-3 * step + 0 * layer, steps=(5, 20, 40))

    chart = describe_compare(pd.concat([one, two]), EMPTY, groups=GROUPS)

    line = only_line(chart)
    assert list(line.x) == [5, 10, 20, 30]
    np.testing.assert_allclose(line.y, 2e-3 * line.x)
    assert "The mean ends with the shortest seed: sorsa (step 30 of 40)." in chart.caption


def test_by_tokens_the_same_step_is_another_place() -> None:
    # s2's batches hold twice the tokens, and it drifts half as far a token.
    table = pd.concat([seeds(1e-3, 1e-3)])
    tokens = pd.concat(
        [training("s1", (20, 40), tokens=[2000, 4000]), training("s2", (40,), tokens=[8000])]
    )

    chart = describe_compare(table, tokens, by="tokens", groups=GROUPS)

    line = only_line(chart)
    np.testing.assert_allclose(line.x, [0, 1000, 2000, 4000])  # as far as s1 reaches
    np.testing.assert_allclose(line.y, (1e-5 + 5e-6) / 2 * line.x)
    assert chart.panels[0].x.label == "tokens seen (without padding)"


def test_runs_without_tokens_are_named_and_left_out() -> None:
    table = pd.concat([seeds(1e-3), drift("l1", lambda layer, step: 2e-3 * step, method="lora")])
    tokens = pd.concat(
        [training("s1", (40,), tokens=[4000]), training("l1", (40,), tokens=[math.nan])]
    )

    chart = describe_compare(table, tokens, by="tokens")

    assert [e.name for e in chart.entries] == ["m"]
    assert "Left out, without recorded tokens seen: lora." in chart.caption
    with pytest.raises(ValueError, match="include_num_input_tokens_seen=.non_padding.*by=.step"):
        describe_compare(table, tokens.assign(tokens=math.nan), by="tokens")


def test_by_loss_the_axis_runs_down_and_a_value_is_at_the_step_that_first_reached_the_level() -> (
    None
):
    # The loss recorded at step s is of the weights of step s − 1: here 2 − (s − 1)/100, a straight
    # line, which a running mean leaves as it is but for its ends.
    steps = np.arange(1, 102)
    curve = training("s1", steps, loss=2 - (steps - 1) / 100)
    table = drift("s1", lambda layer, step: 1e-3 * step + 0 * layer, steps=range(0, 101, 10))

    chart = describe_compare(table, curve, by="loss")

    line, x = only_line(chart), chart.panels[0].x
    assert x.limits[0] > x.limits[1]
    inner = (line.x > 1.1) & (line.x < 1.9)
    assert inner.sum() >= 7
    np.testing.assert_allclose(line.y[inner], 1e-3 * 100 * (2 - line.x[inner]), atol=1e-12)


def test_a_loss_that_rises_again_does_not_bring_back_a_level() -> None:
    # Down to 1 at step 50, up again: later weights have a level that was reached before.
    steps = np.arange(1, 102)
    loss = 1 + np.abs(steps - 51) / 50

    found = against_loss(
        Series(np.arange(0, 101.0, 10), np.arange(0, 101.0, 10)), training("a", steps, loss=loss)
    )

    assert found is not None
    assert (np.diff(found.x) > 0).all()
    assert found.y.max() <= 51 and (np.diff(found.y) < 0).all()


def test_by_loss_seeds_are_averaged_at_one_level() -> None:
    # s2 learns twice as fast and drifts as fast: at one level it has drifted half as far.
    steps = np.arange(1, 102)
    curves = pd.concat(
        [
            training("s1", steps, loss=3 - (steps - 1) / 100),
            training("s2", steps, loss=3 - (steps - 1) / 50),
        ]
    )
    table = seeds(1e-3, 1e-3, steps=range(0, 101, 5))

    line = only_line(describe_compare(table, curves, by="loss", groups=GROUPS))

    inner = (line.x > 2.1) & (line.x < 2.9)
    expected = 1e-3 * (100 + 50) / 2 * (3 - line.x)
    np.testing.assert_allclose(line.y[inner], expected[inner], rtol=0.02)
    assert line.x.min() > 1.95  # s2 went on to 1, s1 did not


def test_training_columns_have_one_panel_and_are_smoothed_where_long() -> None:
    short = pd.concat(
        [training(r, (1, 2, 3), loss=[3.0, 2.0, a]) for r, a in zip("ab", (1, 2), strict=True)]
    )
    long = training("a", range(1, 401), loss=np.tile([1.0, 3.0], 200))

    chart = describe_compare(EMPTY, short, "loss", groups={"a": "x", "b": "x"})
    smooth = describe_compare(EMPTY, long, "loss")

    np.testing.assert_allclose(only_line(chart).y, [3, 2, 1.5])
    assert chart.panels[0].title == "training loss"
    np.testing.assert_allclose(only_line(smooth).y[20:-20], 2.0)
    assert "mean of 10 recorded steps" in smooth.caption


def test_noise_floors_are_drawn_and_told() -> None:
    table = pd.concat(
        [
            seeds(1e-3, 2e-3, d_noise=0.02),
            drift("l1", lambda layer, step: 1e-3 * step, d_noise=0.0),
        ]
    )

    chart = describe_compare(table, EMPTY, groups=GROUPS)

    (panel,) = chart.panels
    (zone,) = [m for m in panel.marks if isinstance(m, Zone)]
    assert zone.y == (None, 0.02)
    assert [m for m in panel.marks if isinstance(m, Note)]
    assert "0.02 (sorsa), 0 (lora)" in chart.caption
    of_kappa = describe_compare(table.assign(kappa=3.0), EMPTY, "kappa", groups=GROUPS)
    assert not [m for m in of_kappa.panels[0].marks if isinstance(m, Zone)]


def test_on_a_logarithmic_axis_what_is_0_breaks_the_line_and_is_said() -> None:
    chart = describe_compare(seeds(1e-3, 9e-3), EMPTY, groups=GROUPS, log=True)

    line, y = only_line(chart), chart.panels[0].y
    assert y.log and y.limits[0] > 0
    assert list(np.isnan(line.y)) == [True, False, False, False]
    (band,) = [m for m in chart.panels[0].marks if isinstance(m, Band)]
    assert np.nanmin(band.low) >= y.limits[0]
    assert "Values of 0 lie below the logarithmic axis." in chart.caption


def test_an_infinite_median_breaks_the_line() -> None:
    table = drift(
        "a", lambda layer, step: (2.0 + 0 * layer).where(step != 10, np.inf), column="kappa"
    )

    chart = describe_compare(table, EMPTY, "kappa")

    assert list(np.isnan(only_line(chart).y)) == [False, True, False, False]
    assert "4 infinite values" in chart.caption


def test_a_big_figure_is_thinned_and_keeps_its_ends() -> None:
    steps = range(0, 30_000)
    parts = [
        pd.DataFrame(
            {"step": steps, "delta_d": 1.0, "layer": 0, "module": "q", "method": r}
        ).assign(run=r)
        for r in "ab"
    ]

    chart = describe_compare(pd.concat(parts), EMPTY)

    drawn = lines(chart.panels[0])
    assert sum(len(line.x) for line in drawn) <= MOST_LINE_POINTS
    assert all((line.x[0], line.x[-1]) == (0, 29_999) for line in drawn)


def test_seeds_without_a_common_range_have_no_mean() -> None:
    assert (
        spread([Series(np.array([0.0, 1]), np.zeros(2)), Series(np.array([2.0]), np.zeros(1))], 9)
        is None
    )
    apart = pd.concat(
        [
            drift("s1", lambda layer, step: 0.1 + 0 * step, steps=(0, 10)),
            drift("s2", lambda layer, step: 0.1 + 0 * step, steps=(20, 30)),
            drift("l1", lambda layer, step: 0.1 + 0 * step),
        ]
    )

    chart = describe_compare(apart, EMPTY, groups=GROUPS)

    assert [e.name for e in chart.entries] == ["lora"]
    assert "Without a range that all seeds share: sorsa." in chart.caption
    with pytest.raises(ValueError, match="have no range in common"):
        describe_compare(apart[apart["run"] != "l1"], EMPTY, groups=GROUPS)


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ("nothing", {}, "Neither drift nor training has a column nothing"),
        ("layer", {}, "Neither drift nor training has a column layer"),
        ("delta_d", {"by": "epoch"}, "by must be one of step, tokens, loss, seconds"),
        ("loss", {"by": "loss"}, "loss against itself"),
        ("delta_d", {"by": "seconds"}, "No run has recorded time"),
        ("delta_d", {"modules": ["k_proj"]}, "No drift rows match"),
        ("lr", {}, "No run has a recorded lr"),
        ("text", {}, "holds no numbers"),
    ],
)
def test_what_cannot_be_compared_is_said(column, options, message) -> None:
    table = seeds(1e-3).assign(text="a")
    curve = training("s1", (1, 2), loss=[1.0, 2.0], lr=[math.nan] * 2)

    with pytest.raises(ValueError, match=message):
        figures.compare(table, curve, column, **options)


def test_two_runs_of_one_name_are_refused() -> None:
    curve = training("s1", (1, 1), loss=[1.0, 2.0], tokens=[1.0, 2.0])

    with pytest.raises(ValueError, match="Two of the runs share a name"):
        describe_compare(EMPTY, curve, "loss")
    with pytest.raises(ValueError, match="Two of the runs share a name"):
        describe_compare(seeds(1e-3), curve, by="tokens")


@pytest.mark.parametrize("backend", ["plotly", "matplotlib"])
@pytest.mark.parametrize("runs", [1, 16])
def test_both_renderers_draw_hostile_names(backend: Any, runs: int) -> None:
    names = [f"{HOSTILE}{i}" for i in range(runs)]
    table = pd.concat(
        [
            drift(n, lambda layer, step: 1e-3 * step, method=n, modules=(HOSTILE,), d_noise=0.01)
            for n in names
        ]
    )
    curves = pd.concat([training(n, (1, 20, 40), loss=[3.0, 2.0, 1.0]) for n in names])

    for by in ("step", "loss"):
        labels = {n: n for n in names}
        assert figures.compare(table, curves, by=by, groups=labels, backend=backend) is not None
