"""Remote folders are searched as those of this machine are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import checkpoints_index.remote
from checkpoints_index import (
    CheckpointError,
    IncompleteCheckpointError,
    IndexStore,
    as_location,
    build_index,
    find_checkpoints,
    find_series,
    open_model,
)
from checkpoints_index.remote_walking import walk_remote
from tests.checkpoints_index.formats import FORMATS, STEP
from tests.checkpoints_index.model_formats import MODEL_FORMATS
from tests.checkpoints_index.range_server import RangeServer, serving


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(checkpoints_index.remote, "FIRST_PAUSE", 0.01)
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as running:
        yield running


def described(path: Path | str) -> list[tuple[object, ...]]:
    """All that an index says of its checkpoints, but for where they are."""
    root = str(path).rstrip("/")
    return [
        (
            str(e.path).removeprefix(root),
            *(e.series, e.step, e.format, e.state, e.method, e.base, e.size, e.matrices),
        )
        for e in build_index(path).entries
    ]


@pytest.mark.parametrize("name", [*FORMATS, *sorted(MODEL_FORMATS.keys() - FORMATS.keys())])
def test_every_format_is_found_as_on_this_machine(
    name: str, tmp_path: Path, server: RangeServer
) -> None:
    local, url = tmp_path / "served" / "all", f"{server.url}/all"
    if name in FORMATS:
        FORMATS[name](local)
    else:
        MODEL_FORMATS[name](local / f"checkpoint-{STEP}")
    assert described(url) == described(local)
    found, expected = find_checkpoints(url), find_checkpoints(local)
    assert [(c.step, c.method, c.base) for c in found] == [
        (c.step, c.method, c.base) for c in expected
    ]
    for there, here in zip(found, expected, strict=True):
        for matrix in here.matrices:
            for read, w in zip(parts(there, matrix), parts(here, matrix), strict=True):
                assert torch.equal(read, w)


def parts(checkpoint: object, matrix: object) -> list[torch.Tensor]:
    weight = checkpoint.read(matrix)  # type: ignore[attr-defined]
    return [weight.dense] if weight.dense is not None else list(weight.update or ())


def test_trainings_are_series_and_states_give_steps(tmp_path: Path, server: RangeServer) -> None:
    local, url = tmp_path / "served" / "out", f"{server.url}/out/"
    for step in (2, 10):
        MODEL_FORMATS["safetensors"](local / "a" / f"checkpoint-{step}")
    MODEL_FORMATS["safetensors"](local / "b" / "last")
    (local / "b" / "last" / "trainer_state.json").write_text(json.dumps({"global_step": 70}))
    for left in (".hidden", "optimizer_0", "mp_rank_00"):
        shutil.copytree(local / "a" / "checkpoint-2", local / "c" / left)
    shutil.copytree(local / "a" / "checkpoint-2", local / "a" / "tmp-checkpoint-20")
    (local / "a" / "checkpoint-2" / "notes.txt").write_text("x")
    assert described(url) == described(local)
    series = [(s.name, [c.step for c in s.checkpoints]) for s in find_series(url)]
    assert series[:2] == [("a", [2, 10]), ("b", [70])]
    assert walk_remote(as_location(url)).keys() == {
        *("", "a", "a/checkpoint-10", "a/checkpoint-2", "b", "b/last", "c", "c/mp_rank_00")
    }


def test_what_is_still_being_written_is_left(tmp_path: Path, server: RangeServer) -> None:
    local = tmp_path / "served"
    MODEL_FORMATS["safetensors"](local / "checkpoint-1")
    whole = (local / "checkpoint-1" / "model.safetensors").read_bytes()
    (local / "checkpoint-2").mkdir()
    (local / "checkpoint-2" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (local / "checkpoint-3").mkdir()
    (local / "checkpoint-3" / "model-00001-of-00002.safetensors").write_bytes(whole)
    assert [c.step for c in find_checkpoints(server.url)] == [1]
    states = [(e.step, e.state) for e in build_index(server.url).entries]
    assert states == [(1, "complete"), (2, "incomplete"), (3, "incomplete")]
    with pytest.raises(IncompleteCheckpointError, match="checkpoint-2/model.safetensors is short"):
        find_checkpoints(f"{server.url}/checkpoint-2")


def test_one_file_is_a_checkpoint(tmp_path: Path, server: RangeServer) -> None:
    MODEL_FORMATS["gguf"](tmp_path / "served")
    (file,) = (tmp_path / "served").glob("*.gguf")
    url = f"{server.url}/{file.name}"
    assert [str(e.path) for e in build_index(url).entries] == [url]
    assert [c.step for c in find_checkpoints(url)] == [1]
    assert open_model(url).matrices == open_model(file).matrices
    with pytest.raises(FileNotFoundError, match=r"none\.gguf is not a folder"):
        build_index(f"{server.url}/none.gguf")


def test_what_is_not_there_is_one_error(server: RangeServer) -> None:
    for find in (build_index, find_checkpoints, find_series, open_model):
        with pytest.raises(CheckpointError, match=rf"{server.url}/none does not exist"):
            find(f"{server.url}/none")
    with pytest.raises(FileNotFoundError, match=f"No checkpoint in {server.url}: looked for"):
        find_checkpoints(server.url)


def test_no_index_of_a_remote_folder_is_kept(tmp_path: Path, server: RangeServer) -> None:
    MODEL_FORMATS["safetensors"](tmp_path / "served" / "checkpoint-1")
    store = IndexStore(tmp_path / "kept")
    assert len(build_index(server.url, store).entries) == 1
    assert not store.folder.exists()
