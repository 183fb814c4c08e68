"""What is read is what was trained: W_t against PEFT's own merge and Transformers' weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoints_index import Checkpoint, Weight, find_checkpoints, open_model
from checkpoints_index.snapshots import BASE_FILE
from tests.checkpoints_index.formats import FORMATS, STEP
from tests.helpers import (
    attention_weights,
    gaussian,
    lora,
    shake,
    sorsa,
    tiny_llama,
    tiny_model_folder,
)


def read_on(checkpoint: Checkpoint, base: Checkpoint) -> dict[str, Tensor]:
    """W_t of every matrix that both have, in float64."""
    found = {}
    for matrix in checkpoint.matrices:
        w_0 = next(base.read(m).dense for m in base.matrices if m.name == matrix.name)
        assert w_0 is not None
        found[matrix.name] = checkpoint.read(matrix).on(w_0)
    return found


def assert_merged(found: dict[str, Tensor], merged: dict[str, Tensor], w_0: dict[str, Tensor]):
    """Equal but for the merge's arithmetic in the weights' dtype; ours is in float64."""
    assert set(found) >= set(merged)
    for name, weight in merged.items():
        # A merge forms the update from float32 factors (r products and their sums, twice for
        # SORSA: fewer than 16 roundings), rounds it to the weights' dtype, adds and rounds again.
        size = (weight.double().abs().max() + w_0[name].double().abs().max()).item()
        eps = 16 * torch.finfo(torch.float32).eps + torch.finfo(weight.dtype).eps
        torch.testing.assert_close(found[name], weight.double(), rtol=0, atol=eps * size)
        moved = (found[name] - w_0[name].double()).abs().max().item()
        assert moved > 5 * eps * size, "an update this small would prove nothing"


@pytest.mark.parametrize("name", FORMATS)
def test_w_t_equals_the_merged_weight(name: str, tmp_path: Path, model_folder: Path) -> None:
    merged = FORMATS[name](tmp_path)
    *_, checkpoint = find_checkpoints(tmp_path)
    assert checkpoint.step == STEP
    found = read_on(checkpoint, open_model(model_folder))
    assert_merged(found, merged, attention_weights(tiny_llama()))


@pytest.mark.parametrize("name", [name for name in FORMATS if "snapshots" in name])
def test_the_recorded_base_is_the_untouched_weight(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path)
    base = open_model(tmp_path / "snapshots" / BASE_FILE)
    expected = attention_weights(tiny_llama())
    found = {m.name: base.read(m).dense for m in base.matrices}
    assert found.keys() == expected.keys()
    for matrix, weight in expected.items():
        assert torch.equal(found[matrix], weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("adapt", [lora, sorsa])
def test_an_untrained_adapter_is_exactly_its_base(adapt, tmp_path: Path) -> None:
    adapt(tiny_llama()).save_pretrained(tmp_path)
    (checkpoint,) = find_checkpoints(tmp_path)
    w_0 = attention_weights(tiny_llama())
    for matrix in checkpoint.matrices:
        assert torch.equal(checkpoint.read(matrix).on(w_0[matrix.name]), w_0[matrix.name].double())


@pytest.mark.parametrize("adapt", [lora, sorsa])
def test_an_adapter_on_a_bfloat16_base(adapt, tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base", dtype=torch.bfloat16)
    model = adapt(tiny_llama(dtype=torch.bfloat16))
    shake(model, size=0.2)
    model.save_pretrained(tmp_path / "adapter")
    (checkpoint,) = find_checkpoints(tmp_path / "adapter")
    found = read_on(checkpoint, open_model(base))
    w_0 = attention_weights(tiny_llama(dtype=torch.bfloat16))
    assert_merged(found, attention_weights(model.merge_and_unload()), w_0)


@pytest.mark.parametrize("changes", [{"r": 1}, {"r": 16}, {"lora_alpha": 1}, {"bias": "lora_only"}])
@pytest.mark.parametrize("rslora", [False, True])
def test_scaling_is_pefts(changes, rslora: bool, tmp_path: Path, model_folder: Path) -> None:
    model = lora(tiny_llama(), use_rslora=rslora, **changes)
    shake(model)
    model.save_pretrained(tmp_path)
    (checkpoint,) = find_checkpoints(tmp_path)
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules()}
    for matrix in checkpoint.matrices:
        update = checkpoint.read(matrix).update
        assert update is not None
        delta = layers[matrix.name].get_delta_weight("default").detach().double()
        tolerance = 32 * torch.finfo(torch.float32).eps * delta.abs().max().item()
        torch.testing.assert_close(update[0] @ update[1], delta, rtol=0, atol=tolerance)


def test_settings_left_out_have_pefts_defaults(tmp_path: Path, model_folder: Path) -> None:
    from peft import PeftModel

    model = lora(tiny_llama())
    shake(model)
    model.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    kept = ("peft_type", "r", "target_modules", "base_model_name_or_path")
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({key: settings[key] for key in kept}))
    merged = PeftModel.from_pretrained(tiny_llama(), tmp_path).merge_and_unload()
    (checkpoint,) = find_checkpoints(tmp_path)
    found = read_on(checkpoint, open_model(model_folder))
    assert_merged(found, attention_weights(merged), attention_weights(tiny_llama()))


def test_sorsa_gives_its_trained_factors(tmp_path: Path) -> None:
    model = sorsa(tiny_llama())
    shake(model)
    model.save_pretrained(tmp_path)
    (checkpoint,) = find_checkpoints(tmp_path)
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules()}
    for matrix in checkpoint.matrices:
        factors = checkpoint.read(matrix).factors
        assert factors is not None
        layer = layers[matrix.name]
        assert torch.equal(factors.u, layer.sorsa_u["default"])
        assert torch.equal(factors.s, layer.sorsa_s["default"])
        assert torch.equal(factors.vh, layer.sorsa_vh["default"])


# Whole models.


@pytest.mark.parametrize("shards", [None, "20KB", "7KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_model_folders_equal_their_state_dict(
    shards: str | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_llama(seed=4, dtype=dtype)
    model.save_pretrained(tmp_path, **({"max_shard_size": shards} if shards else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(shards)
    checkpoint = open_model(tmp_path)
    expected = {
        name.removesuffix(".weight"): tensor
        for name, tensor in model.state_dict().items()
        if tensor.ndim == 2 and ".layers." in name
    }
    assert {m.name for m in checkpoint.matrices} == set(expected)
    for matrix in checkpoint.matrices:
        weight = checkpoint.read(matrix).dense
        assert weight is not None
        assert weight.dtype == dtype
        assert torch.equal(weight, expected[matrix.name])
        assert matrix.shape == tuple(weight.shape)
        assert f"torch.{matrix.dtype}" == str(dtype)


@pytest.mark.parametrize("name", FORMATS)
def test_headers_say_what_reading_gives(name: str, tmp_path: Path, model_folder: Path) -> None:
    merged = FORMATS[name](tmp_path)
    *_, checkpoint = find_checkpoints(tmp_path)
    described = {m.name: m for m in checkpoint.matrices}
    assert len(described) == len(checkpoint.matrices)
    for matrix, weight in merged.items():
        assert described[matrix].shape == tuple(weight.shape)
        assert described[matrix].dtype == "float32"
        assert f"model.layers.{described[matrix].layer}.self_attn.{described[matrix].module}" == (
            matrix
        )


# Fingerprints.


@pytest.mark.parametrize("name", FORMATS)
def test_the_fingerprint_stays_until_the_checkpoint_is_written_again(
    name: str, tmp_path: Path
) -> None:
    FORMATS[name](tmp_path / "a")
    before = [c.fingerprint for c in find_checkpoints(tmp_path / "a")]
    assert [c.fingerprint for c in find_checkpoints(tmp_path / "a")] == before
    FORMATS[name](tmp_path / "a")
    assert find_checkpoints(tmp_path / "a")[-1].fingerprint != before[-1]


def test_a_moved_run_keeps_its_fingerprints(tmp_path: Path) -> None:
    FORMATS["snapshots of SORSA"](tmp_path / "a")
    before = [c.fingerprint for c in find_checkpoints(tmp_path / "a")]
    moved = (tmp_path / "a").rename(tmp_path / "b")
    assert [c.fingerprint for c in find_checkpoints(moved)] == before


# Weight.on.


def test_another_models_base_is_refused() -> None:
    w_0 = gaussian(4, 6)
    for weight in (Weight(dense=gaussian(4, 5)), Weight(update=(gaussian(5, 2), gaussian(2, 6)))):
        with pytest.raises(ValueError, match=r"base's matrix has shape \(4, 6\), the checkpoint's"):
            weight.on(w_0)


def test_no_update_is_the_base_itself() -> None:
    w_0 = gaussian(4, 6).float()
    assert torch.equal(Weight().on(w_0), w_0.double())
