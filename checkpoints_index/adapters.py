"""PEFT adapter folders: LoRA and SORSA."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import (
    DTYPES,
    Matrix,
    TrainedFactors,
    Weight,
    clean_name,
    locate,
)
from checkpoints_index.safetensors_files import TensorFile, read_json
from checkpoints_index.snapshots import sorsa_weight

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# In each kind: the tensors of one matrix, the first with m rows, the last with n columns.
_PARTS = {
    "LORA": ("lora_B.weight", "lora_A.weight"),
    "SORSA": ("sorsa_u", "sorsa_s", "sorsa_vh", "sorsa_u0", "sorsa_s0", "sorsa_vh0"),
}
# Settings under which a LoRA's W_t is not W_0 + scaling · B A on the stored base.
_UNREAD_LORA = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")


class AdapterFolder:
    """A PEFT adapter as ``save_pretrained`` writes it.

    Parameters
    ----------
    path : Path
        The folder, with ``adapter_config.json`` and ``adapter_model.safetensors``.
    step : int
        The optimizer step it belongs to.

    Raises
    ------
    CheckpointError
        If a file is missing or broken, or the adapter is of a kind that is not read here.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step
        self._config = read_json(path / CONFIG_FILE)
        self._kind = str(self._config.get("peft_type"))
        self.method = self._kind.lower()
        self._refuse_unread()
        self._file = TensorFile(path / WEIGHTS_FILE)
        self._stems: dict[str, str] = {}
        self.matrices = tuple(self._find_matrices())

    @property
    def fingerprint(self) -> str:
        """Names, sizes and times of change of both files."""
        status = (self.path / CONFIG_FILE).stat()
        return f"{self._file.fingerprint},{status.st_size}:{status.st_mtime_ns}"

    @property
    def base(self) -> str | None:
        """The base that the adapter's configuration names."""
        return self._config.get("base_model_name_or_path")

    def read(self, matrix: Matrix) -> Weight:
        """Read one matrix."""
        stem = self._stems.get(matrix.name)
        if stem is None:
            raise CheckpointError(f"{self.path} has no matrix {matrix.name!r}.")
        parts = [self._file.read(f"{stem}.{part}") for part in _PARTS[self._kind]]
        if self._kind == "SORSA":
            return sorsa_weight(TrainedFactors(*parts[:3]), TrainedFactors(*parts[3:]))
        b, a = parts
        return Weight(update=(self._scaling(b.shape[1]) * b.double(), a.double()))

    def _scaling(self, rank: int) -> float:
        alpha = float(self._config.get("lora_alpha", rank))
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _refuse_unread(self) -> None:
        if self._kind not in _PARTS:
            raise CheckpointError(
                f"{self.path} is a {self._kind} adapter; read are {', '.join(_PARTS)}. Merge it "
                "into its base with PEFT and analyse the merged model."
            )
        if self._kind == "LORA":
            used: list[Any] = [k for k in _UNREAD_LORA if self._config.get(k)]
            if isinstance(self._config.get("init_lora_weights"), str):
                used.append(f"init_lora_weights={self._config['init_lora_weights']!r}")
            if used:
                raise CheckpointError(
                    f"{self.path} is a LoRA with {', '.join(map(str, used))}, which is not read "
                    "here. Merge it into its base with PEFT and analyse the merged model."
                )

    def _find_matrices(self) -> list[Matrix]:
        first, last = _PARTS[self._kind][0], _PARTS[self._kind][-1]
        found = []
        for tensor in self._file.shapes:
            stem = tensor.removesuffix(f".{first}")
            place = locate(clean_name(stem))
            if stem == tensor or place is None:
                continue
            other = f"{stem}.{last}"
            dtype = DTYPES.get(self._file.dtypes[tensor])
            shapes = self._file.shapes
            if other not in shapes or len(shapes[tensor]) != 2 or len(shapes[other]) != 2:
                raise CheckpointError(f"{self._file.path}: {stem!r} lacks a factor.")
            if dtype is None:
                raise CheckpointError(f"{self._file.path}: {tensor!r} is no matrix of floats.")
            shape = (shapes[tensor][0], shapes[other][1])
            self._stems[clean_name(stem)] = stem
            found.append(Matrix(clean_name(stem), *place, shape, dtype))
        return found


def is_adapter_folder(path: Path) -> bool:
    """Whether the folder holds a PEFT adapter."""
    return (path / CONFIG_FILE).is_file()
