"""One tiny checkpoint per format, each with the weights that PEFT or Transformers give for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from spectra.recording import Recorder
from tests.helpers import attention_weights, lora, plain, shake, sorsa, tiny_llama

STEP = 30


def _snapshots(adapt: Callable[[nn.Module], nn.Module], folder: Path) -> dict[str, Tensor]:
    model = adapt(tiny_llama())
    with Recorder(folder, every=STEP, overwrite=True).attach(model) as recorder:
        shake(model)
        recorder.step(STEP)
    return _whole(model)


def _adapter(adapt: Callable[[nn.Module], nn.Module], folder: Path) -> dict[str, Tensor]:
    model = adapt(tiny_llama())
    shake(model)
    model.save_pretrained(folder / f"checkpoint-{STEP}")  # type: ignore[operator]
    return _whole(model)


def _model(folder: Path, **options: str) -> dict[str, Tensor]:
    model = tiny_llama()
    shake(model)
    model.save_pretrained(folder / f"checkpoint-{STEP}", **options)
    return attention_weights(model)


def _whole(model: nn.Module) -> dict[str, Tensor]:
    merge = getattr(model, "merge_and_unload", None)
    return attention_weights(model if merge is None else merge())


FORMATS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "snapshots of a plain model": lambda folder: _snapshots(plain, folder),
    "snapshots of LoRA": lambda folder: _snapshots(lora, folder),
    "snapshots of rsLoRA": lambda folder: _snapshots(lambda m: lora(m, use_rslora=True), folder),
    "snapshots of SORSA": lambda folder: _snapshots(sorsa, folder),
    "LoRA folder": lambda folder: _adapter(lora, folder),
    "rsLoRA folder": lambda folder: _adapter(lambda m: lora(m, use_rslora=True), folder),
    "SORSA folder": lambda folder: _adapter(sorsa, folder),
    "model folder": _model,
    "sharded model folder": lambda folder: _model(folder, max_shard_size="20KB"),
}
"""Writes step `STEP` of a trained `tiny_llama` to a folder; gives its W_t by layer."""
