"""The hook's snapshots, read: the older format, what is read of a file, and what depends on it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints_index.byte_files
from checkpoints_index import CheckpointError, Matrix, find_snapshots, open_model
from checkpoints_index.snapshot_headers import METADATA_KEY
from checkpoints_index.snapshots import BASE_FILE, Snapshot
from spectra.recording.layers import find_layers
from spectra.recording.snapshot_files import SnapshotLayout
from tests.helpers import MODULES, gaussian, lora, plain, shake, sorsa, tiny_llama
from tests.recording.recorded import record, staged, weights, write_base, write_step

# Format 1, of which runs exist.

PATH = "model.layers.4.self_attn.q_proj"


def write_format_1(path: Path, kind: str, names: dict[str, tuple[int, ...]]) -> None:
    tensors = {
        f"{PATH}.{name}": gaussian(*shape, seed=i).float() if len(shape) == 2 else torch.ones(shape)
        for i, (name, shape) in enumerate(names.items())
    }
    entry = {"kind": kind} | ({"scaling": 2.5} if kind == "lora" else {})
    header = {"format": 1, "id": "a", "step": 7, "base": "b", "matrices": {PATH: entry}}
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(header)})


@pytest.mark.parametrize(
    ("kind", "names", "rank"),
    [
        ("dense", {"weight": (6, 5)}, None),
        ("lora", {"lora_a": (2, 5), "lora_b": (6, 2)}, 2),
        ("sorsa", {"sorsa_u": (6, 2), "sorsa_s": (2,), "sorsa_vh": (2, 5)}, 4),
    ],
)
def test_snapshots_of_format_1_are_read(
    kind: str, names: dict[str, tuple[int, ...]], rank: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "step-00000007.safetensors"
    write_format_1(path, kind, names)
    initial = {f"{name}0": shape for name, shape in names.items() if kind == "sorsa"}
    write_format_1(tmp_path / BASE_FILE, "dense", {"weight": (6, 5), **initial})
    snapshot = Snapshot(path)
    assert (snapshot.step, snapshot.id, snapshot.base_id) == (7, "a", "b")
    assert snapshot.matrices == (Matrix(PATH, 4, "q_proj", (6, 5), "float32", rank),)
    stored = [tensor.double() for tensor in load_file(path).values()]
    weight = snapshot.read(snapshot.matrices[0])
    if kind == "dense":
        assert weight.dense is not None
        assert torch.equal(weight.dense.double(), stored[0])
    elif kind == "lora":
        assert weight.update is not None
        assert torch.equal(weight.update[0], 2.5 * stored[1])
        assert torch.equal(weight.update[1], stored[0])
    else:
        assert weight.factors is not None
        assert weight.update is not None
        assert weight.update[0].shape == (6, 4)


# Reading.


def test_one_matrix_is_read_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain(tiny_llama(layers=8))
    snapshot = record(tmp_path, model)
    read: list[int] = []
    real = checkpoints_index.byte_files.LocalFile.map

    def counted(self, offset: int, length: int) -> memoryview:
        read.append(length)
        return real(self, offset, length)

    monkeypatch.setattr(checkpoints_index.byte_files.LocalFile, "map", counted)
    for matrix in snapshot.matrices:
        read.clear()
        weight = snapshot.read(matrix).dense
        assert weight is not None
        assert read == [weight.numel() * weight.element_size()]


def test_a_run_is_moved_as_a_whole(tmp_path: Path) -> None:
    model = lora(tiny_llama(), use_dora=True)
    shake(model)
    expected = weights(record(tmp_path / "a", model))
    (tmp_path / "a").rename(tmp_path / "b")
    found = weights(Snapshot(tmp_path / "b" / "step-00000001.safetensors"))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_hundreds_of_snapshots_are_opened_at_once(tmp_path: Path) -> None:
    layers = find_layers(lora(tiny_llama(layers=30)), MODULES)
    base = write_base(tmp_path, layers)
    layout = SnapshotLayout(layers)
    body = staged(layout).numpy().tobytes()
    for step in range(500):
        header = layout.header(id=str(step), step=step, base=base.id)
        (tmp_path / f"step-{step:08d}.safetensors").write_bytes(header + body)
    start = time.perf_counter()
    found = find_snapshots(tmp_path)
    seconds = time.perf_counter() - start
    assert [snapshot.step for snapshot in found] == list(range(500))
    assert {len(snapshot.matrices) for snapshot in found} == {60}
    # What is the same in all of them is taken apart once.
    assert len({id(snapshot.matrices) for snapshot in found}) == 1
    # Measured 0.1 s on 2 cores.
    assert seconds < 2.0


def test_the_base_of_a_run_is_a_model(tmp_path: Path) -> None:
    snapshot = record(tmp_path, sorsa(tiny_llama()))
    base = open_model(tmp_path / BASE_FILE)
    assert [m.name for m in base.matrices] == [m.name for m in snapshot.matrices]
    assert {m.rank for m in base.matrices} == {None}


# What depends on the base's file.

NEEDING: dict[str, dict[str, object]] = {
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("name", NEEDING)
def test_some_kinds_need_their_base(name: str, tmp_path: Path) -> None:
    snapshot = record(tmp_path, lora(tiny_llama(), **NEEDING[name]))
    (tmp_path / BASE_FILE).unlink()
    fresh = Snapshot(snapshot.path)
    with pytest.raises(CheckpointError, match=rf"{BASE_FILE} does not exist"):
        fresh.read(fresh.matrices[0])


@pytest.mark.parametrize("name", NEEDING)
def test_a_base_without_what_they_need_is_an_error(name: str, tmp_path: Path) -> None:
    snapshot = record(tmp_path, lora(tiny_llama(), **NEEDING[name]))
    # As another run has it: of LoRA, and of fewer layers.
    write_base(tmp_path, find_layers(lora(tiny_llama(layers=1)), ["v_proj"]))
    fresh = Snapshot(snapshot.path)
    with pytest.raises(CheckpointError, match=rf"{BASE_FILE} has no tensor"):
        fresh.read(fresh.matrices[0])


@pytest.mark.parametrize("name", NEEDING)
def test_a_base_of_other_shapes_is_an_error(name: str, tmp_path: Path) -> None:
    snapshot = record(tmp_path, lora(tiny_llama(), **NEEDING[name]))
    path = tmp_path / BASE_FILE
    file = Snapshot(path)
    narrower = {name: tensor[..., :-1].contiguous() for name, tensor in load_file(path).items()}
    save_file(narrower, path, metadata=dict(file._file.metadata))
    if name == "PiSSA":
        with pytest.raises(CheckpointError, match=r"base.safetensors: .*factors of one"):
            Snapshot(path)
    else:
        fresh = Snapshot(snapshot.path)
        with pytest.raises(CheckpointError, match="has another shape than in"):
            fresh.read(fresh.matrices[0])


def test_steps_of_one_run_share_a_base(tmp_path: Path) -> None:
    model = lora(tiny_llama(), init_lora_weights="pissa")
    layers = find_layers(model, MODULES)
    write_base(tmp_path, layers)
    first = write_step(tmp_path, layers, 1)
    shake(model)
    second = write_step(tmp_path, layers, 2)
    for matrix in first.matrices:
        assert first.read(matrix).update is None
        update = second.read(matrix).update
        assert update is not None
        assert update[0].shape[1] == update[1].shape[0] == matrix.rank == 6
