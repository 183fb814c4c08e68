"""Safetensors files and the model folders made of them, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from checkpoints_index.errors import CheckpointError
from checkpoints_index.logical import LogicalMatrix, logical_matrices
from checkpoints_index.matrices import DTYPES, Checkpoint, Matrix, Weight
from checkpoints_index.tensors import StoredTensor

MODEL_FILE = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
CONFIG_FILE = "config.json"


class TensorFile:
    """One safetensors file: its header now, its tensors one by one later.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    CheckpointError
        If it is missing, truncated or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # "pt" would map the file as private memory, which the kernel refuses for files
            # larger than the machine's.
            with safe_open(path, framework="np") as file:
                self.metadata: Mapping[str, str] = file.metadata() or {}
                self.shapes: dict[str, tuple[int, ...]] = {}
                self.dtypes: dict[str, str] = {}
                for name in file.keys():  # noqa: SIM118 (the handle is no mapping)
                    piece = file.get_slice(name)
                    self.shapes[name] = tuple(piece.get_shape())
                    self.dtypes[name] = str(piece.get_dtype())
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist.") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a whole safetensors file ({error}). It may be truncated; copy or "
                "write it again."
            ) from error

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors, as the header describes them."""
        return {
            name: StoredTensor(shape, DTYPES.get(self.dtypes[name], self.dtypes[name].lower()))
            for name, shape in self.shapes.items()
        }

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one tensor, or a run of it along its first dimension.

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
        try:
            with safe_open(self.path, framework="pt") as file:
                return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{self.path} cannot be read ({error}).") from error

    @property
    def fingerprint(self) -> str:
        """File name, size and time of change."""
        status = self.path.stat()
        return f"{self.path.name}:{status.st_size}:{status.st_mtime_ns}"


class ModelFolder:
    """A Hugging Face model folder with whole weights, in one safetensors file or in shards.

    Parameters
    ----------
    path : Path
        The folder, with ``model.safetensors`` or ``model.safetensors.index.json``.
    step : int
        The optimizer step it belongs to.

    Raises
    ------
    CheckpointError
        If a file is missing or broken.
    """

    method = "full-ft"

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step
        self.config = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
        files: dict[str, TensorFile] = {}
        stored: dict[str, StoredTensor] = {}
        for file in self._open_files():
            stored |= file.tensors
            files |= dict.fromkeys(file.shapes, file)
        parts = logical_matrices(stored, self.config)
        self._parts = {part.matrix.name: part for part in parts}
        self._files = {part.matrix.name: (files[part.tensor], part.tensor) for part in parts}
        self.matrices = tuple(part.matrix for part in parts)

    def _open_files(self) -> list[TensorFile]:
        index = self.path / MODEL_INDEX
        if not index.is_file():
            return [TensorFile(self.path / MODEL_FILE)]
        weight_map = read_json(index).get("weight_map")
        names = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise CheckpointError(
                f"{index} must map tensors to file names in its own folder under 'weight_map'."
            )
        return [TensorFile(self.path / name) for name in sorted(set(names))]

    @property
    def fingerprint(self) -> str:
        """Names, sizes and times of change of the weight files."""
        files = {file.path: file for file, _ in self._files.values()}
        return ",".join(files[p].fingerprint for p in sorted(files))

    @property
    def base(self) -> str | None:
        """Whole weights name no base."""
        return None

    def bind(self, base: Checkpoint) -> Checkpoint:
        """Return itself: whole weights are the same on every base."""
        return self

    def read(self, matrix: Matrix) -> Weight:
        """Read one matrix."""
        if matrix.name not in self._files:
            raise CheckpointError(f"{self.path} has no matrix {matrix.name!r}.")
        file, name = self._files[matrix.name]
        part = self._parts[matrix.name]
        return Weight(dense=part.take(file.read(name, part.rows)))

    def parts_of(self, layer_path: str) -> list[LogicalMatrix]:
        """Return the logical matrices of a layer; none where there is no such layer."""
        return [part for part in self._parts.values() if part.layer_path == layer_path]

    def read_layer(self, layer_path: str) -> Tensor:
        """Read a layer's weight as stored."""
        parts = self.parts_of(layer_path)
        if not parts:
            raise CheckpointError(f"{self.path} has no layer {layer_path!r}.")
        file, name = self._files[parts[0].matrix.name]
        return file.read(name)


def is_model_folder(path: Path) -> bool:
    """Whether the folder holds whole weights in safetensors."""
    return (path / MODEL_FILE).is_file() or (path / MODEL_INDEX).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    CheckpointError
        If the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return content
