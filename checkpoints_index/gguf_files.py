"""GGUF files of llama.cpp, under the names of Hugging Face and in their order of rows.

The header is read here, in bounds and by byte ranges; what a quantisation's blocks are and how they
become numbers again is asked of the `gguf` package, which owns the format.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checkpoints_index.byte_files import (
    ByteFile,
    inside,
    open_bytes,
    read_tensor,
    row_run,
    too_short,
)
from checkpoints_index.errors import CheckpointError
from checkpoints_index.gguf_headers import GgufHeader, config_of
from checkpoints_index.matrices import Checkpoint
from checkpoints_index.model_folders import ModelCheckpoint
from checkpoints_index.readers import Candidate
from checkpoints_index.tensors import StoredTensor
from checkpoints_index.torch_files import has_model

SUFFIX = ".gguf"

_DEFAULT_ALIGNMENT = 32
# ggml's own numbers that are no quantisation, by torch's names.
_PLAIN = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
# Architectures whose q_proj and k_proj llama.cpp's converter puts in the order of Meta's Llama.
_REORDERED = frozenset(
    "llama arcee arctic baichuan bailingmoe deci deepseek granite granitehybrid granitemoe "
    "internlm2 minicpm mistral3 olmo smollm3 xverse".split()
)
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
# What lies beside a model and is none: projectors of images, importance matrices.
_NO_MODEL = re.compile(r"mmproj.*|.*imatrix.*", re.IGNORECASE)


@dataclass(frozen=True)
class _Info:
    file: ByteFile
    offset: int
    shape: tuple[int, ...]
    kind: Any
    heads: int | None


class GgufModel:
    """The tensors of a GGUF file, or of the files that one was split into.

    Quantised tensors have their quantisation's name as dtype, such as ``"q4_0"``, and are read as
    the float32 numbers that it stands for. llama.cpp's converter reorders the rows of ``q_proj``
    and ``k_proj`` of Llama and its relatives; they are given in the order of Hugging Face.

    Parameters
    ----------
    files : sequence of Path
        The file, or all of its parts in order.

    Attributes
    ----------
    config : dict
        What the metadata says, by the names of Hugging Face's ``config.json``.

    Raises
    ------
    CheckpointError
        If one is missing or broken, or the `gguf` package is not installed.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.path = files[0]
        self._infos: dict[str, _Info] = {}
        self.config: dict[str, Any] = {}
        self._files = [open_bytes(path) for path in files]
        for file in self._files:
            self._read_header(file)
        self.tensors: Mapping[str, StoredTensor] = {
            name: StoredTensor(info.shape, _PLAIN.get(info.kind.name, info.kind.name.lower()))
            for name, info in self._infos.items()
        }

    @property
    def fingerprint(self) -> str:
        """Those of all files."""
        return ",".join(file.fingerprint for file in self._files)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one tensor, or a run of its rows, de-quantised."""
        info = self._infos.get(name)
        if info is None:
            raise CheckpointError(
                f"{self.path} has no tensor {name!r} ({len(self._infos)} tensors, e.g. "
                f"{next(iter(self._infos), None)!r})."
            )
        start, stop = row_run(info.shape, rows)
        if info.heads is not None:
            whole = self._read_rows(info, 0, info.shape[0])
            return _in_own_order(whole, info.heads)[start:stop]
        if len(info.shape) < 2:  # a run of blocks, not of rows
            whole = self._read_rows(info, 0, math.prod(info.shape))
            return whole[start:stop] if info.shape else whole
        return self._read_rows(info, start, stop)

    def _read_rows(self, info: _Info, start: int, stop: int) -> Tensor:
        shape = (stop - start, *info.shape[1:]) if info.shape else info.shape
        begin = info.offset + start * _size(info.kind, info.shape[1:-1], info.shape[-1:])
        plain = _PLAIN.get(info.kind.name)
        try:
            if plain is not None:
                return read_tensor(info.file, begin, getattr(torch, plain), shape)
            from gguf.quants import dequantize

            # Blocks run along the last dimension.
            lines = math.prod(shape[:-1])
            size = lines * _size(info.kind, (), shape[-1:])
            blocks = read_tensor(info.file, begin, torch.uint8, (lines, size // max(lines, 1)))
            numbers = dequantize(blocks.numpy(), info.kind).astype(np.float32, copy=False)
            return torch.from_numpy(numbers).reshape(shape)
        except (RuntimeError, OverflowError, ValueError, NotImplementedError) as error:
            raise CheckpointError(
                f"{info.file.path}: a tensor of type {info.kind.name} cannot be read ({error})."
            ) from error

    def _read_header(self, file: ByteFile) -> None:
        kinds = _kinds(file.path)
        header = GgufHeader(file)
        try:
            metadata, described = header.read()
            alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
            if type(alignment) is not int or not 0 < alignment <= 2**20:
                raise ValueError("its alignment is no sensible number")
            if not self.config:
                self.config = config_of(metadata)
            start = reached = _aligned(header.at, alignment)
            for name, dims, number, offset in described:
                kind = kinds(number)
                shape = tuple(reversed(dims))
                # One after the other, as llama.cpp demands too.
                if start + offset != _aligned(reached, alignment):
                    raise ValueError("its tensors overlap or leave a gap")
                reached = start + offset + _size(kind, shape[:-1], shape[-1:])
                if name in self._infos:
                    raise ValueError(f"the tensor {name!r:.200} stands twice")
                heads = self._permuted_heads(name, shape)
                self._infos[name] = _Info(file, start + offset, shape, kind, heads)
            if described and file.size < reached:
                raise too_short(file.path)
            if described and file.size > _aligned(reached, alignment):
                raise ValueError(f"its tensors end at byte {reached}, it has {file.size}")
        except (ValueError, TypeError, struct.error, OverflowError) as error:
            raise CheckpointError(
                f"{file.path} is not a whole GGUF file ({error!s:.300}). It may be truncated; copy "
                "or write it again."
            ) from error

    def _permuted_heads(self, name: str, shape: tuple[int, ...]) -> int | None:
        if self.config.get("model_type") not in _REORDERED or not shape:
            return None
        part = name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
        key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(part)
        if key is None:
            return None
        # The whole of their heads rotates.
        size = self.config.get("head_dim", self.config.get("rotary_dim"))
        heads = self.config.get(key)
        if heads is None:  # not told, or told layer by layer
            heads = shape[0] // size if size else self.config.get("num_attention_heads")
        if (
            type(heads) is not int
            or heads < 1
            or shape[0] % (2 * heads)
            or (size is not None and size * heads != shape[0])
        ):
            raise ValueError(f"{name!r:.200} with {shape[0]} rows does not fit {heads!r:.20} heads")
        return heads


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _in_own_order(tensor: Tensor, heads: int) -> Tensor:
    """Undo the converter's order: pairs of rotated rows that it put side by side go back apart."""
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _kinds(path: Path) -> Any:
    try:
        from gguf.constants import GGMLQuantizationType
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f'{path}: reading GGUF needs the gguf package: pip install ".[gguf]".'
        ) from error
    return GGMLQuantizationType


