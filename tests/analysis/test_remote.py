"""Rows from checkpoints on a server: those of the same folder here, by the bytes that they need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import peft
import pytest
import torch

import checkpoints_index.remote
from checkpoints_index import bytes_read
from spectra.analysis import analyze
from spectra.analysis.bases import find_base
from spectra.cli import main
from spectra.store import Run
from tests.checkpoints_index.range_server import RangeServer, serving
from tests.helpers import MODULES, shake, tiny_llama, tiny_model_folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(checkpoints_index.remote, "FIRST_PAUSE", 0.01)
    monkeypatch.chdir(tmp_path)
    served = tmp_path / "served"
    tiny_llama().save_pretrained(served / "base", max_shard_size="20KB")
    for name in ("lora", "dora"):
        config = peft.LoraConfig(r=3, target_modules=list(MODULES), use_dora=name == "dora")
        model = peft.get_peft_model(tiny_llama(), config)
        for step in (5, 10):
            shake(model, seed=step)
            model.save_pretrained(str(served / "out" / name / f"checkpoint-{step}"))
    with serving(served) as running:
        yield running


def as_told(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without what tells where the files lie and when they changed."""
    sorted_rows = rows.sort_values(["run", "step", "layer", "module"])
    return sorted_rows.drop(columns=["source"]).reset_index(drop=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_are_those_of_the_same_folder_here(
    tmp_path: Path, server: RangeServer, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before, sent = bytes_read(), server.sent
    assert main(["index", f"{server.url}/out"]) == 0
    table = capsys.readouterr().out
    indexed = bytes_read()
    assert "lora: 2 checkpoints" in table and f"Read {indexed - before:,} bytes" in table
    arguments = ["analyze", f"{server.url}/out", "--base", f"{server.url}/base"]
    assert main([*arguments, "--out", "there", "--workers", str(workers)]) == 0
    told = capsys.readouterr().out
    assert "24 rows: 3 steps × 2 layers × 2 modules" in told
    # The workers' reading counts too; and all that the server sent is told.
    assert f"Read {bytes_read() - indexed:,} bytes of remote files" in told
    assert bytes_read() - before == server.sent - sent
    here = analyze(tmp_path / "served" / "out", base=tmp_path / "served" / "base", out="here")
    there = pd.concat([Run(f"there/{name}").read_drift() for name in ("lora", "dora")])
    pd.testing.assert_frame_equal(as_told(there), as_told(here))
    settings = Run("there/lora").read_settings()
    assert settings["base"]["name"] == f"{server.url}/base"
    assert settings["base"]["dtypes"] == ["float32"]


def test_only_what_is_wanted_and_headers_are_read(
    tmp_path: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = {
            f"model.layers.{i}.self_attn.{module}.weight": torch.randn(256, 256)
            for i in range(8)
            for module in ("q_proj", "k_proj", "v_proj", "o_proj")
        }
    from safetensors.torch import save_file

    for name in ("wide", "trained/checkpoint-3"):
        (tmp_path / "served" / name).mkdir(parents=True)
        file = tmp_path / "served" / name / "model.safetensors"
        save_file({n: w + len(name) * 1e-3 for n, w in tensors.items()}, file)
    with file.open("rb") as opened:
        header = 8 + int.from_bytes(opened.read(8), "little")
    before = bytes_read()
    url = f"{server.url}/trained"
    rows = analyze(url, base=f"{server.url}/wide", modules=["model.layers.5.*.q_proj"], out="run")
    assert len(rows) == 2  # the base's step and the trained one
    read = bytes_read() - before
    wanted = 2 * 256 * 256 * 4
    assert wanted <= read <= 1.02 * (wanted + 2 * header)
    before = bytes_read()
    assert len(
        analyze(url, base=f"{server.url}/wide", modules=["model.layers.5.*.q_proj"], out="run")
    )
    assert bytes_read() - before == 2 * header  # no weights again


def test_a_base_beside_the_adapters_is_found_there(
    tmp_path: Path, server: RangeServer, caplog: pytest.LogCaptureFixture
) -> None:
    rows = analyze(server.url, out="run")
    assert set(rows["step"]) == {0, 5, 10}
    assert f"{server.url}/base is taken" in caplog.text


def test_a_named_base_is_looked_for_below_the_address_and_nowhere_else(
    tmp_path: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace
    from typing import Any

    from checkpoints_index import as_location

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    root = as_location(server.url)

    def found(name: str) -> str:
        adapters: list[Any] = [SimpleNamespace(path=Path("a"), base=name)]
        return str(find_base(None, adapters, root))

    assert found("base") == f"{server.url}/base"
    sent = server.sent
    for name in ("../base", f"{server.url}/base", "/base", "out/../base", "none"):
        with pytest.raises(FileNotFoundError, match="is neither a folder here"):
            found(name)
    assert server.sent == sent


def test_whole_models_on_a_server_may_be_compared_with_a_base_here(
    tmp_path: Path, server: RangeServer
) -> None:
    base = tiny_model_folder(tmp_path / "here")
    rows = analyze(f"{server.url}/base", base=base, out="run")
    assert set(rows["step"]) == {0, 1}
    assert rows["delta_sigma"].abs().max() < 1e-12
