"""SVF and SVFT: vectors that are computed again, patterns, and adding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import spectra.methods.core.vectors
from spectra.linalg import Decomposition, decompose
from spectra.methods import SvfConfig, SvftConfig, SvftLinear
from tests.methods.test_sorsa import TARGETS, llama, logits
from tests.methods.test_tuners import layers, moved, train

CONFIGS = {
    "svf": SvfConfig(target_modules=TARGETS),
    "svft": SvftConfig(pattern="banded", off_diagonals=2, target_modules=TARGETS),
}
both = pytest.mark.parametrize("name", CONFIGS)


def made(name: str, seed: int = 0, **options: Any) -> peft.PeftModel:
    config = CONFIGS[name]
    settings = {
        f: getattr(config, f)
        for f in ("target_modules", "pattern", "off_diagonals")
        if hasattr(config, f)
    }
    return peft.get_peft_model(llama(seed), type(config)(**{**settings, **options}))


class Decomposed:
    """Stands in the way of `decompose`: counts, and turns vectors as another machine might."""

    def __init__(self, flip: bool = False, rotate: bool = False) -> None:
        self.flip, self.rotate, self.count = flip, rotate, 0

    def __call__(self, w: Tensor) -> Decomposition:
        self.count += 1
        found = decompose(w)
        turn = torch.eye(len(found.s), dtype=torch.float64)
        if self.flip:
            turn = torch.diag((-1.0) ** torch.arange(len(found.s))).double()
        if self.rotate:  # the two leading vectors among themselves
            turn[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
        return Decomposition(found.u @ turn, found.s, turn.T @ found.vh, "test", 0.0)


def decomposing(monkeypatch: pytest.MonkeyPatch, **options: bool) -> Decomposed:
    stand_in = Decomposed(**options)
    monkeypatch.setattr(spectra.methods.core.vectors, "decompose", stand_in)
    return stand_in


@both
def test_vectors_drawn_with_other_signs_are_set_right(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved(made(name))
    model.save_pretrained(str(tmp_path))
    assert decomposing(monkeypatch, flip=True).count == 0
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))


@both
def test_an_adapter_is_loaded_over_one_of_other_signs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed training makes the adapter anew before it loads what was saved."""
    # Other signs come from two entries of a vector that are as large; here they are not.
    monkeypatch.setattr(spectra.methods.core.vectors, "_PIVOT_SHARE", 0.0)
    model = moved(made(name))
    with torch.no_grad():  # the same adapter, written with other signs
        for layer in layers(model):
            u, vh, pivot = (layer._held("default")[n] for n in layer.frozen_names[:3])
            u.neg_()
            vh.neg_()
            pivot.copy_(u.argmax(dim=0))
    expected = logits(model)
    model.save_pretrained(str(tmp_path))
    resumed = made(name).eval()
    stand_in = decomposing(monkeypatch)
    resumed.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert torch.equal(logits(resumed), expected)
    assert stand_in.count == 0
    train(resumed)


@both
def test_vectors_that_turned_are_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = llama()
    for block in base.model.layers:  # two equal singular values: any pair of their plane will do
        for projection in (block.self_attn.q_proj, block.self_attn.v_proj):
            found = decompose(projection.weight)
            found.s[1] = found.s[0]
            projection.weight.data.copy_((found.u * found.s) @ found.vh)
    config = CONFIGS[name]
    moved(peft.get_peft_model(copy.deepcopy(base), config)).save_pretrained(str(tmp_path))
    decomposing(monkeypatch, rotate=True)
    with pytest.warns(UserWarning, match=r"of \d+ singular vectors of this base are not those"):
        peft.PeftModel.from_pretrained(base, tmp_path)


