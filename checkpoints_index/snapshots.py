"""The format of the hook's snapshots, and its reader.

A snapshot is one safetensors file that says itself what is in it. Tensors are called
``LAYER.PART``; those of layers that are alike are one tensor with one row a layer, under a name as
``model.layers.{0-29}.self_attn.q_proj.lora_a`` (see `checkpoints_index.stacked_names`). The
metadata has two entries. ``spectra`` is a JSON object: ``format``, ``id`` (unique to the writing),
``step`` and ``base`` (the id of the base's snapshot). ``spectra.layers``, the same in all snapshots
of a run, is a JSON list of objects, one for layers that are alike:

============ =================================================================================
layer        the path, or that of several
kind         one of the table below
scaling      of LoRA's kinds: what the product of the factors is multiplied with
dtype        of ``delta``: what W_t is stored as in training
layers       indices of the layers, where they are not the first numbers in the paths
matrices     the logical matrices that the layer holds, if not just itself: objects with
             ``part`` (the last part of the matrix's path, instead of the layer's), ``module``
             (the label, if not the path's last part; ``*1`` stands for the path's number 1,
             counted from 0) and ``outputs`` (of a fused layer: number and length of blocks,
             start and end of the run in each)
============ =================================================================================

============= ================================= ==============================================
kind          parts                             W_t
============= ================================= ==============================================
dense         weight                            weight
delta         delta                             W_0 + delta
lora          lora_a, lora_b                    W_0 + scaling · B A
residual-lora lora_a, lora_b                    W_0 + scaling · (B A − B_0 A_0)
adalora       lora_a, lora_b, lora_e, ranknum   W_0 + scaling / (ranknum + 1e-5) · B diag(E) A
dora          lora_a, lora_b, magnitude         rows of V = W_0 + scaling · B A, at the lengths
                                                that magnitude says
sorsa         sorsa_u, sorsa_s, sorsa_vh        W_0 + U_p diag(S_p) V_pᵀ − U_0 diag(S_0) V_0ᵀ
============= ================================= ==============================================

``base.safetensors`` has the same form and holds what is the same at every step: W_0 as ``weight``
of every matrix (kind ``dense``), and SORSA's initial factors as ``sorsa_u0``, ``sorsa_s0``,
``sorsa_vh0`` of their layers. Of a LoRA whose start was subtracted from the base (PiSSA and its
relatives) it has kind ``residual``: the residual as ``weight`` in its own dtype, and the start's
factors as ``lora_a0``, ``lora_b0``, of which W_0 = weight + scaling · B_0 A_0 is computed in
float64, so that nothing is rounded.

In format 1, still read, ``spectra`` has ``matrices``, which maps the path of each matrix to its
``kind`` and ``scaling``; nothing is stacked.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_index.adapter_methods import ADALORA_EPSILON
from checkpoints_index.errors import CheckpointError
from checkpoints_index.layouts import Stripes
from checkpoints_index.matrices import (
    DTYPES,
    Checkpoint,
    Matrix,
    TrainedFactors,
    Weight,
    factors_fit,
    locate,
)
from checkpoints_index.safetensors_files import TensorFile
from checkpoints_index.stacked_names import expand, own_label
from checkpoints_index.tensors import StoredTensor

FORMAT = 2
METADATA_KEY = "spectra"
LAYERS_KEY = "spectra.layers"
BASE_FILE = "base.safetensors"
PARTS = {
    "dense": ("weight",),
    "delta": ("delta",),
    "lora": ("lora_a", "lora_b"),
    "residual-lora": ("lora_a", "lora_b"),
    "adalora": ("lora_a", "lora_b", "lora_e", "ranknum"),
    "dora": ("lora_a", "lora_b", "magnitude"),
    "sorsa": ("sorsa_u", "sorsa_s", "sorsa_vh"),
    "residual": ("lora_a0", "lora_b0"),
}
"""The tensors of each kind of layer; the last kind is a base's, beside the ``weight`` of each
matrix."""
SCALED = ("lora", "residual-lora", "adalora", "dora", "residual")
"""The kinds that have a scaling."""
INITIAL_PARTS = {
    "sorsa": ("sorsa_u0", "sorsa_s0", "sorsa_vh0"),
    "residual-lora": PARTS["residual"],
}
"""What the base's snapshot holds beside ``weight`` for the layers of a kind."""

