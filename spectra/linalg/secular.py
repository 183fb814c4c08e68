"""Roots of the secular equation of a diagonal matrix plus a low-rank update, all at once.

In the base's singular bases, W_t is diag(S) + P Qᵀ. The singular values σ of W_t are the positive
eigenvalues of [[0, W_t], [W_tᵀ, 0]], that is, of a diagonal matrix with the poles ±S_j (and 0,
where W_0 is not square) plus an update of rank 2r. With x_j^± = [P_j, ±Q_j]/√2 and
J = [[0, I], [I, 0]] they are the points where the 2r × 2r matrix

    G(σ) = J + Σ_j x_j⁺x_j⁺ᵀ/(S_j − σ) − Σ_j x_j⁻x_j⁻ᵀ/(S_j + σ) − K/σ

is singular; K holds what of the factors lies outside the base's singular vectors. With G(σ) z = 0,
the singular vectors in the base's coordinates follow from x_j^± · z.

Nothing is squared, so σ and κ keep the digits of an SVD, and σ is kept as S_a + δ with the nearest
pole S_a, so that small drifts keep their own digits. The sums over j are split: poles near a group
of roots are summed as they are, those far from it enter through a Chebyshev interpolant, made once
per group (as in a fast multipole method). That makes one evaluation for all k roots cost
O(k r²) instead of O(k² r²).

References
----------
Golub, Some modified matrix eigenvalue problems, SIAM Review 15 (1973); Gu and Eisenstat, A
divide-and-conquer algorithm for the bidiagonal SVD, SIAM J. Matrix Anal. Appl. 16 (1995).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A pole is near a group of roots when it is closer to the group's centre than this many of its
# half-widths; the far ones' interpolant then converges as 5.8^-n, to 1e-17 with 22 nodes.
_NEAR = 3.0
_NODES = 22
# A group is split until its near poles cost this many products an evaluation, which take about as
# long as what every group costs besides (0.3 ms; 2 cores). At r = 16 that is 240 near poles.
_GROUP_PRODUCTS = 3e7
_FEWEST_NEAR_POLES = 128
_SMALLEST_GROUP = 4


@dataclass(frozen=True)
class _Group:
    """Neighbouring pole intervals whose roots are evaluated together."""

    centre: float
    half_width: float
    near: slice
    coefficients: Tensor  # (_NODES, pairs), of the far poles' sum in Chebyshev polynomials


@dataclass(frozen=True)
class _Part:
    """The points of one group: weights of the near poles, derivatives of the polynomials."""

    group: _Group
    rows: slice
    plus: Tensor
    minus: Tensor
    derivative: Tensor


@dataclass(frozen=True)
class Reduced:
    """H = G without the anchor's pole, at t points.

    Attributes
    ----------
    positive : Tensor of shape (t,), int64
        Number of positive eigenvalues of H.
    shift : Tensor of shape (t,)
        x_aᵀ H⁻¹ x_a.
    slope : Tensor of shape (t,)
        wᵀ H′ w ≥ 0, which is −d/dδ of `shift`.
    w : Tensor of shape (t, 2r)
        H⁻¹ x_a: at a root, the null vector of G.
    """

    positive: Tensor
    shift: Tensor
    slope: Tensor
    w: Tensor


@dataclass(frozen=True)
class Full:
    """G at t points, with one eigenvector z each.

    Attributes
    ----------
    positive : Tensor of shape (t,), int64
        Number of positive eigenvalues of G.
    level, slope : Tensor of shape (t,)
        zᵀHz and zᵀH′z.
    weight : Tensor of shape (t,)
        (x_aᵀz)²: zᵀGz = level − weight/δ.
    z : Tensor of shape (t, 2r)
        Of unit length.
    own : Tensor of shape (t,)
        x_aᵀz/δ, by way of H where x_aᵀz is lost to rounding.
    """

    positive: Tensor
    level: Tensor
    slope: Tensor
    weight: Tensor
    z: Tensor
    own: Tensor


class SecularEquation:
    """The equation for given poles and update.

    Parameters
    ----------
    poles : Tensor of shape (k,), float64
        Singular values of the base, ascending, positive and all different.
    p, q : Tensor of shape (k, r), float64
        The update's factors in the base's left and right singular bases.
    outside : Tensor of shape (2r, 2r), float64
        K: Gram matrices of what of both factors lies outside these bases, in two diagonal blocks.
    reach : float
        At least the spectral norm of the update: no root lies further above the largest pole.
    """

    def __init__(self, poles: Tensor, p: Tensor, q: Tensor, outside: Tensor, reach: float) -> None:
        self.poles = poles
        self.rank = p.shape[1]
        self.x = torch.cat([p, q], dim=1) / math.sqrt(2.0)  # (k, 2r), x_j⁺
        self.outside = outside
        size = 2 * self.rank
        self._exchange = poles.new_zeros(size, size)
        self._exchange[: self.rank, self.rank :] = torch.eye(self.rank)
        self._exchange += self._exchange.T.clone()
        rows, columns = torch.triu_indices(size, size)
        crossed = (rows < self.rank) & (columns >= self.rank)
        order = torch.cat([torch.nonzero(~crossed)[:, 0], torch.nonzero(crossed)[:, 0]])
        rows, columns = rows[order], columns[order]
        # Products of two columns of X: those within P and within Q first, P with Q after, since
        # x⁻ differs from x⁺ in the sign of the latter only.
        self._same = int((~crossed).sum())
        self._pairs = self.x[:, rows] * self.x[:, columns]  # (k, r (2r + 1))
        self._rows, self._columns = rows, columns
        # zᵀMz from the distinct entries of M: those off the diagonal count twice.
        self._multiplicity = torch.where(rows == columns, 1.0, 2.0).double()
        place = torch.empty(size, size, dtype=torch.long)
        place[rows, columns] = place[columns, rows] = torch.arange(len(order))
        self._place = place.flatten()
        top = poles[-1] + (1 + 1e-12) * reach
        # Interval i lies between edge i and edge i + 1; interval 0 below the smallest pole.
        self.edges = torch.cat([poles.new_zeros(1), poles, top.reshape(1)])
        self._groups, self._starts = self._make_groups()
        self._centres = poles.new_tensor([group.centre for group in self._groups])
        self._half_widths = poles.new_tensor([group.half_width for group in self._groups])

    def reduced(self, anchor: Tensor, delta: Tensor, interval: Tensor) -> Reduced:
        """Evaluate the equation with each anchor's own pole taken out.

        With H = G without that pole, G(S_a + δ) is singular where δ = x_aᵀ H(S_a + δ)⁻¹ x_a.

        Parameters
        ----------
        anchor : Tensor of shape (t,), int64
            Index a of the pole that each point is measured from.
        delta : Tensor of shape (t,)
            Distance δ from it.
        interval : Tensor of shape (t,), int64
            Interval between two edges that holds the point; ascending.
        """
        matrix, sigma, parts = self._without_anchor(anchor, delta, interval)
        x = self.x[anchor]
        factors, pivots, _ = torch.linalg.ldl_factor_ex(matrix)
        w = torch.linalg.ldl_solve(factors, pivots, x[:, :, None])[:, :, 0]
        diagonal = torch.diagonal(factors, dim1=1, dim2=2)
        # A pivot block of 2 × 2 has one positive and one negative eigenvalue.
        positive = ((diagonal > 0) & (pivots > 0)).sum(1) + (pivots < 0).sum(1) // 2
        return Reduced(positive, (x * w).sum(1), self._slope(sigma, parts, w), w)

    def full(self, anchor: Tensor, delta: Tensor, interval: Tensor, wanted: Tensor) -> Full:
        """Evaluate G itself through its eigenvalues; slower than `reduced`, never ill-posed.

        Parameters
        ----------
        anchor, delta, interval : Tensor of shape (t,)
            As in `reduced`; δ ≠ 0.
        wanted : Tensor of shape (t,), int64
            Which eigenvalue of G to follow, counted from the largest.
        """
        matrix, sigma, parts = self._without_anchor(anchor, delta, interval)
        x = self.x[anchor]
        eigenvalues, vectors = torch.linalg.eigh(
            matrix - x[:, :, None] * (x / delta[:, None])[:, None, :]
        )
        place = (2 * self.rank - 1 - wanted).clamp(0, 2 * self.rank - 1)
        z = vectors.gather(2, place[:, None, None].expand(-1, 2 * self.rank, 1))[:, :, 0]
        along, image = (x * z).sum(1), (matrix @ z[:, :, None])[:, :, 0]  # x_aᵀz, Hz
        # At a root Hz = x_a (x_aᵀz)/δ: the better way where δ is the smaller number.
        square = x.square().sum(1)
        through = (x * image).sum(1) / square
        small = delta.abs() * torch.linalg.vector_norm(matrix, dim=(1, 2)) < square
        return Full(
            positive=(eigenvalues > 0).sum(1),
            level=(image * z).sum(1),
            slope=self._slope(sigma, parts, z),
            weight=along.square(),
            z=z,
            own=torch.where(small, through, along / delta),
        )

    def _make_groups(self) -> tuple[list[_Group], Tensor]:
        bounds = self._split()
        angles = (torch.arange(_NODES, dtype=torch.float64) + 0.5) * math.pi / _NODES
        orders = torch.arange(_NODES, dtype=torch.float64)
        transform = torch.cos(orders[:, None] * angles) * (2 / _NODES)
        transform[0] /= 2
        groups = []
        for first, last in bounds:
            low, high = self.edges[first].item(), self.edges[last].item()
            centre, half_width = (low + high) / 2, (high - low) / 2
            near = self._near(low, high)
            nodes = centre + half_width * torch.cos(angles)
            plus = 1 / (self.poles - nodes[:, None])
            minus = -1 / (self.poles + nodes[:, None])
            plus[:, near] = 0.0
            minus[:, near] = 0.0
            far = self._contract(plus, minus, slice(None))
            groups.append(_Group(centre, half_width, near, transform @ far))
        return groups, torch.tensor([first for first, _ in bounds])

    def _split(self) -> list[tuple[int, int]]:
        """Cut the intervals 0 … k into runs [first, last) with few poles near each."""
        k = len(self.poles)
        # Above the largest pole there are few roots in what may be a wide interval.
        done, todo = [(k, k + 1)], [(0, k)]
        limit = max(_FEWEST_NEAR_POLES, math.sqrt(_GROUP_PRODUCTS / self._pairs.shape[1]))
        while todo:
            first, last = todo.pop()
            low, high = self.edges[first].item(), self.edges[last].item()
            near = self._near(low, high)
            if near.stop - near.start <= limit or last - first <= _SMALLEST_GROUP:
                done.append((first, last))
                continue
            middle = int(torch.searchsorted(self.edges, (low + high) / 2))
            middle = min(max(middle, first + 1), last - 1)
            todo += [(first, middle), (middle, last)]
        return sorted(done)

    def _near(self, low: float, high: float) -> slice:
        """Return the indices of the poles S_j with S_j or −S_j near the interval: one run."""
        centre, reach = (low + high) / 2, _NEAR * (high - low) / 2
        inside = torch.tensor([centre - reach, centre + reach], dtype=torch.float64)
        start, stop = torch.searchsorted(self.poles, inside).tolist()
        mirrored = int(torch.searchsorted(self.poles, reach - centre, right=True))
        return slice(0 if mirrored else start, max(stop, mirrored))

    def _contract(self, plus: Tensor, minus: Tensor, rows: slice) -> Tensor:
        """Σ_j plus_j x_j⁺x_j⁺ᵀ + minus_j x_j⁻x_j⁻ᵀ as its distinct entries; shape (t, pairs)."""
        pairs = self._pairs[rows]
        same = (plus + minus) @ pairs[:, : self._same]
        return torch.cat([same, (plus - minus) @ pairs[:, self._same :]], dim=1)

    def _without_anchor(
        self, anchor: Tensor, delta: Tensor, interval: Tensor
    ) -> tuple[Tensor, Tensor, list[_Part]]:
        """H at every point, the points, and what `_slope` needs."""
        sigma = self.poles[anchor] + delta
        size = 2 * self.rank
        matrix = delta.new_empty(len(delta), size, size)
        group_of = torch.searchsorted(self._starts, interval, right=True) - 1
        limits = torch.searchsorted(group_of, torch.arange(len(self._groups) + 1)).tolist()
        value, derivative = _chebyshev(
            (sigma - self._centres[group_of]) / self._half_widths[group_of]
        )
        parts = []
        for group, start, stop in zip(self._groups, limits[:-1], limits[1:], strict=True):
            if start == stop:
                continue
            rows = slice(start, stop)
            poles, own = self.poles[group.near], anchor[rows]
            # Differences of poles are exact to their last digit, also where δ is tiny.
            plus = (poles - self.poles[own, None]).sub_(delta[rows, None]).reciprocal_()
            column = own - group.near.start
            inside = (column >= 0) & (column < len(poles))
            plus[torch.nonzero(inside)[:, 0], column[inside]] = 0.0
            minus = (poles + sigma[rows, None]).reciprocal_().neg_()
            entries = self._contract(plus, minus, group.near)
            entries.addmm_(value[rows], group.coefficients)
            matrix[rows] = entries.index_select(1, self._place).view(-1, size, size)
            parts.append(_Part(group, rows, plus, minus, derivative[rows]))
        matrix += self._exchange
        matrix -= self.outside / sigma[:, None, None]
        return matrix, sigma, parts

    def _slope(self, sigma: Tensor, parts: list[_Part], z: Tensor) -> Tensor:
        """zᵀH′(σ)z, which is never negative."""
        slope = (z @ self.outside * z).sum(1) / sigma.square()
        mirrored = z.clone()
        mirrored[:, self.rank :] *= -1
        products = z.index_select(1, self._rows).mul_(z.index_select(1, self._columns))
        products *= self._multiplicity
        for part in parts:
            group, rows = part.group, part.rows
            x = self.x[group.near]
            for sides, weights in ((z, part.plus), (mirrored, part.minus)):
                along = (sides[rows] @ x.T).mul_(weights)
                slope[rows] += torch.linalg.vector_norm(along, dim=1).square()
            far = part.derivative @ (group.coefficients / group.half_width)
            slope[rows] += far.mul_(products[rows]).sum(1)
        return slope


def _chebyshev(x: Tensor) -> tuple[Tensor, Tensor]:
    """Chebyshev polynomials and their derivatives; shape (t, _NODES) each."""
    value, derivative = [torch.ones_like(x), x], [torch.zeros_like(x), torch.ones_like(x)]
    for _ in range(_NODES - 2):
        derivative.append(2 * value[-1] + 2 * x * derivative[-1] - derivative[-2])
        value.append(2 * x * value[-1] - value[-2])
    return torch.stack(value, dim=1), torch.stack(derivative, dim=1)
