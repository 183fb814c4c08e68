"""The callbacks inside trainers that know nothing of this project: Transformers' and TRL's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from checkpoints_index import find_snapshots
from spectra import SorsaRegularizerCallback, SpectraCallback
from spectra.methods import orthonormal_regularizer
from spectra.store import Run
from tests.helpers import sorsa, tiny_llama, tiny_tokenizer, token_rows


def options(folder: Path, **changes: object) -> dict[str, object]:
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    } | changes


def rows(count: int = 16) -> list[dict[str, Tensor]]:
    tokens = token_rows(rows=count)
    return [{"input_ids": row, "labels": row} for row in tokens]


def trained(
    folder: Path, callbacks: list[TrainerCallback], **changes: object
) -> tuple[nn.Module, Trainer]:
    model = sorsa(tiny_llama())
    arguments = TrainingArguments(**options(folder, **changes))  # type: ignore[arg-type]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows(), callbacks=callbacks)
    trainer.train()
    return model, trainer


def test_the_regularizer_keeps_the_factors_closer_to_orthonormal(tmp_path: Path) -> None:
    free, _ = trained(tmp_path, [SorsaRegularizerCallback(gamma=0.0)], max_steps=20)
    held, _ = trained(tmp_path, [SorsaRegularizerCallback(gamma=0.2)], max_steps=20)
    assert orthonormal_regularizer(held) < 0.5 * orthonormal_regularizer(free)


def test_gamma_zero_trains_bit_identically_to_no_callback(tmp_path: Path) -> None:
    without, _ = trained(tmp_path, [])
    zero, _ = trained(tmp_path, [SorsaRegularizerCallback(gamma=0.0)])
    for expected, found in zip(without.parameters(), zero.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_the_callback_is_told_the_loss_before_each_step(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    callback = SorsaRegularizerCallback(5e-4, on_value=lambda step, loss: told.append((step, loss)))
    trained(tmp_path, [callback])
    assert [step for step, _ in told] == [1, 2, 3, 4]
    assert told[0][1] == pytest.approx(0, abs=1e-4) and told[-1][1] > 1e-4


class Norm(TrainerCallback):
    """Notes the norm of the gradient that the optimizer is given."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))


def test_by_default_the_regularizer_stays_out_of_clipping(tmp_path: Path) -> None:
    norm = Norm()
    callback = SorsaRegularizerCallback(gamma=1.0, reduction="sum")
    trained(tmp_path, [callback, norm], max_grad_norm=0.01)
    assert max(norm.norms) > 1  # the task's part alone is at most 0.01


def test_on_request_task_and_regularizer_are_clipped_together(tmp_path: Path) -> None:
    norm = Norm()
    callback = SorsaRegularizerCallback(gamma=1.0, reduction="sum", max_grad_norm=0.01)
    trained(tmp_path, [callback, norm], max_grad_norm=0.0)
    assert max(norm.norms) <= 0.01 * (1 + 1e-5)


def test_trls_trainer_takes_both_callbacks(tmp_path: Path) -> None:
    texts = Dataset.from_list([{"text": "the old river sings of a small bird"}] * 16)
    recording = SpectraCallback(tmp_path / "run", every=2)
    trainer = SFTTrainer(
        model=sorsa(tiny_llama()),
        args=SFTConfig(**options(tmp_path, max_length=32)),  # type: ignore[arg-type]
        train_dataset=texts,
        processing_class=tiny_tokenizer(),
        callbacks=[recording, SorsaRegularizerCallback(gamma=5e-4)],
    )
    trainer.train()
    run = Run(tmp_path / "run")
    assert [s.step for s in find_snapshots(run.snapshots_path)] == [0, 2, 4]
    curve = run.read_training()
    assert curve["step"].tolist() == [1, 2, 3, 4] and curve["loss"].notna().all()
    assert run.method == "sorsa" and run.state == "finished"
