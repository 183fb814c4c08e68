"""The one list of formats, and the readers of those that hold no whole models.

A new format is a module with a `Reader` and a line in `READERS`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from checkpoints_index.adapters import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterFolder,
    is_initial_adapter,
)
from checkpoints_index.byte_files import read_json
from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import Checkpoint
from checkpoints_index.model_readers import MODEL_READERS
from checkpoints_index.readers import Candidate, Reader
from checkpoints_index.snapshots import BASE_FILE, Snapshot

ADAPTER_FORMAT = "peft"
SNAPSHOT_FORMAT = "snapshot"
RUN_FILE = "run.json"
"""In a run's folder: what it is."""
SNAPSHOTS = "snapshots"
"""In a run's folder: what the hook wrote."""
SNAPSHOTS_RUN = f"../{RUN_FILE}"
"""The one file outside its folder that says something of a checkpoint: of snapshots, the method."""

SNAPSHOT_NAME = re.compile(r"step-\d+\.safetensors")
"""What the hook calls a step's file."""
_ADAPTER_WEIGHTS = (WEIGHTS_FILE, "adapter_model.bin")


class SnapshotReader:
    """What the hook wrote: ``snapshots/step-00000050.safetensors`` beside ``base.safetensors``."""

    format = SNAPSHOT_FORMAT

    def find(self, folder: Path, names: Collection[str]) -> list[Candidate]:
        """Return one candidate a step."""
        if BASE_FILE not in names and folder.name != SNAPSHOTS:
            return []
        missing = () if BASE_FILE in names else (BASE_FILE,)
        return [
            Candidate(folder / name, self.format, (name, BASE_FILE, SNAPSHOTS_RUN), missing)
            for name in sorted(filter(SNAPSHOT_NAME.fullmatch, names))
        ]

    def open(self, candidate: Candidate, step: int) -> Checkpoint:
        """Open one; its header and its name must agree on the step."""
        folder = candidate.path.parent
        snapshot = Snapshot(candidate.path, method_of_run(folder.parent))
        base = _settings_of_run(folder.parent).get("base")
        name = base.get("name") if isinstance(base, dict) else None
        snapshot.base = name if isinstance(name, str) else None
        refuse_foreign_base(snapshot, Snapshot(folder / BASE_FILE))
        if snapshot.step != step:
            raise CheckpointError(
                f"{snapshot.path} is step {snapshot.step} by its header, {step} by its name. Give "
                "it its own name again."
            )
        return snapshot


class AdapterReader:
    """PEFT adapters as ``save_pretrained`` writes them."""

    format = ADAPTER_FORMAT

    def find(self, folder: Path, names: Collection[str]) -> list[Candidate]:
        """Return the folder if it has the configuration or the weights of a trained adapter."""
        weights = [name for name in _ADAPTER_WEIGHTS if name in names][:1]
        if (CONFIG_FILE not in names and not weights) or is_initial_adapter(folder):
            return []
        files = (CONFIG_FILE, *(weights or [WEIGHTS_FILE]))
        return [Candidate(folder, self.format, files, _missing(files, names))]

    def open(self, candidate: Candidate, step: int) -> Checkpoint:
        """Open it."""
        return AdapterFolder(candidate.path, step)


READERS: tuple[Reader, ...] = (SnapshotReader(), AdapterReader(), *MODEL_READERS)
"""Every format; of two that take the same folder for a checkpoint, the first one wins."""


def method_of_run(folder: Path) -> str:
    """Return the method that a run's ``run.json`` names, else ``"unknown"``."""
    return str(_settings_of_run(folder).get("method", "unknown"))


def _settings_of_run(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / RUN_FILE)
    except (CheckpointError, RecursionError):
        return {}


def refuse_foreign_base(snapshot: Snapshot, base: Snapshot) -> None:
    """Raise CheckpointError if a snapshot was recorded on another base than `base`."""
    if snapshot.base_id != base.id:
        raise CheckpointError(
            f"{snapshot.path} was recorded on another base than {base.path}. Bring back the "
            "run's own base.safetensors."
        )


def _missing(files: Collection[str], names: Collection[str]) -> tuple[str, ...]:
    return tuple(file for file in files if file not in names)
