"""Logical matrices are what the models compute with: truth is their own forward pass."""

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

from checkpoints_index import matches
from checkpoints_index.logical import LogicalMatrix, logical_matrices
from checkpoints_index.matrices import torch_dtype_name
from checkpoints_index.tensors import StoredTensor
from tests.checkpoints_index.architectures import ARCHITECTURES, tiny

QKV = ("q_proj", "k_proj", "v_proj")


def described(tensors: dict[str, Tensor]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(tuple(t.shape), torch_dtype_name(t.dtype)) for name, t in tensors.items()
    }


def logical(name: str) -> list[LogicalMatrix]:
    model, config = tiny(name)
    return logical_matrices(described(model.state_dict()), config)


def by_tensor(name: str) -> dict[str, dict[str, LogicalMatrix]]:
    """The matrices of each stored tensor, by the last part of their names."""
    found: dict[str, dict[str, LogicalMatrix]] = defaultdict(dict)
    for matrix in logical(name):
        found[matrix.tensor][matrix.matrix.name.rsplit(".", 1)[-1]] = matrix
    return found


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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_labels_are_unique_and_the_expected_ones(name: str) -> None:
    matrices = [m.matrix for m in logical(name)]
    assert len({m.name for m in matrices}) == len(matrices)
    assert len({(m.layer, m.module) for m in matrices}) == len(matrices)
    assert set(ARCHITECTURES[name].modules) <= {m.module for m in matrices}
    assert all(matches(m.name, [m.module], m.module) for m in matrices)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_linear_is_every_matrix(name: str) -> None:
    model, _ = tiny(name)
    assert all(matches(m.matrix.name, ["all-linear"], m.matrix.module) for m in logical(name))
    embeddings = [n for n, m in model.named_modules() if isinstance(m, nn.Embedding)]
    assert not any(matches(n, ["all-linear"]) for n in embeddings)


# What a model computes with.


class Products(TorchFunctionMode):
    """Records what is multiplied after a layer has run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
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
            expected = matrix.of(model.get_submodule(path).weight.detach()) @ inputs
            # MiniMax's linear attention passes them through its activation first.
            expected = functional.silu(expected) if name == "MiniMax" else expected
            found = attention[part]
            expected = expected.view(-1, found.shape[-1])
            # Shared heads may have been repeated for the queries, and scaled by one factor.
            found = found[:: len(found) // len(expected)]
            factor = found.norm() / expected.norm()
            assert torch.allclose(found, factor * expected, atol=1e-4 * found.norm()), (path, part)


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
        weight = model.get_submodule(path).weight.detach()
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
        layer = model.get_submodule(module)
        with torch.no_grad():
            if name == "Llama 4":
                every = layer(inputs.repeat(layer.num_experts, 1))
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
        "visual" in name,
        RENAMED.get(last, last) if expert else last,
    )


@pytest.mark.parametrize("name", ["Mixtral", "Qwen2-MoE", "Granite-MoE", "Jamba", "Phi-3"])
def test_files_hold_the_matrices_that_are_loaded(name: str, tmp_path: Path) -> None:
    model, _ = tiny(name)
    model.save_pretrained(tmp_path)
    assert_loaded(model, tmp_path)


CONVERTED: dict[str, tuple[str, dict[str, Any]]] = {
    "Molmo 2": (
        "Molmo2TextConfig",
        {**ARCHITECTURES["Llama"].settings, "head_dim": 8},
    ),
    "GTE": ("GteConfig", ARCHITECTURES["BERT"].settings),
    "Nomic BERT": ("NomicBertConfig", ARCHITECTURES["BERT"].settings),
    "Jina 3": ("JinaEmbeddingsV3Config", ARCHITECTURES["BERT"].settings),
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
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_files_are_divided_as_transformers_divides_them(name: str, tmp_path: Path) -> None:
    import transformers

    kind, settings = CONVERTED[name]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(getattr(transformers, kind)(**settings))
    model.save_pretrained(tmp_path)
    assert_loaded(model, tmp_path)


def assert_loaded(model: nn.Module, folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    tensors = model.state_dict()
    in_memory = {key_of(m): m for m in logical_matrices(described(tensors), config)}
    on_disk = {key_of(m): m for m in logical_matrices(described(stored), config)}
    compared = [key for key in in_memory if key in on_disk]
    assert {"q_proj", "k_proj", "v_proj"} <= {key[-1] for key in compared}
    assert len(compared) >= 6
    for key in compared:
        memory, disk = in_memory[key], on_disk[key]
        weight = disk.of(stored[disk.tensor])
        assert torch.equal(weight, memory.of(tensors[memory.tensor])), key
