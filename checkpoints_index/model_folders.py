"""Whole weights of a model: its logical matrices over the tensors of any format."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from checkpoints_index.byte_files import has_file, inside, read_json
from checkpoints_index.errors import CheckpointError
from checkpoints_index.logical import LogicalMatrix, logical_matrices
from checkpoints_index.matrices import Checkpoint, Matrix, Weight
from checkpoints_index.stacks import Stacks
from checkpoints_index.tensors import TensorStore

CONFIG_FILE = "config.json"
BITSANDBYTES = "bitsandbytes"
"""What `ModelCheckpoint.quantisation` calls the one that can be de-quantised."""


class ModelCheckpoint:
    """A model's whole weights at one step.

    Parameters
    ----------
    path : Path
        The folder, or the file where one file is all.
    store : TensorStore
        Its tensors.
    step : int
        The optimizer step it belongs to.
    config : mapping, optional
        The model's ``config.json``.
    dequantised : str, optional
        The quantisation, such as ``"nf4"``, where `store` gives what the weights stand for.

    Raises
    ------
    CheckpointError
        If the configuration contradicts the tensors, or two matrices have one name.
    """

    method = "full-ft"

    def __init__(
        self,
        path: Path,
        store: TensorStore,
        step: int,
        config: Mapping[str, Any] | None = None,
        dequantised: str | None = None,
    ) -> None:
        self.path = path
        self.store = store
        self.step = step
        self.config: Mapping[str, Any] = config or {}
        self.dequantised = dequantised
        self._logical: dict[str, LogicalMatrix] = {}
        self._layers: dict[str, list[LogicalMatrix]] = defaultdict(list)
        try:
            found = logical_matrices(store.tensors, config)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        for logical in found:
            self._logical[logical.matrix.name] = logical
            self._layers[logical.layer_path].append(logical)
        self.matrices: tuple[Matrix, ...] = tuple(m.matrix for m in self._logical.values())

    @property
    def fingerprint(self) -> str:
        """Names, sizes and times of change of the weight files; of the configuration, what it says.

        That decides how fused matrices are divided.
        """
        config = json.dumps(self.config, sort_keys=True, default=str)
        digest = hashlib.sha256(config.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.store.fingerprint},config:{digest[:16]}"

    @property
    def quantisation(self) -> str | None:
        """The method of a quantisation that `store` leaves as it is, such as ``"fp8"``."""
        settings = self.config.get("quantization_config")
        if not isinstance(settings, Mapping) or self.dequantised is not None:
            return None
        # Before Transformers 4.33 the method was not written.
        is_old = settings.get("load_in_4bit") is True or settings.get("load_in_8bit") is True
        return str(settings.get("quant_method", BITSANDBYTES if is_old else "unknown"))

    @property
    def base(self) -> str | None:
        """Whole weights name no base: ``_name_or_path`` is where a model was last loaded from."""
        return None

    def bind(self, base: Checkpoint) -> Checkpoint:
        """Return the same weights, under the base's names where its class has others for them.

        GPT-2's files say ``h.0``, those of its language model ``transformer.h.0``.
        """
        own = {matrix.name for matrix in base.matrices}
        stacks = Stacks(own)
        names = {name: _name_in(stacks, own, name) for name in self._logical}
        if len(set(names.values())) < len(names) or all(a == b for a, b in names.items()):
            return self
        bound = copy.copy(self)
        bound._logical = {
            names[name]: replace(m, matrix=replace(m.matrix, name=names[name]))
            for name, m in self._logical.items()
        }
        bound.matrices = tuple(m.matrix for m in bound._logical.values())
        return bound

    def read(self, matrix: Matrix) -> Weight:
        """Read one matrix."""
        if matrix.name not in self._logical:
            raise CheckpointError(f"{self.path} has no matrix {matrix.name!r}.")
        logical = self._logical[matrix.name]
        dense = logical.take(self.store.read(logical.tensor, logical.rows))
        if tuple(dense.shape) != logical.matrix.shape:
            raise CheckpointError(
                f"{self.path}: {logical.tensor!r} gives {matrix.name!r} the shape "
                f"{tuple(dense.shape)}, its header {logical.matrix.shape}."
            )
        return Weight(dense=dense)

    def parts_of(self, layer_path: str) -> list[LogicalMatrix]:
        """Return the logical matrices of a layer, by its cleaned path; none where it is unknown."""
        return list(self._layers.get(layer_path, ()))

    def read_layer(self, layer_path: str) -> Tensor:
        """Read a layer's whole tensor as it is stored, in the orientation of its own module.

        Raises
        ------
        CheckpointError
            If the layer is unknown, or is stored in several tensors.
        """
        tensors = {part.tensor for part in self.parts_of(layer_path)}
        if len(tensors) != 1:
            raise CheckpointError(
                f"{self.path} must hold {layer_path!r} in one tensor, but has {len(tensors)} "
                f"({len(self._layers)} layers, e.g. {next(iter(self._layers), None)!r})."
            )
        return self.store.read(tensors.pop())


def _name_in(stacks: Stacks, names: Collection[str], name: str) -> str:
    """Return what another model calls a matrix; its own name where that cannot be told."""
    try:
        return next((n for n in stacks.same_layer(name) if n in names), name)
    except CheckpointError:  # of a tower that the other has not
        return name


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return a folder's ``config.json``, or ``None`` where it has none."""
    path = inside(folder, CONFIG_FILE)
    return read_json(path) if has_file(path) else None
