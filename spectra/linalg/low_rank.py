"""The rank-structured solver: the base's decomposition plus an update of low rank."""

from __future__ import annotations

import math

import torch
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
from spectra.linalg.root_search import Roots, find_roots
from spectra.linalg.secular import SecularEquation

_EPS = torch.finfo(torch.float64).eps

# Singular values of the update below this share of σ_max change nothing that float64 can hold.
_NEGLIGIBLE_UPDATE = _EPS / 4
# So does a pole's part in the update: it is deflated, its singular pair stays the base's. What
# is exactly 0 for an update within the span of some base vectors comes out as about ε.
_NEGLIGIBLE_PART = 4 * _EPS
# Poles closer than this share of σ_max (or to 0) have no vectors of their own to start from.
_SMALLEST_GAP = 1e-14
# From this share of the factor's own on, what lies outside is a difference without cancellation.
_LARGE_OUTSIDE = 0.1
# Certificate. A vector is wrong by about its residual over the distance to the nearest other
# singular value; a float64 SVD leaves a residual of 1e-15 to 1e-14.
_LARGEST_RESIDUAL = 1e-12
_LARGEST_VECTOR_ERROR = 3e-8
_LARGEST_MIXTURE = 1e-2
# Rows of the base's coordinates at a time: 128 columns of 4096 are 4 MiB, which stay in cache.
_COLUMNS = 128


