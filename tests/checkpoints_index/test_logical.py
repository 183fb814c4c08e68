"""Every weight of a model's layers is in one logical matrix, and read without more."""

from __future__ import annotations

import pickle
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpoints_index.errors import CheckpointError
from checkpoints_index.logical import logical_matrices
from checkpoints_index.tensors import StoredTensor
from tests.checkpoints_index.architectures import (
    ARCHITECTURES,
    QKV,
    by_tensor,
    logical,
    tiny,
)


def linear_parameters(model: nn.Module) -> set[str]:
    """The parameters of a model's layers that are multiplied with vectors, by their types."""
    found = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            numbered = any(part.isdigit() for part in name.split("."))
            last = name.rsplit(".", 1)[-1]
            expert = parameter.ndim == 3 and (
                "experts" in name or "Experts" in type(module).__name__
            )
            dbrx = parameter.ndim == 2 and type(module).__name__ == "DbrxExpertGLU"
            matrix = (
                parameter.ndim == 2 and last == "weight" and not isinstance(module, nn.Embedding)
            )
            if numbered and (expert or dbrx or matrix):
                found.add(name)
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_of_the_layers_is_in_one_matrix(name: str) -> None:
    model, _ = tiny(name)
    expected = linear_parameters(model)
    # Every number of the model is another one, so that none can stand for another.
    tensors, count = {}, 0
    for path, tensor in model.state_dict().items():
        tensors[path] = torch.arange(count, count + tensor.numel()).view(tensor.shape)
        count += tensor.numel()
    found: dict[str, list[Tensor]] = defaultdict(list)
    for matrix in logical(name):
        part = matrix.of(tensors[matrix.tensor])
        assert tuple(part.shape) == matrix.matrix.shape
        found[matrix.tensor].append(part.flatten())
    assert set(found) == expected
    for path, parts in found.items():
        assert torch.equal(torch.cat(parts).sort().values, tensors[path].flatten())


# Reading no more than is needed, in any process.


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_run_of_rows_is_all_that_is_read(name: str) -> None:
    model, _ = tiny(name)
    tensors = model.state_dict()
    for matrix in pickle.loads(pickle.dumps(logical(name))):
        stored = tensors[matrix.tensor]
        if matrix.rows is not None:
            assert 0 <= matrix.rows.start < matrix.rows.stop <= stored.shape[0]
            assert matrix.rows.stop - matrix.rows.start < stored.shape[0] or stored.shape[0] == 1
            run = stored[matrix.rows].clone()
            assert torch.equal(matrix.take(run), matrix.of(stored))


@pytest.mark.parametrize("name", ["GPT-2", "Phi-3", "MPT", "Mixtral", "Llama 4", "DBRX", "Llama"])
def test_matrices_are_views_of_what_is_stored(name: str) -> None:
    model, _ = tiny(name)
    tensors = model.state_dict()
    for matrix in logical(name):
        stored = tensors[matrix.tensor]
        part = matrix.of(stored)
        assert part.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", ["Phi-3", "MPT", "GPT-BigCode", "DBRX", "ModernBERT"])
def test_stacked_queries_keys_and_values_are_read_alone(name: str) -> None:
    parts = [p for p in by_tensor(name).values() if set(p) == set(QKV)]
    assert parts
    assert all(matrix.rows is not None for found in parts for matrix in found.values())


# Adapters of fused layers.


