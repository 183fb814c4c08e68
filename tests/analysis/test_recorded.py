"""Rows of what the hook recorded are those of the same weights saved whole."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
from torch import nn

from spectra.analysis import analyze
from spectra.recording import Recorder
from tests.checkpoints_index.adapted import adapt
from tests.checkpoints_index.architectures import tiny
from tests.helpers import shake, sorsa, tiny_llama

STEPS = (2, 4)
KEYS = ["step", "layer", "module"]


def both(
    model: Any, folder: Path, modules: list[str], size: float = 0.02
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of a recorded training, and of checkpoints of it with whole weights."""
    _whole(model, start=True).save_pretrained(folder / "base")
    with Recorder(folder / "run", modules, every=2).attach(model) as recorder:
        for step in range(1, STEPS[-1] + 1):
            shake(model, seed=step, size=size)
            recorder.step(step)
            if step in STEPS:
                _whole(model).save_pretrained(folder / "saved" / f"checkpoint-{step}")
    saved = analyze(
        folder / "saved", base=folder / "base", modules=modules, out=folder / "out", workers=1
    )
    recorded = analyze(folder / "run", workers=1)
    return tuple(f.sort_values(KEYS, ignore_index=True) for f in (recorded, saved))  # type: ignore[return-value]


def _whole(model: Any, start: bool = False) -> Any:
    if not isinstance(model, peft.PeftModel):
        return model
    whole: Any = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # What a start subtracted from the base is W_0 together with it.
        pissa = whole.peft_config["default"].to_dict().get("init_lora_weights") == "pissa"
        return whole.merge_and_unload() if pissa or not start else whole.unload()


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("GPT-2", ["q_proj", "v_proj"]),
        ("T5", ["q", "v"]),
        ("Qwen2-MoE", ["up_proj"]),
        ("Hiera", ["all-linear"]),
    ],
)
def test_rows_of_trained_weights_are_those_of_checkpoints(
    name: str, modules: list[str], tmp_path: Path
) -> None:
    recorded, saved = both(copy.deepcopy(tiny(name)[0]), tmp_path, modules)
    own = ["run", "method", "source", "seconds"]
    left = [column for column in recorded.columns if column not in own]
    pd.testing.assert_frame_equal(recorded[left], saved[left], rtol=1e-12)
    assert (recorded.loc[recorded["step"] > 0, "delta_sigma"] > 0).all()


def _lora(**options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: adapt(
        model,
        lambda: peft.LoraConfig(r=3, **({"target_modules": ["q_proj", "v_proj"]} | options)),
    )


def _adalora(model: nn.Module) -> Any:
    config = peft.AdaLoraConfig(init_r=4, total_step=10, target_modules=["q_proj", "v_proj"])
    return adapt(model, lambda: config)


ADAPTERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "LoRA": (tiny_llama, _lora()),
    "DoRA": (tiny_llama, _lora(use_dora=True)),
    "PiSSA": (tiny_llama, _lora(init_lora_weights="pissa")),
    "AdaLoRA": (tiny_llama, _adalora),
    "SORSA": (tiny_llama, sorsa),
    "LoRA on GPT-2": (
        lambda: copy.deepcopy(tiny("GPT-2")[0]),
        _lora(target_modules=["c_attn"], fan_in_fan_out=True),
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_rows_of_adapters_are_those_of_merged_checkpoints(name: str, tmp_path: Path) -> None:
    make, adapted = ADAPTERS[name]
    recorded, saved = both(adapted(make()), tmp_path, ["q_proj", "v_proj"], size=0.2)
    pd.testing.assert_frame_equal(recorded[KEYS], saved[KEYS])
    # The merged weights are rounded to float32 at every step, the recorded ones never.
    tolerance = 16 * torch.finfo(torch.float32).eps * saved["sigma_max"].max()
    for column in ("delta_sigma", "sigma_max", "sigma_min", "frobenius_drift"):
        found, expected = recorded[column].to_numpy(), saved[column].to_numpy()
        assert abs(found - expected).max() < tolerance, column
    moved = recorded["step"] > 0
    assert (recorded.loc[moved, "delta_sigma"] > 10 * tolerance).all()
    assert (recorded[["sigma_noise", "d_noise"]] == 0.0).all(axis=None)
