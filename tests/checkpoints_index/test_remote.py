"""Remote checkpoints: only the wanted bytes, and patience with connections that fail."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile
from safetensors.torch import save_file

import checkpoints_index.remote
from checkpoints_index import CheckpointError
from checkpoints_index.model_folders import ModelCheckpoint
from checkpoints_index.model_readers import find_models, open_whole_model
from checkpoints_index.remote import ATTEMPTS, bytes_read, list_folder, open_path
from checkpoints_index.safetensors_files import TensorFile
from checkpoints_index.torch_files import TorchFile
from tests.checkpoints_index.model_formats import MODEL_FORMATS
from tests.checkpoints_index.range_server import RangeServer, serving
from tests.helpers import gaussian


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(checkpoints_index.remote, "FIRST_PAUSE", 0.01)
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> torch.Tensor:
    """Write a file of which one matrix in twenty is wanted; return that matrix."""
    tensors = {f"layers.{i}.q_proj.weight": gaussian(128, 128, i).float() for i in range(20)}
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "model.pt")
    return tensors["layers.7.q_proj.weight"]


@pytest.mark.parametrize("name", MODEL_FORMATS)
def test_every_format_is_read_from_a_server(name: str, tmp_path: Path, server: RangeServer) -> None:
    expected = MODEL_FORMATS[name](tmp_path / "run")
    folder = open_path(f"{server.url}/run")
    names = {entry.name for entry in folder.iterdir()}
    assert names == {entry.name for entry in (tmp_path / "run").iterdir()}
    model = open_whole_model(folder, 30)
    matrices = {m.name: m for m in model.matrices}
    for layer, w in expected.items():
        dense = model.read(matrices[layer]).dense
        assert dense is not None
        assert torch.equal(dense, w)
    assert model.fingerprint == open_whole_model(folder, 30).fingerprint


def test_a_models_configuration_is_read_from_a_server(tmp_path: Path, server: RangeServer) -> None:
    MODEL_FORMATS["safetensors"](tmp_path)
    model = open_whole_model(open_path(server.url), 0)
    assert isinstance(model, ModelCheckpoint)
    assert model.config["model_type"] == "llama"


def test_shards_that_are_not_there_are_missing_on_a_server(
    tmp_path: Path, server: RangeServer
) -> None:
    MODEL_FORMATS["sharded safetensors"](tmp_path)
    gone = sorted(tmp_path.glob("*.safetensors"))[0]
    gone.unlink()
    (candidate,) = find_models(open_path(server.url))
    assert candidate.missing == (gone.name,)
    with pytest.raises(CheckpointError, match=rf"{server.url}/{gone.name} does not exist"):
        open_whole_model(open_path(server.url), 0)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_only_headers_and_the_wanted_matrix_are_read(
    name: str, tmp_path: Path, server: RangeServer, file: torch.Tensor
) -> None:
    path = open_path(f"{server.url}/{name}")
    store = TensorFile(path) if name.endswith("safetensors") else TorchFile(path)
    headers = bytes_read(path)
    assert 0 < headers < 0.02 * (tmp_path / name).stat().st_size
    assert torch.equal(store.read("layers.7.q_proj.weight"), file)
    wanted = file.numel() * 4
    assert wanted <= bytes_read(path) - headers <= 1.02 * wanted
    assert bytes_read(path) == server.sent
    assert torch.equal(store.read("layers.7.q_proj.weight", slice(3, 5)), file[3:5])
    assert bytes_read(path) - headers <= 1.02 * (wanted + 2 * 128 * 4)
    assert bytes_read() >= bytes_read(server.url) == bytes_read(path)


@pytest.mark.parametrize("failure", ["drop", "short", "500", "503", "429"])
def test_a_failing_connection_is_tried_again(
    failure: str, server: RangeServer, file: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    server.failures.extend([failure, failure, "", failure])
    path = open_path(f"{server.url}/model.safetensors")
    with caplog.at_level(logging.WARNING):
        read = TensorFile(path).read("layers.7.q_proj.weight")
    assert torch.equal(read, file)
    assert not server.failures
    # The HTTP library itself asks again, once, where a connection is dropped.
    assert 1 <= len(caplog.records) <= 3
    assert "trying again" in caplog.text


@pytest.mark.parametrize("failure", ["drop", "500"])
def test_sizes_and_listings_are_asked_for_again(
    failure: str, tmp_path: Path, server: RangeServer
) -> None:
    MODEL_FORMATS["sharded safetensors"](tmp_path)
    server.everything = True
    # fsspec asks for a size in two ways before it gives up.
    server.failures.extend([failure, "", failure, failure, ""])
    assert open_whole_model(open_path(server.url), 0).matrices
    server.always = failure
    with pytest.raises(CheckpointError, match=f"cannot be read in {ATTEMPTS} attempts"):
        open_whole_model(open_path(server.url), 0)


@pytest.mark.parametrize("failure", ["drop", "short", "500"])
def test_a_connection_that_always_fails_is_one_error_that_names_the_file(
    failure: str, server: RangeServer, file: torch.Tensor
) -> None:
    path = open_path(f"{server.url}/model.safetensors")
    store = TensorFile(path)
    server.always = failure
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=f"{path} cannot be read in {ATTEMPTS} attempts"):
        store.read("layers.7.q_proj.weight")
    assert time.monotonic() - start < 5


def test_pauses_grow(
    server: RangeServer, file: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    server.always = "500"
    with pytest.raises(CheckpointError):
        TensorFile(open_path(f"{server.url}/model.safetensors"))
    assert pauses == [0.01, 0.02, 0.04, 0.08]


def test_what_may_not_be_read_is_not_tried_again(server: RangeServer, file: torch.Tensor) -> None:
    server.failures.extend(["403", "500"])
    with pytest.raises(CheckpointError, match="403"):
        TensorFile(open_path(f"{server.url}/model.safetensors"))
    assert list(server.failures) == ["500"]


def test_a_server_without_ranges_is_an_error(server: RangeServer, file: torch.Tensor) -> None:
    server.failures.extend(["whole", "500"])
    with pytest.raises(CheckpointError, match="gives no byte ranges. Download the checkpoint"):
        TensorFile(open_path(f"{server.url}/model.safetensors"))
    assert list(server.failures) == ["500"]  # it was not asked again


def test_a_server_that_is_not_there_is_an_error(server: RangeServer) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match="Check the address"):
        TensorFile(open_path(f"{server.url}/model.safetensors"))


def test_a_file_that_is_not_there_is_an_error(server: RangeServer) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        TensorFile(open_path(f"{server.url}/none.safetensors"))


def test_a_bucket_is_listed_and_tells_what_has_changed() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/listed/run/checkpoint-1/model.safetensors", b"ab")
    before = list_folder(open_path("memory://listed/run/checkpoint-1"))
    memory.pipe_file("/listed/run/checkpoint-1/model.safetensors", b"abc")
    after = list_folder(open_path("memory://listed/run/checkpoint-1"))
    assert before.files.keys() == after.files.keys() == {"model.safetensors"}
    assert before.files != after.files
    memory.rm("/listed", recursive=True)


class BlockingStore(AbstractFileSystem):
    """A store with blocking, buffered files, as the hub's is; it counts what it hands out."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content
        self.given = 0

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.content), "type": "file", "blob_id": "abc"}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> BlockingFile:
        return BlockingFile(self, path, mode, **kwargs)


class BlockingFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.given += end - start
        return bytes(self.fs.content[start:end])


def test_stores_with_buffered_files_read_nothing_ahead(tmp_path: Path, file: torch.Tensor) -> None:
    store = BlockingStore((tmp_path / "model.safetensors").read_bytes())
    path: Any = SimpleNamespace(fs=store, path="run/model.safetensors", name="model.safetensors")
    opened = TensorFile(path)
    assert opened.fingerprint == f"model.safetensors:{len(store.content)}:abc"
    headers = store.given
    assert headers < 0.02 * len(store.content)
    assert torch.equal(opened.read("layers.7.q_proj.weight"), file)
    assert store.given - headers == file.numel() * 4


def test_paths_of_this_machine_stay_paths(tmp_path: Path) -> None:
    assert open_path(str(tmp_path)) == tmp_path
    assert open_path(tmp_path) is tmp_path


def test_an_unknown_scheme_says_what_to_install() -> None:
    with pytest.raises(CheckpointError, match=r"\.\[remote\]"):
        open_path("nosuchscheme://bucket/run")


@pytest.mark.parametrize("library", ["upath", "aiohttp"])
def test_without_the_libraries_the_extra_is_named(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CheckpointError, match=r'pip install "\.\[remote\]"'):
        open_path("https://example.org/run")


def test_any_fsspec_address_is_read(tmp_path: Path) -> None:
    # A store in memory stands for buckets: the same calls, another scheme.
    import fsspec

    expected = MODEL_FORMATS["sharded safetensors"](tmp_path)
    memory = fsspec.filesystem("memory")
    for entry in tmp_path.iterdir():
        memory.pipe_file(f"/bucket/run/{entry.name}", entry.read_bytes())
    model = open_whole_model(open_path("memory://bucket/run"), 0)
    for matrix in model.matrices:
        if matrix.name in expected:
            dense = model.read(matrix).dense
            assert dense is not None
            assert torch.equal(dense, expected[matrix.name])
    memory.rm("/bucket", recursive=True)
