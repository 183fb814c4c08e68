"""PyTorch files: what torch.load gives is read lazily; what would run code never is."""

from __future__ import annotations

import io
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpoints_index import CheckpointError, IncompleteCheckpointError
from checkpoints_index.byte_files import LocalFile
from checkpoints_index.torch_files import TorchFile
from tests.checkpoints_index.hostile import as_archive, hostile_pickles
from tests.checkpoints_index.test_safetensors_files import DTYPES
from tests.helpers import gaussian


def saved(state: Any, folder: Path, **options: Any) -> Path:
    torch.save(state, folder / "x.pt", **options)
    return folder / "x.pt"


def assert_as_torch_loads(path: Path, loaded: dict[str, Tensor] | None = None) -> None:
    expected = torch.load(path, weights_only=True) if loaded is None else loaded
    file = TorchFile(path)
    assert file.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        read = file.read(name)
        assert read.dtype == tensor.dtype
        assert file.tensors[name].shape == tuple(tensor.shape) == tuple(read.shape)
        a, b = (t.contiguous().flatten().view(torch.uint8) for t in (read, tensor))
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_as_torch_loads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    w = (3 * gaussian(5, 3)).to(dtype)
    path = saved({"w": w}, tmp_path)
    assert_as_torch_loads(path, {"w": w})
    assert f"torch.{TorchFile(path).tensors['w'].dtype}" == str(dtype)


def test_views_of_one_storage_are_read_as_torch_loads_them(tmp_path: Path) -> None:
    w = gaussian(6, 4)
    state = {
        "whole": w,
        "transposed": w.T,
        "rows": w[2:5],
        "columns": w[:, 1:3],
        "strided": w[::2, ::3],
        "expanded": w[0].expand(3, 4),
        "number": w[1, 1],
        "empty": w[:0],
        "flat": w.flatten()[3:9],
        "parameter": nn.Parameter(w),
    }
    path = saved(state, tmp_path)
    assert_as_torch_loads(path)
    file = TorchFile(path)
    for name in ("transposed", "columns", "strided", "expanded"):
        assert torch.equal(file.read(name, slice(1, 2)), state[name][1:2]), name


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_what_trainers_put_around_the_weights_is_passed_over(key: str, tmp_path: Path) -> None:
    weights = OrderedDict({"layers.0.w": gaussian(2, 3)})
    state = {"epoch": 3, "lr": [0.1], "optimizer": {"state": {0: gaussian(2, 2)}}, key: weights}
    file = TorchFile(saved(state, tmp_path))
    assert list(file.tensors) == ["layers.0.w"]
    assert torch.equal(file.read("layers.0.w"), weights["layers.0.w"])


