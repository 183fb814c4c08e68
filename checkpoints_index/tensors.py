"""What every file format gives: named tensors, described first and read one by one later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file's header describes it.

    Attributes
    ----------
    shape : tuple of int
        As stored.
    dtype : str
        In which the numbers lie on disk: torch's name, such as ``"bfloat16"``, or that of a
        quantisation, such as ``"q4_0"``. What cannot be a weight ("int64", "unknown") keeps its
        name too.
    """

    shape: tuple[int, ...]
    dtype: str


class TensorStore(Protocol):
    """Named tensors of one checkpoint, in one file or in several."""

    @property
    def path(self) -> Path:
        """The file, or the folder of the files; may be a remote `UPath`."""
        ...

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors, as the headers describe them."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the content may have changed; the same wherever the files are moved."""
        ...

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one tensor, or a run of it along its first dimension, and nothing else.

        Raises
        ------
        CheckpointError
            If there is no such tensor, or the file is broken.
        """
        ...
