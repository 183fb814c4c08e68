"""When snapshots are due."""

from __future__ import annotations

import math

import pytest

from spectra.recording.when import Schedule, load_named

CALLS: list[int] = []


def even(step: int) -> bool:
    """Named by the tests as ``tests.recording.test_when:even``."""
    return step % 2 == 0


def due(every: object, last: int) -> list[int]:
    schedule = Schedule(every)  # type: ignore[arg-type]
    return [step for step in range(last + 1) if schedule.due(step)]


def test_every_n_th() -> None:
    assert due(4, 13) == [0, 4, 8, 12]


def test_listed_steps_in_any_order() -> None:
    assert due([9, 2, 2, 5], 20) == [2, 5, 9]
    assert due((3,), 20) == [3]
    assert due(range(3, 9, 3), 20) == [3, 6]


@pytest.mark.parametrize("per_decade", [1, 2, 3, 5, 10, 12, 50])
def test_log_spacing_is_the_rounded_geometric_series(per_decade: int) -> None:
    expected = {round(10 ** (k / per_decade)) for k in range(4 * per_decade + 1)}
    assert due(f"log:{per_decade}", 10_000) == sorted(expected)


def test_log_spacing_has_ten_steps_a_decade_by_default() -> None:
    assert due("log", 10_000) == due("log:10", 10_000)
    for decade in (10, 100, 1000):
        assert sum(decade <= step < 10 * decade for step in due("log", 10_000)) == 10


def test_functions_and_their_names() -> None:
    assert due(even, 5) == [0, 2, 4]
    assert due("tests.recording.test_when:even", 5) == [0, 2, 4]
    assert due(lambda step: step == 3, 5) == [3]


def test_a_function_that_raises_is_asked_again() -> None:
    def picky(step: int) -> bool:
        if step < 3:
            raise KeyError("not yet")
        return True

    schedule = Schedule(picky)
    with pytest.raises(KeyError, match="not yet"):
        schedule.due(2)
    assert schedule.due(3)


def test_an_interrupt_inside_a_function_goes_through() -> None:
    def interrupted(step: int) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Schedule(interrupted).due(1)


@pytest.mark.parametrize("every", [1, 7, [1, 5, 9, 70], "log", "log:3"])
@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (0, 100), (5, 70), (6, 69), (49, 50)])
def test_the_count_is_that_of_the_due_steps(every: object, start: int, stop: int) -> None:
    counted = Schedule(every).count(start, stop)  # type: ignore[arg-type]
    assert counted == sum(start < step for step in due(every, stop))


def test_what_a_function_will_say_is_not_counted() -> None:
    def asked(step: int) -> bool:
        raise AssertionError(f"asked about step {step}")

    assert Schedule(asked).count(0, 10) is None


def test_the_steps_of_a_very_long_run_are_counted_at_once() -> None:
    assert Schedule("log:1").count(0, 10**12) == 13
    assert Schedule(10).count(0, 10**12) == 10**11


@pytest.mark.parametrize(
    ("every", "description"),
    [
        (3, 3),
        ([4, 2], [2, 4]),
        ("log:3", "log:3"),
        (even, "tests.recording.test_when:even"),
        ("tests.recording.test_when:even", "tests.recording.test_when:even"),
    ],
)
def test_what_the_run_says_of_it(every: object, description: object) -> None:
    assert Schedule(every).description == description  # type: ignore[arg-type]


@pytest.mark.parametrize("every", [True, None, 2.5, [], [1, 2.5], [True], [-1], object()])
def test_anything_else_is_refused(every: object) -> None:
    with pytest.raises(ValueError, match="every must be a number of steps, a list of steps"):
        Schedule(every)  # type: ignore[arg-type]


@pytest.mark.parametrize("every", ["log:0", "log:", "log:x", "log:-2", "log:1.5"])
def test_a_wrong_log_spacing_is_refused(every: str) -> None:
    with pytest.raises(ValueError, match='"log:N" with N of at least 1'):
        Schedule(every)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("often", "\"module:function\", got 'often'"),
        ("tests.recording.test_when:", '"module:function"'),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("tests.recording.test_when:odd", "has no attribute 'odd'"),
        ("tests.recording.test_when:CALLS", "must be a function, it is list"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(name)


def test_names_reach_into_classes() -> None:
    assert load_named("math:log10", "every") is math.log10
    assert load_named("spectra.recording.when:Schedule.due", "every") is Schedule.due
