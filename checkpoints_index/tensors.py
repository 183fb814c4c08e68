"""What every file format gives: named tensors, described first and read one by one later."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

_FLOATS = {"float64", "float32", "float16", "bfloat16"}
# GGUF's: q4_0, q6_k, iq4_xs, tq1_0, mxfp4.
_QUANTISATION = re.compile(r"(i|t)?q\d.*|(mx|nv)fp4")


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
    dequantised : bool
        Whether packed integers are read as what they and their scales stand for, a matrix as
        `nn.Linear` has it even where the layer was a `Conv1D`.
    """

    shape: tuple[int, ...]
    dtype: str
    dequantised: bool = False

    @property
    def can_be_weight(self) -> bool:
        """Whether reading it gives weights: floats of 16 bits or more, or a quantisation of them.

        Floats of 8 bits and integers are weights only together with scales in another tensor.
        """
        is_quantisation = _QUANTISATION.fullmatch(self.dtype) is not None
        return self.dequantised or self.dtype in _FLOATS or is_quantisation


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
