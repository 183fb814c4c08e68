"""What a format is to the search: it finds its checkpoints among names, and opens them.

`checkpoints_index.formats` has the list.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from checkpoints_index.matrices import Checkpoint


@dataclass(frozen=True)
class Candidate:
    """What a reader takes for a checkpoint, by its files' names alone.

    Attributes
    ----------
    path : Path
        The folder, or the file where one file is a whole checkpoint.
    format : str
        Name of the reader.
    files : tuple of str
        Names, relative to the folder, of the files whose change means that it has changed.
    missing : tuple of str
        Names that it needs and that are not there: it is still being written, or was damaged.
    """

    path: Path
    format: str
    files: tuple[str, ...]
    missing: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that its files are in."""
        return self.path.parent if self.path.name in self.files else self.path


class Reader(Protocol):
    """One format."""

    @property
    def format(self) -> str:
        """Its name, such as ``"safetensors"``."""
        ...

    def find(self, folder: Path, names: Collection[str]) -> list[Candidate]:
        """Return the checkpoints among the files of a folder; opens none but an index of shards."""
        ...

    def open(self, candidate: Candidate, step: int) -> Checkpoint:
        """Open one, reading headers only; raises `CheckpointError` where it is broken."""
        ...
