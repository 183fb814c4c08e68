"""What every tuner must do, in one table: a new method is one row."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bitsandbytes
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spectra.methods import (
    LoraXsConfig,
    LoraXsLinear,
    MiloraConfig,
    MiloraLinear,
    SorsaConfig,
    SorsaLinear,
    SvfConfig,
    SvfLinear,
    SvftConfig,
    SvftLinear,
)
from spectra.methods.core import TunerConfig, TunerLayer
from tests.methods.test_sorsa import TARGETS, TOKENS, llama, logits

EPS = torch.finfo(torch.float32).eps
R = 4
Truth = Callable[[dict[str, Tensor], dict[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """One row: a tuner, and what is known of it from elsewhere."""

    config: type[TunerConfig]
    layer: type[TunerLayer]
    truth: Truth  # (trained, frozen, W_0) in float64 to W_t
    trained: Callable[[int, int], int]  # (m, n) to how many numbers
    rank: Callable[[int, int], int]  # (m, n) to the update's
    options: dict[str, Any] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)


def sorsa(t: dict[str, Tensor], f: dict[str, Tensor], w: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    residual = (u[:, R:] * s[R:]) @ vh[R:]
    return residual + t["sorsa_u"] @ torch.diag(t["sorsa_s"]) @ t["sorsa_vh"]


def milora(t: dict[str, Tensor], f: dict[str, Tensor], w: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return (u[:, :-R] * s[:-R]) @ vh[:-R] + t["milora_b"] @ t["milora_a"]


def svf(t: dict[str, Tensor], f: dict[str, Tensor], w: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u @ torch.diag(s + t["svf_delta"]) @ vh


def svft(t: dict[str, Tensor], f: dict[str, Tensor], w: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    signs = (u * f["svft_u"]).sum(0).sign()
    m = torch.zeros(len(s), len(s), dtype=torch.float64)
    for row, col, value in zip(f["svft_rows"], f["svft_cols"], t["svft_values"], strict=True):
        m[int(row), int(col)] += value
    return w + (u * signs) @ m @ (signs[:, None] * vh)


def lora_xs(t: dict[str, Tensor], f: dict[str, Tensor], w: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    left = u[:, :R] * s[:R]
    signs = (left * f["lora_xs_left"]).sum(0).sign()
    return w + (left * signs) @ t["lora_xs_core"] @ (signs[:, None] * vh[:R])


def svft_row(pattern: str, d: int, entries: Callable[[int, int], int]) -> Method:
    options = {"pattern": pattern, "off_diagonals": d}
    saved = {"svft_values", "svft_rows", "svft_cols", "svft_pivot", "svft_s0"}
    return Method(SvftConfig, SvftLinear, svft, entries, min, options, saved)


METHODS = {
    "sorsa": Method(
        SorsaConfig,
        SorsaLinear,
        sorsa,
        lambda m, n: R * (m + n + 1),
        lambda m, n: 2 * R,
        {"r": R},
        {f"sorsa_{part}" for part in ("u", "s", "vh", "u0", "s0", "vh0")},
    ),
    "milora": Method(
        MiloraConfig,
        MiloraLinear,
        milora,
        lambda m, n: R * (m + n),
        lambda m, n: 2 * R,
        {"r": R},
        {f"milora_{part}" for part in ("a", "b", "a0", "b0")},
    ),
    "svf": Method(SvfConfig, SvfLinear, svf, min, min, saved={"svf_delta", "svf_pivot", "svf_s0"}),
    "svft-plain": svft_row("plain", 0, min),
    "svft-banded": svft_row("banded", 2, lambda m, n: 5 * min(m, n) - 6),
    "svft-random": svft_row("random", 2, lambda m, n: 5 * min(m, n) - 6),
    "svft-top-k": svft_row("top-k", 2, lambda m, n: 5 * min(m, n) - 6),
    "lora-xs": Method(
        LoraXsConfig,
        LoraXsLinear,
        lora_xs,
        lambda m, n: R * R,
        lambda m, n: R,
        {"r": R},
        {"lora_xs_core", "lora_xs_left", "lora_xs_right"},
    ),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
ranked = pytest.mark.parametrize("name", ["sorsa", "milora", "lora-xs"])


def config(method: Method, **options: Any) -> TunerConfig:
    # The top-k pattern needs square weights: v_proj is none.
    targets = ["q_proj", "o_proj"] if method.options.get("pattern") == "top-k" else TARGETS
    return method.config(**{"target_modules": targets, **method.options, **options})


def adapted(method: Method, seed: int = 0, **options: Any) -> peft.PeftModel:
    return peft.get_peft_model(llama(seed), config(method, **options))


def layers(model: nn.Module) -> list[TunerLayer]:
    return [m for m in model.modules() if isinstance(m, TunerLayer)]


def moved(model: peft.PeftModel, seed: int = 1, adapter: str = "default") -> peft.PeftModel:
    """Move every trained number by noise, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(model):
        for name in layer.adapter_layer_names:
            parameter = getattr(layer, name)[adapter]
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.05 * noise.to(parameter.dtype))
    return model.eval()


