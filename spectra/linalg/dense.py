"""The dense solver: float64 Gram matrix and eigh where that is safe, a float64 SVD elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.linalg.decomposition import Decomposition

# σ_i comes from ‖Wᵀu_i‖, whose relative error grows as (ε κ)²; below this ratio of σ_min to
# σ_max, squaring into the Gram matrix would cost digits that an SVD keeps.
SMALLEST_SAFE_RATIO = 1e-5

# Bound on the mean error of a singular vector, so that ΔD stays good to 1e-8 with room to
# spare. A Gram eigenvector is wrong by about ε σ_max² over its eigenvalue's gap. SmolLM2's
# q_proj and v_proj come out between 7e-14 and 2e-9.
LARGEST_MEAN_VECTOR_ERROR = 1e-9

_PROBES = 4


def decompose(w: Tensor) -> Decomposition:
    """Singular values and vectors of a dense matrix, in float64 on the CPU.

    The fast way is the eigendecomposition of the Gram matrix of the short side. It is taken
    when σ_min is not lost by squaring and no two eigenvalues lie so close that their vectors
    would be noticeably different from an SVD's; otherwise the matrix gets a float64 SVD.
    `solver` says which ran. The vectors of exactly repeated singular values are arbitrary in
    their common subspace; they are those that ``torch.linalg.svd`` returns.

    Parameters
    ----------
    w : Tensor of shape (m, n), any floating dtype, any device
        The matrix; not changed.

    Returns
    -------
    Decomposition
        With k = min(m, n).

    Raises
    ------
    ValueError
        If `w` is not a matrix, is empty, or has NaN or infinite entries.
    torch.linalg.LinAlgError
        If LAPACK's SVD does not converge either.

    Examples
    --------
    >>> decompose(torch.diag(torch.tensor([3.0, 4.0]))).s
    tensor([4., 3.], dtype=torch.float64)
    """
    w = as_float64(w)
    wide = w if w.shape[0] <= w.shape[1] else w.T  # (k, l), k <= l
    try:
        eigenvalues, vectors = torch.linalg.eigh(wide @ wide.T)
    except torch.linalg.LinAlgError:  # it did not converge; the SVD's algorithm may
        eigenvalues = w.new_zeros(1)
    if _gram_is_safe(eigenvalues):
        product = vectors.flip(1).T @ wide  # (k, l): rows σ_i v_iᵀ
        s = torch.linalg.vector_norm(product, dim=1)
        order = torch.argsort(s, descending=True, stable=True)
        s, u, vh = s[order], vectors.flip(1)[:, order], product[order] / s[order, None]
        if wide is not w:
            u, vh = vh.T, u.T
        return Decomposition(u, s, vh, "gram", _residual(w, u, s, vh))
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return Decomposition(u, s, vh, "svd", _residual(w, u, s, vh))


def singular_values(w: Tensor) -> Tensor:
    """Singular values alone, largest first, in float64.

    Parameters
    ----------
    w : Tensor of shape (m, n)
        The matrix.

    Returns
    -------
    Tensor of shape (k,), float64
        k = min(m, n).

    Raises
    ------
    ValueError
        As `decompose`.
    """
    return torch.linalg.svdvals(as_float64(w))


def product_singular_values(u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
    """Singular values of U diag(S) Vᵀ for any factors of rank r, without forming the product.

    Parameters
    ----------
    u, s, vh : Tensor of shape (m, r), (r,), (r, n)
        The factors; U and V need not be orthonormal. r ≤ min(m, n).

    Returns
    -------
    Tensor of shape (r,), float64
        Largest first.

    Raises
    ------
    ValueError
        If a factor has NaN or infinite entries.
    """
    r_u = torch.linalg.qr(as_float64(u), mode="r").R
    r_v = torch.linalg.qr(as_float64(vh).T, mode="r").R
    return torch.linalg.svdvals(as_float64((r_u * s.double()) @ r_v.T))


def as_float64(w: Tensor) -> Tensor:
    """Return a finite, non-empty matrix as contiguous float64 on the CPU, or say what is wrong.

    Raises
    ------
    ValueError
        If `w` is not two-dimensional, is empty, or has NaN or infinite entries.
    """
    if w.ndim != 2 or w.numel() == 0:
        raise ValueError(f"w must be a non-empty matrix, got shape {tuple(w.shape)}.")
    w = w.detach().to(device="cpu", dtype=torch.float64).contiguous()
    if not torch.isfinite(w).all():
        bad = int((~torch.isfinite(w)).sum())
        raise ValueError(f"w must be finite, but {bad} of its {w.numel()} entries are NaN or Inf.")
    return w


def _gram_is_safe(eigenvalues: Tensor) -> bool:
    """Whether the ascending eigenvalues of a Gram matrix can be trusted, vectors included."""
    largest = eigenvalues[-1]
    if not eigenvalues[0] > SMALLEST_SAFE_RATIO**2 * largest:
        return False
    if len(eigenvalues) == 1:
        return True
    gaps = eigenvalues.diff()
    infinity = gaps.new_full((1,), torch.inf)
    nearest = torch.minimum(torch.cat([infinity, gaps]), torch.cat([gaps, infinity]))
    errors = torch.finfo(torch.float64).eps * largest / nearest
    return bool(errors.clamp(max=1.0).mean() < LARGEST_MEAN_VECTOR_ERROR)


def _residual(w: Tensor, u: Tensor, s: Tensor, vh: Tensor) -> float:
    """Estimate the errors that `Decomposition.residual` names, at the cost of a few products."""
    generator = torch.Generator().manual_seed(0)
    k = len(s)
    probes = torch.randn(k, _PROBES, generator=generator, dtype=w.dtype)
    left = u.T @ (u @ probes) - probes
    right = vh @ (vh.T @ probes) - probes
    x = torch.randn(w.shape[1], _PROBES, generator=generator, dtype=w.dtype)
    backward = w @ x - u @ (s[:, None] * (vh @ x))
    norm = torch.linalg.matrix_norm(w)
    scaled = backward / norm if norm > 0 else backward
    # E‖E z‖² = ‖E‖_F² for standard normal z, and a mean over the probes.
    return max(float(torch.linalg.matrix_norm(e)) / _PROBES**0.5 for e in (left, right, scaled))