# Characters of all names of a file together; the 47,000 experts of the largest models take 10
# million. Nothing else bounds what a few bytes of a name may stand for.
_MOST_CHARACTERS = 2**26


def snapshot_file(step: int) -> str:
    """Return the file name of a step's snapshot."""
    return f"step-{step:08d}.safetensors"


class Snapshot:
    """One snapshot of a run, or its base.

    Parameters
    ----------
    path : Path
        The file.
    method : str
        The run's method, for the record.

    Raises
    ------
    CheckpointError
        If the file is broken, or no snapshot of a format that is read here.
    """

    base: str | None = None

    def __init__(self, path: Path, method: str = "unknown") -> None:
        self.path = path
        self.method = method
        self._file = TensorFile(path)
        header, layers = _header(self._file)
        self.id: str = header["id"]
        self.base_id = header.get("base")
        self.step: int = header["step"]
        try:
            self._contents = _contents(layers, _described(self._file))
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}.") from error

    @property
    def matrices(self) -> Sequence[Matrix]:
        """Its matrices."""
        return self._contents.matrices

    @property
    def fingerprint(self) -> str:
        """The id its writer gave it: the same wherever the run is moved."""
        return self.id

    def bind(self, base: Checkpoint) -> Checkpoint:
        """Return itself: a run's matrices are recorded as they are."""
        return self

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """What is stored, taken out of the stacks: by ``LAYER.PART``."""
        return self._contents.tensors

    def read_tensor(self, name: str) -> Tensor:
        """Read one of `tensors`."""
        place = self._contents.places.get(name)
        if place is None:
            raise CheckpointError(f"{self.path} has no tensor {name!r}.")
        tensor, row = place
        if row is None:
            return self._file.read(tensor)
        return self._file.read(tensor, slice(row, row + 1))[0]

    def read(self, matrix: Matrix) -> Weight:
        """Read one matrix."""
        recorded = self._contents.recorded.get(matrix.name)
        if recorded is None:
            raise CheckpointError(f"{self.path} has no matrix {matrix.name!r}.")
        parts = [self.read_tensor(f"{recorded.layer}.{part}") for part in PARTS[recorded.kind]]
        return _READ[recorded.kind](self, recorded, *parts)

    @cached_property
    def beside(self) -> Snapshot:
        """The base's snapshot in the same folder."""
        return Snapshot(self.path.with_name(BASE_FILE))

    def initial(self, recorded: Recorded) -> Iterator[Tensor]:
        """Yield the initial factors of a matrix's layer, which the base's snapshot holds."""
        trained = PARTS[recorded.kind]
        for initial, part in zip(INITIAL_PARTS[recorded.kind], trained, strict=True):
            factor = self.beside.read_tensor(f"{recorded.layer}.{initial}")
            if factor.shape != self.tensors[f"{recorded.layer}.{part}"].shape:
                raise CheckpointError(
                    f"{self.beside.path}: the initial factors of {recorded.layer!r} have other "
                    f"shapes than the trained ones in {self.path.name}."
                )
            yield factor


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
    scaling : float
        1 where the kind has none.
    outputs : Stripes, optional
        Which of the layer's outputs it has; ``None``: all.
    """

    matrix: Matrix
    kind: str
    layer: str
    scaling: float
    outputs: Stripes | None

    def of(self, factor: Tensor) -> Tensor:
        """Return the part of a factor with one row for each of the layer's outputs."""
        return factor if self.outputs is None else self.outputs.of(factor)

    def product(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matrix's part of the layer's scaled update, float64."""
        return self.scaling * self.of(b).double(), a.double()


# From the tensors of a kind to W_t.


def _dense(snapshot: Snapshot, recorded: Recorded, weight: Tensor) -> Weight:
    return Weight(dense=weight)


def _delta(snapshot: Snapshot, recorded: Recorded, delta: Tensor) -> Weight:
    return Weight(delta=delta.double(), rounded=True)


def _lora(snapshot: Snapshot, recorded: Recorded, a: Tensor, b: Tensor) -> Weight:
    return Weight(update=recorded.product(b, a))


def _residual_lora(snapshot: Snapshot, recorded: Recorded, a: Tensor, b: Tensor) -> Weight:
    a_0, b_0 = snapshot.initial(recorded)
    if torch.equal(a, a_0) and torch.equal(b, b_0):
        return Weight()
    left, right = recorded.product(b, a)
    left_0, right_0 = recorded.product(b_0, a_0)
    return Weight(update=(torch.cat([left, -left_0], dim=1), torch.cat([right, right_0])))


def _adalora(
    snapshot: Snapshot, recorded: Recorded, a: Tensor, b: Tensor, e: Tensor, ranknum: Tensor
) -> Weight:
    left, right = recorded.product(b, a)
    return Weight(update=(left / (ranknum.double() + ADALORA_EPSILON), e.double() * right))


def _dora(
    snapshot: Snapshot, recorded: Recorded, a: Tensor, b: Tensor, magnitude: Tensor
) -> Weight:
    w_0 = snapshot.beside.read_tensor(f"{recorded.matrix.name}.weight").double()
    if tuple(w_0.shape) != recorded.matrix.shape:
        raise CheckpointError(
            f"{snapshot.beside.path}: {recorded.matrix.name!r} has another shape than in "
            f"{snapshot.path.name}."
        )
    left, right = recorded.product(b, a)
    v = w_0 + left @ right
    lengths = torch.linalg.vector_norm(v, dim=1)  # (m,)
    return Weight(delta=(recorded.of(magnitude).double() / lengths)[:, None] * v - w_0)


def _sorsa(snapshot: Snapshot, recorded: Recorded, u: Tensor, s: Tensor, vh: Tensor) -> Weight:
    u_0, s_0, vh_0 = snapshot.initial(recorded)
    trained = TrainedFactors(recorded.of(u), s, vh)
    weight = sorsa_weight(trained, TrainedFactors(recorded.of(u_0), s_0, vh_0))
    # The trained factors are those of the whole layer, and say nothing of a part of it.
    return weight if recorded.outputs is None else Weight(update=weight.update)


def _residual(snapshot: Snapshot, recorded: Recorded, a_0: Tensor, b_0: Tensor) -> Weight:
    left, right = recorded.product(b_0, a_0)
    return Weight(dense=snapshot.read_tensor(f"{recorded.matrix.name}.weight") + left @ right)


_READ: dict[str, Callable[..., Weight]] = {
    "dense": _dense,
    "delta": _delta,
    "lora": _lora,
    "residual-lora": _residual_lora,
    "adalora": _adalora,
    "dora": _dora,
    "sorsa": _sorsa,
    "residual": _residual,
}


def sorsa_weight(trained: TrainedFactors, initial: TrainedFactors) -> Weight:
    """W_t of a SORSA adapter: its trained principal part in the place of the initial one."""
    u, s, vh = trained.u.double(), trained.s.double(), trained.vh.double()
    u0, s0, vh0 = initial.u.double(), initial.s.double(), initial.vh.double()
    if torch.equal(u, u0) and torch.equal(s, s0) and torch.equal(vh, vh0):
        return Weight(factors=trained)
    b = torch.cat([u * s, -u0 * s0], dim=1)  # (m, 2r)
    return Weight(update=(b, torch.cat([vh, vh0])), factors=trained)


# The header


def _header(file: TensorFile) -> tuple[dict[str, Any], str]:
    """Return the metadata's first entry, checked, and the text of its second."""
    try:
        header = json.loads(file.metadata[METADATA_KEY])
        version = header["format"]
        if type(version) is not int or type(header["step"]) is not int or header["step"] < 0:
            raise TypeError("format and step must be counts")
        if version > FORMAT:
            raise CheckpointError(
                f"{file.path} has snapshot format {version}, this version reads up to {FORMAT}. "
                "Upgrade spectra-svd."
            )
        if not isinstance(header["id"], str):
            raise TypeError("id must be a text")
        if version > 1:
            return header, file.metadata[LAYERS_KEY]
        layers = [{"layer": name, **entry} for name, entry in header["matrices"].items()]
        return header, json.dumps(layers)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path} is a safetensors file, but no Spectra snapshot ({error!r})."
        ) from error


