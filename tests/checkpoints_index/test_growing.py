"""Which files are cut short, and which are only broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_index import CheckpointError, IncompleteCheckpointError, open_model
from tests.checkpoints_index.model_formats import MODEL_FORMATS

# Files from before PyTorch 1.6 say nothing of their length.
SIZED = sorted(MODEL_FORMATS.keys() - {"legacy .pt"})


@pytest.fixture(params=["model.safetensors", "model.pt"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / request.param
    tensors = {"layers.0.a.weight": torch.ones(5, 7), "b": torch.ones(3)}
    (save_file if file.suffix == ".safetensors" else torch.save)(tensors, file)
    return file


def test_a_file_cut_anywhere_lacks_its_end(whole: Path) -> None:
    assert open_model(whole).matrices
    content = whole.read_bytes()
    for length in (0, *range(8, len(content))):
        whole.write_bytes(content[:length])
        with pytest.raises(IncompleteCheckpointError, match=f"{whole.name} is shorter than it"):
            open_model(whole)


@pytest.mark.parametrize("name", SIZED)
def test_every_format_tells_a_short_file_from_a_broken_one(name: str, tmp_path: Path) -> None:
    MODEL_FORMATS[name](tmp_path)
    file = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    for share in (0.5, 0.97):
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(IncompleteCheckpointError, match=f"{file.name} is shorter than it"):
            open_model(tmp_path)


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "header",
    [
        "no JSON",
        "[" * 100_000,
        [],
        {"a": 7},
        {"a": {}},
        {"a": {"data_offsets": []}},
        {"a": HEADER["a"] | {"data_offsets": [0, None]}},
        {"a": HEADER["a"] | {"data_offsets": [0, float("inf")]}},
        {"a": HEADER["a"] | {"data_offsets": [0, -8]}},
    ],
    ids=lambda header: repr(header)[:40],
)
def test_a_broken_header_lacks_no_end(header: object, tmp_path: Path) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
    with pytest.raises(CheckpointError) as raised:
        open_model(file)
    assert not isinstance(raised.value, IncompleteCheckpointError)


def test_a_length_that_no_header_has_lacks_no_end(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="are allowed") as raised:
        open_model(file)
    assert not isinstance(raised.value, IncompleteCheckpointError)
