"""Safetensors files: what the library writes is read, what it must not write is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from checkpoints_index import CheckpointError
from checkpoints_index.safetensors_files import TensorFile
from tests.helpers import gaussian

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_as_it_was_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    w = (3 * gaussian(5, 3)).to(dtype)
    # One byte before it: what follows does not begin at a multiple of its size.
    save_file({"w": w, "a": torch.zeros(1, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.tensors["w"].shape == (5, 3)
    assert f"torch.{file.tensors['w'].dtype}" == str(dtype)
    read = file.read("w")
    assert read.dtype == dtype
    # Bit by bit: the reading must keep what no comparison of numbers sees.
    assert torch.equal(read.view(torch.uint8), w.view(torch.uint8))
    rows = file.read("w", slice(1, 4))
    assert torch.equal(rows.view(torch.uint8), w[1:4].contiguous().view(torch.uint8))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3), (1,), (2, 3, 4)], ids=str)
def test_every_shape_is_read_as_it_was_saved(shape: tuple[int, ...], tmp_path: Path) -> None:
    w = torch.ones(shape)
    save_file({"w": w}, tmp_path / "x.safetensors")
    assert torch.equal(TensorFile(tmp_path / "x.safetensors").read("w"), w)


def test_numbers_that_begin_at_an_odd_byte_are_read(tmp_path: Path) -> None:
    entries = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "w": {"dtype": "F64", "shape": [2], "data_offsets": [3, 19]},
    }
    w = torch.tensor([1.5, -2.25], dtype=torch.float64)
    write_raw(tmp_path / "x.safetensors", entries, b"abc" + w.numpy().tobytes())
    assert torch.equal(TensorFile(tmp_path / "x.safetensors").read("w"), w)


def test_the_writers_notes_are_read(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"format": "pt", "é": "ü"})
    assert TensorFile(tmp_path / "x.safetensors").metadata == {"format": "pt", "é": "ü"}


# What is refused.


def write_raw(path: Path, header: object, numbers: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return path


def entry(begin: int, end: int, shape: object = (2,), dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


WRONG: dict[str, object] = {
    "overlap": {"a": entry(0, 8), "b": entry(4, 12), "c": entry(12, 16)},
    "a gap": {"a": entry(0, 8), "b": entry(12, 16, (1,))},
    "a gap at the beginning": {"a": entry(8, 16)},
    "bytes left over": {"a": entry(0, 8)},
    "beyond the end": {"a": entry(0, 24, (6,))},
    "end before begin": {"a": entry(0, 16, (4,)), "b": entry(16, 8)},
    "negative place": {"a": entry(-8, 8, (4,))},
    "a shape that lies": {"a": entry(0, 16, (2, 3))},
    "a shape that overflows": {"a": entry(0, 16, (2**62, 2**62))},
    "a shape that overflows to the right size": {"a": entry(0, 16, (2**62 + 4,))},
    "a negative shape": {"a": entry(0, 16, (-2, -2))},
    "a fractional shape": {"a": entry(0, 16, (4.0,))},
    "a shape of text": {"a": entry(0, 16, "4")},
    "a shape that is null": {"a": entry(0, 16, None)},
    "a nested shape": {"a": entry(0, 16, [[4]])},
    "a place of text": {"a": {"dtype": "F32", "shape": [4], "data_offsets": ["0", "16"]}},
    "a place of three": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}},
    "an unknown dtype": {"a": entry(0, 16, (4,), "F33")},
    "a dtype that is a number": {"a": entry(0, 16, (4,), 7)},
    "a dtype that is a list": {"a": entry(0, 16, (4,), ["F32"])},
    "no dtype": {"a": {"shape": [4], "data_offsets": [0, 16]}},
    "a list": [1, 2],
    "a number": 7,
    "notes that are no text": {"__metadata__": {"a": 1}, "a": entry(0, 16, (4,))},
    "notes that are a list": {"__metadata__": ["a"], "a": entry(0, 16, (4,))},
    "no JSON": b"{",
    "no UTF-8": b'{"\xff": 1}',
    "half a character": b'{"\\ud800": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    "deep nesting": b"[" * 100_000,
    "an endless number": b'{"a": 1' + b"0" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_library_refuses_is_refused(name: str, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", WRONG[name], bytes(16))
    with pytest.raises(SafetensorError), safe_open(path, framework="pt"):
        pass
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        TensorFile(path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry(0, 16, (4,)))
    path = write_raw(tmp_path / "x.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), bytes(16))
    with pytest.raises(CheckpointError, match="'a' stands twice"):
        TensorFile(path)


def test_true_is_no_length(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", {"a": entry(0, 4, [True])}, bytes(4))
    with pytest.raises(CheckpointError, match="must be counts"):
        TensorFile(path)


@pytest.mark.parametrize("length", [2**24 + 1, 2**30, 2**63, 2**64 - 1])
def test_enormous_headers_are_refused_unread(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(min(8 + length, 2**33))  # a hole
    with pytest.raises(CheckpointError, match=f"header would have {length} bytes"):
        TensorFile(path)


def test_what_is_no_regular_file_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="must be a file"):
        TensorFile(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="must be a file"):
        TensorFile(tmp_path)