@both
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_vectors_are_not_computed_again(
    name: str, low_cpu_mem_usage: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved(made(name, save_vectors=True))
    model.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {f"{name}_u", f"{name}_vh"} < {n.rpartition(".")[2] for n in saved}
    stand_in = decomposing(monkeypatch)
    loaded = peft.PeftModel.from_pretrained(
        llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert stand_in.count == 0


@both
def test_adapters_of_one_layer_share_their_vectors(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(name)
    stand_in = decomposing(monkeypatch)
    model.add_adapter("second", CONFIGS[name])
    assert stand_in.count == 0
    for layer in layers(model):
        holder = getattr(layer, f"{name}_u")
        assert holder["second"].data_ptr() == holder["default"].data_ptr()
    model.add_adapter("third", made(name, save_vectors=True).peft_config["default"])
    for layer in layers(model):  # loading writes into what is saved
        holder = getattr(layer, f"{name}_u")
        assert holder["third"].data_ptr() != holder["default"].data_ptr()


def test_svf_adapters_combine_by_adding(tmp_path: Path) -> None:
    model = made("svf")
    model.add_adapter("second", SvfConfig(target_modules=["q_proj"]))
    moved(model, seed=1)
    for layer in layers(model):
        if "second" in layer.svf_delta:  # type: ignore[operator]
            layer.svf_delta["second"].data.copy_(torch.linspace(-1, 1, 32))  # type: ignore[index]
    first = logits(model)
    model.add_weighted_adapter(["default", "second"], [0.5, 2.0], "sum")
    assert torch.equal(logits(model), first)  # it is not made active
    assert all(".sum" not in n for n, p in model.named_parameters() if p.requires_grad)
    for layer in layers(model):
        expected = 0.5 * layer.get_delta_weight("default")
        if "second" in layer.svf_delta:  # type: ignore[operator]
            expected += 2.0 * layer.get_delta_weight("second")
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, rtol=0, atol=1e-6)
    model.set_adapter("sum")
    combined = logits(model.eval())
    model.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path / "sum").eval()
    assert torch.equal(logits(loaded), combined)


@pytest.mark.parametrize(
    ("adapters", "weights", "name", "message"),
    [
        (["default", "other"], [1.0, 1.0], "sum", r"among \['default'\], got \['default', 'other'"),
        ([], [], "sum", r"among \['default'\], got \[\]"),
        (["default"], [1.0, 1.0], "sum", "1 adapters need as many weights, got 2"),
        (["default"], [1.0], "default", "an adapter 'default' already"),
    ],
)
def test_what_cannot_be_added_is_refused(
    adapters: list[str], weights: list[float], name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made("svf").add_weighted_adapter(adapters, weights, name)


def test_adapters_of_different_bases_are_not_added() -> None:
    model = made("svf")
    model.add_adapter("second", CONFIGS["svf"])
    layers(model)[0].svf_s0["second"].mul_(1.1)  # type: ignore[index]
    with pytest.raises(ValueError, match="made on different bases"):
        model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
    assert "sum" not in model.peft_config


def single(m: int = 12, n: int = 12, key: str = "", **options: Any) -> SvftLinear:
    torch.manual_seed(0)
    return SvftLinear(nn.Linear(n, m), "default", SvftConfig(**options), key=key)


def places(layer: SvftLinear) -> set[tuple[int, int]]:
    held = layer._held("default")
    found = [*zip(held["svft_rows"].tolist(), held["svft_cols"].tolist(), strict=True)]
    assert len(set(found)) == len(found)
    return set(found)


def test_the_banded_pattern_is_the_band() -> None:
    band = {(i, j) for i in range(10) for j in range(10) if abs(i - j) <= 3}
    assert places(single(10, 14, pattern="banded", off_diagonals=3)) == band
    everything = {(i, j) for i in range(10) for j in range(10)}
    assert places(single(10, 14, pattern="banded", off_diagonals=9)) == everything


@pytest.mark.parametrize("pattern", ["random", "top-k"])
def test_other_patterns_have_the_diagonal_and_as_many_entries_as_the_band(pattern: Any) -> None:
    found = places(single(pattern=pattern, off_diagonals=2))
    assert {(i, i) for i in range(12)} < found
    assert len(found) == 5 * 12 - 6
    assert all(0 <= i < 12 and 0 <= j < 12 for i, j in found)


def test_random_entries_follow_the_seed_and_the_layer() -> None:
    def random(seed: int, key: str) -> set[tuple[int, int]]:
        return places(single(pattern="random", off_diagonals=2, seed=seed, key=key))

    assert random(0, "layers.0.q") == random(0, "layers.0.q")
    assert random(0, "layers.0.q") != random(1, "layers.0.q")
    assert random(0, "layers.0.q") != random(0, "layers.1.q")
    model = made("svft", pattern="random")
    of_layers = {frozenset(places(layer)) for layer in layers(model)}  # type: ignore[arg-type]
    assert len(of_layers) == len(layers(model))


def test_making_an_adapter_draws_no_random_numbers() -> None:
    base = llama()
    state = torch.random.get_rng_state()
    config = SvftConfig(pattern="random", off_diagonals=1, target_modules=TARGETS)
    peft.get_peft_model(base, config)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_top_k_takes_the_best_aligned_pairs() -> None:
    layer = single(pattern="top-k", off_diagonals=2)
    u, _, vh = torch.linalg.svd(layer.get_base_weight().double())
    alignment = (u.T @ vh.T).abs().fill_diagonal_(torch.inf)
    least = alignment.flatten().topk(5 * 12 - 6).values[-1]
    wanted = {(int(i), int(j)) for i, j in (alignment >= least).nonzero()}
    assert places(layer) == wanted


def test_patterns_that_do_not_fit_a_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"q of shape \(10, 14\) does not.*exclude_modules"):
        single(10, 14, key="q", pattern="top-k", off_diagonals=1)
    with pytest.raises(ValueError, match="at most min.* = 9, got 10, for the layer of shape"):
        single(10, 14, pattern="banded", off_diagonals=10)