class LowRankUpdate:
    """W_0 + B A in the singular bases of W_0, ready to be solved.

    Parameters
    ----------
    base : Decomposition
        Of W_0, of shape (m, n).
    b : Tensor of shape (m, r)
        Left factor, scaling included; any floating dtype.
    a : Tensor of shape (r, n)
        Right factor.

    Raises
    ------
    ValueError
        If the factors do not fit the base.
    NotConverged
        If the base has (nearly) repeated or vanishing singular values, or r exceeds k.
    """

    def __init__(self, base: Decomposition, b: Tensor, a: Tensor) -> None:
        m, n = base.u.shape[0], base.vh.shape[1]
        if b.shape[0] != m or a.shape[1] != n or b.shape[1] != a.shape[0]:
            raise ValueError(
                f"b and a must have the shapes ({m}, r) and (r, {n}), got {tuple(b.shape)} and "
                f"{tuple(a.shape)}."
            )
        self._base = base
        self._largest = base.s[0].item()
        gaps = torch.cat([base.s, base.s.new_zeros(1)]).diff().neg()
        if not (gaps > _SMALLEST_GAP * self._largest).all():
            raise NotConverged("The base has repeated or vanishing singular values.")
        if not 1e-100 < self._largest < 1e100:
            raise NotConverged("The entries' squares leave the range of float64.")
        b, a = (factor.detach().cpu().double() for factor in (b, a))
        left, right = _balanced(b, a, _NEGLIGIBLE_UPDATE * self._largest)
        self.rank = left.shape[1]
        self._sizes = left.square().sum(0)  # singular values of the update
        self._reach = self._sizes.max().item() if self.rank else 0.0
        if self.rank >= len(base.s):
            raise NotConverged("The update is not of low rank.")
        p, q = base.u.T @ left, base.vh @ right  # (k, r)
        # ‖W_t‖_F² − ‖W_0‖_F², for the check that no root is missed or found twice.
        self._added = (2 * (base.s @ (p * q).sum(1)) + self._sizes.square().sum()).item()
        self._outside = torch.block_diag(
            _gram_outside(base.u, left, p), _gram_outside(base.vh.T, right, q)
        )
        part = torch.linalg.vector_norm(torch.cat([p, q], dim=1), dim=1)
        limit = _NEGLIGIBLE_PART * self._largest / max(math.sqrt(self._reach), 1e-300)
        # Ascending from here on, as the intervals between poles are.
        order = torch.arange(len(base.s)).flip(0)
        moved = part.flip(0) > limit
        self._kept, self._moved = order[~moved], order[moved]
        self._p, self._q = p[self._moved], q[self._moved]
        self._equation: SecularEquation | None = None
        self._roots: Roots | None = None

    def values(self) -> Spectrum:
        """Singular values of W_0 + B A.

        Raises
        ------
        NotConverged
            If a root is not found, or its certificate fails.
        """
        s, order = self._ordered()
        residuals = [self._vectors(members)[2].max().item() for members in order.split(_COLUMNS)]
        worst = max(max(residuals) / s[0].item(), self._trace_error(s))
        if not worst <= _LARGEST_RESIDUAL:
            raise NotConverged(f"residual {worst:.1e}")
        return Spectrum(s, "low-rank-values", worst)

    def turned(self) -> Turned:
        """Singular values and vectors of W_0 + B A, the vectors in those of W_0.

        Raises
        ------
        NotConverged
            If a root is not found, or a vector's certificate fails.
        """
        s, order = self._ordered()
        k, width, p = len(s), band_width(len(s)), min(LEADING, len(s))
        near = [s.new_zeros(k, 2 * width + 1) for _ in range(2)]
        leading = [s.new_zeros(k, p) for _ in range(2)]
        residual = s.new_zeros(k)
        for first in range(0, k, _COLUMNS):
            members = order[first : first + _COLUMNS]
            *sides, residual[first : first + _COLUMNS] = self._vectors(members)
            for side, columns in enumerate(sides):
                near[side][first : first + _COLUMNS] = diagonals(columns, first, width)
                if first < p:
                    leading[side][:, first : first + _COLUMNS] = columns[:, : p - first]
        worst = self._certified(s, residual)
        return Turned(
            s=s,
            near_u=near[0].clamp_(max=1.0),
            near_v=near[1].clamp_(max=1.0),
            leading_u=leading[0],
            leading_v=leading[1],
            solver="low-rank",
            residual=worst,
        )

    def _solve(self) -> tuple[SecularEquation, Roots]:
        if self._equation is None or self._roots is None:
            poles = self._base.s[self._moved]
            self._equation = SecularEquation(poles, self._p, self._q, self._outside, self._reach)
            self._roots = find_roots(self._equation)
        return self._equation, self._roots

    def _ordered(self) -> tuple[Tensor, Tensor]:
        """Singular values, largest first, and who they are: roots, then poles that stayed."""
        values = [self._base.s[self._kept]]
        if len(self._moved):
            equation, roots = self._solve()
            values.insert(0, equation.poles[roots.anchor] + roots.delta)
        s = torch.cat(values)
        s, order = torch.sort(s, descending=True, stable=True)
        if not (s > 0).all():
            raise NotConverged("A singular value vanishes.")
        return s, order

    def _vectors(self, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U_0ᵀu and V_0ᵀv of some singular pairs, shape (k, c) each, and their residuals."""
        k, c = len(self._base.s), len(members)
        u, v = self._base.s.new_zeros(k, c), self._base.s.new_zeros(k, c)
        residual = self._base.s.new_zeros(c)
        is_root = members < len(self._moved)
        stayed = torch.nonzero(~is_root)[:, 0]
        kept = self._kept[members[stayed] - len(self._moved)]
        u[kept, stayed] = v[kept, stayed] = 1.0
        if is_root.any():
            columns = torch.nonzero(is_root)[:, 0]
            left, right, residual[columns] = self._root_vectors(members[columns])
            rows = self._moved[:, None]
            u[rows, columns], v[rows, columns] = left, right
        return u, v, residual

    def _root_vectors(self, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        equation, roots = self._solve()
        z, r = roots.z[members], self.rank
        anchor, delta = roots.anchor[members], roots.delta[members]
        poles, sigma = equation.poles, equation.poles[anchor] + delta
        # The components along the eigenvectors (e_j, ±e_j)/√2 of the base, j running down.
        from_p, from_q = self._p @ z[:, :r].T, self._q @ z[:, r:].T
        plus = (from_p + from_q) / ((poles[:, None] - poles[anchor]) - delta)
        columns = torch.arange(len(members))
        own = -math.sqrt(2.0) * roots.own[members]
        along = (from_p + from_q)[anchor, columns] + own * delta
        plus[anchor, columns] = own
        minus = (from_q - from_p) / (poles[:, None] + sigma)
        u, v = (plus + minus) / 2, (plus - minus) / 2
        # G(σ) z from the finished vectors: what is left of it is the error of the eigenvalue
        # equation of [[0, W_t], [W_tᵀ, 0]].
        hidden = z @ self._outside / sigma[:, None]
        left_over = torch.cat([z[:, r:], z[:, :r]], dim=1) - hidden
        left_over += torch.cat([self._p.T @ u, self._q.T @ v]).T
        left_over *= self._sizes.sqrt().repeat(2)
        beyond = hidden * z / sigma[:, None]
        length_u = (u.square().sum(0) + beyond[:, :r].sum(1)).sqrt()
        length_v = (v.square().sum(0) + beyond[:, r:].sum(1)).sqrt()
        length = torch.maximum(length_u, length_v)
        residual = torch.hypot(torch.linalg.vector_norm(left_over, dim=1), along) / length
        # Both halves are equally long but for a share of −σ's vector, (u, −v), which their own
        # lengths take out again unless σ is too close to 0 to tell the two apart.
        mixed = (length_u - length_v).abs() > _LARGEST_MIXTURE * length
        return u / length_u, v / length_v, torch.where(mixed, torch.inf, residual)

    def _trace_error(self, s: Tensor) -> float:
        """|Σ σ_i² − ‖W_t‖_F²| relative to ‖W_t‖_F²; raises NotConverged where it is no rounding."""
        k = len(s)
        # Differences of neighbours first: the sum of k squares would round away small drifts.
        added = ((s - self._base.s) * (s + self._base.s)).sum().item()
        error = abs(added - self._added) / s.square().sum().item()
        if not error <= _LARGEST_RESIDUAL / k:
            raise NotConverged(f"The squares of the roots do not add up: {error:.1e}.")
        return error

    def _certified(self, s: Tensor, residual: Tensor) -> float:
        """Return the largest residual; raises NotConverged where a vector may be wrong."""
        trace_error = self._trace_error(s)
        residual = residual / s[0]
        nearest = nearest_distance(s) / s[0]
        worst = max(residual.max().item(), trace_error)
        error = (residual / nearest).max().item()
        apart = nearest.min().item() > _SMALLEST_GAP
        if not (apart and worst <= _LARGEST_RESIDUAL and error <= _LARGEST_VECTOR_ERROR):
            raise NotConverged(f"residual {worst:.1e}, vectors within {error:.1e}")
        return worst


def _balanced(b: Tensor, a: Tensor, negligible: float) -> tuple[Tensor, Tensor]:
    """Factors L, R of least rank with B A = L Rᵀ, each with orthogonal columns of equal length."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    x, t, yh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    if not torch.isfinite(t).all():
        raise NotConverged("The update leaves the range of float64.")
    kept = t > negligible
    root = t[kept].sqrt()
    return q_b @ x[:, kept] * root, q_a @ yh[kept].T * root


def _gram_outside(basis: Tensor, factor: Tensor, coordinates: Tensor) -> Tensor:
    """Gram matrix of what of the factor's columns lies outside the span of the basis."""
    if basis.shape[0] == basis.shape[1]:
        return factor.new_zeros(factor.shape[1], factor.shape[1])
    if not factor.shape[1]:
        return factor.new_zeros(0, 0)
    whole = factor.T @ factor
    difference = whole - coordinates.T @ coordinates
    if torch.linalg.eigvalsh(difference)[0] > _LARGE_OUTSIDE * whole.diagonal().max():
        return difference  # spares a pass over the basis: 8 of 165 ms at 1024×4096
    rest = factor - basis @ coordinates
    return rest.T @ rest
