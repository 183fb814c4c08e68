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
from safetensors.torch import load_file
from torch import Tensor

from checkpoints_index import CheckpointError, build_index, open_model
from spectra.analysis import analyze, estimate
from spectra.analysis.bases import find_base
from spectra.store import Run
from tests.helpers import lora, quantised_folder, shake, tiny_model_folder


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


def test_the_hub_is_asked_where_only_a_model_of_another_name_is_there(
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


def test_a_model_of_another_name_is_offered_and_not_taken() -> None:
    wanted = adapters("organisation/name")
    message = "The base organisation/name is neither .* with --base, or choose .*: a/merged"
    with pytest.raises(FileNotFoundError, match=message):
        find_base(None, wanted, Path("all"), [Path("a/merged")])


@pytest.mark.parametrize("base", ["organisation/name", "/gone/name", "../..//x", "a\0b"])
def test_a_base_that_is_nowhere_is_named(base: str) -> None:
    with pytest.raises(FileNotFoundError, match="The base .* Give its folder with --base"):
        find_base(None, adapters(base), Path("all"), [Path("first"), Path("second")])


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
QUANTISED: dict[str, tuple[dict[str, Any], str]] = {
    "nf4": (NF4 | {"bnb_4bit_use_double_quant": True}, "nf4-double"),
    "fp4": (NF4 | {"bnb_4bit_quant_type": "fp4"}, "fp4"),
    "int8": ({"load_in_8bit": True}, "int8"),
}


def q_lora(base: Path, quantised: Path, adapter: Path) -> dict[str, dict[str, Tensor]]:
    """Train a LoRA on a quantised model and save it; returns each W_0 and each update, by name."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    model = lora(AutoModelForCausalLM.from_pretrained(quantised, device_map="cpu"))
    shake(model)
    model.peft_config["default"].base_model_name_or_path = str(quantised)
    model.save_pretrained(adapter / "checkpoint-5")
    plain = load_file(base / "model.safetensors")
    found: dict[str, dict[str, Tensor]] = {"16 bits": {}, "de-quantised": {}, "update": {}}
    for name, layer in model.base_model.model.named_modules():
        if hasattr(layer, "lora_A"):
            linear = layer.base_layer
            found["16 bits"][name] = plain[f"{name}.weight"].double()
            weight = dequantize_bnb_weight(linear.weight, getattr(linear, "state", None))
            found["de-quantised"][name] = weight.detach().double()
            b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
            found["update"][name] = layer.scaling["default"] * (b.double() @ a.double()).detach()
    return found


@pytest.mark.parametrize("name", QUANTISED)
def test_of_a_quantised_base_the_choice_is_the_users(name: str, tmp_path: Path) -> None:
    options, dtype = QUANTISED[name]
    base = tiny_model_folder(tmp_path / "base")
    named = quantised_folder(base, tmp_path / "base-quantised", options)
    weights = q_lora(base, named, tmp_path / "adapter")
    both = r"quantised weights \(bitsandbytes\).* 16-bit weights .* or the numbers .*--dequantise"
    with pytest.raises(CheckpointError, match=both):
        analyze(tmp_path / "adapter", out="run")
    with pytest.raises(CheckpointError, match=both):
        estimate(tmp_path / "adapter", out="run")
    rows = {
        "16 bits": analyze(tmp_path / "adapter", base=base, out="of 16 bits"),
        "de-quantised": analyze(tmp_path / "adapter", dequantise=True, out="of its own"),
    }
    for choice, found in rows.items():
        assert len(found) == 8 and set(found["step"]) == {0, 5}
        for row in found.to_dict("records"):
            path = f"model.layers.{row['layer']}.self_attn.{row['module']}"
            w = weights[choice][path] + (row["step"] > 0) * weights["update"][path]
            s = torch.linalg.svdvals(w)
            assert row["sigma_max"] == pytest.approx(s[0].item(), rel=1e-12)
            assert row["sigma_min"] == pytest.approx(s[-1].item(), rel=1e-9)
            assert row["sigma_noise"] == 0 or row["step"] == 0
    described = {run: Run(run).read_settings()["base"] for run in ("of 16 bits", "of its own")}
    chosen = {k: (b["name"], b["dequantised"], b["dtypes"]) for k, b in described.items()}
    assert chosen == {
        "of 16 bits": (str(base), None, ["float32"]),
        "of its own": (str(named), name, [dtype]),
    }
    # Neither choice goes into the other's rows.
    with pytest.raises(
        ValueError, match=rf"against the base .*base, now .*de-quantised from {name}"
    ):
        analyze(tmp_path / "adapter", dequantise=True, out="of 16 bits")
    with pytest.raises(ValueError, match=rf"de-quantised from {name}\), now it is .*base\."):
        analyze(tmp_path / "adapter", base=base, out="of its own")
    assert not estimate(tmp_path / "adapter", dequantise=True, out="of its own").work
    # In an index, it is what it is, and hides nothing else.
    assert {e.state for e in build_index(tmp_path).entries} == {"complete"}


def test_the_choice_of_one_folder_stays(tmp_path: Path) -> None:
    # The same address, and once it is a model of 16 bits.
    base = tiny_model_folder(tmp_path / "base")
    named = quantised_folder(base, tmp_path / "quantised", NF4)
    q_lora(base, named, tmp_path / "adapter")
    analyze(tmp_path / "adapter", dequantise=True, out="run")
    shutil.rmtree(named)
    shutil.copytree(base, named)
    with pytest.raises(ValueError, match=r"\(de-quantised from nf4\), now it is .*quantised\. "):
        analyze(tmp_path / "adapter", dequantise=True, out="run")


@pytest.mark.parametrize("name", QUANTISED)
def test_whole_quantised_checkpoints_are_dequantised_when_told(name: str, tmp_path: Path) -> None:
    options, dtype = QUANTISED[name]
    base = tiny_model_folder(tmp_path / "base")
    for step in (5, 10):
        merged = tiny_model_folder(tmp_path / f"trained-{step}", seed=step)
        quantised_folder(merged, tmp_path / "run" / f"checkpoint-{step}", options)
    with pytest.raises(CheckpointError, match=r"checkpoint-5 holds quantised .*--dequantise"):
        analyze(tmp_path / "run", base=base, out="out")
    rows = analyze(tmp_path / "run", base=base, dequantise=True, out="out")
    assert len(rows) == 12
    trained = rows[rows["step"] > 0]
    assert set(trained["dtype"]) == {dtype}
    # Of int8 the rounding is known; not of scales that are quantised too, nor of fp4.
    assert trained["sigma_noise"].notna().all() == (name == "int8")
    assert Run("out").read_settings()["base"]["dequantised"] is None
    model = open_model(tmp_path / "run" / "checkpoint-5", dequantise=True)
    for matrix in model.matrices:
        dense = model.read(matrix).dense
        row = trained[
            (trained["step"] == 5)
            & (trained["layer"] == matrix.layer)
            & (trained["module"] == matrix.module)
        ]
        if dense is not None and len(row):
            largest = torch.linalg.svdvals(dense.double())[0].item()
            assert row["sigma_max"].item() == pytest.approx(largest, rel=1e-12)


def test_checkpoints_that_are_quantised_otherwise_are_refused(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    folder = tiny_model_folder(tmp_path / "run" / "checkpoint-5", seed=1)
    config = json.loads((folder / "config.json").read_text())
    settings = {"quantization_config": {"quant_method": "awq"}}
    (folder / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(CheckpointError, match=r"\(awq\), which are not read.*dequantize\(\)"):
        analyze(tmp_path / "run", base=base, dequantise=True, out="out")
