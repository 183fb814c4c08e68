"""PEFT on single layers: only where it is needed, and nothing of a file's settings is run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_index import Checkpoint, CheckpointError, open_model, peft_layers
from tests.checkpoints_index.adapted import METHODS, change_settings, open_adapter, write
from tests.helpers import attention_weights, gaussian, tiny_llama, tiny_model_folder

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_model(tiny_model_folder(tmp_path_factory.mktemp("base")))


def read_first(folder: Path, base: Checkpoint) -> torch.Tensor:
    checkpoint = open_adapter(folder).bind(base)
    matrix = checkpoint.matrices[0]
    return checkpoint.read(matrix).on(attention_weights(tiny_llama())[matrix.name])


@pytest.mark.parametrize("name", ["LoRA", "rsLoRA", "AdaLoRA", "SORSA", "VeRA"])
def test_low_rank_methods_need_no_peft(
    name: str, tmp_path: Path, base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(name, tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert torch.isfinite(read_first(tmp_path, base)).all()


@pytest.mark.parametrize("name", ["DoRA", "PiSSA", "VeRA without projections", "OFT"])
def test_without_peft_the_extra_is_named(
    name: str, tmp_path: Path, base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(name, tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CheckpointError, match=r"not installed: pip install \"\.\[train\]"):
        read_first(tmp_path, base)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.rank is None])
def test_merging_leaves_the_base_and_random_numbers_alone(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    # In float64, the dtype that layers are merged in.
    w_0 = attention_weights(tiny_llama(dtype=torch.float64))
    kept = {layer: weight.clone() for layer, weight in w_0.items()}
    adapter: Any = open_adapter(tmp_path)
    state = torch.random.get_rng_state()
    extents = {layer: (weight.shape[0], weight.shape[1]) for layer, weight in w_0.items()}
    for layer in adapter.layers.values():
        tensors = adapter.read_all(layer)
        peft_layers.merged(adapter.settings, layer.path, tensors, w_0[layer.path], False, extents)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(w_0[layer], kept[layer]) for layer in w_0)


@pytest.mark.parametrize("name", ["DoRA", "PiSSA", "LoKr", "VeRA without projections"])
def test_no_module_that_the_settings_name_is_imported(
    name: str, tmp_path: Path, base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(name, tmp_path / "adapter")
    marker = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    change_settings(
        tmp_path / "adapter",
        megatron_core="evil_module",
        megatron_config={"a": 1},
        auto_mapping={"parent_library": "evil_module", "base_model_class": "A"},
        base_model_name_or_path=str(tmp_path),
    )
    assert torch.isfinite(read_first(tmp_path / "adapter", base)).all()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["DoRA", "LoHa", "RandLoRA", "HRA"])
@pytest.mark.parametrize("r", [10**9, 10**30, -1, "4", None, 3.5])
def test_a_rank_out_of_bounds_is_refused_before_anything_is_made(
    name: str, r: object, tmp_path: Path, base: Checkpoint
) -> None:
    write(name, tmp_path)
    change_settings(tmp_path, r=r)
    with pytest.raises(CheckpointError, match=r"r must be between 0 and 128, got"):
        read_first(tmp_path, base)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("OFT", "num_cayley_neumann_terms"),
        ("BOFT", "boft_n_butterfly_factor"),
        ("GraLoRA", "gralora_k"),
        ("PEANuT", "depth"),
    ],
)
@pytest.mark.parametrize("count", [2**31, -1, "5"])
def test_what_would_be_repeated_forever_is_refused(
    name: str, setting: str, count: object, tmp_path: Path, base: Checkpoint
) -> None:
    write(name, tmp_path)
    change_settings(tmp_path, **{setting: count})
    with pytest.raises(CheckpointError, match=rf"{setting} must be between 0 and 256, got"):
        read_first(tmp_path, base)


@pytest.mark.parametrize(
    "name",
    ["LoRA", "DoRA", "PiSSA", "AdaLoRA", "VeRA", "OFT", "BOFT", "IA3", "SVF", "SVFT, banded"],
)
def test_any_setting_gives_a_weight_or_one_error(
    name: str, tmp_path: Path, base: Checkpoint
) -> None:
    write(name, tmp_path)
    config = tmp_path / "adapter_config.json"
    settings = json.loads(config.read_text())
    outcomes: set[object] = set()
    for setting in settings:
        for odd in (None, True, -1, 10**12, 1e308, "q_proj", [None], {"a": {"b": 1}}):
            config.write_text(json.dumps(settings | {setting: odd}))
            try:
                outcomes.add(read_first(tmp_path, base).shape)
            except CheckpointError as error:
                assert str(tmp_path) in str(error)
                outcomes.add(CheckpointError)
    assert outcomes == {torch.Size([32, 32]), CheckpointError}


@pytest.mark.parametrize("name", ["DoRA", "LoHa", "OFT, blocks shared", "IA3", "RandLoRA", "HiRA"])
@pytest.mark.parametrize("change", ["fewer", "more", "other shape", "cut"])
def test_tensors_that_do_not_fit_are_refused(
    name: str, change: str, tmp_path: Path, base: Checkpoint
) -> None:
    write(name, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    own = [n for n in tensors if LAYER in n and "lora_A" not in n and "lora_B" not in n]
    prefix = own[0].split("q_proj.")[1].split("_")[0]
    if change == "fewer":
        del tensors[own[0]]
    elif change == "more":
        tensors[f"base_model.model.{LAYER}.{prefix}_unheard_of"] = torch.ones(2)
    elif change == "other shape":
        tensors[own[0]] = torch.ones(7, 5)
    else:
        tensors[own[0]] = tensors[own[0]][..., :-1].contiguous()
    save_file(tensors, file)
    if change == "fewer" and len(own) == 1 and name != "DoRA":
        # Nothing is left of the layer, as in an adapter without it.
        checkpoint = open_adapter(tmp_path).bind(base)
        assert LAYER not in {m.name for m in checkpoint.matrices}
        return
    with pytest.raises(CheckpointError, match="PEFT .* cannot merge layer"):
        read_first(tmp_path, base)


@pytest.mark.parametrize(
    "path", ["layers..q", "layers.0.__class__", "forward.0.q", "a." * 3000 + "q"]
)
def test_a_path_that_no_model_has_is_refused_or_merged(path: str) -> None:
    settings = {"peft_type": "IA3", "target_modules": ["q"], "feedforward_modules": []}
    tensors = {f"base_model.model.{path}.ia3_l": torch.full((4, 1), 2.0)}
    w_0 = gaussian(4, 3)
    with pytest.raises(CheckpointError, match="PEFT .* cannot merge layer"):
        peft_layers.merged(settings, path, tensors, w_0)
