"""The format of the hook's snapshots, and its reader.

A snapshot is one safetensors file. Its metadata has one entry, ``spectra``, a JSON object:
``format``, ``id`` (unique to the writing), ``step``, ``base`` (the id of the base's snapshot)
and ``matrices``, which maps each matrix's name to its ``kind`` and, for LoRA, its ``scaling``.
The tensors are called ``NAME.PART``:

======== ============================== ==========================================
kind     parts                          W_t
======== ============================== ==========================================
dense    weight                         weight
lora     lora_a, lora_b                 W_0 + scaling · lora_b lora_a
sorsa    sorsa_u, sorsa_s, sorsa_vh     W_0 + U_p diag(S_p) V_pᵀ − U_0 diag(S_0) V_0ᵀ
======== ============================== ==========================================

``base.safetensors`` has the same form, with W_0 as ``weight`` of every matrix and, for SORSA,
the initial factors as ``sorsa_u0``, ``sorsa_s0``, ``sorsa_vh0``: they are the same at every step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from checkpoints_index.errors import CheckpointError
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

FORMAT = 1
METADATA_KEY = "spectra"
BASE_FILE = "base.safetensors"
PARTS = {
    "dense": ("weight",),
    "lora": ("lora_a", "lora_b"),
    "sorsa": ("sorsa_u", "sorsa_s", "sorsa_vh"),
}
"""The tensors of each kind of matrix."""
INITIAL_PARTS = ("sorsa_u0", "sorsa_s0", "sorsa_vh0")
"""What the base's snapshot holds beside ``weight`` for a SORSA matrix."""


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
        header = _header(self._file)
        self.id = str(header["id"])
        self.base_id = header.get("base")
        self.step = int(header["step"])
        self._kinds: dict[str, dict[str, Any]] = header["matrices"]
        self.matrices = tuple(self._matrix(name) for name in self._kinds)
        self._base_file: TensorFile | None = None

    @property
    def fingerprint(self) -> str:
        """The id its writer gave it: the same wherever the run is moved."""
        return self.id

    def bind(self, base: Checkpoint) -> Checkpoint:
        """Return itself: a run's matrices are recorded as they are."""
        return self

    def read(self, matrix: Matrix) -> Weight:
        """Read one matrix."""
        entry = self._kinds.get(matrix.name)
        if entry is None:
            raise CheckpointError(f"{self.path} has no matrix {matrix.name!r}.")
        parts = [self._file.read(f"{matrix.name}.{part}") for part in PARTS[entry["kind"]]]
        if entry["kind"] == "dense":
            return Weight(dense=parts[0])
        if entry["kind"] == "lora":
            a, b = parts
            return Weight(update=(float(entry["scaling"]) * b.double(), a.double()))
        return sorsa_weight(TrainedFactors(*parts), self._initial_factors(matrix))

    def _initial_factors(self, matrix: Matrix) -> TrainedFactors:
        if self._base_file is None:
            self._base_file = TensorFile(self.path.with_name(BASE_FILE))
        factors = [self._base_file.read(f"{matrix.name}.{part}") for part in INITIAL_PARTS]
        trained = [self._file.shapes[f"{matrix.name}.{part}"] for part in PARTS["sorsa"]]
        if [tuple(f.shape) for f in factors] != trained:
            raise CheckpointError(
                f"{self._base_file.path}: the initial factors of {matrix.name!r} have other shapes "
                f"than the trained ones in {self.path.name}."
            )
        return TrainedFactors(*factors)

    def _matrix(self, name: str) -> Matrix:
        place = locate(name)
        entry = self._kinds[name]
        if place is None or str(entry["kind"]) not in PARTS:
            raise CheckpointError(f"{self.path}: {name!r} is described in an unknown way.")
        shapes, dtypes = self._file.shapes, self._file.dtypes
        parts = [f"{name}.{part}" for part in PARTS[entry["kind"]]]
        missing = [p for p in parts if p not in shapes]
        if missing:
            raise CheckpointError(f"{self.path} has no tensor {missing[0]!r}.")
        # LoRA's factors are named in the order of their use, A before B.
        factors = [shapes[p] for p in (reversed(parts) if entry["kind"] == "lora" else parts)]
        fit = len(factors[0]) == 2 if entry["kind"] == "dense" else factors_fit(factors)
        if not fit or any(dtypes[p] not in DTYPES for p in parts):
            raise CheckpointError(
                f"{self.path}: {name!r} must be a matrix of floats, or factors of one."
            )
        rank = {"dense": None, "lora": factors[-1][0], "sorsa": 2 * factors[-1][0]}[entry["kind"]]
        return Matrix(name, *place, (factors[0][0], factors[-1][1]), DTYPES[dtypes[parts[0]]], rank)


def sorsa_weight(trained: TrainedFactors, initial: TrainedFactors) -> Weight:
    """W_t of a SORSA adapter: its trained principal part in the place of the initial one."""
    u, s, vh = trained.u.double(), trained.s.double(), trained.vh.double()
    u0, s0, vh0 = initial.u.double(), initial.s.double(), initial.vh.double()
    if torch.equal(u, u0) and torch.equal(s, s0) and torch.equal(vh, vh0):
        return Weight(factors=trained)
    b = torch.cat([u * s, -u0 * s0], dim=1)  # (m, 2r)
    return Weight(update=(b, torch.cat([vh, vh0])), factors=trained)


def _header(file: TensorFile) -> dict[str, Any]:
    try:
        header = json.loads(file.metadata[METADATA_KEY])
        if int(header["format"]) > FORMAT:
            raise CheckpointError(
                f"{file.path} has snapshot format {header['format']}, this version reads up to "
                f"{FORMAT}. Upgrade spectra-svd."
            )
        int(header["step"]), str(header["id"])
        for entry in header["matrices"].values():
            if entry["kind"] == "lora":
                float(entry["scaling"])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path} is a safetensors file, but no Spectra snapshot ({error!r})."
        ) from error
    return header
