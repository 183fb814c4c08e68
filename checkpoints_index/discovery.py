"""From a folder to an ordered list of checkpoints."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

from checkpoints_index.adapters import AdapterFolder, is_adapter_folder
from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import Checkpoint
from checkpoints_index.model_readers import find_models, open_whole_model
from checkpoints_index.snapshots import BASE_FILE, Snapshot

# A lone checkpoint whose step nobody wrote down counts as one step from its base.
_LONE_STEP = 1
_STEP_IN_NAME = re.compile(r"^(?:checkpoint|global_?step|step|iter)[-_]?(\d+)$")


def find_checkpoints(path: Path | str) -> list[Checkpoint]:
    """Return the checkpoints in a folder and below it, ordered by step; headers only are read.

    A folder of snapshots (or the run that has one) gives its snapshots. Elsewhere model folders
    and PEFT adapters are found, with steps from ``trainer_state.json`` or from names such as
    ``checkpoint-500``.

    Parameters
    ----------
    path : Path or str
        A run, a checkpoint's folder, or a folder of them.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist or holds no checkpoint.
    CheckpointError
        If a checkpoint is broken, or steps are missing or ambiguous.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder. Give one that holds checkpoints.")
    for snapshots in (path / "snapshots", path):
        if (snapshots / BASE_FILE).is_file():
            return find_snapshots(snapshots)
    folders = [p for p in [path, *sorted(path.rglob("*"))] if _holds_weights(p)]
    # A trainer's output often ends with the last checkpoint's weights once more, at its top.
    inner = [p for p in folders if p != path]
    chosen = inner or folders
    if not chosen:
        raise FileNotFoundError(
            f"No checkpoint in {path}: looked for model.safetensors, model.safetensors.index.json, "
            "adapter_config.json and snapshots/base.safetensors. Give the folder that holds one."
        )
    steps = {p: _step(p) for p in chosen}
    if len(chosen) == 1 and steps[chosen[0]] is None:
        steps[chosen[0]] = _LONE_STEP
    _refuse_ambiguous(steps)
    return sorted((_open(p, step) for p, step in steps.items() if step is not None), key=_by_step)


def find_snapshots(folder: Path) -> list[Checkpoint]:
    """Return a run's snapshots, ordered by step, without its base.

    Raises
    ------
    CheckpointError
        If one is broken, or was recorded on another base than the one beside it.
    """
    try:
        method = str(json.loads((folder.parent / "run.json").read_text("utf-8"))["method"])
    except (OSError, ValueError, KeyError, TypeError):
        method = "unknown"
    base = Snapshot(folder / BASE_FILE)
    found = [Snapshot(file, method) for file in sorted(folder.glob("step-*.safetensors"))]
    for snapshot in found:
        if snapshot.base_id != base.id:
            raise CheckpointError(
                f"{snapshot.path} was recorded on another base than {base.path}. Bring back the "
                "run's own base.safetensors."
            )
    return sorted(found, key=_by_step)


def open_model(path: Path | str) -> Checkpoint:
    """Open a base: a model folder, or the ``base.safetensors`` of a run.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or file.
    CheckpointError
        If it holds no whole weights.
    """
    path = Path(path)
    if path.is_file() and path.name == BASE_FILE:
        return Snapshot(path, "base")
    if not path.exists():
        raise FileNotFoundError(f"{path} is not a folder. Give the base model's.")
    return open_whole_model(path, step=0)


def _holds_weights(path: Path) -> bool:
    return path.is_dir() and (is_adapter_folder(path) or bool(find_models(path)))


def _open(path: Path, step: int) -> Checkpoint:
    return AdapterFolder(path, step) if is_adapter_folder(path) else open_whole_model(path, step)


def _by_step(checkpoint: Checkpoint) -> int:
    return checkpoint.step


def _step(path: Path) -> int | None:
    try:
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        return int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        match = _STEP_IN_NAME.match(path.name)
        return int(match.group(1)) if match else None


def _refuse_ambiguous(steps: dict[Path, int | None]) -> None:
    unknown = [p for p, step in steps.items() if step is None]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} of {len(steps)} checkpoints have no step, e.g. {unknown[0]}: it has "
            "no trainer_state.json and no name like checkpoint-500. Rename them, or give one alone."
        )
    by_step = defaultdict(list)
    for path, step in steps.items():
        by_step[step].append(path)
    for step, paths in by_step.items():
        if len(paths) > 1:
            listed = ", ".join(map(str, paths))
            raise CheckpointError(f"Step {step} stands for {len(paths)} checkpoints: {listed}.")
