"""Gram matrices and their eigenvalues, by the fastest LAPACK routines at hand."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import blas, lapack
from torch import Tensor

# From this order on, LAPACK's three stages called one by one (SciPy's OpenBLAS) beat torch.linalg
# .eigh (MKL), whose driver transforms the eigenvectors back slowly: 5.5 s to 10.6 s at 4096, 134 ms
# to 140 ms at 1024 (float64, 2 cores). Below it only one library's threads are used: those of the
# other, waiting actively for work, made an eigh of 0.1 s take 0.2 s.
_STAGED = 1536
_BLOCK = 64
# Rows of a Gram matrix made at a time, which spares 37% of the products at 1024.
_ROWS = 256


def gram(w: Tensor) -> Tensor:
    """W Wᵀ of a float64 matrix, in its lower triangle alone.

    Parameters
    ----------
    w : Tensor of shape (k, l), float64
        The matrix.

    Returns
    -------
    Tensor of shape (k, k)
        Mostly 0 above the diagonal. One more column lies before the first in memory, which
        `eigenvectors` needs.
    """
    k = len(w)
    storage = w.new_zeros((k + 1) * k)
    product = storage.as_strided((k, k), (1, k), k)
    if k >= _STAGED:
        # Half the products of a general multiplication: 0.70 s to 0.95 s for the blocks below.
        columns = storage[k:].numpy().reshape(k, k, order="F")
        blas.dsyrk(1.0, w.numpy().T, trans=1, lower=1, c=columns, overwrite_c=1)
        return product
    for first in range(0, k, _ROWS):
        last = min(first + _ROWS, k)
        product[first:last, :last] = w[first:last] @ w[:last].T
    return product


def eigenvectors(lower: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and orthonormal eigenvectors of a matrix from `gram`.

    Parameters
    ----------
    lower : Tensor of shape (k, k)
        Overwritten where it is large.

    Returns
    -------
    values : Tensor of shape (k,)
        The eigenvalues, ascending.
    vectors : Tensor of shape (k, k)
        Their vectors, as columns.

    Raises
    ------
    torch.linalg.LinAlgError
        If the iteration does not converge.
    """
    k = len(lower)
    if k < _STAGED:
        return torch.linalg.eigh(lower)
    storage = lower.as_strided(((k + 1) * k,), (1,), 0).numpy()
    tridiagonal = lapack.dsytrd(
        storage[k:].reshape(k, k, order="F"), lower=1, lwork=k * _BLOCK, overwrite_a=1
    )
    _, diagonal, beside, scales, failed = tridiagonal
    _refuse(failed)
    values, vectors, failed = lapack.dstevd(diagonal, beside)
    _refuse(failed)
    # Reflector i starts at row i + 1; read from one column earlier it starts at its own row, as
    # dormqr wants it, and the first, of scale 0, does nothing. That spares copies of all three.
    reflectors = storage[: k * k].reshape(k, k, order="F")
    vectors, _, failed = lapack.dormqr(
        "L", "N", reflectors, np.append(0.0, scales), vectors, lwork=k * _BLOCK, overwrite_c=1
    )
    _refuse(failed)
    return torch.from_numpy(values), torch.from_numpy(vectors)


def _refuse(failed: int) -> None:
    if failed:
        raise torch.linalg.LinAlgError(f"LAPACK's eigenvalue iteration failed (info {failed}).")