def single(method: Method, m: int = 12, n: int = 12, **options: Any) -> TunerLayer:
    torch.manual_seed(0)
    made = method.config(**{**method.options, **options})
    return method.layer(nn.Linear(n, m), "default", made)


def tensors(layer: TunerLayer, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: getattr(layer, name)["default"].detach().double() for name in names}


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_step_0_computes_exactly_what_the_base_computes(method: Method, dtype: torch.dtype) -> None:
    base = llama().to(dtype)  # type: ignore[arg-type]
    expected = logits(base)
    model = peft.get_peft_model(base, config(method))
    assert layers(model)
    assert torch.equal(logits(model), expected)


@every_method
def test_half_precision_bases_do_not_round_the_factors(method: Method) -> None:
    half, single = llama().bfloat16(), llama()
    single.load_state_dict(half.state_dict())
    for a, b in zip(
        layers(peft.get_peft_model(half, config(method))),
        layers(peft.get_peft_model(single, config(method))),
        strict=True,
    ):
        for name, tensor in a._held("default").items():
            assert tensor.dtype in (torch.float32, torch.int32)
            assert torch.equal(tensor, b._held("default")[name])


@every_method
def test_only_what_should_be_trained_is_trained(method: Method) -> None:
    model = adapted(method)
    expected = sum(method.trained(x.out_features, x.in_features) for x in layers(model))
    assert model.get_nb_trainable_parameters()[0] == expected
    before = {n: t.clone() for n, t in model.state_dict().items()}
    train(model)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert changed == trained


@every_method
@pytest.mark.parametrize("shape", [(12, 12), (10, 14), (14, 10)])
def test_the_weight_is_what_the_paper_says(method: Method, shape: tuple[int, int]) -> None:
    """Forward, low-rank update and update, against a dense float64 W_t from its own SVD."""
    if method.options.get("pattern") == "top-k":
        shape = (11, 11)
    layer = single(method, *shape).double()
    layer = moved(layer)  # type: ignore[arg-type, assignment]
    w_0 = layer.get_base_weight()
    trained = tensors(layer, layer.adapter_layer_names)
    w_t = method.truth(trained, tensors(layer, layer.frozen_names), w_0)
    tolerance = 64 * EPS * float(torch.linalg.matrix_norm(w_0, 2))  # factors were float32
    update = layer.get_delta_weight("default")
    assert (update.dtype, update.device.type) == (torch.float64, "cpu")
    torch.testing.assert_close(w_0 + update, w_t, rtol=0, atol=tolerance)
    b, a = layer.low_rank_update("default")
    assert b.dtype == a.dtype == torch.float64
    assert b.shape[1] == a.shape[0] == method.rank(*shape)
    torch.testing.assert_close(b @ a, update, rtol=0, atol=1e-12)
    x = torch.randn(2, 3, shape[1], dtype=torch.float64)
    expected = x @ (w_0 + update).T + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@every_method
