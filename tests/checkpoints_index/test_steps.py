"""Steps in names and in trainers' files."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints_index.steps import step_in_name, step_in_state, step_of_revisions


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-12",
        "checkpoint_12",
        "ckpt-12",
        "ckpt_0000012",
        "step-12",
        "step_12",
        "step12",
        "step=12",
        "Step12",
        "global_step12",
        "global-step-12",
        "globalstep12",
        "iter_0000012",
        "iter-0000012",
        "iteration_12",
        "model_step_12",
        "lora-step-12",
        "step12-unsharded",
        "epoch=1-step=12",
        "epoch=1-step=12-v1",
        "stage1-step12-tokens2B",
        "rank-8-step-12",
        "checkpoint-12-merged",
        "checkpoint-12-step-12",
        "ep1-ba12",
        "ep1-ba12-rank0",
    ],
)
def test_names_with_a_step(name: str) -> None:
    assert step_in_name(name) == 12


@pytest.mark.parametrize(
    "name",
    [
        "",
        "final",
        "12",
        "epoch_12",
        "epoch=12",
        "checkpoint",
        "checkpoint-best",
        "step-12k",
        "step-1.5b",
        "Step-3.5-mini",
        "checkpoint-1.5B",
        "footstep-12",
        "stage12",
        "tokens12B",
        "alpaca-ba12",
        "step-1-step-2",
        "step-" + "9" * 5000,
        "mp_rank_00",
    ],
)
def test_names_without_one(name: str) -> None:
    assert step_in_name(name) is None


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ('{"global_step": 70}', 70),
        ('{"global_step": 0}', 0),
        ('{"global_step": -1}', None),
        ('{"global_step": true}', None),
        ('{"global_step": 1e400}', None),
        ('{"global_step": "70"}', None),
        ('{"global_step": [70]}', None),
        ("[" * 100_000, None),
        ("[]", None),
        ("", None),
        ("\xff", None),
    ],
)
def test_a_trainers_state(tmp_path: Path, state: str, step: int | None) -> None:
    file = tmp_path / "trainer_state.json"
    file.write_bytes(state.encode("latin-1"))
    assert step_in_state(file) == step
    assert step_in_state(tmp_path / "none") is None


def test_a_trainers_state_that_no_trainer_writes_is_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "trainer_state.json"
    file.write_text('{"global_step": 70}')
    with file.open("r+b") as opened:
        opened.truncate(1 << 40)  # a hole, not on the disk
    assert step_in_state(file) is None


def test_revisions_must_agree() -> None:
    assert step_of_revisions(["main", "step5", "tags/step-5"]) == 5
    assert step_of_revisions(["step5", "step6"]) is None
    assert step_of_revisions(["main"]) is None
