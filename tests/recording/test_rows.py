"""The training's curve as it is kept in memory and written."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from spectra.recording.rows import TrainingRows
from spectra.store import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.update_settings()
    return run


def test_rows_are_written_in_the_order_of_their_steps(run: Run) -> None:
    rows = TrainingRows(run)
    steps = list(range(1, 200))
    told = random.Random(0).sample(steps, len(steps))
    for step in told:
        rows.tell(step, step / 2, {"loss": 1 / step})
    for step in told[::3]:
        rows.tell(step, 1e9, {"lr": step * 1e-3})
    rows.write()
    frame = run.read_training()
    assert frame["step"].tolist() == steps
    assert frame["loss"].tolist() == [1 / step for step in steps]
    assert frame["seconds"].tolist() == [step / 2 for step in steps]  # when it was first told of
    late = set(told[::3])
    expected = [step * 1e-3 if step in late else None for step in steps]
    assert [None if math.isnan(lr) else lr for lr in frame["lr"]] == expected
    assert frame["grad_norm"].isna().all()


def test_what_was_told_waits_to_be_written(run: Run) -> None:
    rows = TrainingRows(run)
    seen = [rows.waiting]
    rows.tell(1, 0.0, {})
    seen.append(rows.waiting)
    rows.write()
    seen.append(rows.waiting)
    assert seen == [False, True, False]


def test_a_failure_keeps_what_was_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = TrainingRows(run)
    rows.tell(1, 0.5, {"loss": 2.0})

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            rows.write()
    assert rows.waiting
    rows.tell(2, 0.75, {"loss": 1.0})
    rows.write()
    assert run.read_training()["loss"].tolist() == [2.0, 1.0]


def test_the_rows_of_a_run_are_continued(run: Run) -> None:
    assert TrainingRows(run).seconds == 0
    run.write_training([{"step": s, "loss": float(s), "seconds": s / 4} for s in (1, 2, 3)])
    rows = TrainingRows(run)
    assert rows.seconds == 0.75
    rows.tell(3, 9.0, {"lr": 0.5})
    rows.tell(4, 1.0, {"loss": 4.0})
    rows.write()
    frame = run.read_training()
    assert frame["loss"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert frame["seconds"].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert frame["lr"].tolist()[2:] == [0.5, pytest.approx(math.nan, nan_ok=True)]


def test_no_rows_are_a_table_all_the_same(run: Run) -> None:
    TrainingRows(run).write()
    assert run.read_training().empty


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_tensors_are_numbers_as_they_were_when_told(run: Run, dtype: torch.dtype) -> None:
    rows = TrainingRows(run)
    loss = torch.tensor([3], dtype=dtype)
    rows.tell(1, 0.0, {"loss": loss})
    loss.zero_()
    rows.write()
    assert run.read_training()["loss"].tolist() == [3.0]


def test_a_value_that_is_no_single_number_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match=r"must be one number, got \(2, 3\)"):
        TrainingRows(run).tell(1, 0.0, {"loss": torch.zeros(2, 3)})


def test_a_loss_with_a_graph_leaves_the_graph_alone(run: Run) -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    loss = weight * weight
    TrainingRows(run).tell(1, 0.0, {"loss": loss})
    loss.backward()
    assert weight.grad == 4.0
