"""Checkpoints of ``torch.distributed.checkpoint``: a description, and chunks in many files.

``.metadata`` is a pickle. It is read with stand-ins for the few classes that it consists of, none
of which does anything, and refused where it names another. A chunk is what ``torch.save`` wrote, as
a run of bytes in a ``.distcp`` file, and is read as any PyTorch file is.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from checkpoints_index.byte_files import ByteFile, inside, open_bytes, row_run, too_short
from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import Checkpoint, torch_dtype_name
from checkpoints_index.model_folders import ModelCheckpoint, read_config
from checkpoints_index.readers import Candidate
from checkpoints_index.shards import with_config
from checkpoints_index.tensors import StoredTensor
from checkpoints_index.torch_archives import Archive
from checkpoints_index.torch_files import NESTED

METADATA_FILE = ".metadata"
SUFFIX = ".distcp"

# Describes some 45,000 chunks: a model of 70 billion parameters (723 tensors) in 64, without its
# optimizer. A hostile one of this length takes 3 s and 350 MiB.
_MAX_METADATA = 6 * 2**20
# Of nested tuples, counted as often as they are referred to. Those of a description have a dozen;
# of two that each hold the one before twice, the sixtieth could never be hashed or shown.
_MOST_IN_TUPLE = 100


class _Inert:
    """Stands for a class of the description: holds what the pickle sets, and does nothing."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        """Return an attribute that the pickle set, or ``None``."""
        return self.state.get(name) if isinstance(getattr(self, "state", None), dict) else None


class _Metadata(_Inert): ...


class _Tensor(_Inert): ...


class _Chunk(_Inert): ...


class _Index(_Inert): ...


class _Place(_Inert): ...


def _ignored(*_: object) -> None:
    """Stand for what says nothing about the numbers."""


def _sequence(values: Sequence[int] = ()) -> tuple[int, ...]:
    return tuple(values)


_CHECKPOINT = "torch.distributed.checkpoint"
_CLASSES: dict[tuple[str, str], Any] = {
    (f"{_CHECKPOINT}.metadata", "Metadata"): _Metadata,
    (f"{_CHECKPOINT}.metadata", "TensorStorageMetadata"): _Tensor,
    (f"{_CHECKPOINT}.metadata", "ChunkStorageMetadata"): _Chunk,
    (f"{_CHECKPOINT}.metadata", "MetadataIndex"): _Index,
    (f"{_CHECKPOINT}.metadata", "TensorProperties"): _Inert,
    (f"{_CHECKPOINT}.metadata", "BytesStorageMetadata"): _Inert,
    (f"{_CHECKPOINT}.metadata", "StorageMeta"): _Inert,
    (f"{_CHECKPOINT}.metadata", "_MEM_FORMAT_ENCODING"): _ignored,
    # Where these two were before torch 2.3.
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"): _Inert,
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"): _ignored,
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"): _Place,
    (f"{_CHECKPOINT}.filesystem", "_StoragePrefix"): _Inert,
    ("torch", "Size"): _sequence,
    ("torch.serialization", "_get_layout"): _ignored,
    ("collections", "OrderedDict"): dict,
    ("pathlib", "PosixPath"): _ignored,
    ("pathlib", "WindowsPath"): _ignored,
    ("pathlib._local", "PosixPath"): _ignored,
    ("pathlib._local", "WindowsPath"): _ignored,
}


# The one written in Python: its memory grows with the file, while the other takes as much as any
# number in the file says.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _CLASSES.get((module, name))
        if found is None and module == "torch":
            dtype = getattr(torch, name, None)
            found = dtype if isinstance(dtype, torch.dtype) else None
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is never loaded")
        return found


def _bounded(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_bounded(unpickler: Any) -> None:
        load(unpickler)
        made = _Tuple(unpickler.stack.pop())
        made.weight = 1 + sum(v.weight if isinstance(v, _Tuple) else 1 for v in made)
        if made.weight > _MOST_IN_TUPLE:
            raise pickle.UnpicklingError(f"it has tuples with more than {_MOST_IN_TUPLE} parts")
        unpickler.append(made)

    return load_bounded


class _Tuple(tuple[Any, ...]):
    weight: int


_Unpickler.dispatch = dict(pickle._Unpickler.dispatch)
for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _Unpickler.dispatch[_code[0]] = _bounded(_Unpickler.dispatch[_code[0]])


@dataclass(frozen=True)
class _Piece:
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    begin: int
    length: int


class DistributedFolder:
    """The tensors of a folder that ``torch.distributed.checkpoint.save`` wrote.

    Parameters
    ----------
    path : Path
        The folder, with ``.metadata`` and the ``.distcp`` files.

    Raises
    ------
    CheckpointError
        If a file is missing, or the description is broken or needs more than plain values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._description = inside(path, METADATA_FILE)
        self._files: dict[str, ByteFile] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        tensors: dict[str, StoredTensor] = {}
        metadata = self._read_metadata()
        try:
            self._read_tensors(metadata, tensors)
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise self._broken(f"{type(error).__name__}: {error!s:.300}") from error
        self.tensors: Mapping[str, StoredTensor] = tensors

    @property
    def fingerprint(self) -> str:
        """Those of the description and of all files."""
        files = [self._files[name].fingerprint for name in sorted(self._files)]
        return ",".join([open_bytes(self._description).fingerprint, *files])

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one tensor, or a run of its rows, from the chunks that hold it."""
        if name not in self._pieces:
            raise CheckpointError(f"{self.path} has no tensor {name!r}.")
        shape, dtype = self.tensors[name].shape, self.tensors[name].dtype
        pieces = self._pieces[name]
        self._refuse_overlap(name, pieces)
        if len(pieces) == 1 and rows is None:
            return self._read_piece(pieces[0], dtype, None)
        start, stop = row_run(shape, rows)
        whole = torch.empty((stop - start, *shape[1:]), dtype=getattr(torch, dtype))
        for piece in pieces:
            low = max(start, piece.offsets[0])
            high = min(stop, piece.offsets[0] + piece.sizes[0])
            if low < high:
                window = [slice(o, o + n) for o, n in zip(piece.offsets, piece.sizes, strict=True)]
                window[0] = slice(low - start, high - start)
                wanted = slice(low - piece.offsets[0], high - piece.offsets[0])
                whole[tuple(window)] = self._read_piece(piece, dtype, wanted)
        return whole

    def _read_piece(self, piece: _Piece, dtype: str, rows: slice | None) -> Tensor:
        file = self._files[piece.file]
        archive = Archive(_Part(file, piece.begin, piece.length))
        tensor = archive.load()
        place = archive.find(tensor) if isinstance(tensor, Tensor) else None
        if place is None or place.shape != piece.sizes or torch_dtype_name(place.dtype) != dtype:
            raise CheckpointError(
                f"{file.path} holds another chunk at byte {piece.begin} than {self._description} "
                "says. Copy or write the checkpoint again."
            )
        return archive.read(place if rows is None else place.rows(rows.start, rows.stop))

    def _read_metadata(self) -> _Inert:
        file = open_bytes(self._description)
        if file.size > _MAX_METADATA:
            raise self._broken(f"it has {file.size} bytes, allowed are {_MAX_METADATA}")
        try:
            metadata = _Unpickler(io.BytesIO(file.read(0, file.size))).load()
        except pickle.UnpicklingError as error:
            raise self._broken(f"{error!s:.300}") from error
        except CheckpointError:
            raise
        # A broken pickle fails in every way that its operations can.
        except Exception as error:
            raise self._broken(f"{type(error).__name__}: {error!s:.300}") from error
        if not isinstance(metadata, _Metadata):
            raise self._broken(f"it holds a {type(metadata).__name__}, not checkpoint metadata")
        return metadata

    def _read_tensors(self, metadata: _Inert, tensors: dict[str, StoredTensor]) -> None:
        places = {}
        for index, place in metadata.get("storage_data").items():
            if not isinstance(index, _Index) or not isinstance(place, _Place):
                raise ValueError("storage_data must map indices to places")
            if place.get("transform_descriptors"):
                raise ValueError("its chunks are transformed (compressed), which is not read here")
            offset = index.get("offset")
            places[index.get("fqn"), None if offset is None else _counts(offset)] = place
        described = metadata.get("state_dict_metadata")
        for key, name in _model_names(described, metadata.get("planner_data")).items():
            entry = described[key]
            dtype = entry.get("properties").state[0]
            shape = _counts(entry.get("size"))
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"{name!r:.200} has no dtype")
            pieces = [self._piece(key, chunk, shape, places) for chunk in entry.get("chunks")]
            if sum(math.prod(piece.sizes) for piece in pieces) != math.prod(shape):
                raise ValueError(f"the chunks of {name!r:.200} do not fill it")
            self._pieces[name] = pieces
            tensors[name] = StoredTensor(shape, torch_dtype_name(dtype))
        if not tensors:
            raise ValueError("it describes no tensors")
        self._refuse_shared_bytes()

    def _piece(
        self,
        key: str,
        chunk: _Inert,
        shape: tuple[int, ...],
        places: Mapping[tuple[str, tuple[int, ...] | None], _Inert],
    ) -> _Piece:
        offsets, sizes = _counts(chunk.get("offsets")), _counts(chunk.get("sizes"))
        if any(o + n > most for o, n, most in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"a chunk of {key!r:.200} reaches beyond it")
        place = places.get((key, offsets)) or places[key, None]
        begin, length = _counts((place.get("offset"), place.get("length")))
        name = place.get("relative_path")
        if not isinstance(name, str):
            raise ValueError(f"a chunk of {key!r:.200} is in no file")
        if name not in self._files:
            self._files[name] = open_bytes(inside(self.path, name))
        if begin + length > self._files[name].size:
            raise too_short(self._files[name].path)
        return _Piece(offsets, sizes, name, begin, length)

    def _refuse_shared_bytes(self) -> None:
        places = {(p.file, p.begin, p.length) for pieces in self._pieces.values() for p in pieces}
        if len(places) != sum(map(len, self._pieces.values())):
            raise ValueError("two chunks are in one place")
        for (file, begin, length), (other, following, _) in pairwise(sorted(places)):
            if file == other and begin + length > following:
                raise ValueError(f"its chunks in {file!r:.200} overlap")

    def _refuse_overlap(self, name: str, pieces: list[_Piece]) -> None:
        """Chunks that fill a tensor by their sizes fill it, unless two overlap."""
        full = [p for p in pieces if math.prod(p.sizes)]
        if len(full) < 2:
            return
        low = torch.tensor([p.offsets for p in full])
        high = low + torch.tensor([p.sizes for p in full])
        # Each against the next ones, so that memory grows with the chunks, not with their pairs.
        for i in range(len(full) - 1):
            meet = (low[i] < high[i + 1 :]) & (low[i + 1 :] < high[i])
            if bool(meet.all(dim=1).any()):
                raise self._broken(f"chunks of {name!r:.200} overlap")

    def _broken(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self._description} does not describe a distributed checkpoint that can be read "
            f"({reason}). Copy or write the checkpoint again."
        )


class _Part:
    """A run of a file's bytes, as a file."""

    def __init__(self, file: ByteFile, begin: int, length: int) -> None:
        self._file = file
        self._begin = begin
        self.path = file.path
        self.size = length
        self.fingerprint = file.fingerprint

    def read(self, offset: int, length: int) -> bytearray:
        self._check(offset, length)
        return self._file.read(self._begin + offset, length)

    def map(self, offset: int, length: int) -> memoryview:
        self._check(offset, length)
        return self._file.map(self._begin + offset, length)

    def _check(self, offset: int, length: int) -> None:
        if offset + length > self.size:
            raise CheckpointError(f"{self.path}: a chunk ends too early; it may be truncated.")


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(v) is int and 0 <= v < 2**62 for v in values):
        raise ValueError("sizes and places must be counts")
    return values


