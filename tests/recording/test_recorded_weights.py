"""What is recorded of every kind of layer: W_t as PEFT merges it, matrices as the index has it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from checkpoints_index import Checkpoint, Matrix, open_model
from checkpoints_index.snapshots import Snapshot
from spectra.methods import LoraXsConfig, MiloraConfig, SorsaConfig, SvfConfig, SvftConfig
from spectra.recording.layers import find_layers
from tests.checkpoints_index.adapted import adapt
from tests.checkpoints_index.architectures import ARCHITECTURES, tiny
from tests.helpers import MODULES, attention_weights, seeded, shake, tiny_llama, token_rows
from tests.recording.recorded import record, weights, write_base, write_step

# A merge in float32 rounds the product, its scaling, the sum, and what DoRA multiplies with.
ROUNDINGS = 16 * torch.finfo(torch.float32).eps


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        atol = ROUNDINGS * weight.abs().max().item()
        torch.testing.assert_close(found[name], weight.double(), rtol=0, atol=atol)


# Adapters of a model whose layers are not fused.


def _on(kind: Callable[..., peft.PeftConfig], **options: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: kind(**({"target_modules": list(MODULES)} | options))


PATTERNS: dict[str, Any] = {
    "r": 3,
    "rank_pattern": {"q_proj": 5, "layers.1.self_attn.v_proj": 2},
    "alpha_pattern": {"layers.0.self_attn.q_proj": 3},
}
METHODS: dict[str, tuple[str, Callable[[], peft.PeftConfig]]] = {
    "LoRA": ("lora", _on(peft.LoraConfig, r=3)),
    "rsLoRA": ("lora", _on(peft.LoraConfig, r=3, use_rslora=True)),
    "LoRA, ranks and alphas by layer": ("lora", _on(peft.LoraConfig, **PATTERNS)),
    "LoRA, orthogonal": ("lora", _on(peft.LoraConfig, r=4, init_lora_weights="orthogonal")),
    "LoRA, gaussian": ("lora", _on(peft.LoraConfig, r=3, init_lora_weights="gaussian")),
    "LoRA with biases": ("lora", _on(peft.LoraConfig, r=3, bias="all")),
    "MiCA": ("lora", _on(peft.LoraConfig, r=3, init_lora_weights="mica")),
    "DoRA": ("dora", _on(peft.LoraConfig, r=3, use_dora=True)),
    "DoRA, ranks and alphas by layer": ("dora", _on(peft.LoraConfig, use_dora=True, **PATTERNS)),
    "PiSSA": ("pissa", _on(peft.LoraConfig, r=3, init_lora_weights="pissa")),
    "PiSSA, fast": ("pissa", _on(peft.LoraConfig, r=3, init_lora_weights="pissa_niter_4")),
    "PiSSA, ranks and alphas by layer": (
        "pissa",
        _on(peft.LoraConfig, init_lora_weights="pissa", use_rslora=True, **PATTERNS),
    ),
    "OLoRA": ("olora", _on(peft.LoraConfig, r=3, init_lora_weights="OLoRA")),
    "AdaLoRA": ("adalora", _on(peft.AdaLoraConfig, init_r=4, total_step=10)),
    "AdaLoRA without alpha": (
        "adalora",
        _on(peft.AdaLoraConfig, init_r=4, total_step=10, lora_alpha=0),
    ),
    "SORSA": ("sorsa", _on(SorsaConfig, r=3)),
    "MiLoRA": ("milora", _on(MiloraConfig, r=3)),
    "SVF": ("svf", _on(SvfConfig)),
    "SVFT": ("svft", _on(SvftConfig)),
    "SVFT, banded": ("svft", _on(SvftConfig, pattern="banded", off_diagonals=2)),
    "SVFT, random": ("svft", _on(SvftConfig, pattern="random", off_diagonals=2)),
    "LoRA-XS": ("lora-xs", _on(LoraXsConfig, r=3)),
}


def merged(model: Any, modules: tuple[str, ...] = MODULES) -> dict[str, Tensor]:
    """W_t as PEFT merges it, of a copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return attention_weights(copy.deepcopy(model).merge_and_unload(), modules)


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_those_of_the_merged_model(name: str, tmp_path: Path) -> None:
    method, config = METHODS[name]
    model = adapt(tiny_llama(), config)
    layers = find_layers(model, MODULES)
    assert {layer.method for layer in layers} == {method}
    base = write_base(tmp_path, layers)
    before = weights(write_step(tmp_path, layers, 0))
    assert_close(before, merged(model))
    shake(model, size=0.3)
    after = weights(write_step(tmp_path, layers, 1))
    assert_close(after, merged(model))
    moved = [(after[n] - before[n]).abs().max() for n in before]
    assert min(moved) > 1e-3
    # W_0 is the weight before the method touched it, but for the rounding of what it subtracted.
    w_0 = {m.name: base.read(m).on(torch.empty(m.shape)) for m in base.matrices}
    assert_close(w_0, attention_weights(tiny_llama()))


