"""The dense solvers: float64 Gram matrix and eigenvalues where safe, a float64 SVD elsewhere."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import scipy.linalg
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from spectra.linalg.decomposition import (
    LEADING,
    Decomposition,
    NotConverged,
    Spectrum,
    Turned,
    band_width,
    diagonals,
    nearest_distance,
)
from spectra.linalg.products import matmul, one_torch_thread
from spectra.linalg.symmetric import eigenvalues, eigenvectors, gram

logger = logging.getLogger(__name__)

_EPS = torch.finfo(torch.float64).eps

# A vector from the Gram matrix is wrong by about ε σ_max² over the distance of its eigenvalue to
# the next one, one from an SVD by ε σ_max over that of its singular value. Vectors that would be
# worse than this are turned among themselves until they are as good as an SVD's.
_LARGEST_VECTOR_ERROR = 1e-9
# That takes an SVD of their part of the matrix, which pays while they are this share of all.
_LARGEST_REFINED_SHARE = 0.25
# Below this σ_min/σ_max an SVD keeps more digits of κ: 5e-10 to 2e-10 at 1e-7, 4e-6 to 2e-8 at
# 1e-9 (relative errors).
_SMALLEST_GRAM_RATIO = 1e-8
# √λ has an absolute error of about ε σ_max²/σ: values below this share of σ_max are found anew
# where κ would lose digits by that.
_SMALL_VALUE = 3e-4
# κ from √λ is wrong by a few times ε κ², here 2e-7.
_LARGEST_PLAIN_KAPPA = 3e4
_MOST_SMALL_VALUES = 48
# An SVD leaves 1e-14; a Gram decomposition up to 1e-9 in the orthogonality of small vectors.
_LARGEST_RESIDUAL = 1e-8
# Of Σσ² against ‖W‖_F²: rounding leaves 1e-13 at 4096×4096.
_LARGEST_NORM_ERROR = 1e-11

_SOLVERS = ("auto", "gram", "svd")
_PROBES = 3
_COLUMNS = 128


def decompose(w: Tensor, solver: str = "auto") -> Decomposition:
    """Singular values and vectors of a dense matrix, in float64 on the CPU.

    The fast way is the eigendecomposition of the Gram matrix of the short side. What squaring
    costs in digits, of small singular values and of vectors of close ones, is won back by a small
    SVD of the part of the matrix that belongs to them; where that part is large, and where
    σ_min/σ_max < 1e-8, the whole matrix gets a float64 SVD. `solver` of the result says which ran.
    The vectors of repeated singular values are arbitrary in their common subspace.

    Parameters
    ----------
    w : Tensor of shape (m, n), any floating dtype, any device
        The matrix; not changed.
    solver : {"auto", "gram", "svd"}
        ``"svd"`` forces a float64 SVD; ``"gram"`` is ``"auto"``: it still falls back.

    Returns
    -------
    Decomposition
        With k = min(m, n).

    Raises
    ------
    ValueError
        If `w` is not a matrix, is empty, or has NaN or infinite entries, or the solver is unknown.
    torch.linalg.LinAlgError
        If no algorithm of LAPACK's converges.

    Examples
    --------
    >>> decompose(torch.diag(torch.tensor([3.0, 4.0]))).s
    tensor([4., 3.], dtype=torch.float64)
    """
    w = as_float64(w)
    with one_torch_thread():
        found = _solve(w, solver)
    long = found.long.div_(found.lengths[:, None])
    u, vh = (long.T, found.short.T) if found.tall else (found.short, long)
    return Decomposition(u, found.s, vh, found.solver, found.residual)


def singular_values(w: Tensor, solver: str = "auto") -> Spectrum:
    """Singular values alone.

    Eigenvalues of the Gram matrix; the smallest ones anew from the inverse of the matrix where κ
    would lose digits by squaring; a float64 SVD where there are many such, or zeros.

    Parameters
    ----------
    w : Tensor of shape (m, n), any floating dtype, any device
        The matrix.
    solver : {"auto", "gram", "svd"}
        As in `decompose`.

    Raises
    ------
    ValueError, torch.linalg.LinAlgError
        As `decompose`.
    """
    _require_known(solver)
    w = as_float64(w)
    if solver != "svd":
        try:
            with one_torch_thread():
                return _values_from_gram(w)
        except (NotConverged, torch.linalg.LinAlgError) as error:
            logger.debug("An SVD for a matrix of shape %s: %s", tuple(w.shape), error)
    try:
        s = torch.linalg.svdvals(w)
    except torch.linalg.LinAlgError:
        s = _svd(w)[1]
    return Spectrum(s, "svd-values", _norm_error(w, s))


def follow_dense(base: Decomposition, w_t: Tensor, solver: str = "auto") -> Turned:
    """Decompose W_t as `decompose` does, and compare its vectors with those of its base.

    Parameters
    ----------
    base : Decomposition
        Of W_0, of shape (m, n).
    w_t : Tensor of shape (m, n), any floating dtype, any device
        The matrix; not changed.
    solver : {"auto", "gram", "svd"}
        As in `decompose`.

    Raises
    ------
    ValueError, torch.linalg.LinAlgError
        As `decompose`.
    """
    w_t = as_float64(w_t)
    with one_torch_thread():
        return _compared(base, _solve(w_t, solver))


def _compared(base: Decomposition, found: _Sides) -> Turned:
    """Overlaps of W_t's vectors with the base's: around the diagonal, and of the leading ones."""
    k = len(base.s)
    width, p = band_width(k), min(LEADING, k)
    short_0, long_0 = base.u.T, base.vh  # rows, (k, k) and (k, l)
    if found.tall:
        short_0, long_0 = long_0, short_0
    scale = 1 / found.lengths
    sides = ((short_0, found.short.T, None), (long_0, found.long, scale))
    near: list[Tensor] = []
    leading: list[Tensor] = []
    for rows_0, rows_t, factor in sides:
        band = []
        for first in range(0, k, _COLUMNS):
            last = min(first + _COLUMNS, k)
            low, high = max(first - width, 0), min(last + width, k)
            columns = matmul(rows_0[low:high], rows_t[first:last].T)
            band.append(diagonals(columns, first, width, top=low))
        near.append(torch.cat(band))
        leading.append(matmul(rows_0, rows_t[:p].T))
        if factor is not None:
            near[-1] *= factor[:, None]
            leading[-1] *= factor[:p]
        near[-1].clamp_(max=1.0)
    if found.tall:
        near.reverse()
        leading.reverse()
    return Turned(
        s=found.s,
        near_u=near[0],
        near_v=near[1],
        leading_u=leading[0],
        leading_v=leading[1],
        solver=found.solver,
        residual=found.residual,
    )


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
    # One pass for the usual case: a sum is finite only if every entry is, or by overflow.
    if not torch.isfinite(w.sum()) and not torch.isfinite(w).all():
        bad = int((~torch.isfinite(w)).sum())
        raise ValueError(f"w must be finite, but {bad} of its {w.numel()} entries are NaN or Inf.")
    return w


def _require_known(solver: str) -> None:
    if solver not in _SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(_SOLVERS)}, got {solver!r}.")


@dataclass(frozen=True)
class _Sides:
    """A decomposition by the sides of its matrix: the short one, of length k, and the long one.

    Attributes
    ----------
    s : Tensor of shape (k,)
        Singular values, largest first.
    short : Tensor of shape (k, k)
        Vectors of the short side, as columns.
    long : Tensor of shape (k, l)
        Vectors of the long side, as rows, as long as `lengths` says.
    lengths : Tensor of shape (k,)
        1, or the singular values.
    tall : bool
        Whether the columns are the short side, so that `short` is V.
    solver, residual
        As of `Decomposition`.
    """

    s: Tensor
    short: Tensor
    long: Tensor
    lengths: Tensor
    tall: bool
    solver: str
    residual: float


def _solve(w: Tensor, solver: str) -> _Sides:
    """Decompose what `as_float64` has passed."""
    _require_known(solver)
    if solver != "svd":
        try:
            return _from_gram(w)
        except (NotConverged, torch.linalg.LinAlgError) as error:
            logger.debug("An SVD for a matrix of shape %s: %s", tuple(w.shape), error)
    u, s, vh = _svd(w)
    tall = w.shape[0] > w.shape[1]
    short, long = (vh.T, u.T) if tall else (u, vh)
    ones = torch.ones_like(s)
    residual = _residual(w.T if tall else w, short, s, long, ones)
    return _Sides(s, short, long, ones, tall, "svd", residual)


def _from_gram(w: Tensor) -> _Sides:
    """Decompose by the Gram matrix; raises NotConverged where squaring has cost too much."""
    tall = w.shape[0] > w.shape[1]
    wide = w.T if tall else w  # (k, l), k <= l
    if not 1e-100 < torch.linalg.vector_norm(w) < 1e100:
        raise NotConverged("the entries' squares leave the range of float64")
    values, short = eigenvectors(gram(w))
    long = matmul(short.T, wide)  # (k, l): rows σ_i v_iᵀ
    s = torch.linalg.vector_norm(long, dim=1)
    refined = _gram_vector_error(values) > _LARGEST_VECTOR_ERROR
    count = int(refined.sum())
    if count > max(_LARGEST_REFINED_SHARE * len(s), 2):
        raise NotConverged(f"{count} of {len(s)} vectors would lose digits")
    if count:
        # All vectors that may be mixed up are in this set, so its span is right and an SVD
        # within it sets them right.
        x, s[refined], vh = _svd(long[refined])
        short[:, refined] = matmul(short[:, refined], x)
        long[refined] = vh * s[refined, None]
    if not s.min() > _SMALLEST_GRAM_RATIO * s.max():
        raise NotConverged("the smallest singular values would lose digits")
    s, order = torch.sort(s, descending=True, stable=True)
    if not torch.equal(order, torch.arange(len(s))):
        short, long = short[:, order], long[order]
    residual = _residual(wide, short, s, long, s)
    if not residual < _LARGEST_RESIDUAL:
        raise NotConverged(f"residual {residual:.1e}")
    return _Sides(s, short, long, s, tall, "gram", residual)


def _values_from_gram(w: Tensor) -> Spectrum:
    """Decompose likewise, without vectors."""
    wide = w if w.shape[0] <= w.shape[1] else w.T
    if not 1e-100 < torch.linalg.vector_norm(w) < 1e100:
        raise NotConverged("the entries' squares leave the range of float64")
    s = eigenvalues(gram(w)).flip(0).clamp(min=0.0).sqrt()
    if not s[0] < _LARGEST_PLAIN_KAPPA * s[-1]:
        count = int((s < _SMALL_VALUE * s[0]).sum())
        if count > _MOST_SMALL_VALUES or count > len(s) // 4:
            raise NotConverged(f"{count} singular values would lose digits")
        s[-count:] = _smallest_values(wide, count)
        s = s.sort(descending=True).values
    residual = _norm_error(w, s)
    if not residual < _LARGEST_NORM_ERROR:
        raise NotConverged(f"residual {residual:.1e}")
    return Spectrum(s, "gram-values", residual)


def _smallest_values(wide: Tensor, count: int) -> Tensor:
    """Return the smallest singular values, found as the largest ones of the inverse."""
    triangle = scipy.linalg.qr(wide.numpy().T, mode="r", check_finite=False)[0][: len(wide)]
    if not abs(triangle.diagonal()).min() > 0:
        raise NotConverged("the matrix is singular")

    def apply_inverse(x: Tensor) -> Tensor:
        # (WWᵀ)⁻¹ = (RᵀR)⁻¹: backward stable, where the Gram matrix itself has lost the digits.
        y = scipy.linalg.solve_triangular(triangle, x, trans="T", check_finite=False)
        return scipy.linalg.solve_triangular(triangle, y, check_finite=False)

    inverse = LinearOperator(triangle[: len(wide), : len(wide)].shape, apply_inverse, dtype="f8")
    start = torch.ones(len(wide), dtype=torch.float64).numpy()
    try:
        found = eigsh(inverse, k=count, v0=start, return_eigenvectors=False)
    except ArpackError as error:
        raise NotConverged("the smallest singular values were not found") from error
    if not (found > 0).all():  # an inverse beyond 1e16 is noise
        raise NotConverged("the smallest singular values were not found")
    return torch.from_numpy(found).rsqrt().sort(descending=True).values


def _gram_vector_error(values: Tensor) -> Tensor:
    """Estimate each vector's error from the Gram matrix's eigenvalues, largest first."""
    return _EPS * values[0] / nearest_distance(values)


def _svd(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute an SVD: divide and conquer, or QR iteration where that does not converge."""
    try:
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
    except torch.linalg.LinAlgError:
        try:
            parts = scipy.linalg.svd(
                w.numpy(), full_matrices=False, lapack_driver="gesvd", check_finite=False
            )
        except scipy.linalg.LinAlgError as error:
            raise torch.linalg.LinAlgError(f"No SVD of LAPACK's converges: {error}") from error
        u, s, vh = (torch.from_numpy(part) for part in parts)
    return u, s, vh


