"""At which optimizer step a checkpoint was saved: what trainers' files and names say."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from checkpoints_index.byte_files import is_remote, open_bytes
from checkpoints_index.errors import CheckpointError

STATE_FILE = "trainer_state.json"
"""Where Transformers' trainer writes the step."""

# A word that counts optimizer steps, then the number, as a part of the name of its own: so that
# neither "stage1", "tokens2B" nor "step-1.5b" gives a step.
_STEP = re.compile(
    r"(?:^|[-_.=])(?:checkpoint|ckpt|global[-_]?step|step|iter(?:ation)?)"
    r"[-_=]?(\d{1,18})(?=$|[-_]|\.(?!\d))",
    re.IGNORECASE,
)
# Composer counts batches beside epochs: ep1-ba500-rank0.
_BATCH = re.compile(r"^ep\d+-ba(\d{1,18})(?=$|-)")
# The hub's client keeps a repository as models--ORGANISATION--NAME, with the files of a commit in
# snapshots/COMMIT and the commits of branches and tags in refs/.
_REPOSITORY = "models--"
# The log in it grows by some hundred bytes a step; what is longer is not loaded into memory.
_LONGEST_STATE = 256 * 2**20
# A name of a commit has 40 digits; who writes more is not the hub's client.
_LONGEST_REF = 256


def step_in_name(name: str) -> int | None:
    """Return the step in a folder's name, a file's stem or a revision; None where it has none.

    Two different numbers in one name are none.

    Examples
    --------
    >>> [step_in_name(n) for n in ("checkpoint-500", "epoch=1-step=500", "stage1-step500-tokens2B")]
    [500, 500, 500]
    >>> step_in_name("Step-3.5-mini"), step_in_name("step-1-iter-2"), step_in_name("final")
    (None, None, None)
    """
    numbers = {int(number) for number in _STEP.findall(name) + _BATCH.findall(name)}
    return numbers.pop() if len(numbers) == 1 else None


def step_in_state(file: Path) -> int | None:
    """Return the step that a ``trainer_state.json`` says; None where it says none."""
    try:
        opened = open_bytes(file)
        if opened.size > _LONGEST_STATE:
            return None
        step = json.loads(opened.read(0, opened.size))["global_step"]
    except (CheckpointError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def hub_commit(path: Path) -> tuple[Path, Path] | None:
    """Return the repository and the commit's folder that `path` lies in, in the hub's cache."""
    if is_remote(path):
        return None
    path = path.absolute()
    parts = path.parts if _REPOSITORY in str(path) else ()
    for i, part in enumerate(parts[:-2]):
        if part.startswith(_REPOSITORY) and parts[i + 1] == "snapshots":
            return Path(*parts[: i + 1]), Path(*parts[: i + 3])
    return None


def hub_name(repository: Path) -> str:
    """Return ``"organisation/name"`` of a repository's folder in the hub's cache."""
    parts = repository.name.removeprefix(_REPOSITORY).split("--")
    # A name that would lead elsewhere as a path is none of the hub's.
    return repository.name if {"", ".", ".."} & set(parts) else "/".join(parts)


def hub_revisions(repository: Path) -> dict[str, list[str]]:
    """Return the branches and tags of each commit of a repository in the hub's cache."""
    refs = repository / "refs"
    found: dict[str, list[str]] = {}
    for folder, _, names in os.walk(refs):
        for name in names:
            path = Path(folder, name)
            try:
                with path.open(encoding="utf-8") as opened:
                    commit = opened.read(_LONGEST_REF).strip()
            except (OSError, ValueError):
                continue
            found.setdefault(commit, []).append(path.relative_to(refs).as_posix())
    return {commit: sorted(revisions) for commit, revisions in found.items()}


def step_of_revisions(revisions: Sequence[str]) -> int | None:
    """Return the one step that revisions of the same commit name; None if there is not one."""
    steps = {s for r in revisions if (s := step_in_name(PurePath(r).name)) is not None}
    return steps.pop() if len(steps) == 1 else None
