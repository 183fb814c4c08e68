"""The hook inside TRL's trainers, which know nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from checkpoints_index import find_snapshots
from spectra import SpectraCallback
from spectra.store import Run
from tests.helpers import attention_weights, lora, tiny_llama, tiny_tokenizer
from tests.recording.analysing import patient_staging  # noqa: F401
from tests.recording.test_callback import series

pytestmark = pytest.mark.usefixtures("patient_staging")

TEXT = "the old river sings of a small bird"
STEPS = 3


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
        "seed": 3,
    } | changes


def sft(folder: Path, model: nn.Module, callbacks: list[TrainerCallback]) -> Any:
    return SFTTrainer(
        model=model,  # type: ignore[arg-type]
        args=SFTConfig(**options(folder, max_length=16)),
        train_dataset=Dataset.from_list([{"text": TEXT}] * 16),
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )


def dpo(folder: Path, model: nn.Module, callbacks: list[TrainerCallback]) -> Any:
    pair = {"prompt": "the old river", "chosen": " sings of a bird", "rejected": " and its song"}
    return DPOTrainer(
        model=model,  # type: ignore[arg-type]
        args=DPOConfig(**options(folder, max_length=16, disable_dropout=False)),
        train_dataset=Dataset.from_list([pair] * 16),
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )


def grpo(folder: Path, model: nn.Module, callbacks: list[TrainerCallback]) -> Any:
    def length(completions: list[str], **_: Any) -> list[float | None]:
        return [float(len(set(completion.split()))) for completion in completions]

    return GRPOTrainer(
        model=model,  # type: ignore[arg-type]
        reward_funcs=length,
        args=GRPOConfig(**options(folder, num_generations=2, max_completion_length=4)),
        train_dataset=Dataset.from_list([{"prompt": "the old river sings"}] * 16),
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
    )


TRAINERS = {"sft": sft, "dpo": dpo, "grpo": grpo}


class CountSteps(TrainerCallback):
    """How often the optimizer and the model really ran."""

    def __init__(self) -> None:
        self.optimizer_steps = 0
        self.micro_steps = 0

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.optimizer_steps += 1

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self.micro_steps += 1


@pytest.mark.parametrize("make", TRAINERS.values(), ids=TRAINERS.keys())
def test_trls_trainers_are_recorded_and_end_in_the_same_bits(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    bare, recorded = (lora(tiny_llama(dropout=0.2), lora_dropout=0.3) for _ in range(2))
    count = CountSteps()
    make(tmp_path / "a", bare, []).train()
    trained = make(tmp_path / "b", recorded, [SpectraCallback(tmp_path / "run", every=2), count])
    trained.train()
    assert (count.optimizer_steps, count.micro_steps) == (STEPS, STEPS)
    for name, tensor in bare.state_dict().items():
        assert torch.equal(tensor, recorded.state_dict()[name]), name

    run = Run(tmp_path / "run")
    assert (run.method, run.state) == ("lora", "finished")
    assert [s.step for s in find_snapshots(run.snapshots_path)] == [0, 2, 3]
    curve = run.read_training()
    logged = [entry for entry in trained.state.log_history if "loss" in entry]
    assert curve["step"].tolist() == [1, 2, 3]
    assert curve["loss"].tolist() == [entry["loss"] for entry in logged]
    assert curve["lr"].tolist() == [entry["learning_rate"] for entry in logged]
    assert curve["grad_norm"].tolist() == [float(entry["grad_norm"]) for entry in logged]
    assert curve["tokens"].gt(0).all() and curve["tokens"].is_monotonic_increasing
    if make is sft:
        each = len(tiny_tokenizer()(TEXT)["input_ids"]) + 1  # TRL ends a text
        assert curve["tokens"].tolist() == [4 * each * step for step in (1, 2, 3)]

    merged = attention_weights(recorded.merge_and_unload())
    last = series(tmp_path / "run")[STEPS]
    assert last.keys() == merged.keys()
    for name, weight in merged.items():
        # The merge rounds to float32 some r + 2 times.
        tolerance = 8 * torch.finfo(torch.float32).eps * weight.abs().max().item()
        torch.testing.assert_close(last[name], weight.double(), rtol=0, atol=tolerance)
