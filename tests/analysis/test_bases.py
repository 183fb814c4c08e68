"""Which base checkpoints are compared with, in which order places are asked."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_index import CheckpointError, build_index
from spectra.analysis import analyze
from spectra.analysis.bases import find_base
from spectra.store import Run
from tests.helpers import lora, shake, tiny_llama, tiny_model_folder


@pytest.fixture(autouse=True)
def _empty_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and an empty cache of the hub's client."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def adapters(*bases: str | None) -> list[Any]:
    return [SimpleNamespace(path=Path("all/lora/checkpoint-5"), base=base) for base in bases]


def cache(hub: Path, model: Path) -> Path:
    """organisation/name in the cache of the hub's client, as it lays it out."""
    repository = hub / "models--organisation--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    return Path(shutil.copytree(model, repository / "snapshots" / ("a" * 40)))


def test_what_is_given_comes_first(model_folder: Path) -> None:
    assert find_base(str(model_folder), adapters("other"), None, [Path("beside")]) == model_folder
    with pytest.raises(FileNotFoundError, match="The base none/where is neither a folder here"):
        find_base("none/where", adapters("other"))


def test_a_named_folder_is_found_from_here_and_from_the_root(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "all"
    inside = tiny_model_folder(root / "organisation" / "name")
    assert find_base(None, adapters("organisation/name"), root, [Path("beside")]) == inside
    here = tiny_model_folder(Path("organisation/name"))
    assert find_base(None, adapters("organisation/name"), root) == here
    assert not caplog.text


def test_the_hubs_cache_is_asked_before_what_lies_beside(
    tmp_path: Path, model_folder: Path
) -> None:
    wanted = adapters("organisation/name")
    cached = cache(tmp_path / "hub", model_folder)
    assert find_base(None, wanted, tmp_path, [Path("beside")]) == cached
    # Of a repository, the client may hold the settings only.
    (cached / "model.safetensors").unlink()
    assert find_base(None, wanted, tmp_path, [Path("beside")]) == Path("beside")


def test_the_hub_is_asked_before_a_model_of_another_name_is_taken(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, local_files_only: bool = False, **_: Any) -> str:
        if local_files_only:
            raise FileNotFoundError
        return str(model_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    wanted = adapters("organisation/name")
    assert find_base(None, wanted, tmp_path, [Path("a/merged")]) == model_folder
    assert find_base(None, wanted, tmp_path, [Path("a/name")]) == Path("a/name")


@pytest.mark.parametrize(
    ("base", "beside", "expected"),
    [
        ("organisation/name", ["a/merged", "a/name"], "a/name"),
        ("/gone/name", ["a/merged", "a/name"], "a/name"),
        ("organisation/name", ["a/only"], "a/only"),
        (None, ["a/only"], "a/only"),
        ("", ["a/only"], "a/only"),
    ],
)
def test_what_lies_beside_is_taken_with_a_word(
    base: str | None, beside: list[str], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = find_base(None, adapters(base), Path("all"), list(map(Path, beside)))
    assert found == Path(expected)
    assert f"{expected} is taken" in caplog.text and "--base" in caplog.text


@pytest.mark.parametrize(
    ("bases", "beside", "message"),
    [
        ([None], [], "checkpoint-5 does not say what it was trained from; give --base"),
        ([""], ["a", "b"], "names no base, and there are several models beside it: a, b"),
        (["one", "other"], ["a"], "name several bases"),
        ([None, "other"], ["a"], "name several bases"),
    ],
)
def test_what_cannot_be_told_is_refused(
    bases: list[str | None], beside: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_base(None, adapters(*bases), Path("all"), list(map(Path, beside)))


@pytest.mark.parametrize("base", ["organisation/name", "/gone/name", "../..//x", "a\0b"])
def test_a_base_that_is_nowhere_is_named(base: str) -> None:
    with pytest.raises(FileNotFoundError, match="The base .* Give its folder with --base"):
        find_base(None, adapters(base), Path("all"), [Path("first"), Path("second")])


def test_of_a_quantised_base_the_choice_is_the_users(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    named = shutil.copytree(base, tmp_path / "base-4bit")
    # As bitsandbytes leaves it: bytes with their scales, and the method in the configuration.
    tensors = load_file(named / "model.safetensors")
    for name in [n for n in tensors if "_proj" in n]:
        tensors[f"{name}.absmax"] = torch.ones(tensors[name].numel() // 64 + 1)
        tensors[name] = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
    save_file(tensors, named / "model.safetensors")
    config = json.loads((named / "config.json").read_text())
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (named / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    model = lora(tiny_llama())
    shake(model)
    model.peft_config["default"].base_model_name_or_path = str(named)
    model.save_pretrained(tmp_path / "adapter" / "checkpoint-5")
    both = r"quantised weights \(bitsandbytes\).* 16-bit weights .* or the numbers .*--base"
    with pytest.raises(CheckpointError, match=both):
        analyze(tmp_path / "adapter", out="run")
    rows = analyze(tmp_path / "adapter", base=base, out="run")
    assert set(rows["step"]) == {0, 5}
    described = Run("run").read_settings()["base"]
    assert (described["name"], described["dtypes"]) == (str(base), ["float32"])
    # In an index, it is what it is, and hides nothing else.
    assert {e.state for e in build_index(tmp_path).entries} == {"complete"}
