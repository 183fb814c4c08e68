"""From an adapter's tensors to W_t − W_0 in float64: what snapshots and saved adapters share."""

from __future__ import annotations

import torch
from torch import Tensor

from checkpoints_index.matrices import TrainedFactors, Weight


def sorsa_weight(trained: TrainedFactors, initial: TrainedFactors) -> Weight:
    """W_t of a SORSA adapter: its trained principal part in the place of the initial one."""
    u, s, vh = trained.u.double(), trained.s.double(), trained.vh.double()
    u0, s0, vh0 = initial.u.double(), initial.s.double(), initial.vh.double()
    if torch.equal(u, u0) and torch.equal(s, s0) and torch.equal(vh, vh0):
        return Weight(factors=trained)
    b = torch.cat([u * s, -u0 * s0], dim=1)  # (m, 2r)
    return Weight(update=(b, torch.cat([vh, vh0])), factors=trained)


def moved_weight(b: Tensor, a: Tensor, b_0: Tensor, a_0: Tensor) -> Weight:
    """W_t = W_0 + B A − B_0 A_0: of what was taken from W_0 and trained."""
    if torch.equal(b, b_0) and torch.equal(a, a_0):
        return Weight()
    left = torch.cat([b.double(), -b_0.double()], dim=1)  # (m, 2r)
    return Weight(update=(left, torch.cat([a.double(), a_0.double()])))


def core_weight(left: Tensor, core: Tensor, right: Tensor) -> Weight:
    """W_t = W_0 + L core R: of a small matrix that is trained between frozen factors."""
    if not core.any():
        return Weight()
    return Weight(update=(left.double() @ core.double(), right.double()))


def full_rank_weight(u: Tensor, core: Tensor, vh: Tensor) -> Weight:
    """W_t = W_0 + U core Vᵀ, of no small rank; a core of one dimension is a diagonal."""
    core = core.double()
    left = u.double() * core if core.ndim == 1 else u.double() @ core
    return Weight(delta=left @ vh.double()) if core.any() else Weight()
