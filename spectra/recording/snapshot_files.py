"""Writing snapshots: where each tensor lies in the file, and the file itself.

The format is that of `checkpoints_index.snapshots`. The safetensors library is not asked to write:
it copies all tensors first, and holds Python's global lock meanwhile.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_index.matrices import DTYPES, locate, torch_dtype_name
from checkpoints_index.snapshot_headers import FORMAT, LAYERS_KEY, METADATA_KEY
from checkpoints_index.snapshots import Snapshot
from checkpoints_index.stacked_names import own_label, shared_label, stack
from spectra.recording.layers import Part, RecordedLayer, RecordedMatrix
from spectra.store import whole_file

_DTYPE_NAMES = {name: short for short, name in DTYPES.items()} | {"int32": "I32"}
# Headers end where the numbers after them are aligned, as the safetensors library has it.
_ALIGNMENT = 8


class SnapshotLayout:
    """Where everything lies in a run's snapshots: the same at every step.

    Parameters
    ----------
    layers : sequence of RecordedLayer
        What is recorded.
    base : bool
        The layout of the base's snapshot, not of a step's.
    dtype : torch.dtype, optional
        Store plain weights as W_t − W_0 in this dtype; by default as they are.

    Attributes
    ----------
    parts : list of pairs of RecordedLayer and Part
        What is stored, in the order in which it lies in the file.
    nbytes : int
        Of the file's body, without the header.
    staging : SnapshotLayout
        That of the weights as they are, from which `pieces` makes the body; itself where that is
        the same.
    """

    def __init__(
        self, layers: Sequence[RecordedLayer], base: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        self.staging = self
        if dtype is not None and not base and any(layer.kind == "dense" for layer in layers):
            self.staging = SnapshotLayout(layers)
            layers = [_as_delta(layer, dtype) for layer in layers]
        chosen = [(e, part) for e in layers for part in (e.base_parts if base else e.parts)]
        self._tensors = _stacked_tensors([part for _, part in chosen])
        self.parts = [chosen[i] for tensor in self._tensors for i in tensor.members]
        self.nbytes = sum(tensor.nbytes for tensor in self._tensors)
        described = [d for e in layers for d in (_of_base(e) if base else [_of_step(e)])]
        self._layers = json.dumps(_stacked_entries(described), separators=(",", ":"))

    def views(self, body: Tensor) -> list[tuple[Part, Tensor]]:
        """Return what of a body holds which part, in the order of `parts`.

        Parameters
        ----------
        body : Tensor of shape (nbytes,), uint8
            The file's body, contiguous; the views share its memory.
        """
        views = []
        start = 0
        for _, part in self.parts:
            stop = start + _nbytes(part)
            views.append((part, body[start:stop].view(part.dtype).view(part.shape)))
            start = stop
        return views

    def pieces(self, staged: Tensor, base: Snapshot | None = None) -> Iterator[Tensor]:
        """Yield the file's body in order, given that of the layout `staging`.

        Parameters
        ----------
        staged : Tensor of shape (staging.nbytes,), uint8
            On the CPU.
        base : Snapshot, optional
            The run's base, where weights are stored as their difference from it.
        """
        if self.staging is self:
            yield staged
            return
        present = {(p.path, p.name): view for p, view in self.staging.views(staged)}
        for _, part in self.parts:
            if part.name != "delta":
                yield present[part.path, part.name]
            elif base is None:
                raise ValueError("base must be given to store weights as W_t − W_0, got None.")
            else:
                w_0 = base.read_tensor(f"{part.path}.weight").double()
                yield (present[part.path, "weight"].double() - w_0).to(part.dtype)

    def header(self, *, id: str, step: int, base: str) -> bytes:
        """Return what comes before the body.

        Parameters
        ----------
        id : str
            Of this snapshot, unique.
        step : int
            The optimizer step.
        base : str
            Id of the base's snapshot.
        """
        own = {"format": FORMAT, "id": id, "step": step, "base": base}
        header: dict[str, Any] = {
            "__metadata__": {METADATA_KEY: json.dumps(own), LAYERS_KEY: self._layers}
        }
        start = 0
        for tensor in self._tensors:
            stop = start + tensor.nbytes
            header[tensor.name] = {
                "dtype": _DTYPE_NAMES[torch_dtype_name(tensor.dtype)],
                "shape": list(tensor.shape),
                "data_offsets": [start, stop],
            }
            start = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


def write_snapshot(path: Path, header: bytes, pieces: Iterable[Tensor]) -> None:
    """Write a snapshot, whole or not at all.

    Nothing is copied, and other threads of Python run while the disk works.

    Parameters
    ----------
    path : Path
        Where the file shall appear.
    header : bytes
        Of `SnapshotLayout.header`.
    pieces : iterable of Tensor
        The body in order, on the CPU; of `SnapshotLayout.pieces`.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind.
    """
    with whole_file(path) as temporary, temporary.open("wb", buffering=0) as file:
        _write(file, memoryview(header))
        for piece in pieces:
            _write(file, piece.contiguous().view(-1).view(torch.uint8).numpy().data)


def _write(file: Any, content: memoryview) -> None:
    # A system call writes at most 2 GiB.
    while content:
        content = content[file.write(content) :]


# Tensors


@dataclass(frozen=True)
class _StackedTensor:
    """A tensor of the file, and which of the parts it holds, row by row."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    members: list[int]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _stacked_tensors(parts: Sequence[Part]) -> list[_StackedTensor]:
    alike: dict[tuple[str, tuple[int, ...], torch.dtype], list[int]] = {}
    for index, part in enumerate(parts):
        alike.setdefault((part.name, part.shape, part.dtype), []).append(index)
    tensors = []
    for (name, shape, dtype), indices in alike.items():
        for path, members in stack([parts[i].path for i in indices]):
            whole = shape if len(members) == 1 else (len(members), *shape)
            tensors.append(
                _StackedTensor(f"{path}.{name}", whole, dtype, [indices[i] for i in members])
            )
    # Large numbers first: so each lies at a multiple of its size.
    return sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)


