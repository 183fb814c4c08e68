"""One model over several files, by an index that maps tensors to files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from checkpoints_index.byte_files import inside, open_bytes, read_json
from checkpoints_index.errors import CheckpointError
from checkpoints_index.readers import Candidate
from checkpoints_index.tensors import StoredTensor, TensorStore

SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.(?P<suffix>bin|safetensors)")
"""What Transformers calls a shard."""
# A lying name must not make us list a billion shards.
_MOST_SHARDS = 10_000


class ShardedStore:
    """The tensors of a folder's shards, as its index maps them.

    Parameters
    ----------
    path : Path
        The folder.
    index : str
        Name of the index in it, such as ``model.safetensors.index.json``.
    open_shard : callable
        Opens one file.

    Raises
    ------
    CheckpointError
        If the index is broken, leads out of the folder or contradicts the shards, or one of these
        is missing or broken.
    """

    def __init__(self, path: Path, index: str, open_shard: Callable[[Path], TensorStore]) -> None:
        self.path = path
        self._index = inside(path, index)
        self._shards: dict[str, TensorStore] = {}
        self._of: dict[str, TensorStore] = {}
        self.tensors: Mapping[str, StoredTensor] = {}
        tensors = {}
        for tensor, name in read_weight_map(path, index).items():
            if name not in self._shards:
                self._shards[name] = open_shard(inside(path, name))
            shard = self._shards[name]
            if tensor not in shard.tensors:
                raise CheckpointError(
                    f"{self._index} says that {tensor!r:.200} is in {name!r}, which has no such "
                    "tensor. Copy or write the checkpoint again."
                )
            self._of[tensor], tensors[tensor] = shard, shard.tensors[tensor]
        self.tensors = tensors

    @property
    def shards(self) -> Mapping[str, TensorStore]:
        """The files, by their names."""
        return self._shards

    @property
    def fingerprint(self) -> str:
        """Those of the index and of all shards."""
        files = [self._shards[name].fingerprint for name in sorted(self._shards)]
        return ",".join([open_bytes(self._index).fingerprint, *files])

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one tensor, or a run of its rows, from its shard."""
        if name not in self._of:
            raise CheckpointError(f"{self.path} has no tensor {name!r}.")
        return self._of[name].read(name, rows)


def read_weight_map(folder: Path, index: str) -> dict[str, str]:
    """Return which file of a folder holds which tensor; raises `CheckpointError`."""
    path = inside(folder, index)
    weight_map = read_json(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise CheckpointError(
            f"{path} must map tensors to file names in its own folder under 'weight_map'."
        )
    for name in set(weight_map.values()):
        inside(folder, name)
    return weight_map


def shard_candidate(
    folder: Path, index: str, names: Collection[str], format: str
) -> Candidate | None:
    """Return the sharded checkpoint of a folder, with what is not there yet; else ``None``.

    Where there are shards and no index, that is missing: it is written last. A broken index is
    left to the opening, which says what is wrong with it.
    """
    if index in names:
        try:
            shards = sorted(set(read_weight_map(folder, index).values()))
        except CheckpointError:
            shards = []
    else:
        shards = _shards_without_index(index, names)
        if not shards:
            return None
    files = (index, *shards)
    return Candidate(folder, format, files, tuple(file for file in files if file not in names))


def whole_model(folder: Path, file: str, names: Collection[str], format: str) -> Candidate | None:
    """Return the model of a folder in one file of this name, or in shards of it; else ``None``."""
    index = f"{file}.index.json"
    if file in names and index not in names:
        return with_config(Candidate(folder, format, (file,)), names)
    found = shard_candidate(folder, index, names, format)
    return with_config(found, names) if found else None


def open_whole(
    candidate: Candidate, file: str, open_file: Callable[[Path], TensorStore]
) -> TensorStore:
    """Open the tensors of what `whole_model` found."""
    index = f"{file}.index.json"
    if index in candidate.files:
        return ShardedStore(candidate.path, index, open_file)
    return open_file(inside(candidate.path, file))


def with_config(candidate: Candidate, names: Collection[str]) -> Candidate:
    """Return a model whose configuration, where there is one, counts among its files."""
    config = ("config.json",) if "config.json" in names else ()
    return replace(candidate, files=(*candidate.files, *config))


def _shards_without_index(index: str, names: Collection[str]) -> list[str]:
    """All shards of which some are there: ``model-00001-of-00002.safetensors`` and the second."""
    stem, suffix = index.removesuffix(".index.json").split(".")
    for match in filter(None, map(SHARD.fullmatch, names)):
        count = int(match["count"])
        if (match["stem"], match["suffix"]) == (stem, suffix) and 0 < count <= _MOST_SHARDS:
            return [f"{stem}-{i:05}-of-{count:05}.{suffix}" for i in range(1, count + 1)]
    return []
