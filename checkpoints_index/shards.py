"""One model over several files, by an index that maps tensors to files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from torch import Tensor

from checkpoints_index.byte_files import inside, open_bytes, read_json
from checkpoints_index.errors import CheckpointError
from checkpoints_index.readers import Candidate
from checkpoints_index.tensors import StoredTensor, TensorStore


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


def shard_candidate(folder: Path, index: str, names: Collection[str], format: str) -> Candidate:
    """Return the sharded checkpoint of a folder, with the shards that are not there yet.

    A broken index is left to the opening, which says what is wrong with it.
    """
    try:
        shards = sorted(set(read_weight_map(folder, index).values()))
    except CheckpointError:
        shards = []
    missing = tuple(shard for shard in shards if shard not in names)
    return Candidate(folder, format, (index, *shards), missing)
