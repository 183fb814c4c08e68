"""SORSA as a PEFT tuner: what its layer computes, stores and gives back."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from spectra.methods import SorsaConfig, SorsaLinear, add_regularizer_gradient

TARGETS = ["q_proj", "v_proj"]
TOKENS = torch.arange(20).reshape(2, 10)


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def adapted(seed: int = 0, r: int = 4, **options: object) -> peft.PeftModel:
    config = SorsaConfig(r=r, target_modules=TARGETS, **options)  # type: ignore[arg-type]
    return peft.get_peft_model(llama(seed), config)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def train_a_little(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-2)
    for _ in range(steps):
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def layers(model: nn.Module) -> list[SorsaLinear]:
    return [m for m in model.modules() if isinstance(m, SorsaLinear)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("targets", [TARGETS, "all-linear"])
def test_step_0_computes_exactly_what_the_base_computes(
    dtype: torch.dtype, targets: list[str] | str
) -> None:
    base = llama().to(dtype)  # type: ignore[arg-type]
    expected = logits(base)
    model = peft.get_peft_model(base, SorsaConfig(r=4, target_modules=targets))
    assert torch.equal(logits(model), expected)


def test_initial_factors_are_the_leading_singular_triplets() -> None:
    w_0 = llama().model.layers[0].self_attn.q_proj.weight.detach().double()
    u, s, vh = torch.linalg.svd(w_0)
    layer = layers(adapted())[0]
    product = (layer.sorsa_u["default"] * layer.sorsa_s["default"]) @ layer.sorsa_vh["default"]
    expected = (u[:, :4] * s[:4]) @ vh[:4]
    # Each factor is rounded to float32 once.
    tolerance = 8 * torch.finfo(torch.float32).eps * s[0].item()
    torch.testing.assert_close(product.double(), expected, rtol=0, atol=tolerance)


def test_only_the_principal_part_is_trained() -> None:
    model = adapted()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 3  # two layers, q and v, U S V
    assert all(".sorsa_" in name for name in trained)
    per_layer = 4 * (32 + 32 + 1) + 4 * (16 + 32 + 1)
    assert model.get_nb_trainable_parameters()[0] == 2 * per_layer


def test_the_base_weight_is_never_touched_by_training() -> None:
    model = adapted()
    before = [layer.get_base_weight().clone() for layer in layers(model)]
    train_a_little(model)
    after = [layer.get_base_weight() for layer in layers(model)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_forward_equals_equation_7_with_a_formed_residual() -> None:
    layer = layers(adapted())[0]
    with torch.no_grad():
        layer.sorsa_u["default"].add_(0.1)
        layer.sorsa_s["default"].mul_(1.2)
    w_0 = layer.get_base_weight().double()
    u, s, vh = torch.linalg.svd(w_0)
    w_r = (u[:, 4:] * s[4:]) @ vh[4:]
    w_p = layer.sorsa_u["default"].double() @ torch.diag(layer.sorsa_s["default"].double())
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    expected = x.double() @ (w_r + w_p @ layer.sorsa_vh["default"].double()).T
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_forward_never_forms_a_matrix_of_the_weights_size() -> None:
    layer = SorsaLinear(nn.Linear(64, 48, bias=False), "default", SorsaConfig(r=2))
    x = torch.randn(3, 64)
    sizes: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        layer(x)
    assert max(sizes) < 64 * 48


def test_merged_equals_unmerged() -> None:
    model = adapted()
    train_a_little(model)
    expected = logits(model)
    merged = copy.deepcopy(model).merge_and_unload()
    assert isinstance(merged, LlamaForCausalLM)
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-6)


def test_merging_and_unmerging_gives_the_base_back_to_rounding() -> None:
    model = adapted()
    train_a_little(model)
    before = layers(model)[0].get_base_weight().clone()
    model.merge_adapter(safe_merge=True)
    model.unmerge_adapter()
    after = layers(model)[0].get_base_weight()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_safe_merge_refuses_a_broken_adapter() -> None:
    model = adapted()
    with torch.no_grad():
        layers(model)[0].sorsa_s["default"][0] = float("nan")
    with pytest.raises(ValueError, match="NaN or Inf"):
        model.merge_adapter(safe_merge=True)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_computes_the_same_on_the_original_base(
    tmp_path: Path, low_cpu_mem_usage: bool
) -> None:
    model = adapted()
    train_a_little(model)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(
        llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert torch.equal(logits(loaded), logits(model.eval()))


def test_loading_decomposes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W_r comes from stored factors, not from an SVD that another machine would do otherwise."""
    adapted().save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_weights"] is False

    def forbidden(w: Tensor) -> None:
        raise AssertionError("the base was decomposed")

    monkeypatch.setattr("spectra.methods.sorsa.layer.decompose", forbidden)
    peft.PeftModel.from_pretrained(llama(), tmp_path)


