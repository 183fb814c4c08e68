"""W_t of adapters: PEFT's own merge for every method that is read, and clear words for others."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from checkpoints_index import Checkpoint, CheckpointError, find_checkpoints, open_model
from tests.checkpoints_index.adapted import METHODS, adapt, adapted, save, write
from tests.helpers import (
    MODULES,
    attention_weights,
    lora,
    shake,
    tiny_llama,
    tiny_model_folder,
)

EPS = torch.finfo(torch.float32).eps
# Methods that PEFT is needed for only because W_t is not W_0 + B A.
MERGED_BY_PEFT = [name for name, method in METHODS.items() if method.rank is None]
LOW_RANK = [name for name, method in METHODS.items() if method.rank is not None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_model(tiny_model_folder(tmp_path_factory.mktemp("float32")))


@pytest.fixture(scope="module")
def half_base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("bfloat16")
    return open_model(tiny_model_folder(folder, dtype=torch.bfloat16))


def open_adapter(folder: Path) -> Checkpoint:
    (checkpoint,) = find_checkpoints(folder)
    return checkpoint


def change_settings(folder: Path, **changes: object) -> None:
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


def deviation(checkpoint: Checkpoint, truth: dict[str, torch.Tensor], dtype: torch.dtype) -> float:
    """Largest error of W_t relative to the largest entry, in units of the dtype's rounding."""
    w_0 = attention_weights(tiny_llama(dtype=dtype))
    assert {m.name for m in checkpoint.matrices} == set(truth)
    worst = 0.0
    for matrix in checkpoint.matrices:
        merged = truth[matrix.name].double()
        found = checkpoint.read(matrix).on(w_0[matrix.name])
        size = max(merged.abs().max().item(), w_0[matrix.name].abs().max().item())
        error = (found - merged).abs().max().item() / size
        moved = (merged - w_0[matrix.name].double()).abs().max().item() / size
        assert moved > 1e-3, "an update this small would prove nothing"
        worst = max(worst, error / torch.finfo(dtype).eps)
    return worst


@pytest.mark.parametrize("name", METHODS)
def test_w_t_is_pefts_own_merge(name: str, tmp_path: Path, base: Checkpoint) -> None:
    merged = write(name, tmp_path)
    # PEFT merges in float32: a few roundings in the update's products, one in the sum.
    assert deviation(open_adapter(tmp_path).bind(base), merged, torch.float32) < 8


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "PiSSA", "OLoRA", "VeRA", "OFT", "LoKr", "IA3"])
def test_w_t_on_a_bfloat16_base(name: str, tmp_path: Path, half_base: Checkpoint) -> None:
    merged = write(name, tmp_path, torch.bfloat16)
    # The merge rounds the update and the sum, that of PiSSA and OLoRA the residual too.
    assert deviation(open_adapter(tmp_path).bind(half_base), merged, torch.bfloat16) < 2


@pytest.mark.parametrize("name", METHODS)
def test_only_what_has_a_low_rank_comes_as_factors(
    name: str, tmp_path: Path, base: Checkpoint
) -> None:
    write(name, tmp_path)
    checkpoint = open_adapter(tmp_path).bind(base)
    for matrix in checkpoint.matrices:
        weight = checkpoint.read(matrix)
        assert weight.dense is None
        assert matrix.rank == METHODS[name].rank
        if METHODS[name].rank is None:
            assert weight.update is None
            assert weight.delta is not None
            assert weight.delta.dtype == torch.float64
        else:
            assert weight.update is not None
            assert weight.update[0].shape == (matrix.shape[0], matrix.rank)
            assert weight.update[1].shape == (matrix.rank, matrix.shape[1])
            assert {factor.dtype for factor in weight.update} == {torch.float64}


@pytest.mark.parametrize("name", [n for n in LOW_RANK if not n.startswith(("PiSSA", "OLoRA"))])
def test_factors_are_exact(name: str, tmp_path: Path, base: Checkpoint) -> None:
    write(name, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(tiny_llama(dtype=torch.float64), str(tmp_path))
    loaded.double()
    checkpoint = open_adapter(tmp_path).bind(base)
    for matrix in checkpoint.matrices:
        update = checkpoint.read(matrix).update
        assert update is not None
        layer: Any = loaded.get_base_model().get_submodule(matrix.name)
        delta = layer.get_delta_weight("default").detach()
        tolerance = 32 * torch.finfo(torch.float64).eps * delta.abs().max().item()
        torch.testing.assert_close(update[0] @ update[1], delta, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.start is not None])
def test_an_untrained_adapter_changes_nothing(name: str, tmp_path: Path, base: Checkpoint) -> None:
    save(adapted(name), tmp_path)
    checkpoint = open_adapter(tmp_path).bind(base)
    w_0 = attention_weights(tiny_llama())
    for matrix in checkpoint.matrices:
        before = w_0[matrix.name].double()
        change = (checkpoint.read(matrix).on(w_0[matrix.name]) - before).abs().max().item()
        assert change <= (METHODS[name].start or 0.0) * before.abs().max().item()


