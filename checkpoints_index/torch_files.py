"""PyTorch files (``.bin``, ``.pt``, ``.pth``, ``.ckpt``) and the models in them, never executed."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from checkpoints_index.byte_files import ByteFile, inside, open_bytes, row_run, too_short
from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import Checkpoint, torch_dtype_name
from checkpoints_index.model_folders import ModelCheckpoint, read_config
from checkpoints_index.pickle_bounds import check_pickle
from checkpoints_index.readers import Candidate
from checkpoints_index.shards import SHARD, open_whole, whole_model, with_config
from checkpoints_index.tensors import StoredTensor
from checkpoints_index.torch_archives import Archive, TensorPlace, load_plain

MODEL_FILE = "pytorch_model.bin"
MODEL_INDEX = "pytorch_model.bin.index.json"

# Older files are one stream that must be loaded as a whole.
_MAX_LEGACY = 2**30
# They begin with this number as a pickle, then have four others before the tensors' numbers.
_LEGACY, _LEGACY_WITHIN, _LEGACY_PICKLES = b"l\xfc\x9cF\xf9 j\xa8P\x19.", 32, 5
# Under which keys trainers put a model's weights, beside optimizers and counters.
NESTED = ("state_dict", "model_state_dict", "model", "module")

# One file is a whole checkpoint by these names, but for what trainers write beside the weights.
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|sampler|dl_state_dict|rng_state|random_states|training_args"
    r"|adapter_model|.*optim_states|.*tokenizer).*"
)
# Files that make their folder a model's or an adapter's.
_FOLDERS = {
    MODEL_FILE,
    MODEL_INDEX,
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    ".metadata",
}


class TorchFile:
    """One PyTorch file with a dictionary of tensors.

    Where trainers put one below ``state_dict``, ``model_state_dict``, ``model`` or ``module``, that
    one counts; its numbers are read one tensor at a time. Of files from before PyTorch 1.6, which
    are one stream, all is loaded at once.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    CheckpointError
        If it is missing, truncated, or needs more than tensors and plain values to be loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_bytes(path)
        if not self._file.size:
            raise too_short(path)
        archive = self._file.size >= 4 and self._file.read(0, 4) == b"PK\x03\x04"
        self._archive = Archive(self._file) if archive else None
        self._places: dict[str, TensorPlace | None] = {}
        loaded = self._archive.load() if self._archive else _load_legacy(self._file)
        named = dict(_named_tensors(loaded))
        if not named:
            raise CheckpointError(
                f"{path} must hold a dictionary of tensors, but has none ({type(loaded).__name__})."
            )
        self._legacy = None if self._archive else named
        self.tensors: Mapping[str, StoredTensor] = {
            name: StoredTensor(tuple(t.shape), self._dtype(name, t)) for name, t in named.items()
        }

    @property
    def fingerprint(self) -> str:
        """File name, size and time of change."""
        return self._file.fingerprint

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one tensor, or a run of its rows."""
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.path} has no tensor {name!r} ({len(self.tensors)} tensors, e.g. "
                f"{next(iter(self.tensors))!r})."
            )
        run = None if rows is None else row_run(self.tensors[name].shape, rows)
        if self._archive is None:
            if self._legacy is None:
                self._legacy = dict(_named_tensors(_load_legacy(self._file)))
            tensor = self._legacy.get(name)
            if tensor is None:
                raise CheckpointError(f"{self.path} has changed and has no tensor {name!r} now.")
            return (tensor if run is None else tensor[slice(*run)]).clone()
        place = self._places[name]
        if place is None:
            raise CheckpointError(f"{self.path}: {name!r} is stored in no plain form.")
        return self._archive.read(place if run is None else place.rows(*run))

    def _dtype(self, name: str, tensor: Tensor) -> str:
        if self._archive is not None:
            place = self._places[name] = self._archive.find(tensor)
            if place is None or not self._archive.holds(place):
                return "unknown"
        return torch_dtype_name(tensor.dtype)

    def __getstate__(self) -> dict[str, Any]:
        # Other processes load the numbers themselves.
        return self.__dict__ | {"_legacy": None}


def _load_legacy(file: ByteFile) -> Any:
    if file.size > _MAX_LEGACY:
        raise CheckpointError(
            f"{file.path} has the format from before PyTorch 1.6, which must be read as a whole, "
            f"and more than 1 GiB ({file.size} bytes), or is no PyTorch file. Load and save it "
            "with a newer PyTorch."
        )
    if _LEGACY not in file.read(0, min(file.size, _LEGACY_WITHIN)):
        raise CheckpointError(
            f"{file.path} must be a file of PyTorch's, but does not begin as one."
        )
    content = file.read(0, file.size)
    at = 0
    try:
        for _ in range(_LEGACY_PICKLES):
            at = check_pickle(content, at)
    except ValueError as error:
        raise CheckpointError(
            f"{file.path} is a PyTorch file that would take for ever to load ({error})."
        ) from error
    return load_plain(io.BytesIO(content), file.path, "cpu")


def _named_tensors(loaded: Any) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(loaded, Mapping):
        return
    for key in NESTED:
        inner = loaded.get(key)
        if isinstance(inner, Mapping) and any(isinstance(t, Tensor) for t in inner.values()):
            loaded = inner
            break
    for name, value in loaded.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield name, value.detach()


class TorchReader:
    """Model folders with whole weights as ``pytorch_model.bin``, in one file or in shards."""

    format = "pytorch"

    def find(self, folder: Path, names: Collection[str]) -> list[Candidate]:
        """Return the folder, unless it holds the same weights as safetensors too."""
        if {"model.safetensors", "model.safetensors.index.json"} & set(names):
            return []
        found = whole_model(folder, MODEL_FILE, names, self.format)
        return [found] if found else []

    def open(self, candidate: Candidate, step: int) -> Checkpoint:
        """Open it, reading descriptions only."""
        folder, store = candidate.path, open_whole(candidate, MODEL_FILE, TorchFile)
        return ModelCheckpoint(folder, store, step, read_config(folder))


class TorchFileReader:
    """Single files that hold a model's weights, alone or beside a trainer's state.

    They count where the folder has no model or adapter of another form: there, loose files are
    what belongs to it.
    """

    format = "pytorch file"

    def find(self, folder: Path, names: Collection[str]) -> list[Candidate]:
        """Return the files that may hold weights, by their names."""
        if has_model(names):
            return []
        return [
            with_config(Candidate(folder / name, self.format, (name,)), names)
            for name in sorted(names)
            if name.endswith(_SUFFIXES)
            and not _NO_WEIGHTS.fullmatch(name)
            and not SHARD.fullmatch(name)
        ]

    def open(self, candidate: Candidate, step: int) -> Checkpoint:
        """Open it, reading its description only."""
        folder = candidate.path.parent
        file = TorchFile(inside(folder, candidate.path.name))
        return ModelCheckpoint(candidate.path, file, step, read_config(folder))


def has_model(names: Collection[str]) -> bool:
    """Whether a folder with files of these names holds a model or adapter that is a folder."""
    return not _FOLDERS.isdisjoint(names)