def _nbytes(part: Part) -> int:
    return math.prod(part.shape) * part.dtype.itemsize


def _as_delta(layer: RecordedLayer, dtype: torch.dtype) -> RecordedLayer:
    if layer.kind != "dense":
        return layer
    entry = {**layer.entry, "dtype": torch_dtype_name(layer.parts[0].dtype)}
    parts = tuple(replace(part, name="delta", dtype=dtype) for part in layer.parts)
    return replace(layer, kind="delta", parts=parts, entry=entry)


# What the header says of layers


@dataclass(frozen=True)
class _Described:
    """One layer's entry, but for its path and index."""

    path: str
    index: int
    entry: dict[str, Any]


def _of_step(layer: RecordedLayer) -> _Described:
    return _described(layer.name, layer.matrices, {"kind": layer.kind, **layer.entry})


def _of_base(layer: RecordedLayer) -> Iterator[_Described]:
    if layer.kind == "residual-lora":
        yield _described(layer.name, layer.matrices, {"kind": "residual", **layer.entry})
    else:
        for matrix in layer.matrices:
            yield _described(matrix.name, [replace(matrix, outputs=None)], {"kind": "dense"})


def _described(path: str, matrices: Sequence[RecordedMatrix], entry: dict[str, Any]) -> _Described:
    held = []
    for matrix in matrices:
        about: dict[str, Any] = {}
        if matrix.name != path:
            about["part"] = matrix.name.rpartition(".")[2]
        if matrix.module != (locate(matrix.name) or (0, ""))[1]:
            label = shared_label(matrix.module, matrix.name)
            fits = own_label(label, matrix.name) == matrix.module
            about["module"] = label if fits else matrix.module
        if (o := matrix.outputs) is not None:
            about["outputs"] = [o.blocks, o.block, o.start, o.stop]
        held.append(about)
    whole = held == [{}]
    return _Described(path, matrices[0].layer, entry if whole else {**entry, "matrices": held})


def _stacked_entries(described: Sequence[_Described]) -> list[dict[str, Any]]:
    alike: dict[str, list[_Described]] = {}
    for d in described:
        alike.setdefault(json.dumps(d.entry), []).append(d)
    entries = []
    for members in alike.values():
        for path, indices in stack([d.path for d in members]):
            entry = {"layer": path, **members[0].entry}
            stacked = [members[i] for i in indices]
            if any(d.index != (locate(d.path) or (0, ""))[0] for d in stacked):
                entry["layers"] = [d.index for d in stacked]
            entries.append(entry)
    return entries
