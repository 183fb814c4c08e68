"""Distributed checkpoints: put together from their chunks; their pickle names nothing else."""

from __future__ import annotations

import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from checkpoints_index import CheckpointError
from checkpoints_index.distributed_files import DistributedFolder
from tests.checkpoints_index.hostile import hostile_pickles, nested_key
from tests.checkpoints_index.model_formats import save_distributed
from tests.checkpoints_index.test_safetensors_files import DTYPES
from tests.helpers import gaussian

# Two processes, each with its part of every tensor, sharded by rows, by columns and not at all.
_SHARDED = """
import os, sys, warnings
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
warnings.simplefilter("ignore")
folder, rank = sys.argv[1], int(sys.argv[2])
store = dist.FileStore(folder + ".store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
w = torch.arange(7 * 6, dtype=torch.float64).reshape(7, 6)
state = {
    "layers.0.rows.weight": distribute_tensor(w, mesh, [Shard(0)]),
    "layers.0.columns.weight": distribute_tensor(w + 0.5, mesh, [Shard(1)]),
    "layers.0.whole.weight": distribute_tensor(w + 0.25, mesh, [Replicate()]),
}
dcp.save({"model": state, "optim": {"state": {"m": w}}}, checkpoint_id=folder)
os._exit(0)  # taking gloo down ends in abort() now and then, long after the files are written
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "dcp"
    command = [sys.executable, "-c", _SHARDED, str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE) for rank in (0, 1)]
    for process in ranks:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    return folder


SHARDED = {"rows": 0.0, "columns": 0.5, "whole": 0.25}


@pytest.mark.parametrize("name", SHARDED)
def test_chunks_of_two_processes_are_put_together(name: str, sharded: Path) -> None:
    w = torch.arange(42, dtype=torch.float64).reshape(7, 6) + SHARDED[name]
    store = DistributedFolder(sharded)
    assert len(list(sharded.glob("*.distcp"))) > 1
    assert store.tensors.keys() == {f"layers.0.{n}.weight" for n in SHARDED}
    assert store.tensors[f"layers.0.{name}.weight"].shape == (7, 6)
    assert torch.equal(store.read(f"layers.0.{name}.weight"), w)
    for rows in (slice(0, 2), slice(3, 6), slice(6, 7), slice(2, 2)):
        assert torch.equal(store.read(f"layers.0.{name}.weight", rows), w[rows]), rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_as_it_was_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    w = (3 * gaussian(5, 3)).to(dtype)
    save_distributed({"w": w, "n": 7, "text": "x"}, tmp_path)
    store = DistributedFolder(tmp_path)
    assert list(store.tensors) == ["w"]
    assert torch.equal(store.read("w").view(torch.uint8), w.view(torch.uint8))


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ({"model.a": 1, "b": 1}, {"model.a", "b"}),
        ({"model": {"a": 1, "b": {"c": 1}}, "optimizer": {"m": 1}}, {"a", "b.c"}),
        ({"state_dict": {"a": 1}, "optim": {"m": 1}}, {"a"}),
        ({"a": 1, "optimizer": {"state": {"a": {"exp_avg": 1}}}}, {"a"}),
        ({"network": {"a": 1}}, {"network.a"}),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_only_the_models_tensors_count(
    state: dict[str, Any], names: set[str], tmp_path: Path
) -> None:
    save_distributed(with_tensors(state), tmp_path)
    assert DistributedFolder(tmp_path).tensors.keys() == names


def with_tensors(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: with_tensors(value) for key, value in state.items()}
    return torch.ones(2, 2)


def test_what_it_reads_is_what_torch_reads(sharded: Path) -> None:
    state: dict[str, dict[str, Tensor]] = {
        "model": {f"layers.0.{n}.weight": torch.zeros(7, 6, dtype=torch.float64) for n in SHARDED}
    }
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(state, checkpoint_id=sharded, no_dist=True)
    store = DistributedFolder(sharded)
    for name, tensor in state["model"].items():
        assert torch.equal(store.read(name), tensor)


# What is refused.


@pytest.fixture
def folder(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "dcp"))


def read_all(folder: Path) -> None:
    store = DistributedFolder(folder)
    for name in store.tensors:
        store.read(name)


def test_hostile_descriptions_are_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name, content in hostile_pickles(marker).items():
        (folder / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(str(folder / ".metadata"))):
            DistributedFolder(folder)
        assert not marker.exists(), name


def test_what_could_never_be_hashed_is_refused_at_once(folder: Path) -> None:
    start = time.process_time()
    for levels in (30, 100, 250):
        (folder / ".metadata").write_bytes(nested_key(levels))
        with pytest.raises(CheckpointError, match="tuples with more than 100 parts"):
            DistributedFolder(folder)
    assert time.process_time() - start < 1


def test_hostile_chunks_are_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    content = hostile_pickles(marker)["os.system, protocol 2"]
    for file in folder.glob("*.distcp"):
        file.write_bytes(content + bytes(file.stat().st_size - len(content)))
    with pytest.raises(CheckpointError, match=r"\.distcp"):
        read_all(folder)
    assert not marker.exists()


def changed(folder: Path, change: Any) -> None:
    """Rewrite the description, read as torch itself reads it."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def rows_of(metadata: Any) -> Any:
    return metadata.state_dict_metadata["model.layers.0.rows.weight"]


