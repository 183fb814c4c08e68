"""Which logical matrices a model's stored tensors are: fused and transposed ones taken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from checkpoints_index.matrices import DTYPES, Matrix, clean_name, locate
from checkpoints_index.tensors import StoredTensor


@dataclass(frozen=True)
class LogicalMatrix:
    """One logical matrix (out_features, in_features) and where its numbers are.

    Attributes
    ----------
    matrix : Matrix
        Its name, layer, module and shape.
    tensor : str
        The stored tensor that holds it, alone or with others.
    layer_path : str
        Cleaned path of the layer that the tensor belongs to (an adapter's name for it).
    take : callable
        From the stored tensor to the matrix of shape (m, n), as a view where that is possible.
    rows : slice, optional
        The run along the tensor's first dimension that holds it, where a reader need not read
        more; `take` then gets just that run.
    """

    matrix: Matrix
    tensor: str
    layer_path: str
    take: Callable[[Tensor], Tensor]
    rows: slice | None = None


def logical_matrices(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any] | None = None
) -> list[LogicalMatrix]:
    """Return the logical matrices of a model's stored tensors.

    Parameters
    ----------
    tensors : mapping of str to StoredTensor
        All tensors of the checkpoint.
    config : mapping, optional
        The model's ``config.json``, where there is one.

    Raises
    ------
    CheckpointError
        If the configuration contradicts the tensors.
    """
    found = []
    for name, stored in tensors.items():
        place = locate(clean_name(name))
        if len(stored.shape) == 2 and place and stored.dtype in DTYPES.values():
            shape = (stored.shape[0], stored.shape[1])
            matrix = Matrix(clean_name(name), *place, shape, stored.dtype)
            found.append(LogicalMatrix(matrix, name, matrix.name, _whole))
    return found


def _whole(tensor: Tensor) -> Tensor:
    return tensor
