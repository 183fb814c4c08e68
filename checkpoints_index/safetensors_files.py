"""Safetensors files, read one tensor at a time.

A file is the length of its header (8 bytes, little-endian), the header (a JSON object that maps
names to dtype, shape and place), and the tensors' bytes, which the places must fill exactly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_index.byte_files import (
    ByteFile,
    open_bytes,
    parse_json,
    read_tensor,
    row_run,
    too_short,
)
from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import Checkpoint
from checkpoints_index.model_folders import ModelCheckpoint, read_config
from checkpoints_index.readers import Candidate
from checkpoints_index.shards import open_whole, whole_model
from checkpoints_index.tensors import StoredTensor

MODEL_FILE = "model.safetensors"

# Describes 200,000 tensors. The safetensors library allows 100 MB, but hostile JSON of this length
# already takes 2 s and 500 MiB to parse.
_MAX_HEADER = 16 * 2**20
_METADATA = "__metadata__"
# torch's name and bits of each dtype of the format.
_DTYPES = {
    "F64": ("float64", 64),
    "F32": ("float32", 32),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6),
    "F4": ("float4_e2m1", 4),
    "I64": ("int64", 64),
    "I32": ("int32", 32),
    "I16": ("int16", 16),
    "I8": ("int8", 8),
    "U64": ("uint64", 64),
    "U32": ("uint32", 32),
    "U16": ("uint16", 16),
    "U8": ("uint8", 8),
    "BOOL": ("bool", 8),
    "C64": ("complex64", 64),
}


class TensorFile:
    """One safetensors file: its header now, its tensors one by one later.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Of all tensors.
    dtypes : dict of str to str
        By the format's own names, such as ``"BF16"``.
    metadata : mapping of str to str
        What the writer noted.

    Raises
    ------
    CheckpointError
        If it is missing, truncated or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: ByteFile = open_bytes(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        header = self._read_header()
        self.metadata = self._checked_metadata(header.pop(_METADATA, {}))
        self._check_places([self._add(name, entry) for name, entry in header.items()])

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors, with torch's names of their dtypes."""
        return {n: StoredTensor(s, _DTYPES[self.dtypes[n]][0]) for n, s in self.shapes.items()}

    @property
    def fingerprint(self) -> str:
        """File name, size and time of change."""
        return self._file.fingerprint

    def offset(self, name: str) -> int:
        """Return where in the file a tensor's bytes begin."""
        return self._offsets[name]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one tensor, or a run of its rows.

        Raises
        ------
        CheckpointError
            If there is no such tensor, or the file has become unreadable.
        """
        if name not in self.shapes:
            raise CheckpointError(
                f"{self.path} has no tensor {name!r} ({len(self.shapes)} tensors, e.g. "
                f"{next(iter(self.shapes), None)!r})."
            )
        shape, (dtype_name, _) = self.shapes[name], _DTYPES[self.dtypes[name]]
        dtype = getattr(torch, dtype_name, None)
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(
                f"{self.path}: {name!r} is stored as {dtype_name}, which this version of torch "
                "does not have."
            )
        start, stop = row_run(shape, rows)
        row = math.prod(shape[1:]) * dtype.itemsize
        shape = (stop - start, *shape[1:]) if shape else shape
        try:
            return read_tensor(self._file, self._offsets[name] + start * row, dtype, shape)
        except (RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{self.path}: {name!r} cannot be read ({error}).") from error

    def _broken(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is not a whole safetensors file ({reason}). It may be truncated; copy or "
            "write it again."
        )

    def _read_header(self) -> dict[str, Any]:
        size = self._file.size
        if size < 8:
            raise too_short(self.path)
        length = int.from_bytes(self._file.read(0, 8), "little")
        if length > _MAX_HEADER:
            raise self._broken(
                f"its header would have {length} bytes, and {_MAX_HEADER} are allowed"
            )
        if length > size - 8:
            raise too_short(self.path)
        self._start = 8 + length
        try:
            return parse_json(self._file.read(8, length), self.path)
        except CheckpointError as error:
            raise self._broken(str(error)) from error

    def _checked_metadata(self, metadata: object) -> Mapping[str, str]:
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self._broken(f"{_METADATA} must map text to text")
        return metadata

    def _add(self, name: str, entry: object) -> tuple[int, int]:
        """Note one tensor of the header; returns where its bytes begin and end."""
        try:
            name.encode("utf-8")
            dtype, shape, (begin, end) = (
                entry["dtype"],  # type: ignore[index]
                entry["shape"],  # type: ignore[index]
                entry["data_offsets"],  # type: ignore[index]
            )
            bits = _DTYPES[dtype][1]
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken(f"{name!r:.200} is described in an unknown way") from error
        if not isinstance(shape, list) or not all(map(_is_count, [*shape, begin, end])):
            raise self._broken(f"shape and place of {name!r:.200} must be counts")
        if begin > end or math.prod(shape) * bits != 8 * (end - begin):
            raise self._broken(f"{name!r:.200} has other bytes than its shape and dtype take")
        self.shapes[name] = tuple(shape)
        self.dtypes[name] = dtype
        self._offsets[name] = self._start + begin
        return begin, end

    def _check_places(self, places: list[tuple[int, int]]) -> None:
        reached = 0
        for begin, end in sorted(places):
            if begin != reached:
                raise self._broken("its tensors overlap or leave a gap")
            reached = end
        if reached > self._file.size - self._start:
            raise too_short(self.path)
        if reached != self._file.size - self._start:
            raise self._broken(
                f"its tensors take {reached} bytes, the file has {self._file.size - self._start} "
                "for them"
            )


def _is_count(value: object) -> bool:
    # JSON's true is an int to Python; torch's sizes are of 64 bits.
    return type(value) is int and 0 <= value < 2**63


class SafetensorsReader:
    """Model folders with whole weights in safetensors."""

    format = "safetensors"

    def find(self, folder: Path, names: Collection[str]) -> list[Candidate]:
        """Return the folder itself, where it holds a model in one file or in shards."""
        found = whole_model(folder, MODEL_FILE, names, self.format)
        return [found] if found else []

    def open(self, candidate: Candidate, step: int) -> Checkpoint:
        """Open it, reading headers only."""
        folder, store = candidate.path, open_whole(candidate, MODEL_FILE, TensorFile)
        return ModelCheckpoint(folder, store, step, read_config(folder))
