"""PEFT adapter folders: LoRA and SORSA."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import (
    DTYPES,
    Checkpoint,
    Matrix,
    TrainedFactors,
    Weight,
    clean_name,
    factors_fit,
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
# PEFT's own, for configurations that leave it out.
_DEFAULT_ALPHA = 8
BASE_REWRITING_LORA = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""LoRA initialisations that subtract the adapter's start from the stored base weight, so that
the base no longer holds W_0; by the beginnings of their names."""
# Settings under which a LoRA's W_t is not W_0 + scaling · B A on the stored base.
_UNREAD_LORA = (
    "use_dora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)


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

    def bind(self, base: Checkpoint) -> Checkpoint:
        """Return itself: its factors need no base."""
        return self

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
        return self._alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _refuse_unread(self) -> None:
        if self._kind not in _PARTS:
            raise CheckpointError(
                f"{self.path} is a {self._kind} adapter; read are {', '.join(_PARTS)}. Merge it "
                "into its base with PEFT and analyse the merged model."
            )
        if self._kind == "LORA":
            used: list[Any] = [k for k in _UNREAD_LORA if self._config.get(k)]
            initialisation = str(self._config.get("init_lora_weights")).lower()
            if initialisation.startswith(BASE_REWRITING_LORA):
                used.append(f"init_lora_weights={self._config['init_lora_weights']!r}")
            if used:
                raise CheckpointError(
                    f"{self.path} is a LoRA with {', '.join(map(str, used))}, which is not read "
                    "here. Merge it into its base with PEFT and analyse the merged model."
                )
            alpha = self._config.get("lora_alpha", _DEFAULT_ALPHA)
            if not isinstance(alpha, int | float):
                raise CheckpointError(
                    f"{self.path / CONFIG_FILE}: lora_alpha must be a number, got {alpha!r}."
                )
            self._alpha = float(alpha)

    def _find_matrices(self) -> list[Matrix]:
        parts = _PARTS[self._kind]
        shapes, dtypes = self._file.shapes, self._file.dtypes
        stems = [t.removesuffix(f".{p}") for t in shapes for p in parts if t.endswith(f".{p}")]
        found = []
        for stem in dict.fromkeys(stems):
            place = locate(clean_name(stem))
            if place is None:
                continue
            names = [f"{stem}.{part}" for part in parts]
            if any(name not in shapes for name in names):
                raise CheckpointError(f"{self._file.path}: {stem!r} lacks a factor.")
            # SORSA's six are the trained three and the initial three.
            size = min(len(parts), 3)
            factors = [shapes[name] for name in names]
            if not factors_fit(factors[:size]) or factors[size:] not in ([], factors[:size]):
                raise CheckpointError(f"{self._file.path}: the factors of {stem!r} do not fit.")
            if any(dtypes[name] not in DTYPES for name in names):
                raise CheckpointError(f"{self._file.path}: {stem!r} is no matrix of floats.")
            self._stems[clean_name(stem)] = stem
            shape = (factors[0][0], factors[size - 1][1])
            # Trained and initial factors side by side: twice the rank.
            rank = factors[0][1] * (len(parts) // size)
            dtype = DTYPES[dtypes[names[0]]]
            found.append(Matrix(clean_name(stem), *place, shape, dtype, rank))
        return found


def is_adapter_folder(path: Path) -> bool:
    """Whether the folder holds a PEFT adapter."""
    return (path / CONFIG_FILE).is_file()