_Described = tuple[tuple[str, tuple[int, ...], str], ...]


def _described(file: TensorFile) -> _Described:
    return tuple((name, shape, file.dtypes[name]) for name, shape in file.shapes.items())


@dataclass(frozen=True)
class _Contents:
    """What a header says, the stacks taken apart."""

    tensors: Mapping[str, StoredTensor]
    places: Mapping[str, tuple[str, int | None]]
    recorded: Mapping[str, Recorded]
    matrices: Sequence[Matrix]


# The snapshots of a run are all alike but for the numbers in them: of 500, one is taken apart.
@functools.lru_cache(maxsize=16)
def _contents(layers: str, described: _Described) -> _Contents:
    """Return what a header says; raises ValueError where it does not hold together."""
    names = _Names()
    tensors: dict[str, StoredTensor] = {}
    places: dict[str, tuple[str, int | None]] = {}
    for stacked, shape, dtype in described:
        expanded = names.expand(stacked)
        alone = expanded == [stacked]
        if not alone and shape[:1] != (len(expanded),):
            raise ValueError(f"{stacked!r:.200} must have one row for each of its layers")
        stored = StoredTensor(shape if alone else shape[1:], DTYPES.get(dtype, dtype))
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
    return _Contents(tensors, places, recorded, tuple(r.matrix for r in recorded.values()))


