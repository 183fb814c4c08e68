"""Alerts on a step's drift."""

from __future__ import annotations

import logging
import math
import sys
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

import spectra
from spectra.recording.alerts import Alert, Alerts
from tests.recording.test_feed import PLACES, frame, rows


def messages(alerts: Alerts, step: int, **values: Any) -> list[str]:
    return [raised.message for raised in alerts.check(step, frame(rows(step, **values)))]


def test_a_message_names_step_layer_module_value_and_limit() -> None:
    alerts = Alerts(Alert("kappa", above=100))
    assert messages(alerts, 10, kappa=[1.0, 2.0, 100.0, 3.0]) == []
    (message,) = messages(alerts, 20, kappa=[1.0, 150.0, 250.0, 3.0])
    for part in ("step 20", "layer 1 q_proj", "kappa", "250", "above 100", "2 of 4"):
        assert part in message


def test_below_names_the_smallest() -> None:
    (message,) = messages(Alerts(Alert("stable_rank", below=2)), 5, stable_rank=[1.5, 3, 1.25, 2])
    for part in ("layer 1 q_proj", "1.25", "below 2", "2 of 4"):
        assert part in message


def test_a_standing_excess_is_told_once_and_a_new_one_again() -> None:
    alerts = Alerts(Alert("kappa", above=10))
    assert len(messages(alerts, 10, kappa=[20.0, 1.0, 1.0, 1.0])) == 1
    assert messages(alerts, 20, kappa=[90.0, 1.0, 1.0, 1.0]) == []
    (message,) = messages(alerts, 30, kappa=[90.0, 1.0, 1.0, 11.0])
    assert "layer 1 v_proj" in message and "11" in message
    assert messages(alerts, 40, kappa=1.0) == []
    assert len(messages(alerts, 50, kappa=[20.0, 1.0, 1.0, 1.0])) == 1


def test_a_factor_compares_with_the_same_matrix_a_step_before() -> None:
    alerts = Alerts(Alert("kappa", factor=3))
    assert messages(alerts, 10, kappa=[1.0, 10.0, 100.0, 1000.0]) == []
    assert messages(alerts, 20, kappa=[3.0, 30.0, 300.0, 3000.0]) == []
    (message,) = messages(alerts, 30, kappa=[3.0, 91.0, 300.0, 3000.0])
    for part in ("layer 0 v_proj", "91", "3 times", "30 at step 20", "1 of 4"):
        assert part in message
    assert messages(alerts, 40, kappa=[3.0, 91.0, 300.0, 3000.0]) == []


def test_a_factor_below_one_is_for_falling() -> None:
    alerts = Alerts(Alert("effective_rank", factor=0.5))
    assert messages(alerts, 10, effective_rank=8.0) == []
    assert messages(alerts, 20, effective_rank=4.0) == []
    (message,) = messages(alerts, 30, effective_rank=[4.0, 1.0, 4.0, 1.9])
    assert "layer 0 v_proj" in message and "less than 0.5 times" in message


def test_a_step_that_comes_again_is_not_compared_with_later_ones() -> None:
    alerts = Alerts(Alert("kappa", factor=3))
    assert messages(alerts, 30, kappa=1.0) == []
    assert messages(alerts, 20, kappa=100.0) == []
    assert messages(alerts, 40, kappa=200.0) == []


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize("limit", [{"above": 0}, {"below": 1e9}, {"factor": 2}, {"factor": 0.5}])
def test_what_is_missing_raises_nothing(missing: Any, limit: dict[str, float]) -> None:
    alerts = Alerts(Alert("kappa_u", **limit))  # type: ignore[arg-type]
    assert messages(alerts, 10, kappa_u=missing) == []
    assert messages(alerts, 20, kappa_u=missing) == []


def test_nothing_is_a_multiple_of_zero_or_of_infinity() -> None:
    alerts = Alerts([Alert("delta_d", factor=2), Alert("delta_d", factor=0.5)])
    assert messages(alerts, 0, delta_d=[0.0, 0.0, math.inf, 0.0]) == []
    assert messages(alerts, 10, delta_d=[0.5, 0.0, 1.0, math.nan]) == []


def test_infinity_is_above_every_limit() -> None:
    assert len(messages(Alerts(Alert("kappa", above=1e9)), 5, kappa=[1.0, math.inf, 1.0, 1.0])) == 1


def test_modules_limit_where_an_alert_looks() -> None:
    alerts = Alerts(Alert("kappa", above=1, modules=["v_*"]))
    assert messages(alerts, 10, kappa=[5.0, 1.0, 5.0, 1.0]) == []
    (message,) = messages(alerts, 20, kappa=[5.0, 2.0, 5.0, 1.0])
    assert "layer 0 v_proj" in message and "1 of 2" in message


def test_a_function_judges_the_whole_step() -> None:
    def judge(step_rows: pd.DataFrame) -> str | None:
        assert list(zip(step_rows["layer"], step_rows["module"], strict=True)) == list(PLACES)
        return "far" if step_rows["delta_d"].max() > 0.5 else None

    alerts = Alerts([judge])
    assert messages(alerts, 10, delta_d=0.1) == []
    assert messages(alerts, 20, delta_d=0.9) == ["step 20: far"]


def test_a_function_that_raises_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Any) -> str | None:
        raise KeyError("no such column")

    alerts = Alerts([broken, Alert("kappa", above=1)])
    assert len(messages(alerts, 10, kappa=2.0)) == 1  # the other alert is still raised
    assert messages(alerts, 20, kappa=2.0) == []
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "broken" in warnings[0] and "no such column" in warnings[0]


def test_stop_is_what_the_alert_says() -> None:
    alerts = Alerts([Alert("kappa", above=1), Alert("kappa", above=2, stop=True)])
    raised = alerts.check(5, frame(rows(5, kappa=3.0)))
    assert [r.stop for r in raised] == [False, True]


def test_alerts_are_plain_values_in_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_alerts")
    module.far = lambda _: "too far"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_alerts", module)
    # YAML reads 1e4 as text.
    given = [
        {"column": "kappa", "above": "1e4", "modules": "q_proj"},
        "my_alerts:far",
        {"column": "my_alerts:far", "stop": True},
    ]
    raised = Alerts(given).check(5, frame(rows(5, kappa=2e4)))
    assert [(r.message.split(": ", 1)[1][:9], r.stop) for r in raised] == [
        ("kappa of ", False),
        ("too far", False),
        ("too far", True),
    ]
    assert len(messages(Alerts(given[0]), 5, kappa=2e4)) == 1  # one needs no list


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"column": "kapa", "above": 1}, "column must be one of .*kappa"),
        ({"column": "kappa"}, "kappa needs a limit"),
        ({"column": "kappa", "above": "high"}, "above must be a number, got 'high'"),
        ({"column": "kappa", "above": math.nan}, "above must be a number"),
        ({"column": "kappa", "below": True}, "below must be a number"),
        ({"column": "kappa", "factor": -2}, "factor must be positive and not 1"),
        ({"column": "kappa", "factor": 1}, "factor must be positive and not 1"),
        ("no_such_module:judge", "column='no_such_module:judge' cannot be found"),
        ("math:no_such_name", "column='math:no_such_name' cannot be found"),
        ("math:pi", "column='math:pi' must be a function"),
        ({"column": "math:floor", "above": 1}, "takes no above"),
    ],
)
def test_what_is_wrong_with_an_alert_is_said_at_once(given: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Alerts([given])


def test_alerts_are_public() -> None:
    assert spectra.Alert is Alert
