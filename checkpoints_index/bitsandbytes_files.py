"""Weights quantised by bitsandbytes, read as the numbers that they stand for.

Of a weight in four bits, the scales of its blocks lie beside it, and a description: JSON in a
tensor of bytes. Beside one in eight bits (LLM.int8()) lie the scales of its rows, ``SCB``. What the
codes become is asked of bitsandbytes, whose kernels read as far as they are told to without looking
where a tensor ends: all sizes are checked here first.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from checkpoints_index.byte_files import parse_json, row_run
from checkpoints_index.errors import CheckpointError
from checkpoints_index.model_folders import ModelCheckpoint
from checkpoints_index.tensors import StoredTensor, TensorStore

_DESCRIPTION = re.compile(r"(.+)\.quant_state\.bitsandbytes__(nf4|fp4)", re.DOTALL)
# Real ones have 80 to 170 bytes.
_MOST_DESCRIBED = 4096
# Those that bitsandbytes can de-quantise.
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_FLOATS = ("bfloat16", "float16", "float32")
# In which packed weights may lie, for FSDP's sake, and how many bytes that takes.
_STORAGE = {"uint8": 1, "int8": 1, "bfloat16": 2, "float16": 2, "float32": 4}
# Names of what only means something beside a weight.
_BESIDE = re.compile(
    r".+\.((nested_)?(absmax|quant_map)|SCB|weight_format|quant_state\..*)", re.DOTALL
)


class BitsAndBytesStore:
    """The tensors of a checkpoint with weights quantised by bitsandbytes, de-quantised.

    A matrix is de-quantised when it is read. Its dtype is ``"int8"``, ``"nf4"`` or ``"fp4"``; of
    four bits in blocks of another size than 64, or with scales that are quantised too, something
    longer, such as ``"nf4-double"``. What is not quantised is as it is.

    Parameters
    ----------
    store : TensorStore
        The tensors as they are stored.

    Attributes
    ----------
    quantisation : str
        ``"nf4"``, ``"fp4"`` or ``"int8"``; should a model have several, joined by ``"+"``.

    Raises
    ------
    CheckpointError
        If scales or descriptions are missing or contradict the weights, nothing is quantised, or
        bitsandbytes is not installed.
    """

    def __init__(self, store: TensorStore) -> None:
        _functional(store)
        self.path = store.path
        self._store = store
        self._packed: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, str] = {}
        kinds: set[str] = set()
        used: set[str] = set()
        found: dict[str, StoredTensor] = {}
        for name, stored in store.tensors.items():
            if match := _DESCRIPTION.fullmatch(name):
                weight, kind = match.groups()
                if weight in self._packed:
                    raise self._wrong(name, "must be the only description of its weight")
                self._packed[weight] = state = self._described(weight, name, kind)
                used |= {name, *(f"{weight}.{part}" for part in _parts(state))}
                found[weight] = StoredTensor(tuple(state["shape"]), _dtype(state), dequantised=True)
                kinds.add(kind)
            elif name.endswith("weight") and stored.dtype == "int8":
                layer = name.removesuffix("weight")
                if f"{layer}SCB" in store.tensors:
                    used |= self._of_rows(name, stored)
                    self._rows[name] = f"{layer}SCB"
                    found[name] = StoredTensor(stored.shape, "int8", dequantised=True)
                    kinds.add("int8")
        rest = {name: stored for name, stored in store.tensors.items() if name not in used}
        for name, stored in rest.items():
            is_code = name.endswith("weight") and stored.dtype in ("uint8", "int8")
            if name not in found and (is_code or _BESIDE.fullmatch(name)):
                raise self._wrong(name, "must lie beside what bitsandbytes writes with it")
        if not found:
            raise CheckpointError(
                f"{self.path} must hold weights quantised by bitsandbytes, as its configuration "
                f"says, but has none ({len(store.tensors)} tensors). Give the config.json that "
                "belongs to these weights."
            )
        self.quantisation = "+".join(sorted(kinds))
        # In the order of the file.
        self.tensors: Mapping[str, StoredTensor] = {n: found.get(n, s) for n, s in rest.items()}

    @property
    def fingerprint(self) -> str:
        """That of the stored tensors."""
        return self._store.fingerprint

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one tensor, or a run of its rows; a quantised one is de-quantised as a whole."""
        if name in self._packed or name in self._rows:
            try:
                whole = self._read_packed(name) if name in self._packed else self._read_int8(name)
            except (RuntimeError, ValueError) as error:
                raise self._wrong(name, f"cannot be de-quantised ({error!s:.300})") from error
            start, stop = row_run(tuple(whole.shape), rows)
            return whole[start:stop]
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r:.200}.")
        return self._store.read(name, rows)

    def _read_packed(self, name: str) -> Tensor:
        functional, state = _functional(self._store), self._packed[name]
        # A view with strides, as a PyTorch file may hold, would be read as if it had none.
        scales = {part: self._store.read(f"{name}.{part}").contiguous() for part in _parts(state)}
        whole = functional.QuantState.from_dict(state | scales, torch.device("cpu"))
        codes = self._store.read(name).contiguous().view(torch.uint8).reshape(-1, 1)
        # A single byte is taken for a transposed matrix.
        return functional.dequantize_4bit(codes, whole).reshape(state["shape"])

    def _read_int8(self, name: str) -> Tensor:
        scales = self._store.read(self._rows[name]).flatten()
        return _functional(self._store).int8_vectorwise_dequant(self._store.read(name), scales)

    def _described(self, weight: str, name: str, kind: str) -> dict[str, Any]:
        """Return what a weight's description says, once all sizes fit it."""
        stored = self._store.tensors[name]
        if stored.dtype != "uint8" or len(stored.shape) != 1 or stored.shape[0] > _MOST_DESCRIBED:
            raise self._wrong(name, f"must be at most {_MOST_DESCRIBED} bytes of JSON")
        try:
            says = parse_json(self._store.read(name).numpy().tobytes(), self.path)
        except CheckpointError as error:
            raise self._wrong(name, f"must be JSON: {error!s:.300}") from error
        shape, block = says.get("shape"), says.get("blocksize")
        if not isinstance(shape, list) or not 1 <= len(shape) <= 3:
            raise self._wrong(name, "must give one to three dimensions as 'shape'")
        if not all(type(length) is int and 0 < length < 2**63 for length in shape):
            raise self._wrong(name, "must give positive numbers as 'shape'")
        if says.get("quant_type") != kind or says.get("dtype") not in _FLOATS:
            raise self._wrong(name, f"must give {kind!r} as 'quant_type' and a float as 'dtype'")
        if type(block) is not int or block not in _BLOCK_SIZES:
            raise self._wrong(name, f"must give one of {_BLOCK_SIZES} as 'blocksize'")
        state = {key: says[key] for key in ("quant_type", "dtype", "blocksize", "shape")}
        numbers = math.prod(shape)
        blocks = -(-numbers // block)
        packed = self._store.tensors.get(weight)
        size = _STORAGE.get(packed.dtype, 0) * math.prod(packed.shape) if packed else 0
        if size != -(-numbers // 2):
            raise self._wrong(
                weight, f"must hold {numbers} codes of 4 bits, as its description says"
            )
        self._require(f"{weight}.quant_map", "float32", 16)
        if f"{weight}.nested_absmax" not in self._store.tensors:
            self._require(f"{weight}.absmax", "float32", blocks)
            return state
        nested, offset = says.get("nested_blocksize"), says.get("nested_offset")
        if type(nested) is not int or nested not in _BLOCK_SIZES:
            raise self._wrong(name, f"must give one of {_BLOCK_SIZES} as 'nested_blocksize'")
        if says.get("nested_dtype") != "float32":
            raise self._wrong(name, "must give 'float32' as 'nested_dtype'")
        if type(offset) is not float or not math.isfinite(offset):
            raise self._wrong(name, "must give a finite number as 'nested_offset'")
        self._require(f"{weight}.absmax", "uint8", blocks)
        self._require(f"{weight}.nested_absmax", "float32", -(-blocks // nested))
        self._require(f"{weight}.nested_quant_map", "float32", 256)
        return state | {
            "nested_blocksize": nested,
            "nested_dtype": "float32",
            "nested_offset": offset,
        }

    def _of_rows(self, weight: str, stored: StoredTensor) -> set[str]:
        """Return the names of what lies beside a weight in eight bits, once their sizes fit."""
        if len(stored.shape) != 2:
            raise self._wrong(weight, "must be a matrix")
        scales, order = (weight.removesuffix("weight") + end for end in ("SCB", "weight_format"))
        self._require(scales, "float32", stored.shape[0])
        if order not in self._store.tensors:
            return {scales}
        self._require(order, "uint8", 1)
        if self._store.read(order).item() != 0:
            raise self._wrong(order, "must be 0, for codes row by row: save the model once more")
        return {scales, order}

    def _require(self, name: str, dtype: str, count: int) -> None:
        stored = self._store.tensors.get(name)
        if stored is None or stored.dtype != dtype or math.prod(stored.shape) != count:
            raise self._wrong(name, f"must be there, {count} numbers of {dtype}")

    def _wrong(self, name: str, reason: str) -> CheckpointError:
        stored = self._store.tensors.get(name)
        got = f"{stored.dtype} of shape {stored.shape}" if stored else "nothing"
        return CheckpointError(
            f"{self.path}: {name!r:.200} {reason}; got {got:.200}. The file is damaged, or was not "
            "written by bitsandbytes; copy or write it again."
        )


def dequantised(model: ModelCheckpoint) -> ModelCheckpoint:
    """Return a model quantised by bitsandbytes as the numbers that its weights stand for.

    Raises
    ------
    CheckpointError
        As `BitsAndBytesStore`.
    """
    store = BitsAndBytesStore(model.store)
    return ModelCheckpoint(model.path, store, model.step, model.config, store.quantisation)


def _parts(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what lies beside a weight in four bits."""
    plain = ("absmax", "quant_map")
    return (*plain, *(f"nested_{p}" for p in plain)) if "nested_offset" in state else plain


def _dtype(state: Mapping[str, Any]) -> str:
    double = "-double" if "nested_offset" in state else ""
    size = f"-{state['blocksize']}" if state["blocksize"] != 64 else ""
    return f"{state['quant_type']}{double}{size}"


def _functional(store: TensorStore) -> Any:
    # It warns of kernels for inference that are not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise CheckpointError(
            f"{store.path}: de-quantising needs the bitsandbytes package: "
            'pip install ".[bitsandbytes]".'
        ) from error
    return functional
