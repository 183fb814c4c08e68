"""Saved adapters of this project's tuners: what their files hold, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints_index import Checkpoint, CheckpointError, open_model
from tests.checkpoints_index.adapted import change_settings, open_adapter, save, write
from tests.helpers import MODULES, attention_weights, shake, svft, tiny_llama, tiny_model_folder

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_model(tiny_model_folder(tmp_path_factory.mktemp("base")))


def read_all(folder: Path, base: Checkpoint) -> dict[str, Tensor]:
    checkpoint = open_adapter(folder).bind(base)
    w_0 = attention_weights(tiny_llama())
    return {m.name: checkpoint.read(m).on(w_0[m.name]) for m in checkpoint.matrices}


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


@pytest.mark.parametrize(
    ("name", "method", "inner"),
    [
        ("MiLoRA", "milora", {"milora_a", "milora_b", "milora_a0", "milora_b0"}),
        ("LoRA-XS", "lora-xs", {"lora_xs_core", "lora_xs_left", "lora_xs_right"}),
        ("SVF", "svf", {"svf_delta", "svf_pivot", "svf_s0"}),
        ("SVFT", "svft", {f"svft_{n}" for n in ("values", "rows", "cols", "pivot", "s0")}),
        (
            "SVF with vectors",
            "svf",
            {"svf_delta", "svf_pivot", "svf_s0", "svf_u", "svf_vh"},
        ),
    ],
)
def test_files_hold_what_is_read(name: str, method: str, inner: set[str], tmp_path: Path) -> None:
    write(name, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {n.removeprefix(f"{LAYER}.") for n in tensors if n.startswith(LAYER)} == inner
    adapter = open_adapter(tmp_path)
    assert adapter.method == method
    assert {matrix.module for matrix in adapter.matrices} == set(MODULES)


@pytest.mark.parametrize("name", ["MiLoRA", "LoRA-XS"])
def test_frozen_factors_need_neither_base_nor_peft(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write(name, tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    adapter = open_adapter(tmp_path)
    w_0 = attention_weights(tiny_llama())
    for matrix in adapter.matrices:
        found = adapter.read(matrix).on(w_0[matrix.name])
        torch.testing.assert_close(found, expected[matrix.name].double(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", ["SVF", "SVFT"])
def test_vectors_need_the_base_and_peft(
    name: str, tmp_path: Path, base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(name, tmp_path)
    adapter = open_adapter(tmp_path)
    with pytest.raises(CheckpointError, match="W_t needs its base"):
        adapter.read(adapter.matrices[0])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CheckpointError, match=r"not installed: pip install \"\.\[train\]"):
        read_all(tmp_path, base)


def test_the_largest_entries_are_read_too(tmp_path: Path, base: Checkpoint) -> None:
    # Of square matrices only.
    model = svft(tiny_llama(), pattern="top-k", target_modules=["q_proj"])
    shake(model, size=0.3)
    save(model, tmp_path)
    found = read_all(tmp_path, base)
    merged = attention_weights(model.double().merge_and_unload(), ["q_proj"])
    assert found.keys() == merged.keys()
    for layer, weight in merged.items():
        torch.testing.assert_close(found[layer], weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["SVF", "SVFT, banded", "SVF with vectors"])
def test_another_base_is_an_error(name: str, tmp_path: Path) -> None:
    write(name, tmp_path / "adapter")
    other = open_model(tiny_model_folder(tmp_path / "other", seed=5))
    with pytest.raises(CheckpointError, match=r"q_proj.* made on another base"):
        read_all(tmp_path / "adapter", other)


def test_vectors_turned_among_themselves_are_an_error(tmp_path: Path, base: Checkpoint) -> None:
    write("SVF", tmp_path)
    change_tensors(
        tmp_path, lambda t: t[f"{LAYER}.svf_pivot"].copy_(t[f"{LAYER}.svf_pivot"].flip(0))
    )
    with pytest.raises(CheckpointError, match="not those that it was trained between"):
        read_all(tmp_path, base)


DAMAGE: dict[str, tuple[str, Callable[[Tensor], Tensor | None]]] = {
    **{
        f"{what} in {part}": (part, change)
        for part in ("svf_pivot", "svft_rows", "svft_cols", "svft_pivot")
        for what, change in {
            "a place before the first": lambda t: t.clone().index_fill_(0, torch.tensor([3]), -1),
            "a place far before": lambda t: t - 2**31,
            "a place beyond": lambda t: t + 32,
            "floats": lambda t: t.float(),
            "int64": lambda t: t.long(),
            "fewer places": lambda t: t[:-1],
        }.items()
    },
    "another length of svf_delta": ("svf_delta", lambda t: t[:-1]),
    "two dimensions of svf_delta": ("svf_delta", lambda t: t[:, None]),
    "integers in svf_delta": ("svf_delta", lambda t: t.int()),
    "no svf_delta": ("svf_delta", lambda t: None),
    "no svf_pivot": ("svf_pivot", lambda t: None),
    "no svf_s0": ("svf_s0", lambda t: None),
    "other svf_s0": ("svf_s0", lambda t: 2 * t),
    "another length of svft_values": ("svft_values", lambda t: t[:-1]),
    "no svft_values": ("svft_values", lambda t: None),
    "no svft_rows": ("svft_rows", lambda t: None),
    "a core that is not square": ("lora_xs_core", lambda t: t[:-1]),
    "a core of another rank": ("lora_xs_core", lambda t: t[:-1, :-1]),
    "no core": ("lora_xs_core", lambda t: None),
    "left of another rank": ("lora_xs_left", lambda t: t[:, :-1]),
    "no right": ("lora_xs_right", lambda t: None),
    "integers in right": ("lora_xs_right", lambda t: t.int()),
    "no start": ("milora_a0", lambda t: None),
    "a start of another rank": ("milora_b0", lambda t: t[:, :-1]),
    "B of another rank": ("milora_b", lambda t: t[:, :-1]),
}
WRITTEN_BY = {"svf": "SVF", "svft": "SVFT, banded", "lora": "LoRA-XS", "milora": "MiLoRA"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_tensors_that_do_not_fit_are_one_error(
    damage: str, tmp_path: Path, base: Checkpoint
) -> None:
    part, change = DAMAGE[damage]
    write(WRITTEN_BY[part.split("_")[0]], tmp_path)

    def damaged(tensors: dict[str, Tensor]) -> None:
        by = change(tensors.pop(f"{LAYER}.{part}"))
        if by is not None:
            tensors[f"{LAYER}.{part}"] = by

    change_tensors(tmp_path, damaged)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_all(tmp_path, base)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SVFT, banded", {"off_diagonals": 10**12}),
        ("SVFT, banded", {"off_diagonals": -1}),
        ("SVFT, banded", {"off_diagonals": "two"}),
        ("SVFT, banded", {"off_diagonals": None}),
        ("SVFT, banded", {"off_diagonals": 3}),
        ("SVFT, banded", {"pattern": "diagonal"}),
        ("SVFT, banded", {"pattern": ["banded"]}),
        ("SVF", {"save_vectors": True}),
        ("SVF", {"save_vectors": [[]]}),
    ],
)
def test_settings_that_do_not_fit_the_tensors_are_one_error(
    name: str, settings: dict[str, object], tmp_path: Path, base: Checkpoint
) -> None:
    write(name, tmp_path)
    change_settings(tmp_path, **settings)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_all(tmp_path, base)


@pytest.mark.parametrize("name", ["SVF", "SVFT"])
def test_a_setting_cannot_replace_the_saved_values(
    name: str, tmp_path: Path, base: Checkpoint
) -> None:
    write(name, tmp_path)
    before = read_all(tmp_path, base)
    change_settings(tmp_path, init_weights=True)
    after = read_all(tmp_path, base)
    assert all(torch.equal(after[layer], weight) for layer, weight in before.items())
