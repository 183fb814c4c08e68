"""The one list of formats, and the readers of those that are folders of safetensors files.

A new format is a module with a `Reader` and a line in `READERS`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from checkpoints_index.adapters import CONFIG_FILE, WEIGHTS_FILE, AdapterFolder
from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import Checkpoint
from checkpoints_index.readers import Candidate, Reader
from checkpoints_index.safetensors_files import MODEL_FILE, MODEL_INDEX, ModelFolder, read_json
from checkpoints_index.snapshots import BASE_FILE, Snapshot

ADAPTER_FORMAT = "peft"
SNAPSHOT_FORMAT = "snapshot"
RUN_FILE = "run.json"
"""In a run's folder: what it is."""
SNAPSHOTS = "snapshots"
"""In a run's folder: what the hook wrote."""
SNAPSHOTS_RUN = f"../{RUN_FILE}"
"""The one file outside its folder that says something of a checkpoint: of snapshots, the method."""

_SNAPSHOT = re.compile(r"step-\d+\.safetensors")
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
_ADAPTER_WEIGHTS = (WEIGHTS_FILE, "adapter_model.bin")
# A lying name must not make us list a billion shards.
_MOST_SHARDS = 10_000


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
            for name in sorted(filter(_SNAPSHOT.fullmatch, names))
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
        """Return the folder if it has the configuration or the weights of an adapter."""
        weights = [name for name in _ADAPTER_WEIGHTS if name in names][:1]
        if CONFIG_FILE not in names and not weights:
            return []
        files = (CONFIG_FILE, *(weights or [WEIGHTS_FILE]))
        return [Candidate(folder, self.format, files, _missing(files, names))]

    def open(self, candidate: Candidate, step: int) -> Checkpoint:
        """Open it."""
        return AdapterFolder(candidate.path, step)


class SafetensorsReader:
    """Whole weights of a Hugging Face model, in one safetensors file or in shards."""

    format = "safetensors"

    def find(self, folder: Path, names: Collection[str]) -> list[Candidate]:
        """Return the folder if it has such a file, an index of shards, or shards without one."""
        extra = ("config.json",) if "config.json" in names else ()
        if MODEL_INDEX in names:
            shards = _shards_of(folder / MODEL_INDEX)
            files = (MODEL_INDEX, *shards, *extra)
            return [Candidate(folder, self.format, files, _missing(shards, names))]
        if MODEL_FILE in names:
            return [Candidate(folder, self.format, (MODEL_FILE, *extra))]
        # Transformers writes the index when all shards are there.
        for name in names:
            match = _SHARD.fullmatch(name)
            if match and match[1] == "model" and 0 < int(match[2]) <= _MOST_SHARDS:
                total = int(match[2])
                shards = [f"model-{i:05}-of-{total:05}.safetensors" for i in range(1, total + 1)]
                files = (MODEL_INDEX, *shards)
                return [Candidate(folder, self.format, files, _missing(files, names))]
        return []

    def open(self, candidate: Candidate, step: int) -> Checkpoint:
        """Open it."""
        return ModelFolder(candidate.path, step)


READERS: tuple[Reader, ...] = (SnapshotReader(), AdapterReader(), SafetensorsReader())
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


def _shards_of(index: Path) -> list[str]:
    """Names of the shards; none where the index is broken, which opening it will say."""
    try:
        weight_map = read_json(index).get("weight_map")
    except CheckpointError:
        return []
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    plain = all(isinstance(name, str) and Path(name).name == name for name in names)
    return sorted(set(names)) if plain else []


def _missing(files: Collection[str], names: Collection[str]) -> tuple[str, ...]:
    return tuple(file for file in files if file not in names)
