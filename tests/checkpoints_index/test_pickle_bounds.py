"""Pickles that never end are refused at once; those of PyTorch's own files are followed."""

from __future__ import annotations

import io
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoints_index import CheckpointError, open_model
from checkpoints_index.pickle_bounds import check_pickle
from tests.checkpoints_index.hostile import as_archive, nested_call, nested_key

MANY = b"\x80\x02" + b"]" * (4 * 2**20 - 10) + b"."


def legacy(description: bytes) -> bytes:
    """A file from before PyTorch 1.6 with this description."""
    stream = io.BytesIO()
    torch.save({}, stream, _use_new_zipfile_serialization=False)
    whole = stream.getvalue()
    at = 0
    for _ in range(3):
        at = check_pickle(whole, at)
    return whole[:at] + description + whole[check_pickle(whole, at) :]


@pytest.mark.parametrize("pack", [as_archive, legacy])
@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (nested_key(60), "tuples with more than 1000 parts"),
        (nested_key(250), "tuples with more than 1000 parts"),
        (nested_call(60), "tuples with more than 1000 parts"),
        (b"\x80\x02]q\x00]q\x01(h\x00h\x00e)R.", "calls what is no function"),
        (MANY, "more than 2000000 operations"),
    ],
    ids=["a key", "a deeper key", "a call", "a list called", "many"],
)
def test_pickles_without_an_end_are_refused_soon(
    description: bytes, reason: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(pack(description))
    start = time.process_time()
    with pytest.raises(CheckpointError, match=f"model.pt .*{reason}"):
        open_model(file)
    assert time.process_time() - start < 4


def test_torchs_own_descriptions_are_followed_to_their_end() -> None:
    shared = torch.ones(3, 4)
    parameter = torch.nn.Parameter(torch.ones(2))
    state = OrderedDict(
        a=shared,
        b=shared.T,
        c=parameter,
        d={
            "n": 7,
            "x": 1.5,
            "t": (1, (2, 3)),
            "l": [1, 2],
            "big": 2**70,
            "none": None,
            "no": False,
        },
        e=torch.Size([2, 3]),
        f=torch.ones(2, dtype=torch.bfloat16),
        g={1, 2},
        **{f"layer.{i}": torch.ones(1) for i in range(300)},
    )
    stream = io.BytesIO()
    torch.save(state, stream)
    with zipfile.ZipFile(stream) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
        description = archive.read(name)
    # Further bytes are not part of it: what is not understood would give their end, too.
    assert check_pickle(description + b"more") == len(description)
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=False)
    whole, at, ends = stream.getvalue(), 0, []
    for _ in range(5):
        at = check_pickle(whole, at)
        ends.append(at)
    numbers = sum(t.untyped_storage().nbytes() + 8 for t in (shared, parameter)) + 12 + 300 * 12
    assert len(whole) - at == numbers


def test_what_is_not_understood_is_left_to_torch() -> None:
    for content in (b"", b"\x80\x02", b"\x80\x02h\x07.", b"\x80\x02t.", b"\x80\x02cos", b"\x00.."):
        assert check_pickle(content) == len(content)
