"""Products of float64 matrices by SciPy's BLAS, whose LAPACK the dense solvers use anyway.

One library for everything large: two of them, each with threads that wait actively for more work,
disturb one another (an `eigh` of 0.11 s took 0.2 s beside another library's threads). Beside the
one that torch is built with (MKL; 2 cores of an AMD EPYC, AVX-512), SciPy's takes 45 ms to 80 ms
for a product of 1024×1024 and 1024×4096, and 1.1 ms to 6.5 ms for one of 1024×4096 and 4096×3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from scipy.linalg import blas
from torch import Tensor, from_numpy

Array = NDArray[Any]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two matrices; not recorded for gradients.

    Parameters
    ----------
    a : Tensor of shape (m, l), float64, CPU
        Contiguous, or the transpose of a contiguous one; any other is copied first.
    b : Tensor of shape (l, n), float64, CPU
        Likewise.

    Returns
    -------
    Tensor of shape (m, n)
        Contiguous.
    """
    # BLAS counts columns first: in its eyes a contiguous matrix is its own transpose, and
    # (A B)ᵀ = Bᵀ Aᵀ is what it is asked for.
    (right, b_flipped), (left, a_flipped) = _transposed(b), _transposed(a)
    return from_numpy(blas.dgemm(1.0, right, left, trans_a=b_flipped, trans_b=a_flipped).T)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch's own threads out of the way of BLAS's while the two take turns.

    Either's threads wait actively for more work: with torch's beside them, what took 26 ms after
    a decomposition took 170 ms (1024×4096, 2 cores).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _transposed(x: Tensor) -> tuple[Array, bool]:
    """Return xᵀ as an array whose columns lie in one piece, or else x and that it is flipped."""
    if x.is_contiguous() or not x.T.is_contiguous():
        return x.contiguous().numpy().T, False
    return x.numpy(), True