def test_a_formed_update_is_never_needed(method: Method) -> None:
    """Products with x pass through at most k numbers, never through an m × n matrix."""
    layer = single(method, 48, 48) if "top-k" in method.options.values() else single(method, 40, 64)
    x, sizes = torch.randn(3, layer.in_features), []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.requires_grad:
                sizes.append(result.numel())
            return result

    with Watch():
        layer(x)
    k = min(layer.out_features, layer.in_features)
    between = k * k if method.layer is SvftLinear else 2 * R * layer.in_features
    assert 0 < max(sizes) <= between


@every_method
def test_merging_and_unmerging(method: Method) -> None:
    model = moved(adapted(method))
    expected = logits(model)
    weights = [layer.get_base_weight().clone() for layer in layers(model)]
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=2e-6)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=2e-6)
    model.unmerge_adapter()
    for layer, weight in zip(layers(model), weights, strict=True):
        torch.testing.assert_close(layer.get_base_weight(), weight, rtol=0, atol=1e-6)


@every_method
def test_safe_merge_refuses_a_broken_adapter(method: Method) -> None:
    model = adapted(method)
    layer = layers(model)[0]
    getattr(layer, layer.adapter_layer_names[0])["default"].data.flatten()[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or Inf"):
        model.merge_adapter(safe_merge=True)


@ranked
def test_an_adapter_cannot_start_from_a_merged_weight(name: str) -> None:
    model = moved(adapted(METHODS[name]))
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into it; call unmerge_adapter\(\) first"):
        layers(model)[0].update_layer("second", config(METHODS[name]))


@every_method
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_computes_the_same_on_the_original_base(
    method: Method, dtype: torch.dtype, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    base = llama().to(dtype)  # type: ignore[arg-type]
    model = moved(peft.get_peft_model(base, config(method)))
    model.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.rpartition(".")[2] for name in saved} == method.saved
    loaded = peft.PeftModel.from_pretrained(
        llama().to(dtype),  # type: ignore[arg-type]
        tmp_path,
        low_cpu_mem_usage=low_cpu_mem_usage,
    ).eval()
    assert torch.equal(logits(loaded), logits(model))


FRESH = """
import sys, torch, peft, spectra.methods
from tests.methods.test_sorsa import llama, logits
torch.save([logits(peft.PeftModel.from_pretrained(llama(), path).eval()) for path in sys.argv[2:]],
           sys.argv[1])
"""


def test_saved_adapters_compute_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    expected = []
    for name, method in METHODS.items():
        model = moved(adapted(method))
        model.save_pretrained(str(tmp_path / name))
        expected.append(logits(model))
    paths = [str(tmp_path / name) for name in METHODS]
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path / "logits.pt"), *paths], check=True)
    for name, found, wanted in zip(
        METHODS, torch.load(tmp_path / "logits.pt"), expected, strict=True
    ):
        # Vectors that are computed again are float64 ones, rounded to float32.
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6, msg=name)


@every_method
def test_another_base_is_noticed(method: Method, tmp_path: Path) -> None:
    moved(adapted(method, seed=0)).save_pretrained(str(tmp_path))
    with pytest.warns(UserWarning, match="was made on another base"):
        peft.PeftModel.from_pretrained(llama(seed=1), tmp_path)


@ranked
def test_the_same_base_in_bfloat16_is_not_another_base(name: str, tmp_path: Path) -> None:
    moved(adapted(METHODS[name])).save_pretrained(str(tmp_path))
    peft.PeftModel.from_pretrained(llama().bfloat16(), tmp_path)  # warnings are errors


@every_method
def test_disabling_gives_the_base_exactly(method: Method) -> None:
    model = moved(adapted(method))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))
    assert not torch.equal(logits(model), logits(llama()))


@every_method
def test_several_adapters_share_one_base(method: Method, tmp_path: Path) -> None:
    model = moved(adapted(method))
    first = logits(model)
    model.add_adapter("second", config(method))
    assert all(".second" not in n for n, p in model.named_parameters() if p.requires_grad)
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(llama()))
    second = logits(moved(model, seed=2, adapter="second"))
    assert not torch.equal(second, first)
    model.save_pretrained(str(tmp_path))
    model.base_model.set_adapter(["default", "second"])  # type: ignore[operator]
    both = logits(model)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(merged), both, rtol=0, atol=2e-6)
    assert not torch.equal(both, first) and not torch.equal(both, second)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    loaded.load_adapter(str(tmp_path / "second"), "second")
    assert torch.equal(logits(loaded), first)
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded.eval()), second)