@pytest.mark.parametrize(
    "state", [[gaussian(2, 2)], gaussian(2, 2), {}, {"a": 1}, 7, None, {1: gaussian(2, 2)}], ids=str
)
def test_what_is_no_dictionary_of_tensors_is_refused(state: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must hold a dictionary of tensors"):
        TorchFile(saved(state, tmp_path))


def test_sparse_tensors_are_listed_and_not_read(tmp_path: Path) -> None:
    state = {"s": torch.eye(3).to_sparse(), "w": torch.ones(2, 2)}
    file = TorchFile(saved(state, tmp_path))
    assert file.tensors["s"].dtype == "unknown"
    with pytest.raises(CheckpointError, match="no plain form"):
        file.read("s")
    assert torch.equal(file.read("w"), state["w"])


@pytest.mark.skipif(sys.byteorder != "little", reason="makes a file of the other order")
def test_files_of_big_endian_machines_are_read_as_torch_loads_them(tmp_path: Path) -> None:
    w, h = gaussian(4, 3), gaussian(3, 2).to(torch.bfloat16)
    path = saved({"w": w, "h": h}, tmp_path)
    records = dict(read_records(path))
    for name, content in records.items():
        if name.endswith("data/0"):
            records[name] = bytes_swapped(content, 8)
        elif name.endswith("data/1"):
            records[name] = bytes_swapped(content, 2)
        elif name.endswith("byteorder"):
            records[name] = b"big"
    write_records(path, records)
    assert_as_torch_loads(path)
    assert torch.equal(torch.load(path, weights_only=True)["w"], w)


def read_records(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def write_records(
    path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def bytes_swapped(content: bytes, width: int) -> bytes:
    return b"".join(content[i : i + width][::-1] for i in range(0, len(content), width))


def test_opening_reads_no_numbers_and_reading_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {str(i): gaussian(128, 128, i) for i in range(20)}
    path = saved(state, tmp_path)
    taken: list[int] = []
    for reading in ("read", "map"):
        original = getattr(LocalFile, reading)

        def told(file: LocalFile, offset: int, length: int, original: Any = original) -> Any:
            taken.append(length)
            return original(file, offset, length)

        monkeypatch.setattr(LocalFile, reading, told)
    file = TorchFile(path)
    assert sum(taken) < 0.02 * path.stat().st_size
    taken.clear()
    file.read("7")
    assert 128 * 128 * 8 <= sum(taken) < 128 * 128 * 8 + 200


# What is refused.


def test_files_that_need_more_than_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = saved(nn.Linear(2, 2), tmp_path)
    with pytest.raises(CheckpointError) as raised:
        TorchFile(path)
    message = str(raised.value)
    assert str(path) in message
    assert "torch.nn.modules.linear.Linear" in message
    # torch's own message advises to load it all the same, and how.
    assert "weights_only" not in message
    assert "add_safe_globals" not in message


@pytest.mark.parametrize("force", ["0", "1"])
@pytest.mark.parametrize("form", ["archive", "legacy"])
def test_hostile_pickles_are_refused_and_never_run(
    form: str, force: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch's own switch to load what executes code must not reach here.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    marker = tmp_path / "marker"
    path = tmp_path / "x.pt"
    for name, content in hostile_pickles(marker).items():
        if form == "archive":
            path.write_bytes(as_archive(content))
        else:
            path.write_bytes(legacy_beginning() + content)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            TorchFile(path)
        assert not marker.exists(), name


def legacy_beginning() -> bytes:
    """What stands before the description in files from before PyTorch 1.6."""
    stream = io.BytesIO()
    torch.save({}, stream, _use_new_zipfile_serialization=False)
    content = io.BytesIO(stream.getvalue())
    for _ in range(3):  # a magic number, the protocol's version, the system
        pickle.load(content)
    return stream.getvalue()[: content.tell()]


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    path = saved({"w": torch.zeros(100, 100)}, tmp_path)
    write_records(path, dict(read_records(path)), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        TorchFile(path)


def test_records_that_stand_twice_are_refused(tmp_path: Path) -> None:
    path = saved({"w": torch.zeros(2, 2)}, tmp_path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data/0", bytes(16))
    with pytest.raises(CheckpointError, match="stands twice"):
        TorchFile(path)


def test_a_storage_of_another_size_than_described_is_refused(tmp_path: Path) -> None:
    path = saved({"w": torch.zeros(2, 2)}, tmp_path)
    records = dict(read_records(path))
    records["x/data/0"] = records["x/data/0"][:-4]
    write_records(path, records)
    file = TorchFile(path)
    assert file.tensors["w"].dtype == "unknown"
    with pytest.raises(CheckpointError, match="has 12 bytes"):
        file.read("w")


def test_files_written_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved({"w": gaussian(3, 4)}, tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_as_torch_loads(path, {"w": gaussian(3, 4)})


def test_a_flipped_bit_among_the_numbers_is_noticed(tmp_path: Path) -> None:
    w = gaussian(3, 4)
    path = saved({"w": w}, tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(w.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="do not fit its checksum"):
        TorchFile(path).read("w")


def test_descriptions_of_many_megabytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(as_archive(bytes(2**22 + 1)))
    with pytest.raises(CheckpointError, match="has more than"):
        TorchFile(path)


def test_large_files_of_no_known_form_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with path.open("wb") as file:
        file.truncate(2**33)  # a hole
    with pytest.raises(CheckpointError, match="more than 1 GiB"):
        TorchFile(path)


def test_truncated_archives_say_so(tmp_path: Path) -> None:
    path = saved({"w": torch.zeros(20, 20)}, tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IncompleteCheckpointError, match="is shorter than it says"):
        TorchFile(path)


def test_a_torch_that_does_not_tell_places_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved({"w": torch.zeros(2, 2)}, tmp_path)
    monkeypatch.setattr("checkpoints_index.torch_archives.tells_places", lambda: False)
    with pytest.raises(CheckpointError, match=r"takes torch 2\.7 or newer, this is 2"):
        TorchFile(path)
