"""Broken files: a CheckpointError or the right numbers, and never another exception."""

from __future__ import annotations

import functools
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints_index import CheckpointError, find_checkpoints, open_model
from checkpoints_index.snapshot_headers import LAYERS_KEY, METADATA_KEY
from checkpoints_index.snapshots import BASE_FILE
from tests.checkpoints_index.formats import FORMATS, SNAPSHOTS, STEP
from tests.helpers import attention_weights, tiny_llama

MUTATIONS = 40


@pytest.fixture(scope="module", params=FORMATS | SNAPSHOTS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in each format; for reading only."""
    folder = tmp_path_factory.mktemp("whole")
    (FORMATS | SNAPSHOTS)[request.param](folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


W_0 = functools.cache(lambda: attention_weights(tiny_llama()))


def read_all(folder: Path) -> dict[tuple[int, str], Tensor]:
    """W_t of every step and matrix, on the base that all formats were made from."""
    w_0 = W_0()
    found = {}
    for checkpoint in find_checkpoints(folder):
        for matrix in checkpoint.matrices:
            weight = checkpoint.read(matrix)
            if matrix.name in w_0 and matrix.shape == tuple(w_0[matrix.name].shape):
                found[checkpoint.step, matrix.name] = weight.on(w_0[matrix.name])
    return found


def assert_error_or_right(folder: Path, expected: dict[tuple[int, str], Tensor]) -> bool:
    """Whether it was an error."""
    try:
        found = read_all(folder)
    except CheckpointError as error:
        assert str(folder) in str(error), "the message must name the file"
        return True
    for key in found.keys() & expected.keys():
        assert torch.equal(found[key], expected[key]), key
    return False


def header_length(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def mutations(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Truncations, and flips of one to three bits in the header.

    Bits of the tensors' own bytes are left alone: safetensors has no checksum over them.
    """
    rng = random.Random(seed)
    end = min(header_length(content), len(content))
    for _ in range(count):
        if rng.random() < 0.3:
            yield content[: rng.randrange(len(content))]
            continue
        mutated = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            mutated[rng.randrange(end)] ^= 1 << rng.randrange(8)
        yield bytes(mutated)


def tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_mutated_headers_give_an_error_or_the_right_weights(copy: Path) -> None:
    expected = read_all(copy)
    files = tensor_files(copy)
    errors = 0
    for seed, path in enumerate(files):
        content = path.read_bytes()
        # A LoRA's scaling stands as plain text in a snapshot's header: nothing tells a
        # flipped digit from the right one.
        known = {} if b"scaling" in content[: header_length(content)] else expected
        for mutated in mutations(content, seed, MUTATIONS // len(files)):
            path.write_bytes(mutated)
            errors += assert_error_or_right(copy, known)
        path.write_bytes(content)
    assert errors > MUTATIONS / 4
    assert not assert_error_or_right(copy, expected)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 64, b"\xff" * 64, b"garbage" * 99])
def test_garbage_is_an_error_that_names_the_file(copy: Path, content: bytes) -> None:
    for path in tensor_files(copy):
        before = path.read_bytes()
        path.write_bytes(content)
        # A base without initial factors is needed by no one who only reads the steps.
        if path.name != BASE_FILE:
            with pytest.raises(CheckpointError, match=re.escape(str(path))):
                read_all(copy)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            raise_for(path)
        path.write_bytes(before)


def raise_for(path: Path) -> None:
    """Open the file as what it is."""
    if path.name == BASE_FILE:
        open_model(path)
    else:
        find_checkpoints(path.parent)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99, -1])
def test_truncated_files_are_errors(copy: Path, kept: float) -> None:
    for path in tensor_files(copy):
        content = path.read_bytes()
        path.write_bytes(content[: -1 if kept < 0 else int(kept * len(content))])
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            raise_for(path)
        path.write_bytes(content)


