"""What an adapter's own files tell: its layers from headers, its settings, and what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from checkpoints_index import Checkpoint, CheckpointError, open_model
from tests.checkpoints_index.adapted import (
    METHODS,
    adapt,
    change_settings,
    open_adapter,
    save,
    write,
)
from tests.helpers import MODULES, attention_weights, lora, shake, tiny_llama, tiny_model_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_model(tiny_model_folder(tmp_path_factory.mktemp("float32")))


@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_lists_its_layers_from_headers_alone(
    name: str, tmp_path: Path, base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(name, tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    checkpoint = open_adapter(tmp_path)
    bound = {m.name: m for m in checkpoint.bind(base).matrices}
    assert {(m.layer, m.module) for m in checkpoint.matrices} == {
        (layer, module) for layer in range(2) for module in MODULES
    }
    for matrix in checkpoint.matrices:
        assert matrix.dtype == "float32"
        assert matrix.rank == METHODS[name].rank
        assert bound[matrix.name].shape == tuple(attention_weights(tiny_llama())[matrix.name].shape)
        for known, shape in zip(matrix.shape, bound[matrix.name].shape, strict=True):
            assert known in (0, shape)


@pytest.mark.parametrize(
    ("name", "method"),
    [("LoRA", "lora"), ("DoRA", "dora"), ("PiSSA", "pissa"), ("OLoRA", "olora"), ("IA3", "ia3")],
)
def test_an_adapter_knows_its_base_and_method(name: str, method: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    change_settings(tmp_path, base_model_name_or_path="someone/model")
    checkpoint = open_adapter(tmp_path)
    assert checkpoint.base == "someone/model"
    assert checkpoint.method == method


def test_an_adapter_has_only_its_targets(tmp_path: Path) -> None:
    save(lora(tiny_llama(layers=3), target_modules=["v_proj", "down_proj"]), tmp_path)
    assert {(m.layer, m.module) for m in open_adapter(tmp_path).matrices} == {
        (layer, module) for layer in range(3) for module in ("v_proj", "down_proj")
    }


def test_what_has_no_layer_number_is_left_out(tmp_path: Path, base: Checkpoint) -> None:
    model = lora(tiny_llama(), target_modules=["q_proj", "embed_tokens", "lm_head"])
    shake(model)
    save(model, tmp_path)
    assert {m.module for m in open_adapter(tmp_path).bind(base).matrices} == {"q_proj"}


@pytest.mark.parametrize("name", ["DoRA", "IA3", "PiSSA", "VeRA"])
def test_w_t_that_needs_the_base_is_not_read_without(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    change_settings(tmp_path, base_model_name_or_path="someone/model")
    checkpoint = open_adapter(tmp_path)
    with pytest.raises(CheckpointError, match=r"W_t needs its base \(someone/model\)"):
        checkpoint.read(checkpoint.matrices[0])


@pytest.mark.parametrize("alpha", [None, "eight", [8], float("nan"), 10**400])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: object) -> None:
    save(lora(tiny_llama()), tmp_path)
    change_settings(tmp_path, lora_alpha=alpha)
    with pytest.raises(CheckpointError, match=r"adapter_config.json: lora_alpha must be a number"):
        open_adapter(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7"])
def test_broken_settings_are_an_error(tmp_path: Path, content: str) -> None:
    save(lora(tiny_llama()), tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json (cannot be|must hold)"):
        open_adapter(tmp_path)


def test_an_adapter_without_weights_is_an_error(tmp_path: Path) -> None:
    save(lora(tiny_llama()), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors does not exist"):
        open_adapter(tmp_path)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*", ".*.*.*.*x", "x" * 600, "(", "a{2}{3}"])
@pytest.mark.parametrize("setting", ["alpha_pattern", "rank_pattern"])
def test_patterns_that_could_take_forever_are_refused(
    setting: str, pattern: str, tmp_path: Path
) -> None:
    save(lora(tiny_llama()), tmp_path)
    change_settings(tmp_path, **{setting: {pattern: 4}})
    with pytest.raises(CheckpointError, match=r"adapter_config.json: .*(pattern|forever)"):
        open_adapter(tmp_path)


def test_other_methods_are_refused_with_advice(tmp_path: Path) -> None:
    save(
        adapt(tiny_llama(), lambda: peft.LNTuningConfig(target_modules=["input_layernorm"])),
        tmp_path,
    )
    with pytest.raises(CheckpointError, match=r"is a LN_TUNING adapter; read are LORA, .* Merge"):
        open_adapter(tmp_path)


def test_a_torch_file_is_read_like_a_safetensors_file(tmp_path: Path, base: Checkpoint) -> None:
    write("DoRA", tmp_path)
    before = open_adapter(tmp_path).bind(base)
    weights = [before.read(matrix) for matrix in before.matrices]
    file = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "adapter_model.bin")
    file.unlink()
    after = open_adapter(tmp_path).bind(base)
    assert after.matrices == before.matrices
    for matrix, weight in zip(after.matrices, weights, strict=True):
        assert after.read(matrix).same_as(weight)
