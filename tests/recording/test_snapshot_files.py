"""Snapshot files as they are written: their bytes, and that others read them too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from checkpoints_index.layouts import Stripes
from checkpoints_index.safetensors_files import TensorFile
from checkpoints_index.snapshots import Snapshot
from spectra.recording.layers import Live, Part, RecordedLayer, RecordedMatrix, find_layers
from spectra.recording.snapshot_files import SnapshotLayout, write_snapshot
from tests.helpers import (
    MODULES,
    gaussian,
    lora,
    lora_xs,
    milora,
    plain,
    shake,
    sorsa,
    svf,
    svft,
    tiny_llama,
)
from tests.recording.recorded import record, staged, write_base, write_step

KIBIBYTES = 4 * 1024
ADAPTS = {
    "dense": plain,
    "lora": lora,
    "sorsa": sorsa,
    "milora": milora,
    "svf": svf,
    "svft": svft,
    "lora-xs": lora_xs,
}
ID = "0123456789abcdef" * 2
ATTENTION = {"q_proj": (8192, 8192), "k_proj": (1024, 8192), "v_proj": (1024, 8192)}
ALL = ATTENTION | {
    "o_proj": (8192, 8192),
    "gate_proj": (28672, 8192),
    "up_proj": (28672, 8192),
    "down_proj": (8192, 28672),
}


def factor(path: str, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Part:
    """A part of no live model, for its place in the file."""
    return Part(path, name, Live(None, name), lambda tensor: tensor, shape, dtype)


def adapted(
    path: str,
    shape: tuple[int, int],
    rank: int = 16,
    dtype: torch.dtype = torch.float32,
    matrices: Sequence[RecordedMatrix] | None = None,
) -> RecordedLayer:
    """A layer with a LoRA, of no live model."""
    layer, module = next(int(p) for p in path.split(".") if p.isdecimal()), path.rsplit(".", 1)[1]
    parts = (
        factor(path, "lora_a", (rank, shape[1]), dtype),
        factor(path, "lora_b", (shape[0], rank), dtype),
    )
    held = tuple(matrices or (RecordedMatrix(path, layer, module),))
    return RecordedLayer(path, "lora", parts, (), held, {"scaling": 2.0}, "lora")


def llama(layers: int, modules: dict[str, tuple[int, int]]) -> list[RecordedLayer]:
    return [
        adapted(f"model.layers.{i}.{'self_attn' if module in ATTENTION else 'mlp'}.{module}", shape)
        for i in range(layers)
        for module, shape in modules.items()
    ]


def header_of(layers: Sequence[RecordedLayer]) -> int:
    layout = SnapshotLayout(layers)
    assert layout.nbytes == sum(part.dtype.itemsize * _size(part) for _, part in layout.parts)
    return len(layout.header(id=ID, step=10**7, base=ID))


def _size(part: Part) -> int:
    return torch.Size(part.shape).numel()


# Bytes.


@pytest.mark.parametrize(
    ("matrices", "layers"),
    [
        (60, llama(30, {"q_proj": (576, 576), "v_proj": (192, 576)})),
        (560, llama(80, ALL)),
        (882, llama(126, ALL)),
    ],
    ids=["60", "560", "882"],
)
def test_a_header_takes_less_than_four_kibibytes(
    matrices: int, layers: list[RecordedLayer]
) -> None:
    assert sum(len(layer.matrices) for layer in layers) == matrices
    assert header_of(layers) <= KIBIBYTES


def test_headers_stay_small_with_several_ranks() -> None:
    ranks = [
        adapted(f"model.layers.{i}.self_attn.{module}", (64, 64), rank=[8, 16, 32][i % 3])
        for i in range(80)
        for module in MODULES
    ]
    assert header_of(ranks) <= KIBIBYTES


def test_headers_stay_small_with_the_experts_of_the_largest_models(tmp_path: Path) -> None:
    experts = [
        adapted(
            path := f"model.layers.{i}.mlp.experts.{e}.{module}_proj",
            (2, 2),
            rank=1,
            matrices=[RecordedMatrix(path, i, f"experts.{e}.{module}_proj")],
        )
        for i in range(61)
        for e in range(256)
        for module in ("gate", "up", "down")
    ]
    layout = SnapshotLayout(experts)
    header = layout.header(id=ID, step=1, base=ID)
    assert len(header) <= KIBIBYTES
    body = torch.zeros(layout.nbytes, dtype=torch.uint8)
    write_snapshot(tmp_path / "a.safetensors", header, [body])
    matrices = Snapshot(tmp_path / "a.safetensors").matrices
    assert {(m.name, m.layer, m.module) for m in matrices} == {
        (m.name, m.layer, m.module) for layer in experts for m in layer.matrices
    }


@pytest.mark.parametrize("adapt", [lora, sorsa, milora, svf, svft, lora_xs])
@pytest.mark.parametrize(
    ("layers", "modules"),
    [
        (30, ["q_proj", "v_proj"]),
        (80, [f"{m}_proj" for m in ("q", "k", "v", "o", "gate", "up", "down")]),
    ],
)
def test_a_snapshot_takes_the_adapter_and_four_kibibytes(
    adapt, layers: int, modules: list[str], tmp_path: Path
) -> None:
    model = adapt(tiny_llama(layers=layers), target_modules=modules)
    snapshot = record(tmp_path, model, modules)
    assert len(snapshot.matrices) == layers * len(modules)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    assert snapshot.path.stat().st_size <= trained + KIBIBYTES


# What is in them.


def test_alike_layers_are_one_tensor(tmp_path: Path) -> None:
    snapshot = record(tmp_path, lora(tiny_llama()))
    layer = "model.layers.{0-1}.self_attn"
    assert {name: tuple(t.shape) for name, t in load_file(snapshot.path).items()} == {
        f"{layer}.q_proj.lora_a": (2, 3, 32),
        f"{layer}.q_proj.lora_b": (2, 32, 3),
        f"{layer}.v_proj.lora_a": (2, 3, 32),
        f"{layer}.v_proj.lora_b": (2, 16, 3),
    }


def test_a_layer_alone_has_its_own_name(tmp_path: Path) -> None:
    snapshot = record(tmp_path, plain(tiny_llama()), ["model.layers.1.self_attn.q_proj"])
    expected = {"model.layers.1.self_attn.q_proj.weight": (32, 32)}
    assert {name: tuple(t.shape) for name, t in load_file(snapshot.path).items()} == expected


@pytest.mark.parametrize("kind", ADAPTS)
def test_the_library_and_our_reader_read_the_same(kind: str, tmp_path: Path) -> None:
    model = ADAPTS[kind](tiny_llama())
    shake(model)
    snapshot = record(tmp_path, model)
    for path in (snapshot.path, snapshot.beside.path):
        ours, theirs = TensorFile(path), load_file(path)
        assert ours.shapes == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
        assert all(torch.equal(ours.read(name), tensor) for name, tensor in theirs.items())
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == ours.metadata


@pytest.mark.parametrize("kind", ADAPTS)
def test_every_part_is_where_the_layout_says(kind: str, tmp_path: Path) -> None:
    model = ADAPTS[kind](tiny_llama())
    shake(model)
    layers = find_layers(model, MODULES)
    for snapshot, parts in (
        (write_base(tmp_path, layers), [p for e in layers for p in e.base_parts]),
        (write_step(tmp_path, layers), [p for e in layers for p in e.parts]),
    ):
        assert snapshot.tensors.keys() == {f"{p.path}.{p.name}" for p in parts}
        for part in parts:
            read = snapshot.read_tensor(f"{part.path}.{part.name}")
            assert torch.equal(read, part.take(part.live().detach()))


def test_views_are_the_body(tmp_path: Path) -> None:
    layers = find_layers(sorsa(tiny_llama()), MODULES)
    layout = SnapshotLayout(layers)
    body = torch.zeros(layout.nbytes, dtype=torch.uint8)
    views = layout.views(body)
    assert [part for part, _ in views] == [part for _, part in layout.parts]
    for count, (part, view) in enumerate(views, start=1):
        assert (tuple(view.shape), view.dtype) == (part.shape, part.dtype)
        view.fill_(count)
    whole = torch.cat([view.flatten() for _, view in views])
    assert torch.equal(body.view(torch.float32), whole)
    assert list(layout.pieces(body)) == [body]


def test_numbers_of_different_sizes_lie_at_multiples_of_their_sizes(tmp_path: Path) -> None:
    # Three bfloat16 numbers before float32 ones would put these at odd places.
    path = "layers.0.q"
    parts = (
        factor(path, "lora_a", (1, 3), torch.bfloat16),
        factor(path, "lora_b", (5, 1), torch.float64),
    )
    held = (RecordedMatrix(path, 0, "q"),)
    layout = SnapshotLayout([RecordedLayer(path, "lora", parts, (), held, {"scaling": 1.0})])
    body = torch.zeros(layout.nbytes, dtype=torch.uint8)
    values = {"lora_a": gaussian(1, 3), "lora_b": gaussian(5, 1, seed=1)}
    for part, view in layout.views(body):
        view.copy_(values[part.name])
    header = layout.header(id=ID, step=3, base=ID)
    assert len(header) % 8 == 0
    write_snapshot(tmp_path / "a.safetensors", header, [body])
    snapshot = Snapshot(tmp_path / "a.safetensors")
    update = snapshot.read(snapshot.matrices[0]).update
    assert update is not None
    assert torch.equal(update[0], values["lora_b"])
    assert torch.equal(update[1], values["lora_a"].to(torch.bfloat16).double())


@pytest.mark.parametrize("kind", ADAPTS)
def test_headers_of_a_run_differ_in_step_and_id_alone(kind: str, tmp_path: Path) -> None:
    layers = find_layers(ADAPTS[kind](tiny_llama()), MODULES)
    layout = SnapshotLayout(layers)
    first, second = (json.loads(layout.header(id=ID, step=step, base=ID)[8:]) for step in (1, 2))
    own = [json.loads(h["__metadata__"].pop("spectra")) for h in (first, second)]
    assert first == second
    assert [h.pop("step") for h in own] == [1, 2]
    assert own[0] == own[1]


def test_matrices_keep_their_labels_and_outputs(tmp_path: Path) -> None:
    fused = "decoder.layers.{}.attn.qkv"
    stages = "stages.{}.blocks.{}.attn.q"
    experts = "layers.{}.mlp.experts.{}.up"
    layers = [
        adapted(
            fused.format(i),
            (12, 4),
            matrices=[
                RecordedMatrix(f"decoder.layers.{i}.attn.q", i, "decoder.q", Stripes(2, 6, 0, 3)),
                RecordedMatrix(f"decoder.layers.{i}.attn.v", i, "decoder.v", Stripes(2, 6, 5, 6)),
            ],
        )
        for i in range(3)
    ]
    layers += [
        adapted(name, (6, 4), matrices=[RecordedMatrix(name, 2 * i + k, "attn.q")])
        for i in range(2)
        for k in range(2 + i)
        if (name := stages.format(i, k))
    ]
    layers += [
        adapted(name, (5, 4), matrices=[RecordedMatrix(name, i, f"experts.{k}.up")])
        for i in range(4)
        for k in range(4 if i != 2 else 3)
        if (name := experts.format(i, k))
    ]
    layout = SnapshotLayout(layers)
    body = torch.zeros(layout.nbytes, dtype=torch.uint8)
    write_snapshot(tmp_path / "a.safetensors", layout.header(id=ID, step=3, base=ID), [body])
    snapshot = Snapshot(tmp_path / "a.safetensors")
    expected = {
        m.name: (m.layer, m.module, len(m.outputs) if m.outputs else layer.parts[1].shape[0])
        for layer in layers
        for m in layer.matrices
    }
    assert {m.name: (m.layer, m.module, m.shape[0]) for m in snapshot.matrices} == expected


# Writing.


def test_nothing_is_left_of_a_snapshot_that_fails(tmp_path: Path) -> None:
    def pieces() -> Iterator[Tensor]:
        yield torch.zeros(100, dtype=torch.uint8)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_snapshot(tmp_path / "a.safetensors", b"header", pieces())
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = find_layers(lora(tiny_llama()), MODULES)
    whole = record(tmp_path / "whole", lora(tiny_llama())).path.read_bytes()
    write = os.write
    layout = SnapshotLayout(layers)

    class Halting:
        """A file that takes a few bytes at a time, as the kernel may."""

        def __init__(self, file) -> None:
            self._file = file

        def write(self, content: memoryview) -> int:
            return write(self._file.fileno(), content[:7])

    from spectra.recording import snapshot_files

    real = snapshot_files._write
    monkeypatch.setattr(snapshot_files, "_write", lambda file, c: real(Halting(file), c))
    path = tmp_path / "a.safetensors"
    header = layout.header(id="step 1", step=1, base="base")
    write_snapshot(path, header, layout.pieces(staged(layout)))
    assert path.read_bytes() == whole


def test_deltas_need_the_base(tmp_path: Path) -> None:
    layers = find_layers(plain(tiny_llama()), MODULES)
    layout = SnapshotLayout(layers, dtype=torch.bfloat16)
    pieces = layout.pieces(staged(layout.staging))
    with pytest.raises(ValueError, match="base must be given to store weights as W_t − W_0"):
        next(pieces)