def test_a_file_that_vanishes_after_it_was_found_is_an_error(copy: Path) -> None:
    *_, checkpoint = find_checkpoints(copy)
    for path in tensor_files(copy):
        path.unlink()
    with pytest.raises(CheckpointError, match=re.escape(str(copy))):
        checkpoint.read(checkpoint.matrices[0])


def test_a_file_cut_after_it_was_found_is_an_error(copy: Path) -> None:
    *_, checkpoint = find_checkpoints(copy)
    for path in tensor_files(copy):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=re.escape(str(copy))):
        checkpoint.read(checkpoint.matrices[0])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("whole", ["sharded model folder"], indirect=True)
def test_mutated_indices_give_an_error_or_the_right_weights(copy: Path, name: str) -> None:
    _mutate_json(copy, copy / f"checkpoint-{STEP}" / name, read_all(copy))


@pytest.mark.parametrize("whole", ["LoRA folder", "SORSA folder"], indirect=True)
def test_mutated_adapter_settings_raise_nothing_else(copy: Path) -> None:
    # A flipped digit of lora_alpha is another alpha: nothing to compare with.
    _mutate_json(copy, copy / f"checkpoint-{STEP}" / "adapter_config.json", {})


def _mutate_json(folder: Path, path: Path, expected: dict[tuple[int, str], Tensor]) -> None:
    content = path.read_bytes()
    rng = random.Random(0)
    for _ in range(MUTATIONS):
        mutated = bytearray(content[: rng.choice([len(content), rng.randrange(len(content))])])
        for _ in range(rng.randrange(1, 4)):
            if mutated:
                mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
        path.write_bytes(mutated)
        assert_error_or_right(folder, expected)


# Well-formed, but not what it must be.


Header = dict[str, Any]
Layers = list[Any]


def change_header(path: Path, change: Callable[[Header, Layers], object]) -> None:
    """Rewrite a snapshot with another header; what `change` returns takes the place of it."""
    with safe_open(path, framework="pt") as file:
        header, layers = (json.loads(file.metadata()[key]) for key in (METADATA_KEY, LAYERS_KEY))
    returned = change(header, layers)
    texts = {METADATA_KEY: json.dumps(header if returned is None else returned)}
    save_file(load_file(path), path, metadata=texts | {LAYERS_KEY: json.dumps(layers)})


def entry(**changes: object) -> Callable[[Header, Layers], object]:
    """Change the first layers' entry; ``None`` takes a key out."""

    def change(header: Header, layers: Layers) -> None:
        layers[0].update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del layers[0][key]

    return change


def matrix(**about: object) -> Callable[[Header, Layers], object]:
    return entry(matrices=[about])


