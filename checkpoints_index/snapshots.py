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
shape        of ``svf``, ``svft`` and ``lora-xs``: rows and columns of the layer's weight
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
milora        milora_a, milora_b                W_0 + B A − B_0 A_0
svf           svf_delta                         W_0 + U diag(delta) Vᵀ
svft          svft_values                       W_0 + U M Vᵀ, M having the values at its rows and
                                                columns
lora-xs       lora_xs_core                      W_0 + L core R
============= ================================= ==============================================

``base.safetensors`` has the same form and holds what is the same at every step: W_0 as ``weight``
of every matrix (kind ``dense``), and what the adapters of the last five kinds took from W_0, under
their layers' names: SORSA's and MiLoRA's initial factors (``sorsa_u0``, ``sorsa_s0``,
``sorsa_vh0``; ``milora_a0``, ``milora_b0``), the vectors of SVF and SVFT (``svf_u``, ``svf_vh``;
``svft_u``, ``svft_vh``) with the places of SVFT's values (``svft_rows``, ``svft_cols``, int32,
counted from 0), and L and R of LoRA-XS (``lora_xs_left``, ``lora_xs_right``).

Of a LoRA whose start was subtracted from the base (PiSSA and its relatives) it has kind
``residual``: the residual as ``weight`` in its own dtype, and the start's factors as ``lora_a0``,
``lora_b0``, of which W_0 = weight + scaling · B_0 A_0 is computed in float64, so that nothing is
rounded.

In format 1, still read, ``spectra`` has ``matrices``, which maps the path of each matrix to its
``kind`` and ``scaling``; nothing is stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_index.adapter_methods import ADALORA_EPSILON
from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import DTYPES, Checkpoint, Matrix, TrainedFactors, Weight
from checkpoints_index.safetensors_files import TensorFile
from checkpoints_index.snapshot_headers import Recorded, read_header
from checkpoints_index.snapshot_kinds import INDICES, INITIAL_PARTS, PARTS, initial_shapes
from checkpoints_index.tensors import StoredTensor
from checkpoints_index.updates import core_weight, full_rank_weight, moved_weight, sorsa_weight

BASE_FILE = "base.safetensors"


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
        header = read_header(self._file)
        self.id = header.id
        self.base_id = header.base_id
        self.step = header.step
        self._contents = header.contents

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

    @property
    def recorded(self) -> Mapping[str, Recorded]:
        """How its matrices are stored, by their names."""
        return self._contents.recorded

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
        """Yield what a matrix's layer took from W_0, which the base's snapshot holds."""
        trained = [self.tensors[f"{recorded.layer}.{p}"].shape for p in PARTS[recorded.kind]]
        shapes = initial_shapes(recorded.kind, recorded.layer_shape, trained)
        for part, shape in zip(INITIAL_PARTS[recorded.kind], shapes, strict=True):
            name = f"{recorded.layer}.{part}"
            stored = self.beside.tensors.get(name)
            dtypes = ("int32",) if part in INDICES else DTYPES.values()
            if stored is not None and (stored.shape != shape or stored.dtype not in dtypes):
                raise CheckpointError(
                    f"{self.beside.path}: {name!r} has shape {stored.shape} and dtype "
                    f"{stored.dtype}, but {self.path.name} needs {shape}."
                )
            yield self.beside.read_tensor(name)


# From the tensors of a kind to W_t.


def _dense(snapshot: Snapshot, recorded: Recorded, weight: Tensor) -> Weight:
    return Weight(dense=weight)


def _delta(snapshot: Snapshot, recorded: Recorded, delta: Tensor) -> Weight:
    return Weight(delta=delta.double(), rounded=True)


def _lora(snapshot: Snapshot, recorded: Recorded, a: Tensor, b: Tensor) -> Weight:
    return Weight(update=recorded.product(b, a))


def _moved(snapshot: Snapshot, recorded: Recorded, a: Tensor, b: Tensor) -> Weight:
    a_0, b_0 = snapshot.initial(recorded)
    left, right = recorded.product(b, a)
    left_0, right_0 = recorded.product(b_0, a_0)
    return moved_weight(left, right, left_0, right_0)


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


def _svf(snapshot: Snapshot, recorded: Recorded, delta: Tensor) -> Weight:
    u, vh = snapshot.initial(recorded)
    return full_rank_weight(recorded.of(u), delta, vh)


def _svft(snapshot: Snapshot, recorded: Recorded, values: Tensor) -> Weight:
    u, vh, rows, cols = snapshot.initial(recorded)
    k = len(vh)
    for places in (rows, cols):
        first, last = int(places.min()), int(places.max())
        if first < 0 or last >= k:
            raise CheckpointError(
                f"{snapshot.beside.path}: the values of {recorded.layer!r} must be at rows and "
                f"columns from 0 to {k - 1}, they are at {first} to {last}."
            )
    m = torch.zeros(k, k, dtype=torch.float64)
    m[rows.long(), cols.long()] = values.double()
    return full_rank_weight(recorded.of(u), m, vh)


def _lora_xs(snapshot: Snapshot, recorded: Recorded, core: Tensor) -> Weight:
    left, right = snapshot.initial(recorded)
    return core_weight(recorded.of(left), core, right)


def _residual(snapshot: Snapshot, recorded: Recorded, a_0: Tensor, b_0: Tensor) -> Weight:
    left, right = recorded.product(b_0, a_0)
    return Weight(dense=snapshot.read_tensor(f"{recorded.matrix.name}.weight") + left @ right)


_READ: dict[str, Callable[..., Weight]] = {
    "dense": _dense,
    "delta": _delta,
    "lora": _lora,
    "residual-lora": _moved,
    "adalora": _adalora,
    "dora": _dora,
    "sorsa": _sorsa,
    "milora": _moved,
    "svf": _svf,
    "svft": _svft,
    "lora-xs": _lora_xs,
    "residual": _residual,
}
