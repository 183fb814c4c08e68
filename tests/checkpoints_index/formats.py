"""One tiny checkpoint per format, each with the weights that PEFT or Transformers give for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from spectra.recording import Recorder
from spectra.recording.layers import find_layers
from tests.checkpoints_index.adapted import METHODS, adapt
from tests.helpers import (
    MODULES,
    attention_weights,
    lora,
    lora_xs,
    milora,
    plain,
    shake,
    sorsa,
    svf,
    svft,
    tiny_llama,
)
from tests.recording.recorded import write_base, write_step

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


def _deltas(folder: Path) -> dict[str, Tensor]:
    model = plain(tiny_llama())
    layers = find_layers(model, MODULES)
    write_base(folder / "snapshots", layers)
    shake(model)
    write_step(folder / "snapshots", layers, STEP, dtype=torch.bfloat16)
    return _whole(model)


SNAPSHOTS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "snapshots of DoRA": lambda folder: _snapshots(lambda m: lora(m, use_dora=True), folder),
    "snapshots of PiSSA": lambda folder: _snapshots(
        lambda m: lora(m, init_lora_weights="pissa"), folder
    ),
    "snapshots of AdaLoRA": lambda folder: _snapshots(
        lambda m: adapt(m, METHODS["AdaLoRA"].config), folder
    ),
    "snapshots of MiLoRA": lambda folder: _snapshots(milora, folder),
    "snapshots of SVF": lambda folder: _snapshots(svf, folder),
    "snapshots of SVFT": lambda folder: _snapshots(svft, folder),
    "snapshots of LoRA-XS": lambda folder: _snapshots(lora_xs, folder),
    "snapshots of deltas": _deltas,
}
"""More kinds of snapshots, whose W_t or W_0 is no bit for bit that of `FORMATS`."""