def test_the_residual_survives_vectors_of_another_sign(tmp_path: Path) -> None:
    """An SVD is unique up to signs only; W_r must not depend on which ones were drawn."""
    model = adapted()
    for layer in layers(model):
        for part in ("u", "u0"):
            getattr(layer, f"sorsa_{part}")["default"].data.neg_()
        for part in ("vh", "vh0"):
            getattr(layer, f"sorsa_{part}")["default"].data.neg_()
    train_a_little(model)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model.eval()))


def test_another_base_is_noticed(tmp_path: Path) -> None:
    adapted(seed=0).save_pretrained(str(tmp_path))
    with pytest.warns(UserWarning, match="was made on another base"):
        peft.PeftModel.from_pretrained(llama(seed=1), tmp_path)


def test_the_same_base_in_bfloat16_is_not_another_base(tmp_path: Path) -> None:
    adapted().save_pretrained(str(tmp_path))
    peft.PeftModel.from_pretrained(llama().bfloat16(), tmp_path)  # warnings are errors


def test_disabling_gives_the_base_exactly() -> None:
    model = adapted()
    train_a_little(model)
    model.eval()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))
    assert not torch.equal(logits(model), logits(llama()))


def test_several_adapters_share_one_base() -> None:
    model = adapted()
    train_a_little(model)
    first = logits(model.eval())
    model.add_adapter("second", SorsaConfig(r=3, target_modules=TARGETS))
    assert all(".second" not in n for n, p in model.named_parameters() if p.requires_grad)
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(llama()))
    train_a_little(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)


def test_dropout_acts_on_the_trained_part_only() -> None:
    model = adapted(sorsa_dropout=0.5)
    assert torch.equal(logits(model.eval()), logits(llama()))
    torch.manual_seed(0)
    assert not torch.equal(logits(model.train()), logits(llama()))


def test_training_lowers_the_loss() -> None:
    model = adapted()
    before = model(TOKENS, labels=TOKENS).loss.item()
    train_a_little(model, steps=30)
    assert model(TOKENS, labels=TOKENS).loss.item() < before - 0.1


@pytest.mark.parametrize("r", [17, 1000])
def test_a_rank_above_the_smaller_side_is_refused(r: int) -> None:
    with pytest.raises(ValueError, match=rf"between 1 and min\(m, n\) = 16, got {r}"):
        peft.get_peft_model(llama(), SorsaConfig(r=r, target_modules=["v_proj"]))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="r must be at least 1, got 0"):
        SorsaConfig(r=0)
    with pytest.raises(ValueError, match="sorsa_dropout"):
        SorsaConfig(sorsa_dropout=1.0)
    with pytest.raises(ValueError, match="embed_tokens is a Embedding"):
        peft.get_peft_model(llama(), SorsaConfig(r=2, target_modules=["embed_tokens"]))