@pytest.mark.parametrize("name", ["GPT-2", "Falcon, new", "Phi-3", "CodeGen", "GPT-NeoX", "Llama"])
def test_parts_of_an_update_are_updates_of_the_parts(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    fused = {m.layer_path.rsplit(".", 1)[-1] for m in logical(name) if m.matrix.layer == 0}
    conv1d = name == "GPT-2"
    settings = LoraConfig(r=3, lora_alpha=6, target_modules=sorted(fused), fan_in_fan_out=conv1d)
    torch.manual_seed(3)
    model, _ = tiny(name)
    adapted = get_peft_model(_copy(model), settings)
    layers = {
        path.removeprefix("base_model.model."): layer
        for path, layer in adapted.named_modules()
        if hasattr(layer, "lora_A")
    }
    before = model.state_dict()
    seen = 0
    for matrix in logical(name):
        layer = layers[matrix.layer_path]
        a, b = (getattr(layer, f"lora_{x}")["default"].weight.detach() for x in "AB")
        b.normal_()
        expected = matrix.of(layer.get_delta_weight("default").detach())
        part_b, part_a = matrix.of_update(b, a)
        assert torch.allclose(2 * part_b @ part_a, expected, atol=1e-5)
        assert expected.shape == matrix.of(before[matrix.tensor]).shape
        seen += 1
    assert seen >= 12


def _copy(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def test_experts_have_no_factors_in_common() -> None:
    expert = next(m for m in logical("Mixtral") if "experts.1." in m.matrix.name)
    with pytest.raises(ValueError, match="holds many experts. Take the matrix from the dense upd"):
        expert.of_update(torch.ones(2, 1), torch.ones(1, 2))


# What is no matrix, and what cannot be.


def test_what_is_no_matrix_of_a_layer_is_left_out() -> None:
    tensors = {
        "layers.0.mlp.up_proj.weight": StoredTensor((4, 2), "float32"),
        "layers.0.mlp.up_proj.bias": StoredTensor((4,), "float32"),
        "layers.0.input_layernorm.weight": StoredTensor((2,), "float32"),
        "layers.0.self_attn.rotary_emb.inv_freq": StoredTensor((2,), "float32"),
        "layers.0.attn.relative_attention_bias.weight": StoredTensor((32, 4), "float32"),
        "layers.0.attn.relative_position_bias_table": StoredTensor((9, 4), "float32"),
        "layers.0.mlp.experts.gate_up_proj_bias": StoredTensor((4, 8), "float32"),
        "layers.0.mixer.A_log": StoredTensor((4, 8), "float32"),
        "layers.0.mixer.conv1d.weight": StoredTensor((4, 1, 8), "float32"),
        "layers.0.mlp.packed.weight": StoredTensor((4, 2), "uint8"),
        "layers.0.mlp.empty.weight": StoredTensor((0, 2), "float32"),
        "layers.0.scalar": StoredTensor((), "float32"),
        "embed_tokens.weight": StoredTensor((9, 2), "float32"),
        "lm_heads.0.weight": StoredTensor((9, 2), "float32"),
        "lm_head.weight": StoredTensor((9, 2), "float32"),
        # Numbers that no list of layers has.
        "layers.00.mlp.up_proj.weight": StoredTensor((9, 2), "float32"),
        f"layers.{'9' * 5000}.mlp.up_proj.weight": StoredTensor((9, 2), "float32"),
        "layers.٣.mlp.up_proj.weight": StoredTensor((9, 2), "float32"),
    }
    assert [m.tensor for m in logical_matrices(tensors)] == ["layers.0.mlp.up_proj.weight"]


def test_two_tensors_of_one_layer_are_an_error() -> None:
    stored = StoredTensor((4, 2), "float32")
    tensors = {"module.layers.0.fc.weight": stored, "layers.0.fc.weight": stored}
    with pytest.raises(CheckpointError, match="but 'module.layers.0.fc.weight' and 'layers.0.fc.w"):
        logical_matrices(tensors)


def test_more_experts_than_there_can_be_are_an_error() -> None:
    tensors = {"layers.0.experts.w1": StoredTensor((10**9, 1, 1), "float32")}
    with pytest.raises(CheckpointError, match="at most 65536 experts, .* has 1000000000"):
        logical_matrices(tensors)
    sizes = {"layers.0.ffn.experts.mlp.w1": StoredTensor((10, 4), "float32")}
    config = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 3}}
    with pytest.raises(CheckpointError, match="has 10 rows, which do not divide among the 3 exp"):
        logical_matrices(sizes, config)
