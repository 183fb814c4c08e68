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
from checkpoints_index.matrices import DTYPES, Matrix, TrainedFactors, Weight, locate
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
        read = self._base_file.read
        return TrainedFactors(*(read(f"{matrix.name}.{part}") for part in INITIAL_PARTS))

    def _matrix(self, name: str) -> Matrix:
        place = locate(name)
        entry = self._kinds[name]
        if place is None or entry.get("kind") not in PARTS:
            raise CheckpointError(f"{self.path}: {name!r} is described in an unknown way.")
        shapes, dtypes = self._file.shapes, self._file.dtypes
        parts = [f"{name}.{part}" for part in PARTS[entry["kind"]]]
        missing = [p for p in parts if p not in shapes]
        if missing:
            raise CheckpointError(f"{self.path} has no tensor {missing[0]!r}.")
        first, last = shapes[parts[0]], shapes[parts[-1]]
        if not (len(first) == len(last) == 2) or dtypes[parts[0]] not in DTYPES:
            raise CheckpointError(f"{self.path}: {name!r} must be a matrix of floats.")
        rows, cols = {
            "dense": (first[0], first[1]),
            "lora": (last[0], first[1]),
            "sorsa": (first[0], last[1]),
        }[entry["kind"]]
        return Matrix(name, *place, (rows, cols), DTYPES[dtypes[parts[0]]])


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
        int(header["step"]), str(header["id"]), dict(header["matrices"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path} is a safetensors file, but no Spectra snapshot ({error!r})."
        ) from error
    return header
