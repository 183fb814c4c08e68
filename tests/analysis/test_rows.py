"""Every number of a drift row against a plain float64 SVD."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from checkpoints_index import TrainedFactors, Weight
from spectra.analysis.rows import BaseMatrix, Quantities
from tests.helpers import gaussian, low_rank_factors, matrix_with_spectrum, orthonormal


def plain_svd_row(w_t: Tensor, w_0: Tensor) -> dict[str, float]:
    """ΔΣ, ΔD and κ straight from the paper's formulas and torch.linalg.svd."""
    u_0, s_0, vh_0 = torch.linalg.svd(w_0, full_matrices=False)
    u_t, s_t, vh_t = torch.linalg.svd(w_t, full_matrices=False)
    k = len(s_0)
    total_u = sum(abs(torch.dot(u_t[:, i], u_0[:, i]).item()) for i in range(k))
    total_v = sum(abs(torch.dot(vh_t[i], vh_0[i]).item()) for i in range(k))
    return {
        "delta_sigma": sum(abs(s_t[i].item() - s_0[i].item()) for i in range(k)) / k,
        "delta_u": 1 - total_u / k,
        "delta_v": 1 - total_v / k,
        "delta_d": 1 - (total_u + total_v) / (2 * k),
        "sigma_max": s_t[0].item(),
        "sigma_min": s_t[-1].item(),
        "kappa": s_t[0].item() / s_t[-1].item() if s_t[-1] > 0 else math.inf,
    }


BASES = {
    "square": gaussian(48, 48),
    "wide": gaussian(24, 72),
    "tall": gaussian(72, 24),
    "rank deficient": gaussian(40, 12) @ gaussian(12, 56, 1),
    "repeated values": matrix_with_spectrum([4.0] * 6 + [2.0] * 6 + [1.0], 13, 20),
    "ill conditioned": matrix_with_spectrum(torch.logspace(0, -8, 24), 24, 40),
    "row": gaussian(1, 16),
    "column": gaussian(16, 1),
}
DRIFTS = {"tiny": 1e-9, "small": 1e-6, "middle": 1e-3, "large": 1e-1}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rank", [None, 1])
def test_rows_agree_with_a_plain_svd(base: str, drift: str, rank: int | None) -> None:
    w_0 = BASES[base]
    m, n = w_0.shape
    if rank is None:
        update = gaussian(m, n, 7)
    else:
        b, a = low_rank_factors(m, n, rank, 7)
        update = b @ a
    w_t = w_0 + DRIFTS[drift] * update / torch.linalg.matrix_norm(update)
    found, _ = BaseMatrix(w_0).drift(Weight(dense=w_t))
    expected = plain_svd_row(w_t, w_0)
    for name in ("delta_sigma", "delta_u", "delta_v", "delta_d"):
        assert found[name] == pytest.approx(expected[name], abs=1e-8), name
    for name in ("sigma_max", "sigma_min", "kappa"):
        assert found[name] == pytest.approx(expected[name], rel=1e-8, abs=1e-15), name


@pytest.mark.parametrize("base", BASES)
def test_an_unchanged_matrix_has_exactly_no_drift(base: str) -> None:
    row, spectrum = BaseMatrix(BASES[base]).drift(Weight(dense=BASES[base].clone()))
    assert row["delta_sigma"] == row["delta_d"] == row["delta_u"] == row["delta_v"] == 0.0
    assert (spectrum["overlap_u"] == 1).all() and (spectrum["overlap_v"] == 1).all()


def test_float32_drift_below_the_reference_noise_is_still_seen() -> None:
    """A float32 SVD is wrong by more than this in ΔΣ; a float64 one of float32 weights is not."""
    w_0 = gaussian(64, 64).float()
    w_t = w_0.clone()
    w_t[3, 5] += 1e-6
    row, _ = BaseMatrix(w_0).drift(Weight(dense=w_t))
    expected = plain_svd_row(w_t.double(), w_0.double())["delta_sigma"]
    assert 0 < expected < 1e-7
    assert row["delta_sigma"] == pytest.approx(expected, rel=1e-6)


def test_factors_and_formed_weights_give_the_same_row() -> None:
    w_0 = gaussian(30, 44)
    b, a = low_rank_factors(30, 44, 4)
    base = BaseMatrix(w_0)
    from_factors, _ = base.drift(Weight(update=(b, a)))
    from_weights, _ = base.drift(Weight(dense=w_0 + b @ a))
    assert from_factors.keys() == from_weights.keys()
    for name in from_factors.keys() - {"solver", "residual"}:
        assert from_factors[name] == pytest.approx(from_weights[name], abs=1e-9), name


def test_factor_columns_follow_their_closed_forms() -> None:
    u, v = orthonormal(20, 3), orthonormal(30, 3, 1)
    scale = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    factors = TrainedFactors(u * scale, torch.tensor([4.0, 2.0, 1.0]), v.T)
    row, _ = BaseMatrix(gaussian(20, 30)).drift(Weight(factors=factors))
    assert row["kappa_u"] == pytest.approx(4.0, rel=1e-12)
    assert row["kappa_v"] == pytest.approx(1.0, rel=1e-12)
    assert row["kappa_p"] == pytest.approx(8.0 / 0.5, rel=1e-12)
    assert row["ortho_u"] == pytest.approx(math.sqrt(3.0**2 + 0.75**2), rel=1e-12)
    assert row["ortho_v"] < 1e-14


def test_values_only_gives_the_same_values_and_no_vectors() -> None:
    w_0, w_t = gaussian(20, 30), gaussian(20, 30) + 0.01 * gaussian(20, 30, 3)
    full, _ = BaseMatrix(w_0).drift(Weight(dense=w_t))
    values, spectrum = BaseMatrix(w_0, Quantities(vectors=False)).drift(Weight(dense=w_t))
    assert "delta_d" not in values and "overlap_u" not in spectrum
    for name in ("delta_sigma", "sigma_max", "sigma_min", "kappa"):
        assert values[name] == pytest.approx(full[name], rel=1e-10)


def test_a_weight_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 5\), the checkpoint's has \(4, 6\)"):
        BaseMatrix(gaussian(4, 5)).drift(Weight(dense=gaussian(4, 6)))
