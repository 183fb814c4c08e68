"""The feed of drift rows that an analysis writes beside the training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spectra.recording.alerts import Alerts
from spectra.recording.feed import DriftFeed, StepDrift, summary
from spectra.store import DRIFT, Run

PLACES = ((0, "q_proj"), (0, "v_proj"), (1, "q_proj"), (1, "v_proj"))


def rows(step: int, source: str = "a", places: Any = PLACES, **values: Any) -> list[dict[str, Any]]:
    """Drift rows of a step; a value may be a sequence, one for each place."""
    return [
        {"step": step, "layer": layer, "module": module, "source": source}
        | {k: v[i] if isinstance(v, Sequence) else v for k, v in values.items()}
        for i, (layer, module) in enumerate(places)
    ]


def frame(given: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(given).reindex(columns=DRIFT.names)


@contextmanager
def feed(run: Run, **options: Any) -> Iterator[DriftFeed]:
    made = DriftFeed(run, len(PLACES), seconds=0.01, **options)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def waited(made: DriftFeed, count: int) -> list[StepDrift]:
    """The next `count` steps that the feed gives."""
    taken: list[StepDrift] = []
    ends = time.monotonic() + 20
    while len(taken) < count and time.monotonic() < ends:
        taken += made.take()
        time.sleep(0.005)
    return taken


def rest(made: DriftFeed) -> list[int]:
    made.stop()  # looks a last time
    return [drift.step for drift in made.take()]


def test_a_step_is_given_once_when_all_its_matrices_are_there(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with feed(run) as made:
        run.drift.append(rows(10, places=PLACES[:3]) + rows(20, places=PLACES[:1]))
        time.sleep(0.1)
        assert made.take() == []
        run.drift.append(rows(10, places=PLACES[3:]))
        assert [drift.step for drift in waited(made, 1)] == [10]
        run.drift.append(rows(20, places=PLACES[1:]))
        assert [drift.step for drift in waited(made, 1)] == [20]
        assert rest(made) == []


def test_what_was_there_before_is_not_given(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.drift.append(rows(10) + rows(20, places=PLACES[:2]))
    with feed(run) as made:
        run.drift.append(rows(20, places=PLACES[2:]) + rows(30))
        assert [drift.step for drift in waited(made, 2)] == [20, 30]
        assert rest(made) == []


def test_rewriting_all_rows_as_one_part_gives_nothing_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with feed(run) as made:
        for step in (10, 20):
            run.drift.append(rows(step))
        run.drift.append(rows(30, places=PLACES[:3]))
        assert len(waited(made, 2)) == 2
        run.drift.compact({10, 20, 30})
        time.sleep(0.1)
        run.drift.append(rows(30, places=PLACES[3:]))
        assert [drift.step for drift in waited(made, 1)] == [30]
        assert rest(made) == []


def test_a_step_that_is_recorded_again_is_given_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with feed(run) as made:
        run.drift.append(rows(10, "first", kappa=2.0))
        assert waited(made, 1)[0].summary["spectra/kappa"] == 2
        run.drift.append(rows(10, "second", places=PLACES[:2], kappa=3.0))
        run.drift.append(rows(10, "second", places=PLACES[2:], kappa=3.0))
        assert waited(made, 1)[0].summary["spectra/kappa"] == 3
        assert rest(made) == []


def test_the_later_row_of_a_matrix_counts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with feed(run) as made:
        run.drift.append(rows(10, places=PLACES[:3], kappa=2.0))
        run.drift.append(rows(10, places=PLACES[:3], kappa=5.0))
        run.drift.append(rows(10, places=PLACES[3:], kappa=5.0))
        assert waited(made, 1)[0].summary["spectra/kappa"] == 5


def test_stopping_looks_a_last_time(tmp_path: Path) -> None:
    run = Run(tmp_path)
    made = DriftFeed(run, len(PLACES), seconds=600)
    made.start()
    run.drift.append(rows(10))
    assert rest(made) == [10]


def test_a_damaged_part_is_warned_of_once_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path)
    run.drift.folder.mkdir()
    with feed(run) as made:
        for name in ("part-0.parquet", "part-1.parquet"):
            (run.drift.folder / name).write_bytes(b"no parquet")
        run.drift.append(rows(10))
        assert [drift.step for drift in waited(made, 1)] == [10]
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "part-0.parquet" in warnings[0].getMessage()


def test_each_step_carries_its_alerts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    alerts = Alerts([{"column": "kappa", "above": 10}])
    with feed(run, alerts=alerts) as made:
        run.drift.append(rows(10, kappa=9.0) + rows(20, kappa=[9.0, 9.0, 11.0, 9.0]))
        first, second = waited(made, 2)
    assert first.alerts == ()
    assert [raised.step for raised in second.alerts] == [20]
    assert "layer 1 q_proj" in second.alerts[0].message


def test_a_summary_is_a_handful_over_all_matrices() -> None:
    given = frame(
        rows(
            10,
            delta_sigma=[1.0, 2.0, 3.0, 6.0],
            delta_d=[0.1, 0.1, 0.1, 0.5],
            kappa=[1.0, 2.0, 4.0, 1000.0],
            intruders=[0, 1, 0, 2],
            ortho_u=[0.1, None, 0.2, 0.1],
            ortho_v=[0.1, 0.3, 0.2, None],
        )
    )
    assert summary(given) == {
        "spectra/delta_sigma": 3.0,
        "spectra/delta_d": pytest.approx(0.2),
        "spectra/kappa": 3.0,
        "spectra/intruders": 3.0,
        "spectra/ortho": 0.3,
    }


def test_a_summary_leaves_out_what_is_missing_or_not_finite() -> None:
    given = frame(rows(10, delta_sigma=[1.0, math.nan, 2.0, 3.0], kappa=math.inf))
    assert summary(given) == {"spectra/delta_sigma": 2.0}