# What the headers tell.


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


@pytest.mark.parametrize("name", [*MERGED_BY_PEFT[:2], "PiSSA", "VeRA"])
def test_w_t_that_needs_the_base_is_not_read_without(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    change_settings(tmp_path, base_model_name_or_path="someone/model")
    checkpoint = open_adapter(tmp_path)
    with pytest.raises(CheckpointError, match=r"W_t needs its base \(someone/model\)"):
        checkpoint.read(checkpoint.matrices[0])


# Adapters that someone gave a name, whole modules, and bases.


def test_an_adapter_of_any_name_is_read(tmp_path: Path, base: Checkpoint) -> None:
    model = adapted("LoRA")
    model.add_adapter("other", METHODS["DoRA"].config())
    model.set_adapter("other")
    shake(model)
    save(model, tmp_path, selected_adapters=["other"])
    merged = attention_weights(model.merge_and_unload())
    assert deviation(open_adapter(tmp_path / "other").bind(base), merged, torch.float32) < 8


def test_wholly_saved_modules_are_dense(tmp_path: Path, base: Checkpoint) -> None:
    options: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["v_proj"]}
    model = lora(tiny_llama(), **options)
    shake(model)
    save(model, tmp_path)
    checkpoint = open_adapter(tmp_path).bind(base)
    merged = attention_weights(model.merge_and_unload())
    assert deviation(checkpoint, merged, torch.float32) < 8
    for matrix in checkpoint.matrices:
        dense = checkpoint.read(matrix).dense
        assert (matrix.module == "v_proj") == (dense is not None)
        assert dense is None or torch.equal(dense, merged[matrix.name])


def test_a_layer_that_the_base_lacks_is_missed_only_where_it_is_read(
    tmp_path: Path, base: Checkpoint
) -> None:
    save(lora(tiny_llama(layers=3)), tmp_path)
    checkpoint = open_adapter(tmp_path).bind(base)
    first, *_, last = checkpoint.matrices
    checkpoint.read(first)
    with pytest.raises(CheckpointError, match=r"no matrix 'model\.layers\.2\.self_attn\.v_proj'"):
        checkpoint.read(last)


def test_a_base_without_any_of_the_layers_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    save(lora(tiny_llama()), tmp_path)
    folder = tmp_path / "adapter_model.safetensors"
    tensors = load_file(folder)
    save_file({k.replace("layers", "blocks"): v for k, v in tensors.items()}, folder)
    change_settings(tmp_path, base_model_name_or_path="someone/model")
    with pytest.raises(CheckpointError, match=r"none of the 4 layers .*blocks\.0.*'someone/model'"):
        open_adapter(tmp_path).bind(base)


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model with layers of the same names and of other shapes."""
    folder = tmp_path_factory.mktemp("other")
    sizes = {"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 8}
    config = LlamaConfig(num_attention_heads=2, **sizes)  # type: ignore[arg-type]
    LlamaForCausalLM(config).save_pretrained(folder)
    return open_model(folder)


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "VeRA", "AdaLoRA", "SORSA"])
def test_a_base_of_other_shapes_is_refused(
    name: str, tmp_path: Path, other_base: Checkpoint
) -> None:
    write(name, tmp_path)
    with pytest.raises(CheckpointError, match=r"q_proj has shape \(24, 24\) in the base"):
        open_adapter(tmp_path).bind(other_base)


@pytest.mark.parametrize("name", ["LoHa", "OFT", "IA3", "RandLoRA", "SHiRA"])
def test_tensors_that_do_not_fit_the_base_are_refused(
    name: str, tmp_path: Path, other_base: Checkpoint
) -> None:
    write(name, tmp_path)
    checkpoint = open_adapter(tmp_path).bind(other_base)
    with pytest.raises(CheckpointError, match=r"PEFT .* cannot merge layer 'model\.layers\.0"):
        checkpoint.read(checkpoint.matrices[0])


# Settings that no adapter of PEFT's has.


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


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_replication": [[0, 2], [1, 2]]},
        {"alora_invocation_tokens": [3]},
        {"target_parameters": ["experts.gate_up_proj"]},
        {"init_lora_weights": "loftq"},
        {"use_dora": True, "init_lora_weights": "pissa"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_loras_whose_w_t_is_not_had_are_refused(
    changes: dict[str, Any], tmp_path: Path, base: Checkpoint
) -> None:
    write("LoRA", tmp_path)
    change_settings(tmp_path, **changes)
    checkpoint = open_adapter(tmp_path)
    option = next(iter(changes)) if "use_dora" not in changes else "init_lora_weights"
    with pytest.raises(CheckpointError, match=rf"is a LoRA with .*{option}.*Merge it"):
        checkpoint.bind(base)
