"""What the header of a snapshot says of its layers: read with suspicion, and once a run.

`checkpoints_index.snapshots` tells the format.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from checkpoints_index.errors import CheckpointError
from checkpoints_index.layouts import Stripes
from checkpoints_index.matrices import DTYPES, Matrix, locate
from checkpoints_index.safetensors_files import TensorFile
from checkpoints_index.snapshot_kinds import PARTS, SCALED, SHAPED, fitted
from checkpoints_index.stacked_names import expand, own_label
from checkpoints_index.tensors import StoredTensor

FORMAT = 2
METADATA_KEY = "spectra"
LAYERS_KEY = "spectra.layers"

# Bytes of all names of a file together, and of what is noted of each beside its characters. The
# 47,000 experts of the largest models take 34 million with the two factors of each; nothing else
# bounds what a few bytes of a name may stand for.
_MOST_BYTES = 2**26
_NOTED_BYTES = 128


@dataclass(frozen=True)
class Recorded:
    """One matrix of a snapshot and where its numbers are.

    Attributes
    ----------
    matrix : Matrix
        As the header describes it.
    kind : str
        One of `PARTS`.
    layer : str
        Path of the layer under which the parts are stored.
    layer_shape : tuple of int
        (out_features, in_features) of the layer.
    scaling : float
        1 where the kind has none.
    outputs : Stripes, optional
        Which of the layer's outputs it has; ``None``: all.
    """

    matrix: Matrix
    kind: str
    layer: str
    layer_shape: tuple[int, int]
    scaling: float
    outputs: Stripes | None

    def of(self, factor: Tensor) -> Tensor:
        """Return the part of a factor with one row for each of the layer's outputs."""
        return factor if self.outputs is None else self.outputs.of(factor)

    def product(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matrix's part of the layer's scaled update, float64."""
        return self.scaling * self.of(b).double(), a.double()


@dataclass(frozen=True)
class Contents:
    """What a header says of layers, the stacks taken apart.

    Attributes
    ----------
    tensors : mapping of str to StoredTensor
        By ``LAYER.PART``.
    places : mapping of str to pairs of str and int
        Of each of these the tensor of the file, and the row of it; ``None``: all.
    recorded : mapping of str to Recorded
        By the matrices' names.
    matrices : sequence of Matrix
        In their order.
    """

    tensors: Mapping[str, StoredTensor]
    places: Mapping[str, tuple[str, int | None]]
    recorded: Mapping[str, Recorded]
    matrices: Sequence[Matrix]


@dataclass(frozen=True)
class Header:
    """A snapshot's header.

    Attributes
    ----------
    id : str
        Unique to the writing.
    base_id : str, optional
        Of the base's snapshot.
    step : int
        The optimizer step.
    contents : Contents
        The same object for all snapshots of a run.
    """

    id: str
    base_id: str | None
    step: int
    contents: Contents


def read_header(file: TensorFile) -> Header:
    """Return what a snapshot's header says.

    Raises
    ------
    CheckpointError
        If the file is no snapshot, or its header does not hold together.
    """
    try:
        own = json.loads(file.metadata[METADATA_KEY])
        version, step = own["format"], own["step"]
        if type(version) is not int or type(step) is not int or step < 0:
            raise TypeError("format and step must be counts")
        if version > FORMAT:
            raise CheckpointError(
                f"{file.path} has snapshot format {version}, this version reads up to {FORMAT}. "
                "Upgrade spectra-svd."
            )
        if not isinstance(own["id"], str):
            raise TypeError("id must be a text")
        if version > 1:
            layers = file.metadata[LAYERS_KEY]
        else:
            layers = json.dumps([{"layer": n, **entry} for n, entry in own["matrices"].items()])
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path} is a safetensors file, but no Spectra snapshot ({error!r})."
        ) from error
    described = tuple((name, tensor.shape, tensor.dtype) for name, tensor in file.tensors.items())
    try:
        return Header(own["id"], own.get("base"), step, _contents(layers, described))
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}.") from error


_Described = tuple[tuple[str, tuple[int, ...], str], ...]


# The snapshots of a run are all alike but for the numbers in them: of 500, one is taken apart.
@functools.lru_cache(maxsize=16)
def _contents(layers: str, described: _Described) -> Contents:
    """Return what a header says; raises ValueError where it does not hold together."""
    names = _Names()
    tensors: dict[str, StoredTensor] = {}
    places: dict[str, tuple[str, int | None]] = {}
    for stacked, shape, dtype in described:
        expanded = names.expand(stacked)
        alone = expanded == [stacked]
        if not alone and shape[:1] != (len(expanded),):
            raise ValueError(f"{stacked!r:.200} must have one row for each of its layers")
        stored = StoredTensor(shape if alone else shape[1:], dtype)
        for row, name in enumerate(expanded):
            if name in tensors:
                raise ValueError(f"it has {name!r:.200} twice")
            tensors[name] = stored
            places[name] = stacked, None if alone else row
    try:
        entries = json.loads(layers)
    except RecursionError as error:
        raise ValueError("its layers are described in an unknown way") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError("its layers must be described by a list")
    recorded: dict[str, Recorded] = {}
    for entry in entries:
        for matrix in _matrices(entry, names, tensors):
            if recorded.setdefault(matrix.matrix.name, matrix) is not matrix:
                raise ValueError(f"it has {matrix.matrix.name!r:.200} twice")
    return Contents(tensors, places, recorded, tuple(r.matrix for r in recorded.values()))


class _Names:
    """Expands names, to a bounded number of bytes in all."""

    def __init__(self) -> None:
        self._left = _MOST_BYTES

    def expand(self, name: str, extra: int = 0) -> list[str]:
        """Return the names that one stands for, each with so many characters more about it."""
        each = len(name) + extra + _NOTED_BYTES
        expanded = expand(name, most=self._left // each)
        self._left -= len(expanded) * each
        if self._left < 0:
            raise ValueError("it has too many layers")
        return expanded


def _matrices(entry: Any, names: _Names, tensors: Mapping[str, StoredTensor]) -> Iterator[Recorded]:
    """Yield the matrices that one entry describes."""
    try:
        kind, pattern = entry["kind"], entry["layer"]
        matrices = entry.get("matrices", [{}])
        known = kind in PARTS and isinstance(matrices, list) and matrices
        labels = [(m.get("part"), m.get("module"), m.get("outputs")) for m in matrices]
        if not known or not all(_is_text(t) for part, label, _ in labels for t in (part, label)):
            raise TypeError
        # A number of a path has at most six digits.
        sizes = [_NOTED_BYTES + len(part or "") + 6 * len(label or "") for part, label, _ in labels]
        paths = names.expand(pattern, sum(sizes))
        scaling = float(entry["scaling"]) if kind in SCALED else 1.0
        told = _told_shape(entry["shape"]) if kind in SHAPED else None
        indices = entry.get("layers", [None] * len(paths))
        if len(indices) != len(paths) or not math.isfinite(scaling):
            raise TypeError
    except (AttributeError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(f"{str(entry)[:200]!r} does not describe layers") from error
    for path, index in zip(paths, indices, strict=True):
        layer_shape, dtype, rank = _shape(path, kind, tensors, told)
        outputs, inputs = layer_shape
        if kind == "delta":
            dtype = entry.get("dtype")
            if dtype not in DTYPES.values():
                raise ValueError(f"{path!r:.200} must have a dtype of floats, not {dtype!r:.40}")
        for part, label, stripes in labels:
            name = path if part is None else f"{path.rpartition('.')[0]}.{part}"
            place = locate(name)
            if place is None or not (index is None or _is_index(index)):
                raise ValueError(f"{name!r:.200} must be in a layer with a number")
            layer = place[0] if index is None else index
            module = place[1] if label is None else own_label(label, name)
            run = None if stripes is None else _stripes(stripes, outputs, name)
            shape = (outputs if run is None else len(run), inputs)
            if kind == "residual":
                weight = tensors.get(f"{name}.weight")
                if weight is None or weight.shape != shape or not weight.can_be_weight:
                    raise ValueError(f"{name!r:.200} must have a weight that fits its factors")
            yield Recorded(
                Matrix(name, layer, module, shape, dtype, rank),
                kind,
                path,
                layer_shape,
                scaling,
                run,
            )


def _shape(
    path: str, kind: str, tensors: Mapping[str, StoredTensor], told: tuple[int, int] | None
) -> tuple[tuple[int, int], str, int | None]:
    """Return shape, dtype and rank of a layer, of which no part may be missing or odd."""
    parts = [f"{path}.{part}" for part in PARTS[kind]]
    missing = [p for p in parts if p not in tensors]
    if missing:
        raise ValueError(f"it has no tensor {missing[0]!r:.200}")
    shapes = [tensors[p].shape for p in parts]
    dtypes = [tensors[p].dtype for p in parts]
    found = fitted(kind, shapes, told)
    empty = any(0 in shape for shape in shapes)
    if found is None or empty or not set(dtypes) <= set(DTYPES.values()):
        raise ValueError(f"{path!r:.200} must be a matrix of floats, or factors of one")
    shape, rank = found
    return shape, "float64" if kind == "residual" else dtypes[0], rank


def _told_shape(given: Any) -> tuple[int, int]:
    # As many rows and columns as no matrix has; more could not be counted in products.
    if isinstance(given, list) and len(given) == 2 and all(map(_is_size, given)):
        return given[0], given[1]
    raise TypeError


def _stripes(given: Any, outputs: int, path: str) -> Stripes:
    if isinstance(given, list) and len(given) == 4 and all(type(g) is int for g in given):
        blocks, block, start, stop = given
        if blocks > 0 and blocks * block == outputs and 0 <= start < stop <= block:
            return Stripes(blocks, block, start, stop)
    raise ValueError(f"{path!r:.200} must be a run of its layer's {outputs} outputs")


def _is_text(value: object) -> bool:
    return value is None or (isinstance(value, str) and value != "")


def _is_index(value: object) -> bool:
    return type(value) is int and 0 <= value < 10**6


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31
