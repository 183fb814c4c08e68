"""Fused layers and experts are divided as the models themselves compute with them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from checkpoints_index.logical import LogicalMatrix, logical_matrices
from tests.checkpoints_index.architectures import (
    ARCHITECTURES,
    QKV,
    by_tensor,
    described,
    logical,
    tiny,
)

# What a model computes with.


class Products(TorchFunctionMode):
    """Records what is multiplied after a layer has run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        factors = tuple(kwargs[key] for key in ("batch1", "batch2") if key in kwargs)
        self.calls.append((getattr(func, "__name__", ""), (*args, *factors)))
        return func(*args, **kwargs)

    def attention(self) -> dict[str, Tensor]:
        """Query, key and value of the first token, each of shape (heads, length)."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for name, args in self.calls:
            if name == "scaled_dot_product_attention" and not pairs:
                return {p: t[..., 0, :].flatten(0, -2) for p, t in zip(QKV, args, strict=False)}
            if name in ("matmul", "bmm", "baddbmm") and len(pairs) < 2:
                pairs.append(args[-2:])
        (query, key), (_, value) = pairs
        found = (query[..., 0, :], key.transpose(-1, -2)[..., 0, :], value[..., 0, :])
        return {part: t.flatten(0, -2) for part, t in zip(QKV, found, strict=True)}

    def first_linear(self) -> Tensor:
        """Input of the first layer, for the first token."""
        inputs = next(args[0] for name, args in self.calls if name == "linear")
        return inputs.flatten(0, -2)[0]


def runs_after(name: str, paths: set[str]) -> dict[str, tuple[Tensor, Products]]:
    """The first token's input of some layers, and the products after each of them."""
    model, _ = tiny(name)
    inputs: dict[str, Tensor] = {}
    marks: dict[str, int] = {}
    hooks = []
    products = Products()

    def remember(path: str):
        def hook(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            inputs.setdefault(path, args[0].flatten(0, -2)[0])
            marks.setdefault(path, len(products.calls))

        return hook

    for path in paths:
        hooks.append(model.get_submodule(path).register_forward_hook(remember(path)))
    torch.manual_seed(1)
    with torch.no_grad(), products:
        ARCHITECTURES[name].run(model)
    for hook in hooks:
        hook.remove()
    found = {}
    for path in paths:
        after = Products()
        after.calls = products.calls[marks[path] :]
        found[path] = (inputs[path], after)
    return found


FUSED_ATTENTION = [
    name
    for name, line in ARCHITECTURES.items()
    if line.config
    in (
        "GPT2Config OpenAIGPTConfig ImageGPTConfig GPTBigCodeConfig CodeGenConfig GPTNeoXConfig "
        "BloomConfig FalconConfig PersimmonConfig Phi3Config MptConfig ModernBertConfig "
        "DebertaConfig MiniMaxConfig Qwen2VLConfig BlipVisionConfig DbrxConfig"
    ).split()
]


@pytest.mark.parametrize("name", FUSED_ATTENTION)
def test_queries_keys_and_values_are_what_attention_computes_with(name: str) -> None:
    model, _ = tiny(name)
    fused = {
        tensor.removesuffix(".weight"): parts
        for tensor, parts in by_tensor(name).items()
        if len(parts) > 1 and set(parts) <= set(QKV)
    }
    assert fused
    for path, (inputs, products) in runs_after(name, set(fused)).items():
        attention = products.attention()
        for part, matrix in fused[path].items():
            expected = matrix.of(model.get_parameter(f"{path}.weight").detach()) @ inputs
            # MiniMax's linear attention passes them through its activation first.
            expected = functional.silu(expected) if name == "MiniMax" else expected
            found = attention[part]
            expected = expected.view(-1, found.shape[-1])
            # Shared heads may have been repeated for the queries, and scaled by one factor.
            found = found[:: len(found) // len(expected)]
            factor = found.norm() / expected.norm()
            assert torch.allclose(found, factor * expected, atol=1e-4 * found.norm()), (path, part)


@pytest.mark.parametrize("name", ["Qwen3-Next", "Qwen3.5"])
def test_linear_attention_starts_from_its_queries_keys_and_values(name: str) -> None:
    model, _ = tiny(name)
    layer: Any = model.get_submodule("layers.0.linear_attn")
    fused = next(p for t, p in by_tensor(name).items() if "in_proj_qkv" in t)
    torch.manual_seed(5)
    inputs = torch.randn(32)
    weights = {part: m.of(model.get_parameter(m.tensor).detach()) for part, m in fused.items()}
    if name == "Qwen3-Next":
        with torch.no_grad():
            projected = layer.in_proj_qkvz(inputs)[None, None], layer.in_proj_ba(inputs)[None, None]
            expected = dict(
                zip(weights, layer.fix_query_key_value_ordering(*projected), strict=False)
            )
    else:
        sizes = [layer.key_dim, layer.key_dim, layer.value_dim]
        with torch.no_grad():
            expected = dict(zip(QKV, layer.in_proj_qkv(inputs).split(sizes), strict=True))
    assert set(expected) == set(weights)
    for part, found in expected.items():
        assert torch.allclose(weights[part] @ inputs, found.flatten(), atol=1e-5)


@pytest.mark.parametrize("name", ["Phi-3", "ModernBERT", "Granite-MoE"])
def test_gates_are_the_halves_that_are_activated(name: str) -> None:
    model, _ = tiny(name)
    halves = {
        tensor.removesuffix(".weight"): parts
        for tensor, parts in by_tensor(name).items()
        if set(parts) == {"gate_proj", "up_proj"} and "expert" not in parts["up_proj"].matrix.name
    }
    assert len(halves) == 2
    activation = functional.gelu if name == "ModernBERT" else functional.silu
    for path, (inputs, products) in runs_after(name, set(halves)).items():
        weight = model.get_parameter(f"{path}.weight").detach()
        gate, up = (halves[path][part].of(weight) @ inputs for part in ("gate_proj", "up_proj"))
        found = products.first_linear()
        assert torch.allclose(found, activation(gate) * up, atol=1e-4 * found.norm())


def silu_gated(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def gpt_oss_gated(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=7), up.clamp(min=-7, max=7)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


EXPERTS = {
    name: gpt_oss_gated if name == "gpt-oss" else silu_gated
    for name in (
        "Mixtral",
        "Qwen2-MoE",
        "gpt-oss",
        "Llama 4",
        "DeepSeek-V3",
        "DBRX",
        "Granite-MoE",
        "Jamba",
        "MiniMax",
    )
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_compute_what_their_matrices_say(name: str) -> None:
    model, _ = tiny(name)
    tensors = model.state_dict()
    experts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for m in logical(name):
        if found := re.fullmatch(r"(.*\bexperts\.\d+)\.(\w+)", m.matrix.name):
            module = {"w1": "gate_proj", "v1": "up_proj", "w2": "down_proj"}.get(found[2], found[2])
            experts[found[1]][module] = m.of(tensors[m.tensor])
    assert experts
    torch.manual_seed(2)
    inputs = torch.randn(1, 32)
    for path, matrices in experts.items():
        module, number = path.rsplit(".", 1)
        layer: Any = model.get_submodule(module)
        with torch.no_grad():
            if name == "Llama 4":
                every = layer(inputs.repeat(3, 1))
                found = every[int(number)]
            else:
                found = layer(inputs, torch.tensor([[int(number)]]), torch.ones(1, 1)).flatten()
        hidden = EXPERTS[name](matrices["gate_proj"] @ inputs[0], matrices["up_proj"] @ inputs[0])
        expected = matrices["down_proj"] @ hidden
        assert torch.allclose(found, expected, atol=1e-4 * expected.norm()), path


# What Transformers itself fuses, splits or transposes between file and memory.

RENAMED = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj", "output_linear": "down_proj"}


def key_of(matrix: LogicalMatrix) -> tuple[object, ...]:
    """What names one matrix in the file and in memory."""
    name = matrix.matrix.name
    expert = re.search(r"experts\.(\d+)\.", name)
    last = name.rsplit(".", 1)[-1]
    return (
        matrix.matrix.layer,
        expert and expert[1],
        "shared" in name,
        next((tower for tower in ("visual", "H_module", "L_module") if tower in name), None),
        RENAMED.get(last, last) if expert else last,
    )


@pytest.mark.parametrize("name", ["Mixtral", "Qwen2-MoE", "Granite-MoE", "Jamba", "Phi-3"])
def test_files_hold_the_matrices_that_are_loaded(name: str, tmp_path: Path) -> None:
    model, _ = tiny(name)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert_loaded(model, tmp_path)


_IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 8,
    "patch_size": 4,
    "use_swiglu_ffn": True,
}
_HALVES = ("gate_proj", "up_proj")
# The configuration, and which parts of fused layers there are to compare.
CONVERTED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "Molmo 2": (
        "Molmo2TextConfig",
        {**ARCHITECTURES["Llama"].settings, "head_dim": 8},
        (*QKV, *_HALVES),
    ),
    "GTE": ("GteConfig", ARCHITECTURES["BERT"].settings, (*QKV, *_HALVES)),
    "Nomic BERT": ("NomicBertConfig", ARCHITECTURES["BERT"].settings, QKV),
    "Jina 3": ("JinaEmbeddingsV3Config", ARCHITECTURES["BERT"].settings, QKV),
    "HRM": (
        "HrmTextConfig",
        {**ARCHITECTURES["BERT"].settings, "head_dim": 8},
        (*QKV, *_HALVES),
    ),
    "DINOv2": ("Dinov2Config", _IMAGE, _HALVES),
    "RADIO": ("RadioConfig", _IMAGE, QKV),
    "Sapiens 2": ("Sapiens2Config", _IMAGE, _HALVES),
    "TIPS 2": ("Tipsv2VisionConfig", _IMAGE, (*QKV, *_HALVES)),
    "Qwen3-VL-MoE": (
        "Qwen3VLMoeConfig",
        {
            "text_config": {
                **ARCHITECTURES["Mixtral"].settings,
                "head_dim": 8,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 4,
                "patch_size": 4,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
        },
        (*QKV, *_HALVES),
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_files_are_divided_as_transformers_divides_them(name: str, tmp_path: Path) -> None:
    import transformers

    kind, settings, parts = CONVERTED[name]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(getattr(transformers, kind)(**settings))
    model.save_pretrained(tmp_path)
    assert set(parts) <= assert_loaded(model, tmp_path)


def assert_loaded(model: nn.Module, folder: Path) -> set[object]:
    """Compare what both have; returns the modules that were compared."""
    stored = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    tensors = model.state_dict()
    in_memory = {key_of(m): m for m in logical_matrices(described(tensors), config)}
    on_disk = {key_of(m): m for m in logical_matrices(described(stored), config)}
    compared = [key for key in in_memory if key in on_disk]
    for key in compared:
        memory, disk = in_memory[key], on_disk[key]
        weight = disk.of(stored[disk.tensor])
        assert torch.equal(weight, memory.of(tensors[memory.tensor])), key
    return {key[-1] for key in compared}


# Architectures whose code is not in Transformers: which rows are whose, by their published code.


def rows_of(order: Tensor) -> list[int]:
    return order.flatten().tolist()


ROWS = torch.arange(64)
ELSEWHERE: dict[str, tuple[dict[str, Any], str, int, dict[str, Tensor]]] = {
    # x.split(hidden, dim=2)
    "Qwen": (
        {"model_type": "qwen"},
        "c_attn",
        48,
        dict(zip(QKV, ROWS[:48].split(16), strict=True)),
    ),
    # proj.unflatten(-1, (3, hidden))
    "Baichuan": (
        {"model_type": "baichuan"},
        "W_pack",
        48,
        dict(zip(QKV, ROWS[:48].unflatten(0, (3, 16)), strict=True)),
    ),
    # rearrange(qkv, "(h gs d) -> h gs d", gs=2 + groups); q = [:-2], k = [-2], v = [-1]
    "InternLM2": (
        {
            "model_type": "internlm2",
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "wqkv",
        64,
        {
            "q_proj": ROWS.view(2, 4, 8)[:, :2],
            "k_proj": ROWS.view(2, 4, 8)[:, 2],
            "v_proj": ROWS.view(2, 4, 8)[:, 3],
        },
    ),
    # x.split([heads * length, groups * length, groups * length])
    "ChatGLM, grouped": (
        {
            "model_type": "chatglm",
            "hidden_size": 32,
            "num_attention_heads": 4,
            "kv_channels": 8,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
        },
        "query_key_value",
        64,
        dict(zip(QKV, ROWS.split([32, 16, 16]), strict=True)),
    ),
    # x.view(heads, 3 * length), then split in three
    "ChatGLM": (
        {"model_type": "chatglm", "hidden_size": 16, "num_attention_heads": 2},
        "query_key_value",
        48,
        dict(zip(QKV, ROWS[:48].view(2, 3, 8).unbind(1), strict=True)),
    ),
    # up, gate = x.chunk(2): the audio tower's order is the other one
    "Phi-4's audio": (
        {"model_type": "phi4_multimodal", "audio_config": {"model_type": "phi4_multimodal_audio"}},
        "audio_embed.gate_up_proj",
        64,
        {"up_proj": ROWS[:32], "gate_proj": ROWS[32:]},
    ),
    # torch.nn.MultiheadAttention, in no matter which model
    "torch": ({}, "in_proj_weight", 48, dict(zip(QKV, ROWS[:48].chunk(3), strict=True))),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_rows_are_those_of_the_published_code(name: str) -> None:
    config, layer, size, expected = ELSEWHERE[name]
    stored = torch.arange(size, dtype=torch.float32)[:, None].repeat(1, 4)
    path = f"layers.0.attn.{layer}" + ("" if layer == "in_proj_weight" else ".weight")
    found = {
        m.matrix.module: m.of(stored)[:, 0].long()
        for m in logical_matrices(described({path: stored}), config)
    }
    assert {part: rows_of(rows) for part, rows in found.items()} == {
        part: rows_of(rows) for part, rows in expected.items()
    }