Q = "model.layers.{0-1}.self_attn.q_proj"
HEADERS: dict[str, Callable[[Header, Layers], object]] = {
    "a list": lambda h, _: [h],
    "a number": lambda h, _: 7,
    "empty": lambda h, _: h.clear(),
    "no step": lambda h, _: h.pop("step") and None,
    "a step that is text": lambda h, _: h.update(step="last"),
    "a step that is null": lambda h, _: h.update(step=None),
    "a step that is true": lambda h, _: h.update(step=True),
    "a step before the first": lambda h, _: h.update(step=-1),
    "an infinite step": lambda h, _: h.update(step=float("inf")),
    "no id": lambda h, _: h.pop("id") and None,
    "an id that is a number": lambda h, _: h.update(id=7),
    "no format": lambda h, _: h.pop("format") and None,
    "a format that is null": lambda h, _: h.update(format=None),
    "a newer format": lambda h, _: h.update(format=99),
    "an older format": lambda h, _: h.update(format=1),
    "no layers": lambda _, layers: layers.clear(),
    "layers as text": lambda _, layers: layers.__setitem__(0, Q),
    "layers as a list": lambda _, layers: layers.__setitem__(0, [Q]),
    "layers twice": lambda _, layers: layers.append(layers[0]),
    "no path": entry(layer=None),
    "a path that is a number": entry(layer=7),
    "a path that is not there": entry(layer="layers.7.w"),
    "a path without a number": entry(layer="w"),
    "layers beyond": entry(layer=Q.replace("0-1", "0-2")),
    "fewer layers, then more": entry(layer=Q.replace("0-1", "1,0")),
    "a run that is none": entry(layer=Q.replace("0-1", "1-0")),
    "layers without end": entry(layer=Q.replace("0-1", "0-999999")),
    "layers of layers without end": entry(layer=".".join(["{0-999}"] * 9)),
    "an unknown kind": entry(kind="tucker"),
    "no kind": entry(kind=None),
    "a kind that is a list": entry(kind=["lora"]),
    "another kind": entry(kind="sorsa"),
    "a kind with more parts": entry(kind="dora"),
    "a base's kind": entry(kind="residual"),
    "no scaling": entry(scaling=None),
    "scaling that is text": entry(scaling="large"),
    "scaling that is a list": entry(scaling=[1.0]),
    "scaling that is infinite": entry(scaling=float("inf")),
    "indices of fewer layers": entry(layers=[0]),
    "indices that are texts": entry(layers=["0", "1"]),
    "indices that are true": entry(layers=[False, True]),
    "indices before the first": entry(layers=[-1, 0]),
    "indices as a number": entry(layers=2),
    "no matrices": entry(matrices=[]),
    "matrices as text": entry(matrices="q_proj"),
    "matrices as texts": entry(matrices=["q_proj"]),
    "a matrix twice": entry(matrices=[{}, {}]),
    "a part that is a number": matrix(part=7),
    "a part without a name": matrix(part=""),
    "a label that is a list": matrix(module=["q_proj"]),
    "a label of more numbers": matrix(module="expert.*1.q_proj"),
    "a label without end": matrix(module="*0" * 2**25),
    "outputs as text": matrix(outputs="0-4"),
    "outputs of three": matrix(outputs=[1, 32, 0]),
    "outputs that are true": matrix(outputs=[True, 32, 0, 32]),
    "outputs of other blocks": matrix(outputs=[2, 32, 0, 32]),
    "outputs of no blocks": matrix(outputs=[0, 32, 0, 32]),
    "outputs beyond": matrix(outputs=[1, 32, 0, 33]),
    "outputs before": matrix(outputs=[1, 32, -1, 3]),
    "no outputs": matrix(outputs=[1, 32, 3, 3]),
}


@pytest.mark.parametrize("header", HEADERS)
def test_snapshots_with_another_header_are_refused(header: str, tmp_path: Path) -> None:
    FORMATS["snapshots of LoRA"](tmp_path)
    path = find_checkpoints(tmp_path)[-1].path
    change_header(path, HEADERS[header])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_all(tmp_path)


def test_other_safetensors_are_no_snapshots(tmp_path: Path) -> None:
    FORMATS["snapshots of LoRA"](tmp_path)
    path = tmp_path / "snapshots" / "step-00000099.safetensors"
    save_file({"layers.0.q_proj.weight": torch.zeros(2, 3)}, path)
    with pytest.raises(CheckpointError, match=r"step-00000099.* no Spectra snapshot"):
        find_checkpoints(tmp_path)


def test_sorsa_snapshots_need_their_base(tmp_path: Path) -> None:
    FORMATS["snapshots of SORSA"](tmp_path)
    *_, checkpoint = find_checkpoints(tmp_path)
    (tmp_path / "snapshots" / BASE_FILE).unlink()
    with pytest.raises(CheckpointError, match=rf"{BASE_FILE} does not exist"):
        checkpoint.read(checkpoint.matrices[0])


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrite a file with other tensors and the same metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


