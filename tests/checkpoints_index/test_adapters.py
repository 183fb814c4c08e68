"""Adapters whose W_t cannot be had from base and factors are refused, with advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from checkpoints_index import CheckpointError, find_checkpoints
from tests.helpers import MODULES, lora, shake, tiny_llama

ADVICE = "Merge it into its base with PEFT and analyse the merged model"

# LoRAs that PEFT saves in LoRA's form, but whose W_t is not W_0 + scaling · B A.
OTHER_LORAS: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, fast": {"init_lora_weights": "pissa_niter_4"},
    "OLoRA": {"init_lora_weights": "olora"},
    "ranks by layer": {"rank_pattern": {"q_proj": 2}},
    "alphas by layer": {"alpha_pattern": {"q_proj": 2}},
    "whole modules": {"modules_to_save": ["lm_head"]},
    "repeated layers": {"layer_replication": [(0, 2), (1, 2)]},
    "aLoRA": {"alora_invocation_tokens": [3], "task_type": "CAUSAL_LM"},
    "KaSA": {"kasa_config": peft.KasaConfig()},
}


def change_settings(folder: Path, **changes: object) -> None:
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


@pytest.mark.parametrize("name", OTHER_LORAS)
def test_other_loras_are_refused_with_advice(name: str, tmp_path: Path) -> None:
    model = lora(tiny_llama(), **OTHER_LORAS[name])
    shake(model)
    model.save_pretrained(tmp_path)
    option = next(iter(OTHER_LORAS[name]))
    with pytest.raises(CheckpointError, match=rf"is a LoRA with .*{option}.* {ADVICE}"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=2, target_modules=list(MODULES)),
        peft.IA3Config(target_modules=list(MODULES), feedforward_modules=[]),
        peft.VeraConfig(r=2, target_modules=["q_proj"]),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_other_adapters_are_refused_with_advice(config: peft.PeftConfig, tmp_path: Path) -> None:
    peft.get_peft_model(tiny_llama(), config).save_pretrained(str(tmp_path))
    kind = config.peft_type.value  # type: ignore[union-attr]
    with pytest.raises(
        CheckpointError, match=rf"is a {kind} adapter; read are LORA, SORSA\. {ADVICE}"
    ):
        find_checkpoints(tmp_path)


def test_an_adapter_knows_its_base_and_method(tmp_path: Path) -> None:
    lora(tiny_llama()).save_pretrained(tmp_path)
    change_settings(tmp_path, base_model_name_or_path="someone/model")
    (checkpoint,) = find_checkpoints(tmp_path)
    assert checkpoint.base == "someone/model"
    assert checkpoint.method == "lora"


def test_an_adapter_has_only_its_targets(tmp_path: Path) -> None:
    lora(tiny_llama(layers=3), target_modules=["v_proj", "down_proj"]).save_pretrained(tmp_path)
    (checkpoint,) = find_checkpoints(tmp_path)
    assert {(m.layer, m.module) for m in checkpoint.matrices} == {
        (layer, module) for layer in range(3) for module in ("v_proj", "down_proj")
    }


@pytest.mark.parametrize("alpha", [None, "eight", [8]])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: object) -> None:
    lora(tiny_llama()).save_pretrained(tmp_path)
    change_settings(tmp_path, lora_alpha=alpha)
    with pytest.raises(CheckpointError, match="adapter_config.json"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7"])
def test_broken_settings_are_an_error(tmp_path: Path, content: str) -> None:
    lora(tiny_llama()).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json (cannot be|must hold)"):
        find_checkpoints(tmp_path)


def test_an_adapter_without_weights_is_an_error(tmp_path: Path) -> None:
    model = lora(tiny_llama())
    model.save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors does not exist"):
        find_checkpoints(tmp_path)
