"""The hook inside Transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import spectra
from checkpoints_index import find_checkpoints, open_model
from checkpoints_index.snapshots import BASE_FILE
from spectra.recording.callback import SpectraCallback
from spectra.store import Run
from tests.helpers import attention_weights, lora, plain, sorsa, tiny_llama, token_rows

ADAPTS = {"dense": plain, "lora": lora, "sorsa": sorsa}
STEPS = 5
EVERY = 2


class CountSteps(TrainerCallback):
    """How often the optimizer and the model really ran."""

    def __init__(self) -> None:
        self.optimizer_steps = 0
        self.micro_steps = 0

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.optimizer_steps += 1

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self.micro_steps += 1


def trainer(folder: Path, model: nn.Module, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    rows = token_rows(seed=9, rows=40)
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "dataloader_pin_memory": False,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(**(defaults | options)),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=list(callbacks),
    )


def series(run: Path) -> dict[int, dict[str, Tensor]]:
    base = open_model(run / "snapshots" / BASE_FILE)
    w_0 = {m.name: base.read(m).dense for m in base.matrices}
    return {
        c.step: {m.name: c.read(m).on(w_0[m.name]) for m in c.matrices}  # type: ignore[arg-type]
        for c in find_checkpoints(run)
    }


def assert_equal_series(
    found: dict[int, dict[str, Tensor]], expected: dict[int, dict[str, Tensor]]
) -> None:
    assert found.keys() == expected.keys()
    for step, matrices in expected.items():
        for name, weight in matrices.items():
            assert torch.equal(found[step][name], weight), (step, name)


def test_steps_are_the_optimizers_under_gradient_accumulation(tmp_path: Path) -> None:
    count = CountSteps()
    callback = SpectraCallback(tmp_path / "run", every=EVERY)
    trainer(tmp_path / "out", lora(tiny_llama()), callback, count).train()
    assert count.optimizer_steps == STEPS
    assert count.micro_steps == 2 * STEPS  # of three micro-batches, the last ends the step
    assert list(series(tmp_path / "run")) == [0, 2, 4, 5]
    assert Run(tmp_path / "run").read_training()["step"].tolist() == [1, 2, 3, 4, 5]


def test_the_curve_is_the_trainers_log(tmp_path: Path) -> None:
    trained = trainer(tmp_path / "out", sorsa(tiny_llama()), SpectraCallback(tmp_path / "run"))
    trained.train()
    frame = Run(tmp_path / "run").read_training()
    logged = [entry for entry in trained.state.log_history if "loss" in entry]
    assert frame["step"].tolist() == [entry["step"] for entry in logged]
    assert frame["loss"].tolist() == [entry["loss"] for entry in logged]
    assert frame["lr"].tolist() == [entry["learning_rate"] for entry in logged]
    assert frame["grad_norm"].tolist() == [float(entry["grad_norm"]) for entry in logged]
    assert frame["seconds"].is_monotonic_increasing


def test_a_sparse_log_leaves_gaps_and_no_rows_out(tmp_path: Path) -> None:
    model = lora(tiny_llama())
    trainer(tmp_path / "out", model, SpectraCallback(tmp_path / "run"), logging_steps=2).train()
    frame = Run(tmp_path / "run").read_training()
    assert frame["step"].tolist() == [1, 2, 3, 4, 5]
    assert frame["loss"].notna().tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("kind", ADAPTS)
def test_the_last_snapshot_is_the_trained_model(kind: str, tmp_path: Path) -> None:
    model = ADAPTS[kind](tiny_llama())
    trainer(tmp_path / "out", model, SpectraCallback(tmp_path / "run")).train()
    merged = attention_weights(model if kind == "dense" else model.merge_and_unload())
    last = series(tmp_path / "run")[STEPS]
    assert last.keys() == merged.keys()
    for name, weight in merged.items():
        # The merge rounds to float32 some r + 2 times.
        tolerance = 8 * torch.finfo(torch.float32).eps * weight.abs().max().item()
        torch.testing.assert_close(last[name], weight.double(), rtol=0, atol=tolerance)
    assert Run(tmp_path / "run").state == "finished"
    assert Run(tmp_path / "run").read_settings()["last_step"] == STEPS


@pytest.mark.parametrize("kind", ADAPTS)
def test_a_recorded_training_ends_in_the_same_bits(kind: str, tmp_path: Path) -> None:
    bare, recorded = ADAPTS[kind](tiny_llama()), ADAPTS[kind](tiny_llama())
    trainer(tmp_path / "a", bare).train()
    trainer(tmp_path / "b", recorded, SpectraCallback(tmp_path / "run", every=1)).train()
    for name, tensor in bare.state_dict().items():
        assert torch.equal(tensor, recorded.state_dict()[name]), name


@pytest.mark.parametrize("kind", ADAPTS)
def test_a_resumed_training_equals_an_undisturbed_one(kind: str, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        """Ends the process in the middle of step 5, after step 4's snapshot."""

        def on_substep_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 4:
                raise InterruptedError

    def make(run: str, *more: TrainerCallback) -> Trainer:
        options = {"save_strategy": "steps", "save_steps": 3}
        callback = SpectraCallback(tmp_path / run, every=EVERY)
        return trainer(
            tmp_path / f"{run}-out", ADAPTS[kind](tiny_llama()), callback, *more, **options
        )

    make("undisturbed").train()
    with pytest.raises(InterruptedError):
        make("resumed", Stop()).train()
    assert 4 in series(tmp_path / "resumed")
    assert Run(tmp_path / "resumed").read_training()["step"].tolist()[:3] == [1, 2, 3]
    make("resumed").train(resume_from_checkpoint=True)

    assert_equal_series(series(tmp_path / "resumed"), series(tmp_path / "undisturbed"))
    columns = ["step", "loss", "lr", "grad_norm"]
    resumed, undisturbed = (
        Run(tmp_path / run).read_training()[columns] for run in ("resumed", "undisturbed")
    )
    assert resumed.to_dict("list") == undisturbed.to_dict("list")


def test_other_processes_than_the_first_record_nothing(tmp_path: Path) -> None:
    made = trainer(tmp_path / "out", lora(tiny_llama()))
    made.state.is_world_process_zero = False
    callback = SpectraCallback(tmp_path / "run")
    shared = (made.args, made.state, made.control)
    callback.on_train_begin(*shared, model=made.model)
    callback.on_step_end(*shared)
    callback.on_log(*shared, logs={"loss": 1.0})
    callback.on_save(*shared)
    callback.on_train_end(*shared)
    assert not (tmp_path / "run").exists()


def test_the_callback_takes_the_recorders_options(tmp_path: Path) -> None:
    callback = SpectraCallback(
        tmp_path / "run",
        modules=["v_proj"],
        every=4,
        method="mine",
        base="tiny",
        settings={"rank": 3},
    )
    trainer(tmp_path / "out", lora(tiny_llama()), callback).train()
    settings = Run(tmp_path / "run").read_settings()
    assert settings["method"] == "mine"
    assert settings["base"]["name"] == "tiny"
    assert settings["settings"] == {"rank": 3}
    assert list(series(tmp_path / "run")) == [0, 4, 5]
    assert all(".v_proj" in name for name in series(tmp_path / "run")[4])


def test_the_callback_is_public() -> None:
    assert spectra.SpectraCallback is SpectraCallback