class _Names:
    """Expands names, to a bounded number of characters in all."""

    def __init__(self) -> None:
        self._left = _MOST_CHARACTERS

    def expand(self, name: str, extra: int = 0) -> list[str]:
        """Return the names that one stands for, each with so many characters more about it."""
        each = len(name) + extra + 1
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
        lengths = [len(part or "") + 6 * len(label or "") for part, label, _ in labels]
        paths = names.expand(pattern, sum(lengths))
        scaling = float(entry["scaling"]) if kind in SCALED else 1.0
        indices = entry.get("layers", [None] * len(paths))
        if len(indices) != len(paths) or not math.isfinite(scaling):
            raise TypeError
    except (AttributeError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(f"{str(entry)[:200]!r} does not describe layers") from error
    for path, index in zip(paths, indices, strict=True):
        outputs, inputs, dtype, rank = _shape(path, kind, tensors)
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
                Matrix(name, layer, module, shape, dtype, rank), kind, path, scaling, run
            )


def _shape(
    path: str, kind: str, tensors: Mapping[str, StoredTensor]
) -> tuple[int, int, str, int | None]:
    """Return outputs, inputs, dtype and rank of a layer, of which no part may be missing or odd."""
    parts = [f"{path}.{part}" for part in PARTS[kind]]
    missing = [p for p in parts if p not in tensors]
    if missing:
        raise ValueError(f"it has no tensor {missing[0]!r:.200}")
    shapes = [tensors[p].shape for p in parts]
    dtypes = [tensors[p].dtype for p in parts]
    if kind in ("dense", "delta"):
        factors, fit = [shapes[0], shapes[0]], len(shapes[0]) == 2
    elif kind == "sorsa":
        factors, fit = [shapes[0], shapes[2]], factors_fit(shapes)
    else:
        # Named in the order of their use, A before B.
        factors = [shapes[1], shapes[0]]
        fit = factors_fit(factors)
        if fit and kind == "adalora":
            fit = shapes[2:] == [(factors[1][0], 1), (1,)]
        if fit and kind == "dora":
            fit = shapes[2] == (factors[0][0],)
    if not fit or not set(dtypes) <= set(DTYPES.values()) or 0 in (factors[0] + factors[1]):
        raise ValueError(f"{path!r:.200} must be a matrix of floats, or factors of one")
    ranks = {"lora": 1, "adalora": 1, "residual-lora": 2, "sorsa": 2}
    rank = ranks[kind] * factors[1][0] if kind in ranks else None
    dtype = "float64" if kind == "residual" else dtypes[0]
    return factors[0][0], factors[1][1], dtype, rank


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
