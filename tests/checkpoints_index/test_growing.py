"""Which files are cut short, and which are only broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_index.growing import lacks_end


@pytest.fixture(params=["tensors.safetensors", "tensors.pt"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / request.param
    tensors = {"a": torch.ones(5, 7), "b": torch.ones(3)}
    (save_file if file.suffix == ".safetensors" else torch.save)(tensors, file)
    return file


def test_a_whole_file_lacks_nothing(whole: Path) -> None:
    assert not lacks_end(whole)


def test_a_file_cut_anywhere_lacks_its_end(whole: Path) -> None:
    content = whole.read_bytes()
    for length in (0, *range(8, len(content))):
        whole.write_bytes(content[:length])
        assert lacks_end(whole), length


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "header",
    [
        "no JSON",
        "[" * 100_000,
        [],
        7,
        {"a": 7},
        {"a": {}},
        {"a": {"data_offsets": []}},
        {"a": {"data_offsets": 7}},
        {"a": {"data_offsets": [0, None]}},
        {"a": {"data_offsets": [0, "x"]}},
        {"a": {"data_offsets": [0, float("inf")]}},
        {"a": {"data_offsets": [0, -8]}},
        {"__metadata__": {}},
        HEADER,
    ],
    ids=lambda header: repr(header)[:40],
)
def test_a_broken_header_lacks_no_end(header: object, tmp_path: Path) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
    assert not lacks_end(file)


def test_a_length_that_no_header_has_lacks_no_end(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\xff" * 64)
    assert not lacks_end(file)


def test_what_is_not_there_lacks_no_end(tmp_path: Path) -> None:
    assert not lacks_end(tmp_path / "none.safetensors")
    assert not lacks_end(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"), [("a.bin", True), ("a.gguf", True), ("a.json", False)]
)
def test_an_empty_file_of_weights_lacks_all(name: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert lacks_end(tmp_path / name) is expected
