"""Whether a checkpoint that cannot be read is only not whole yet."""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints_index.errors import CheckpointError, IncompleteCheckpointError
from checkpoints_index.formats import READERS
from checkpoints_index.matrices import Checkpoint
from checkpoints_index.readers import Candidate

UNFINISHED = "unfinished"
"""Format of a folder whose name says that a trainer is still filling it."""
SPLIT = "split"
"""Format of a folder with the parts of a model that the ranks of a parallel training hold."""

# As safetensors itself; what says that it is longer is no header.
_LONGEST_HEADER = 100_000_000
# What a header takes is a few hundred bytes a tensor; a longer one is not looked into.
_LONGEST_READ = 16 * 2**20
# What looking into a header raises that is none.
_NO_HEADER = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
_ZIP_START, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_END_LENGTH = 22


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
    folder = candidate.path if candidate.path.is_dir() else candidate.path.parent
    if candidate.missing:
        first, *others = candidate.missing
        more = f", nor do {len(others)} other files of it" if others else ""
        raise IncompleteCheckpointError(
            f"{folder / first} does not exist{more}: {candidate.path} is still being written, or "
            "was copied in part."
        )
    try:
        return next(r for r in READERS if r.format == candidate.format).open(candidate, step)
    except IncompleteCheckpointError:
        raise
    except CheckpointError as error:
        for name in candidate.files:
            if lacks_end(folder / name):
                raise IncompleteCheckpointError(
                    f"{folder / name} is shorter than it says itself: it is still being written, "
                    "or was cut short."
                ) from error
        raise


def lacks_end(file: Path) -> bool:
    """Whether a safetensors file or a zip archive, such as torch writes, is cut short.

    A file of another kind, or one that is not there, is not.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            if file.suffix == ".safetensors":
                length = int.from_bytes(start, "little")
                if len(start) < 8 or size < 8 + length <= _LONGEST_HEADER:
                    return True
                return length <= _LONGEST_READ and size < 8 + length + _end(opened.read(length))
            if start.startswith(_ZIP_START):
                # torch leaves no comment at the end, so the archive ends with this record.
                opened.seek(max(0, size - _ZIP_END_LENGTH))
                return not opened.read().startswith(_ZIP_END)
            return size == 0 and file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf")
    except (OSError, ValueError):
        return False


def _end(header: bytes) -> int:
    """Where the last tensor of a safetensors header ends; 0 where it is no header."""
    try:
        tensors = {name: e for name, e in json.loads(header).items() if name != "__metadata__"}
        return max((int(e["data_offsets"][1]) for e in tensors.values()), default=0)
    except _NO_HEADER:
        return 0