def _size(kind: Any, lines: tuple[int, ...], line: tuple[int, ...]) -> int:
    """Return how many bytes so many lines of numbers take."""
    from gguf.constants import GGML_QUANT_SIZES

    numbers, size = GGML_QUANT_SIZES[kind]
    length = line[0] if line else 1
    if length % numbers:
        raise ValueError(f"lines of {length} numbers are no whole {kind.name} blocks")
    return math.prod(lines) * (length // numbers) * size


class GgufReader:
    """Single GGUF files and files split in parts, beside no model of another form."""

    format = "gguf"

    def find(self, folder: Path, names: Collection[str]) -> list[Candidate]:
        """Return the models among the files, each with its parts."""
        if has_model(names):
            return []
        found: dict[str, Candidate] = {}
        for name in sorted(n for n in names if n.endswith(SUFFIX) and not _NO_MODEL.fullmatch(n)):
            parts = _parts(name)
            missing = tuple(part for part in parts if part not in names)
            found.setdefault(parts[0], Candidate(folder / parts[0], self.format, parts, missing))
        return list(found.values())

    def open(self, candidate: Candidate, step: int) -> Checkpoint:
        """Open it, reading headers only."""
        folder = candidate.path.parent
        model = GgufModel([inside(folder, name) for name in candidate.files])
        return ModelCheckpoint(candidate.path, model, step, model.config)


def _parts(name: str) -> tuple[str, ...]:
    split = _SPLIT.fullmatch(name)
    if split is None or not 1 <= int(split[2]) <= int(split[3]):
        return (name,)
    stem, _, count = split.groups()
    return tuple(f"{stem}-{i:05}-of-{count}{SUFFIX}" for i in range(1, int(count) + 1))