def _norm_error(w: Tensor, s: Tensor) -> float:
    """|Σ σ_i² − ‖W‖_F²| relative to ‖W‖_F²; 0 for the zero matrix."""
    if not s[0] > 0:
        return float(w.any())
    if not 1e-100 < s[0] < 1e100:  # whose squares leave the range of float64
        w, s = w / s[0], s / s[0]
    return abs(float(torch.linalg.vector_norm(s) / torch.linalg.vector_norm(w)) ** 2 - 1)


def _residual(wide: Tensor, short: Tensor, s: Tensor, long: Tensor, lengths: Tensor) -> float:
    """Estimate the errors that `Decomposition.residual` names, at the cost of a few products."""
    norm = torch.linalg.vector_norm(wide)
    scale = norm if norm > 0 else torch.ones_like(norm)
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(len(s), _PROBES, generator=generator, dtype=s.dtype)
    combined = matmul(long.T, probes / lengths[:, None])  # (l, probes)
    left = matmul(short.T, matmul(short, probes)) - probes
    right = matmul(long, combined) / lengths[:, None] - probes
    # W V = U diag(S); that W is nothing outside V's span shows in its norm.
    backward = (matmul(wide, combined) - matmul(short, s[:, None] * probes)) / scale
    # E‖E z‖² = ‖E‖_F² for standard normal z.
    error = max(torch.linalg.vector_norm(x).item() for x in (left, right, backward))
    return max(error / _PROBES**0.5, _norm_error(wide, s))
