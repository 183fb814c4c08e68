"""Finding every root of the secular equation, each by its number and within its own bracket."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.linalg.decomposition import NotConverged
from spectra.linalg.secular import SecularEquation

_EPS = torch.finfo(torch.float64).eps
# Newton's method on the reduced equation settles nearly all roots in 1 to 4 evaluations. Those
# that need more have hardly a component along their anchor and are better found through G.
_REDUCED_STEPS = 6
# Bisection alone would need 60; the model function that is used needs 2 to 6.
_FULL_STEPS = 80
# 1 + slope is the inverse of a vector's squared component along its anchor; beyond this, the
# reduced equation loses so many digits that G itself is asked.
_LARGEST_SLOPE = 1e3
# A step this small, relative to δ or to σ, changes nothing any more.
_DELTA_TOLERANCE = 8 * _EPS
_SIGMA_TOLERANCE = 0.25 * _EPS


@dataclass(frozen=True)
class Roots:
    """The k roots σ_i = S[anchor_i] + delta_i, ascending.

    Attributes
    ----------
    anchor : Tensor of shape (k,), int64
        Index of the pole that the root is measured from.
    delta : Tensor of shape (k,)
        Distance from it.
    z : Tensor of shape (k, 2r)
        Null vector of G there, of any length.
    own : Tensor of shape (k,)
        x_aᵀz/δ, the vector's component along its anchor, without the cancellation in x_aᵀz.
    """

    anchor: Tensor
    delta: Tensor
    z: Tensor
    own: Tensor


def find_roots(equation: SecularEquation) -> Roots:
    """Find all roots.

    The number of roots below a point follows from the number of positive eigenvalues of G there
    (Sylvester's law of inertia), so every root has its bracket and none is found twice or missed.

    Raises
    ------
    NotConverged
        If a root is not found within `_FULL_STEPS` evaluations.
    """
    return _Search(equation).run()


class _Search:
    """The state of all roots: anchor, distance and bracket (both relative to the anchor)."""

    def __init__(self, equation: SecularEquation) -> None:
        self.equation = equation
        poles, edges = equation.poles, equation.edges
        k = len(poles)
        self.number = torch.arange(k)
        at_poles = equation.reduced(self.number, poles.new_zeros(k), self.number)
        # Between −0 and +0 the pole itself and its root change places: no jump in the count.
        below = self.number + (at_poles.shift < 0).long() + at_poles.positive - equation.rank
        below = torch.cummax(below, dim=0).values.clamp(0, k)
        self.interval = torch.searchsorted(below, self.number, right=True)
        self.left = (self.interval - 1).clamp(min=0)
        self.right = self.interval.clamp(max=k - 1)
        # With as many positive eigenvalues as J has, a pole's own root lies next to it.
        own = (at_poles.positive == equation.rank) & (self.interval - self.number).ge(0)
        own &= self.interval - self.number <= 1
        self.anchor = torch.where(own, self.number, self.left)
        origin = poles[self.anchor]
        self.low = edges[self.interval] - origin
        self.high = edges[self.interval + 1] - origin
        self.delta = torch.where(own, at_poles.shift / (1 + at_poles.slope), torch.nan)
        self._keep_inside(self.number)
        self.z = poles.new_zeros(k, 2 * equation.rank)
        # Of the reduced equation's vector H⁻¹x_a it is 1 by the equation itself.
        self.own = poles.new_ones(k)

    def run(self) -> Roots:
        poor = self._run_reduced()
        self._run_full(poor)
        sigma = self.equation.poles[self.anchor] + self.delta
        order = torch.argsort(sigma, stable=True)
        return Roots(self.anchor[order], self.delta[order], self.z[order], self.own[order])

    def _run_reduced(self) -> Tensor:
        """Newton's method on δ − x_aᵀH⁻¹x_a; returns the numbers of the roots left over."""
        active, poor = self.number, []
        for _ in range(_REDUCED_STEPS):
            if not len(active):
                break
            anchor, delta, interval = self._of(active)
            found = self.equation.reduced(anchor, delta, interval)
            below = interval - (anchor < interval).long() + found.positive - self.equation.rank
            above = found.shift < delta  # the zero that Newton steps to lies below this point
            self._narrow(active, below + above.long())
            step = (found.shift - delta) / (1 + found.slope)
            # It is the one numbered `below`, which may be another root: then the bracket halves.
            new = torch.where(below == active, delta + step, torch.nan)
            settled = self._move(active, new)
            self.z[active] = found.w
            ill = settled & ~(found.slope < _LARGEST_SLOPE)
            poor.append(active[ill])
            active = active[~settled]
        return torch.cat([active, *poor]).sort().values

    def _run_full(self, active: Tensor) -> None:
        """Follow an eigenvalue of G to zero, on a model that keeps the anchor's pole."""
        for _ in range(_FULL_STEPS):
            if not len(active):
                return
            anchor, delta, interval = self._of(active)
            # At the anchor itself G is infinite; a root there was deflated before.
            delta = torch.where(delta == 0, self._middle(active), delta)
            wanted = active - interval + self.equation.rank
            found = self.equation.full(anchor, delta, interval, wanted)
            self.delta[active] = delta
            self._narrow(active, interval + found.positive - self.equation.rank)
            # level + slope (x − δ) − weight / x = 0, on the side of the anchor where δ is.
            side = torch.sign(delta)
            linear = (found.level - found.slope * delta) * side
            root = (linear.square() + 4 * found.slope * found.weight).sqrt()
            new = side * torch.where(
                linear > 0, 2 * found.weight / (linear + root), (root - linear) / (2 * found.slope)
            )
            settled = self._move(active, new)
            self.z[active], self.own[active] = found.z, found.own
            active = active[~settled]
        if len(active):
            raise NotConverged(f"{len(active)} of {len(self.number)} roots were not found.")

    def _of(self, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.anchor[active], self.delta[active], self.interval[active]

    def _narrow(self, active: Tensor, below: Tensor) -> None:
        """Update the brackets, given the number of roots below each point."""
        delta, is_low = self.delta[active], below <= active
        self.low[active] = torch.where(is_low, delta, self.low[active])
        self.high[active] = torch.where(is_low, self.high[active], delta)

    def _move(self, active: Tensor, new: Tensor) -> Tensor:
        """Go to `new` where it is inside the bracket, else to its middle; who has settled."""
        old, anchor = self.delta[active], self.anchor[active]
        low, high = self.low[active], self.high[active]
        poles = self.equation.poles
        sigma = poles[anchor] + old
        inside = (new > low) & (new < high)
        step = (new - old).abs()
        small = (step <= _DELTA_TOLERANCE * old.abs()) | (step <= _SIGMA_TOLERANCE * sigma)
        # At a root, rounding decides on which side of the bracket's end a last step falls.
        settled = small & ((new >= low) & (new <= high) | (step <= _EPS * sigma))
        settled |= high - low <= _DELTA_TOLERANCE * torch.maximum(low.abs(), high.abs())
        self.delta[active] = torch.where(settled & ~inside, old, new)
        self._keep_inside(active[~settled])
        self._anchor_nearer(active[~settled])
        return settled

    def _keep_inside(self, active: Tensor) -> None:
        delta = self.delta[active]
        inside = (delta > self.low[active]) & (delta < self.high[active])
        self.delta[active] = torch.where(inside, delta, self._middle(active))

    def _middle(self, active: Tensor) -> Tensor:
        """Middle of the bracket; of its exponents where it spans orders of magnitude."""
        low, high = self.low[active], self.high[active]
        near = torch.minimum(low.abs(), high.abs())
        far = torch.maximum(low.abs(), high.abs())
        geometric = (near * far).sqrt() * torch.sign(low + high)
        same_side = (low * high > 0) & (far > 100 * near)
        return torch.where(same_side, geometric, (low + high) / 2)

    def _anchor_nearer(self, active: Tensor) -> None:
        """Measure from the pole at the other end of the interval where that is nearer."""
        poles, interval = self.equation.poles, self.interval[active]
        sigma = poles[self.anchor[active]] + self.delta[active]
        left, right = self.left[active], self.right[active]
        nearer = torch.where(sigma - poles[left] <= poles[right] - sigma, left, right)
        between = (interval > 0) & (interval < len(poles))
        nearer = torch.where(between, nearer, self.anchor[active])
        moved = poles[self.anchor[active]] - poles[nearer]
        for distance in (self.delta, self.low, self.high):
            distance[active] += moved
        self.anchor[active] = nearer