def _with_corda(model: Any, config: peft.LoraConfig) -> None:
    from peft.tuners.lora.corda import preprocess_corda

    model.eval()
    preprocess_corda(model, config, run_model=lambda: model(token_rows(rows=1, length=100)))


def _with_lora_ga(model: Any, config: peft.LoraConfig) -> None:
    from peft.tuners.lora.loraga import preprocess_loraga

    def train_step() -> None:
        rows = token_rows()
        model(input_ids=rows, labels=rows).loss.backward()

    preprocess_loraga(model, config, train_step)


def _corda() -> peft.LoraConfig:
    from peft.tuners.lora.config import CordaConfig

    return _from_data("corda", corda_config=CordaConfig(corda_method="kpm"))


def _lora_ga() -> peft.LoraConfig:
    return _from_data("lora_ga", lora_ga_config=peft.LoraGAConfig())


def _from_data(start: Any, **options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(r=3, target_modules=list(MODULES), init_lora_weights=start, **options)


@pytest.mark.parametrize(
    ("method", "config", "prepare"),
    [("corda", _corda, _with_corda), ("lora_ga", _lora_ga, _with_lora_ga)],
)
def test_starts_from_data_are_recorded_too(
    method: str, config: Callable[[], Any], prepare: Callable[[Any, Any], None], tmp_path: Path
) -> None:
    model = tiny_llama()
    settings = config()
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare(model, settings)
    adapted = adapt(model, lambda: settings)
    layers = find_layers(adapted, MODULES)
    assert {layer.method for layer in layers} == {method}
    base = write_base(tmp_path, layers)
    shake(adapted, size=0.3)
    snapshot = write_step(tmp_path, layers)
    assert_close(weights(snapshot), merged(adapted))
    w_0 = {m.name: base.read(m).on(torch.empty(m.shape)) for m in base.matrices}
    assert_close(w_0, attention_weights(tiny_llama()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nothing_is_lost_of_a_base_that_was_rewritten_in_low_precision(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = adapt(tiny_llama(dtype=dtype), METHODS["PiSSA"][1])
    layers = find_layers(model, MODULES)
    base = write_base(tmp_path, layers)
    step_0 = write_step(tmp_path, layers, 0)
    for matrix in base.matrices:
        layer = model.get_submodule(f"base_model.model.{matrix.name}")
        b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        scaled = layer.scaling["default"] * (b.double() @ a.double())
        expected = layer.get_base_layer().weight.double() + scaled
        w_0 = base.read(matrix).dense
        assert w_0 is not None
        torch.testing.assert_close(w_0, expected, rtol=0, atol=1e-15)
        # Untrained, it is W_0 exactly, and says so.
        weight = step_0.read(matrix)
        assert weight.update is None and weight.dense is None and weight.delta is None
    assert {m.dtype for m in base.matrices} == {"float64"}


# Layers that are fused, stored transposed, or many experts in one tensor.

SAVED_AS_THEY_ARE = (
    "GPT-2",
    "GPT-2 with cross attention",
    "GPT-NeoX",
    "GPT-BigCode",
    "CodeGen",
    "Falcon, new",
    "Phi-3",
    "MPT",
    "ModernBERT",
    "DeBERTa",
    "Qwen3-Next",
    "Qwen2-VL",
    "Qwen2-MoE",
    "gpt-oss",
    "Llama 4",
    "DBRX",
    "Jamba",
    "Hiera",
    "T5",
    "ALBERT",
)
"""Of `ARCHITECTURES`, those that Transformers stores under the names that it computes with."""


@pytest.mark.parametrize("name", SAVED_AS_THEY_ARE)
def test_matrices_are_those_that_the_index_finds_in_the_saved_model(
    name: str, tmp_path: Path
) -> None:
    model, _ = tiny(name)
    model.save_pretrained(tmp_path / "saved")  # type: ignore[operator]
    saved = open_model(tmp_path / "saved")
    snapshot = record(tmp_path / "snapshots", model, ["all-linear"])
    assert sorted_by_name(snapshot) == sorted_by_name(saved)
    assert sorted_by_name(snapshot.beside) == sorted_by_name(saved)
    for matrix in saved.matrices:
        assert torch.equal(dense(snapshot, matrix), dense(saved, matrix)), matrix.name


def sorted_by_name(checkpoint: Checkpoint) -> list[Matrix]:
    return sorted(checkpoint.matrices, key=lambda matrix: matrix.name)


def dense(checkpoint: Checkpoint, matrix: Matrix) -> Tensor:
    weight = checkpoint.read(matrix).dense
    assert weight is not None
    return weight


def _gpt2() -> Any:
    return tiny_causal("GPT-2", "GPT2LMHeadModel")


def tiny_causal(name: str, kind: str) -> Any:
    line = ARCHITECTURES[name]
    config = getattr(transformers, line.config)(**line.settings)
    with seeded(0):
        return getattr(transformers, kind)(config)


FUSED: dict[str, tuple[Callable[[], Any], Callable[[], peft.PeftConfig]]] = {
    f"{method} on {model}": (make, _on(kind, target_modules=[layer], **options))
    for model, make, layer, transposed in (
        ("GPT-2", _gpt2, "c_attn", True),
        (
            "GPT-NeoX",
            lambda: tiny_causal("GPT-NeoX", "GPTNeoXForCausalLM"),
            "query_key_value",
            False,
        ),
        ("Phi-3", lambda: tiny_causal("Phi-3", "Phi3ForCausalLM"), "qkv_proj", False),
    )
    for method, kind, options in (
        ("LoRA", peft.LoraConfig, {"r": 3, "fan_in_fan_out": transposed}),
        ("DoRA", peft.LoraConfig, {"r": 3, "fan_in_fan_out": transposed, "use_dora": True}),
        (
            "PiSSA",
            peft.LoraConfig,
            {"r": 3, "fan_in_fan_out": transposed, "init_lora_weights": "pissa"},
        ),
        (
            "AdaLoRA",
            peft.AdaLoraConfig,
            {"init_r": 3, "total_step": 10, "fan_in_fan_out": transposed},
        ),
    )
} | {
    f"{method} on Phi-3": (
        lambda: tiny_causal("Phi-3", "Phi3ForCausalLM"),
        _on(kind, target_modules=["qkv_proj"], **options),
    )
    for method, kind, options in (
        ("SORSA", SorsaConfig, {"r": 3}),
        ("MiLoRA", MiloraConfig, {"r": 3}),
        ("SVF", SvfConfig, {}),
        ("SVFT", SvftConfig, {"pattern": "banded", "off_diagonals": 2}),
        ("LoRA-XS", LoraXsConfig, {"r": 3}),
    )
}


@pytest.mark.parametrize("name", FUSED)
def test_parts_of_fused_layers_share_the_factors_of_their_layer(name: str, tmp_path: Path) -> None:
    make, config = FUSED[name]
    model = adapt(make(), config)
    layers = find_layers(model, ["q_proj", "v_proj"])
    assert len(layers) == 2, "one for each stored layer"
    write_base(tmp_path, layers)
    shake(model, size=0.3)
    snapshot = write_step(tmp_path, layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = copy.deepcopy(model).merge_and_unload()
    whole.save_pretrained(tmp_path / "merged")
    saved = open_model(tmp_path / "merged")
    expected = {m.name: dense(saved, m) for m in saved.matrices if m.module in MODULES}
    assert len(expected) == 4
    assert_close(weights(snapshot), expected)
    labels = {m.name: (m.layer, m.module) for m in saved.matrices}
    assert {m.name: (m.layer, m.module) for m in snapshot.matrices} == {
        name: labels[name] for name in expected
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(t.shape[-2] * t.shape[-1] for t in trained if t.ndim == 2) <= (
        snapshot.path.stat().st_size // 4
    )


# Full weights as W_t − W_0.


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("live", [torch.float32, torch.bfloat16])
def test_deltas_are_exact_to_their_own_rounding(
    live: torch.dtype, stored: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_llama(dtype=live)
    layers = find_layers(model, MODULES)
    w_0 = attention_weights(model)
    write_base(tmp_path, layers)
    shake(model, size=0.01)
    w_t = attention_weights(model)
    snapshot = write_step(tmp_path, layers, dtype=stored)
    for matrix in snapshot.matrices:
        assert matrix.dtype == str(live).removeprefix("torch.")
        weight = snapshot.read(matrix)
        assert weight.rounded and weight.delta is not None
        exact = w_t[matrix.name].double() - w_0[matrix.name].double()
        assert torch.equal(weight.delta, exact.to(stored).double())
    assert (
        snapshot.path.stat().st_size < stored.itemsize * sum(map(Tensor.numel, w_0.values())) + 4096
    )


def test_adapters_are_not_stored_as_deltas(tmp_path: Path) -> None:
    model = adapt(tiny_llama(), METHODS["LoRA"][1])
    plainly = record(tmp_path / "a", model)
    snapshot = record(tmp_path / "b", model, dtype=torch.bfloat16)
    assert snapshot.path.read_bytes() == plainly.path.read_bytes()


def test_layers_beside_adapters_are_stored_as_deltas(tmp_path: Path) -> None:
    model: nn.Module = adapt(tiny_llama(), _on(peft.LoraConfig, r=3, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name or "v_proj" in name)
    layers = find_layers(model, MODULES)
    assert {layer.kind for layer in layers} == {"lora", "dense"}
    write_base(tmp_path, layers)
    shake(model, size=0.01)
    found = weights(write_step(tmp_path, layers, dtype=torch.float32))
    assert_close(found, merged(model))


# One file


def test_names_of_one_model_are_read_from_files_alone(tmp_path: Path) -> None:
    model = adapt(tiny_llama(), METHODS["LoRA"][1])
    path = record(tmp_path, model).path
    del model
    assert weights(Snapshot(path)).keys() == attention_weights(tiny_llama()).keys()
