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

from checkpoints_index.byte_files import ByteFile, inside, open_bytes, read_tensor, row_run
from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import Checkpoint
from checkpoints_index.model_folders import ModelCheckpoint
from checkpoints_index.readers import Candidate
from checkpoints_index.tensors import StoredTensor
from checkpoints_index.torch_files import has_model

SUFFIX = ".gguf"

# A vocabulary of 250,000 tokens with its merges takes 15 MiB.
_MAX_HEADER = 32 * 2**20
# Ten times as many as any model has.
_MAX_ENTRIES = 100_000
_WINDOW = 2**16
_LENGTH = struct.Struct("<Q")
_DEFAULT_ALIGNMENT = 32
# By the format's numbers: bool and numbers by their struct codes; text and arrays apart.
_SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
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
# llama.cpp's name of a block's part, and Hugging Face's in most decoders.
_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_CONFIG = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.dimension_count": "rotary_dim",
    "attention.key_length": "head_dim",
    "expert_count": "num_local_experts",
}
_KEPT = {"architecture", "alignment", *_CONFIG}
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
    and ``k_proj`` of Llama models; they are given in the order of Hugging Face.

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
        header = _Header(file)
        try:
            metadata, described = header.read()
            alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
            if type(alignment) is not int or not 0 < alignment <= 2**20:
                raise ValueError("its alignment is no sensible number")
            if not self.config:
                self.config = _config(metadata)
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
            if described and not reached <= file.size <= _aligned(reached, alignment):
                raise ValueError(f"its tensors end at byte {reached}, it has {file.size}")
        except (ValueError, TypeError, struct.error, OverflowError) as error:
            raise CheckpointError(
                f"{file.path} is not a whole GGUF file ({error!s:.300}). It may be truncated; copy "
                "or write it again."
            ) from error

    def _permuted_heads(self, name: str, shape: tuple[int, ...]) -> int | None:
        if self.config.get("model_type") != "llama" or not shape:
            return None
        part = name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
        key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(part)
        if key is None:
            return None
        heads = self.config.get(key, self.config.get("num_attention_heads"))
        # The whole of a Llama's heads rotates.
        size = self.config.get("head_dim", self.config.get("rotary_dim"))
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
            f'{path}: reading GGUF needs the gguf package: pip install "spectra-svd[gguf]".'
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


def _config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("it names no architecture")
    found: dict[str, Any] = {"model_type": architecture}
    for key, name in _CONFIG.items():
        value = metadata.get(f"{architecture}.{key}")
        if type(value) is int:
            found[name] = value
    # Every model has it: its name tells, too, whether the architecture's is right.
    if "num_hidden_layers" not in found:
        raise ValueError(f"it tells nothing of the architecture {architecture!r:.50}")
    return found


def _own_name(name: str) -> str:
    """Return Hugging Face's name of a tensor; what has none there keeps its last part.

    Examples
    --------
    >>> _own_name("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    match = re.fullmatch(r"blk\.(\d+)\.([^.]+)(\..+)?", name)
    if match:
        number, part, rest = match.groups()
        return f"model.layers.{number}.{_PARTS.get(part, part)}{rest or ''}"
    first, dot, rest = name.partition(".")
    return f"{_OUTER.get(first, first)}{dot}{rest}"


class _Header:
    """A GGUF header, read from its beginning in windows."""

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._window = bytearray()
        self._start = 0
        self.at = 0

    def read(self) -> tuple[dict[str, Any], list[tuple[str, list[int], int, int]]]:
        """Return the metadata that matters, and name, dims, type and offset of the tensors."""
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; read are 2 and 3, little-endian")
        tensors, entries = self._number("Q"), self._number("Q")
        if max(tensors, entries) > _MAX_ENTRIES:
            raise ValueError(f"it would have {tensors} tensors and {entries} entries")
        metadata = {}
        for _ in range(entries):
            key = self._text()
            value = self._value(self._number("I"))
            if key.partition(".")[2] in _KEPT:
                metadata[key] = value
        described = []
        for _ in range(tensors):
            name = _own_name(self._text())
            count = self._number("I")
            if count > 8:
                raise ValueError(f"{name!r:.200} has {count} dimensions")
            dims = [self._number("Q") for _ in range(count)]
            if any(n >= 2**63 for n in dims):
                raise ValueError(f"{name!r:.200} has an impossible shape")
            described.append((name, dims, self._number("I"), self._number("Q")))
        return metadata, described

    def _take(self, length: int) -> bytearray:
        self._move(length)
        begin = self.at - length - self._start
        if begin < 0 or begin + length > len(self._window):
            self._fill(self.at - length, length)
            begin = 0
        return self._window[begin : begin + length]

    def _move(self, length: int) -> None:
        self.at += length
        if self.at > min(self._file.size, _MAX_HEADER):
            raise ValueError("its header ends too early or is too long")

    def _fill(self, begin: int, length: int) -> None:
        # Few requests for long headers, and little too much for short ones.
        wanted = max(length, _WINDOW, begin // 16)
        self._window = self._file.read(begin, min(wanted, self._file.size - begin))
        self._start = begin

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _text(self) -> str:
        return self._take(self._number("Q")).decode("utf-8")

    def _value(self, kind: int) -> Any:
        """Read a value; arrays are passed over."""
        if kind == _TEXT:
            return self._text()
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        inner = self._number("I") if kind == _ARRAY else None
        if inner in _SCALARS:
            self._move(self._number("Q") * struct.calcsize(f"<{_SCALARS[inner]}"))
        elif inner == _TEXT:
            self._skip_texts(self._number("Q"))
        else:
            raise ValueError(f"its metadata has a value of unknown type {kind} of {inner}")
        return None

    def _skip_texts(self, count: int) -> None:
        # A loop of its own: a vocabulary has hundreds of thousands.
        for _ in range(count):
            self._move(_LENGTH.size)
            begin = self.at - _LENGTH.size - self._start
            if begin + _LENGTH.size > len(self._window):
                self._fill(self.at - _LENGTH.size, _LENGTH.size)
                begin = 0
            self._move(_LENGTH.unpack_from(self._window, begin)[0])


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