def _is_path(path: Any) -> TypeGuard[tuple[str | int, ...]]:
    is_tuple = isinstance(path, tuple) and len(path) > 0
    return is_tuple and all(isinstance(part, str | int) for part in path)


def _model_names(described: Mapping[str, Any], paths: Any) -> dict[str, str]:
    """Return the keys of the model's tensors and their names in its own state dict."""
    keys = [key for key, entry in described.items() if isinstance(entry, _Tensor)]
    if not isinstance(paths, dict):
        return {key: key for key in keys}
    known = {key: path for key in keys if _is_path(path := paths.get(key))}
    for nested in NESTED:
        inner = {
            key: ".".join(map(str, path[1:]))
            for key, path in known.items()
            if len(path) > 1 and path[0] == nested
        }
        if inner:
            return inner
    flat = {key: key for key in keys if len(known.get(key, (key,))) == 1}
    return flat or {key: key for key in keys}


class DistributedReader:
    """Folders of ``torch.distributed.checkpoint``."""

    format = "torch distributed"

    def find(self, folder: Path, names: Collection[str]) -> list[Candidate]:
        """Return the folder; its description is written last."""
        files = sorted(name for name in names if name.endswith(SUFFIX))
        if not files:
            return []
        missing = () if METADATA_FILE in names else (METADATA_FILE,)
        found = Candidate(folder, self.format, (METADATA_FILE, *files), missing)
        return [with_config(found, names)]

    def open(self, candidate: Candidate, step: int) -> Checkpoint:
        """Open it, reading the description only."""
        folder = candidate.path
        return ModelCheckpoint(folder, DistributedFolder(folder), step, read_config(folder))
