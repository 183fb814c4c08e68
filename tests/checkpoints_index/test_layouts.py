"""A configuration that does not tell, or is wrong, or is hostile."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from checkpoints_index.errors import CheckpointError
from checkpoints_index.logical import logical_matrices
from checkpoints_index.tensors import StoredTensor
from tests.checkpoints_index.architectures import (
    described,
    tiny,
)

NEOX = {"model_type": "gpt_neox", "hidden_size": 32, "num_attention_heads": 4}
FUSED = {"gpt_neox.layers.0.attention.query_key_value.weight": StoredTensor((96, 32), "float32")}


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"model_type": "never-heard-of", "num_attention_heads": 4, "hidden_size": 32},
        {"model_type": None},
        {"model_type": "gpt_neox", "hidden_size": 32},
        {"model_type": "gpt_neox", "num_attention_heads": 4},
    ],
)
def test_without_a_configuration_that_tells_a_fused_layer_stays_as_stored(config) -> None:
    (matrix,) = logical_matrices(FUSED, config)
    assert matrix.matrix.name == "gpt_neox.layers.0.attention.query_key_value"
    assert matrix.matrix.module == "query_key_value"
    assert matrix.matrix.shape == (96, 32)
    assert matrix.rows is None
    weight = torch.randn(96, 32)
    assert torch.equal(matrix.of(weight), weight)


def test_without_a_configuration_experts_are_parts_as_stored() -> None:
    tensors = {"layers.2.mlp.experts.gate_up_proj": StoredTensor((3, 8, 10), "bfloat16")}
    found = [m.matrix for m in logical_matrices(tensors)]
    assert [(m.layer, m.module, m.shape) for m in found] == [
        (2, f"experts.{e}.gate_up_proj", (8, 10)) for e in range(3)
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**NEOX, "hidden_size": 64}, "has 96 outputs, but by .* 16 . 16 . 16 .* in each of 4 bl"),
        ({**NEOX, "num_attention_heads": 5}, "a width of 32 among 5 heads, which does not go"),
        ({**NEOX, "num_attention_heads": "4"}, "must give num_attention_heads as a positive num"),
        ({**NEOX, "num_attention_heads": -4}, "positive number, to divide .*it gives -4"),
        ({**NEOX, "num_attention_heads": True}, "it gives True. Repair config.json"),
        ({**NEOX, "num_attention_heads": 10**30}, "it gives 1000"),
        ({**NEOX, "hidden_size": [32]}, r"must give hidden_size .* it gives \[32\]"),
        ({**NEOX, "model_type": 7}, "must give model_type as a text, it gives 7"),
        ({"model_type": "falcon", "multi_query": "no"}, "give multi_query as true or false"),
        (
            {
                **NEOX,
                "model_type": "falcon",
                "new_decoder_architecture": True,
                "num_kv_heads": 3,
            },
            "divides 4 query heads among 3 key and value heads",
        ),
        ([], "must be an object of settings, got list"),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_an_error(config, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        logical_matrices(FUSED, config)


HOSTILE: list[Any] = [None, "4", -1, 0, 10**40, 1.5, float("nan"), True, [], [1], {}, {"a": {}}]


@pytest.mark.parametrize("name", ["GPT-2", "Falcon, new", "Phi-3", "DBRX", "Qwen2-VL", "gpt-oss"])
def test_a_hostile_configuration_ends_in_matrices_or_a_checkpoint_error(name: str) -> None:
    model, config = tiny(name)
    tensors = described(model.state_dict())
    for key in config:
        for value in HOSTILE:
            try:
                matrices = logical_matrices(tensors, {**config, key: value})
            except CheckpointError:
                continue
            assert matrices


def test_configurations_nested_in_themselves_end() -> None:
    config: dict[str, Any] = dict(NEOX)
    config["text_config"] = config
    assert len(logical_matrices(FUSED, config)) == 3


def test_any_tensors_and_settings_end_in_matrices_or_a_checkpoint_error() -> None:
    generator = random.Random(0)
    parts = (
        "0 1 layers h attn experts mlp c_attn qkv_proj query_key_value gate_up_proj w2 q ü".split()
    )
    parts += ["in_proj_weight", "weight", "crossattention", "vision", ""]
    types = ["gpt2", "falcon", "phi3", "dbrx", "gpt_oss", "codegen", "qwen3_next", "", None, 3]
    names = ["num_attention_heads", "hidden_size", "num_kv_heads", "vision_config", "head_dim"]
    names += ["ffn_config", "linear_num_key_heads", "multi_query", "encoder", "text_config"]
    sizes = [0, 1, 2, 3, 12, 96]
    refused, divided = 0, 0
    for _ in range(4000):
        tensors = {
            ".".join(generator.choices(parts, k=generator.randint(1, 6))): StoredTensor(
                tuple(generator.choices(sizes, k=generator.randint(0, 4))),
                generator.choice(["float32", "int8", "unknown"]),
            )
            for _ in range(6)
        }
        config = {name: generator.choice([*HOSTILE, 1, 2, 4, 32]) for name in names}
        config["model_type"] = generator.choice(types)
        try:
            found = logical_matrices(tensors, config)
        except CheckpointError:
            refused += 1
            continue
        for matrix in found:
            shape = tensors[matrix.tensor].shape
            divided += matrix.matrix.name != matrix.layer_path
            assert tuple(matrix.of(torch.zeros(shape)).shape) == matrix.matrix.shape
    assert refused > 100 and divided > 100