@every_method
def test_training_lowers_the_loss(method: Method) -> None:
    model = adapted(method).train()
    before = model(TOKENS, labels=TOKENS).loss.item()
    train(model, steps=30)
    assert model(TOKENS, labels=TOKENS).loss.item() < before - 0.02


@every_method
def test_gradient_checkpointing_changes_nothing(method: Method) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = moved(adapted(method)).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(TOKENS, labels=TOKENS).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(gradient.any() for gradient in gradients[0])


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-2)
    for _ in range(steps):
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@every_method
def test_a_quantised_base_is_decomposed_as_it_computes(method: Method) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    base = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32)
    base.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    base.to("cpu")  # quantises
    layer = method.layer(base, "default", method.config(**method.options))
    x = torch.randn(3, 64)
    assert torch.equal(layer(x), base(x))
    plain = nn.Linear(64, 64, bias=False)
    plain.weight.data.copy_(bitsandbytes.functional.dequantize_4bit(*quantised(base)))
    twin = method.layer(plain, "default", method.config(**method.options))
    update = moved(layer).get_delta_weight("default")  # type: ignore[arg-type]
    assert torch.equal(update, moved(twin).get_delta_weight("default"))  # type: ignore[arg-type]
    expected = base(x) + x @ update.float().T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=64 * 64 * EPS)


def quantised(layer: Any) -> tuple[Tensor, Any]:
    return layer.weight.data, layer.weight.quant_state


def test_milora_dropout_acts_on_the_trained_part_only() -> None:
    model = adapted(METHODS["milora"], milora_dropout=0.5)
    assert torch.equal(logits(model.eval()), logits(llama()))
    torch.manual_seed(0)
    layer = layers(model.train())[0]
    x = torch.ones(1, layer.in_features)
    a, b, a_0, b_0 = (layer._held("default")[f"milora_{p}"] for p in ("a", "b", "a0", "b0"))
    torch.manual_seed(0)
    dropped = nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    expected = layer.base_layer(x) + dropped @ (b @ a).T - x @ (b_0 @ a_0).T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)


def test_lora_xs_can_start_beside_the_base_as_the_paper_does() -> None:
    torch.manual_seed(0)
    layer = single(METHODS["lora-xs"], 40, 40, r=32, init_std=1e-5)
    core = layer._held("default")["lora_xs_core"]
    assert core.std().item() == pytest.approx(1e-5, rel=0.1)


@every_method
def test_a_layer_compiles_in_one_graph(method: Method) -> None:
    layer = moved(single(method))  # type: ignore[arg-type]
    x = torch.randn(5, 12)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-6)


@ranked
@pytest.mark.parametrize("r", [17, 1000])
def test_a_rank_above_the_smaller_side_is_refused(name: str, r: int) -> None:
    with pytest.raises(ValueError, match=rf"between 1 and min\(m, n\) = 16, got {r}"):
        adapted(METHODS[name], r=r, target_modules=["v_proj"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MiloraConfig(r=0), "r must be at least 1, got 0"),
        (lambda: LoraXsConfig(r=0), "r must be at least 1, got 0"),
        (lambda: MiloraConfig(milora_dropout=1.0), r"milora_dropout must be in \[0, 1\), got 1.0"),
        (lambda: LoraXsConfig(init_std=-1.0), "init_std must be at least 0, got -1.0"),
        (lambda: SvftConfig(pattern="odd"), "one of plain, banded, random, top-k, got 'odd'"),  # type: ignore[arg-type]
        (lambda: SvftConfig(pattern="banded"), "at least 1 for any other, got 0 for 'banded'"),
        (lambda: SvftConfig(off_diagonals=1), "must be 0 for the plain pattern .* got 1"),
        (lambda: SvfConfig(layers_pattern="layers"), "layers_pattern needs layers_to_transform"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], TunerConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@every_method
def test_other_layers_are_refused(method: Method) -> None:
    with pytest.raises(ValueError, match="embed_tokens is a Embedding"):
        adapted(method, target_modules=["embed_tokens"])