def place(metadata: Any) -> Any:
    index = next(i for i in metadata.storage_data if i.fqn == "model.layers.0.rows.weight")
    return metadata.storage_data[index]


WRONG: dict[str, Any] = {
    "no chunks": lambda m: rows_of(m).chunks.clear(),
    "a chunk too few": lambda m: rows_of(m).chunks.pop(),
    "a chunk twice": lambda m: rows_of(m).chunks.append(rows_of(m).chunks[0]),
    "another size": lambda m: setattr(rows_of(m), "size", torch.Size([8, 6])),
    "a size of text": lambda m: setattr(rows_of(m), "size", "7 6"),
    "fewer dimensions": lambda m: setattr(rows_of(m), "size", torch.Size([42])),
    "another dtype": lambda m: setattr(rows_of(m).properties, "dtype", torch.float32),
    "no places": lambda m: m.storage_data.clear(),
    "places that are a list": lambda m: setattr(m, "storage_data", [1]),
    "no tensors": lambda m: m.state_dict_metadata.clear(),
    "a place beyond the end": lambda m: setattr(place(m), "offset", 2**40),
    "a negative place": lambda m: setattr(place(m), "offset", -8),
    "another place": lambda m: setattr(place(m), "offset", place(m).offset + 8),
    "a short place": lambda m: setattr(place(m), "length", 100),
    "a file outside": lambda m: setattr(place(m), "relative_path", "../secret.distcp"),
    "a file that is not there": lambda m: setattr(place(m), "relative_path", "__9_9.distcp"),
    "a file that is no text": lambda m: setattr(place(m), "relative_path", 7),
    "compressed chunks": lambda m: setattr(place(m), "transform_descriptors", ["zstd"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_descriptions_that_do_not_fit_are_refused(name: str, folder: Path) -> None:
    changed(folder, WRONG[name])
    with pytest.raises(CheckpointError, match=re.escape(str(folder))):
        read_all(folder)


def test_chunks_that_overlap_are_refused(folder: Path) -> None:
    def overlap(metadata: Any) -> None:
        second = rows_of(metadata).chunks[1]
        (index,) = [
            i
            for i in metadata.storage_data
            if i.fqn == "model.layers.0.rows.weight" and i.offset == second.offsets
        ]
        moved = torch.Size([second.offsets[0] - 1, 0])
        metadata.storage_data[type(index)(index.fqn, moved)] = metadata.storage_data.pop(index)
        second.offsets = moved

    changed(folder, overlap)
    with pytest.raises(CheckpointError, match="overlap"):
        read_all(folder)


@pytest.mark.parametrize("value", [7, None, {"a": 1}, [], "text"], ids=str)
def test_other_pickles_are_no_descriptions(value: object, folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(CheckpointError, match="not checkpoint metadata"):
        DistributedFolder(folder)


def test_numbers_that_ask_for_memory_get_none(folder: Path) -> None:
    # A place in the memo far beyond all others, for which pickle's own reader makes room.
    (folder / ".metadata").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(CheckpointError, match="not checkpoint metadata"):
        DistributedFolder(folder)


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    file = next(folder.glob("*.distcp"))
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{file.name} does not exist"):
        DistributedFolder(folder)


def test_a_short_file_is_named_when_it_is_opened(folder: Path) -> None:
    file = max(folder.glob("*.distcp"), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=rf"{file.name} is shorter than it says"):
        DistributedFolder(folder)