def replace_each(part: str, by: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    """Change every tensor that has `part` in its path."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if part in name.split(".")]:
            tensors[name] = by(tensors[name]).contiguous()

    return change


def drop_each(part: str) -> Callable[[dict[str, Tensor]], None]:
    """Leave out every tensor that has `part` in its path."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if part in name.split(".")]:
            del tensors[name]

    return change


A, B = {"snapshots": "lora_a", "folder": "lora_A"}, {"snapshots": "lora_b", "folder": "lora_B"}


@pytest.mark.parametrize("kind", ["snapshots", "folder"])
@pytest.mark.parametrize(
    "change",
    [
        lambda kind: drop_each(A[kind]),
        lambda kind: replace_each(B[kind], lambda t: t.flatten(-2)),
        lambda kind: replace_each(A[kind], lambda t: t[..., 0, :]),
        lambda kind: replace_each(A[kind], lambda t: t[..., :1, :]),
        lambda kind: replace_each(B[kind], lambda t: t.to(torch.int8)),
        lambda kind: replace_each(A[kind], lambda t: t.to(torch.int8)),
    ],
    ids=["no A", "flat B", "flat A", "A of another rank", "integers in B", "integers in A"],
)
def test_lora_factors_that_do_not_fit_are_refused(kind: str, change, tmp_path: Path) -> None:
    FORMATS["snapshots of LoRA" if kind == "snapshots" else "LoRA folder"](tmp_path)
    path = tensor_files(tmp_path)[-1]
    change_tensors(path, change(kind))
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_all(tmp_path)


@pytest.mark.parametrize("kind", ["snapshots", "folder"])
@pytest.mark.parametrize("part", ["sorsa_u", "sorsa_s", "sorsa_vh"])
@pytest.mark.parametrize(
    "change",
    [
        lambda part, stacked: drop_each(part),
        lambda part, stacked: replace_each(part, lambda t: t.narrow(stacked, 0, 2)),
    ],
    ids=["missing", "of another shape"],
)
def test_sorsa_factors_that_do_not_fit_are_refused(
    kind: str, part: str, change, tmp_path: Path
) -> None:
    FORMATS["snapshots of SORSA" if kind == "snapshots" else "SORSA folder"](tmp_path)
    for path in tensor_files(tmp_path)[-1:]:
        change_tensors(path, change(part, int(kind == "snapshots")))
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        read_all(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda t: t.to(torch.int8), lambda t: t.flatten(), lambda t: t[None]]
)
def test_what_is_no_matrix_of_floats_is_no_matrix(change, tmp_path: Path) -> None:
    FORMATS["model folder"](tmp_path)
    (path,) = tensor_files(tmp_path)
    change_tensors(path, replace_each("q_proj", change))
    (checkpoint,) = find_checkpoints(tmp_path)
    assert {m.module for m in checkpoint.matrices} >= {"v_proj", "up_proj"}
    assert "q_proj" not in {m.module for m in checkpoint.matrices}


# Indices of shards.


@pytest.fixture
def index(tmp_path: Path) -> Path:
    FORMATS["sharded model folder"](tmp_path)
    return tmp_path / f"checkpoint-{STEP}" / "model.safetensors.index.json"


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "sub/secret.safetensors",
        "/secret.safetensors",
        "..",
        ".",
        "",
        "a\0b.safetensors",
        "none.safetensors",
        "x" * 5000,
        7,
        None,
        ["model.safetensors"],
        {"a": 1},
    ],
    ids=lambda shard: repr(shard)[:30],
)
def test_shards_outside_the_folder_are_refused(index: Path, shard: object) -> None:
    save_file(
        {"layers.0.q_proj.weight": torch.zeros(2, 3)}, index.parents[1] / "secret.safetensors"
    )
    (index.parent / "sub").mkdir()
    shutil.copy(index.parents[1] / "secret.safetensors", index.parent / "sub")
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.0.self_attn.q_proj.weight"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=re.escape(str(index.parent))):
        find_checkpoints(index.parents[1])


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors", 7, [["a", "b"]]])
def test_indices_without_a_map_are_refused(index: Path, weight_map: object) -> None:
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"index\.json must map tensors to file names"):
        open_model(index.parent)


def test_a_missing_shard_is_an_error_that_names_it(index: Path) -> None:
    shard = tensor_files(index.parent)[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{re.escape(str(shard))} does not exist"):
        open_model(index.parent)