def published() -> ModuleType:
    """The authors' layer; the rest of their package does not import under Transformers 5."""
    files = importlib.metadata.files("sorsa") or []
    (path,) = (f.locate() for f in files if f.name == "layer.py")
    spec = importlib.util.spec_from_file_location("published_sorsa_layer", str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published_layer(ours: SorsaLinear, r: int) -> nn.Module:
    """The authors' layer on the same W_0, with our trained factors in the place of its own."""
    theirs = published().Linear(ours.in_features, ours.out_features, r=r)
    theirs.weight.data = ours.get_base_weight().clone()
    theirs.sorsa_init()
    theirs.sorsa_A.data = ours.sorsa_vh["default"].data.clone()
    theirs.sorsa_S.data = ours.sorsa_s["default"].data.clone()
    theirs.sorsa_B.data = ours.sorsa_u["default"].data.clone()
    return theirs


def test_forward_and_merge_agree_with_the_published_layer() -> None:
    model = adapted()
    train_a_little(model)
    ours = layers(model)[0]
    theirs = published_layer(ours, r=4)
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
    # Their residual is rounded to float32 and their SVD is a float32 one.
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    theirs._merge(True)  # type: ignore[operator]
    ours.merge()
    torch.testing.assert_close(ours.get_base_weight(), theirs.weight.data, rtol=1e-4, atol=1e-5)


def trajectories(
    dtype: torch.dtype, gamma: float, steps: int = 20
) -> tuple[list[Tensor], list[Tensor]]:
    """Trained factors of all layers after every step: ours and, beside them, the authors'."""
    ours = peft.get_peft_model(llama().to(dtype), SorsaConfig(r=4, target_modules=TARGETS))  # type: ignore[arg-type]
    theirs = llama().to(dtype)  # type: ignore[arg-type]
    pairs = []
    for name, layer in ours.get_base_model().named_modules():
        if isinstance(layer, SorsaLinear):
            other = published().Linear(layer.in_features, layer.out_features, r=4).to(dtype)
            other.weight.data = layer.get_base_weight().clone()
            other.sorsa_init()  # its SVD, of which both start
            for part, value in (("u", other.sorsa_B), ("s", other.sorsa_S), ("vh", other.sorsa_A)):
                for held in (f"sorsa_{part}", f"sorsa_{part}0"):
                    getattr(layer, held)["default"].data.copy_(value.data)
            theirs.set_submodule(name, other)
            pairs.append((layer, other))
    for parameter_name, parameter in theirs.named_parameters():
        parameter.requires_grad_("sorsa_" in parameter_name)
    lr = 1e-3
    optimizers = [
        torch.optim.AdamW((p for p in m.parameters() if p.requires_grad), lr)
        for m in (ours, theirs)
    ]
    calc_ortho = published().calc_ortho
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for step in range(steps):
        tokens = (TOKENS * (step + 1)) % 64
        ours(tokens, labels=tokens).loss.backward()
        theirs(tokens, labels=tokens).loss.backward()
        if gamma > 0:
            add_regularizer_gradient(ours, gamma, lr, smooth=False)
            (gamma / lr * calc_ortho(theirs)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ours_now = [d["default"] for x, _ in pairs for d in (x.sorsa_u, x.sorsa_s, x.sorsa_vh)]
        theirs_now = [p for _, x in pairs for p in (x.sorsa_B, x.sorsa_S, x.sorsa_A)]
        for trajectory, now in zip(found, (ours_now, theirs_now), strict=True):
            trajectory.append(torch.cat([p.detach().double().flatten() for p in now]))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.0, 5e-4])
def test_training_follows_the_published_package(gamma: float, dtype: torch.dtype) -> None:
    """From W_0 and one SVD, with and without the regularizer, as their trainer adds it."""
    ours, theirs = trajectories(dtype, gamma)
    assert len(ours) == 20
    # A rounding of entries below 1 a step; both move by 0.01, some 1e5 roundings of float32.
    tolerance = 20 * torch.finfo(dtype).eps
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    assert (theirs[-1] - theirs[0]).abs().max() > 5e-3
