"""Whether a checkpoint that cannot be read is only not whole yet."""

from __future__ import annotations

from checkpoints_index.errors import CheckpointError, IncompleteCheckpointError
from checkpoints_index.formats import READERS
from checkpoints_index.matrices import Checkpoint
from checkpoints_index.readers import Candidate

UNFINISHED = "unfinished"
"""Format of a folder whose name says that a trainer is still filling it."""
SPLIT = "split"
"""Format of a folder with the parts of a model that the ranks of a parallel training hold."""


def open_candidate(candidate: Candidate, step: int) -> Checkpoint:
    """Open a checkpoint that a reader found.

    Raises
    ------
    IncompleteCheckpointError
        If a file is missing or ends before it should.
    CheckpointError
        If it is broken.
    """
    if candidate.format == UNFINISHED:
        raise IncompleteCheckpointError(
            f"{candidate.path} has the name of a folder that a trainer is still filling."
        )
    if candidate.format == SPLIT:
        raise CheckpointError(
            f"{candidate.path} holds a model in the parts of several ranks, which are not read. "
            "Convert it to one model with the trainer's own tool."
        )
    if candidate.missing:
        first, *others = candidate.missing
        more = f", nor do {len(others)} other files of it" if others else ""
        raise IncompleteCheckpointError(
            f"{candidate.folder / first} does not exist{more}: {candidate.path} is still being "
            "written, or was copied in part."
        )
    return next(r for r in READERS if r.format == candidate.format).open(candidate, step)
