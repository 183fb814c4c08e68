"""Every metric against a closed form or an inequality."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectra import metrics


def orthonormal(d: int, k: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64)).Q


def test_delta_sigma_is_the_mean_absolute_change() -> None:
    s_0 = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    s_t = torch.tensor([5.0, 1.5, 1.0], dtype=torch.float64)
    assert metrics.singular_value_deviation(s_t, s_0) == 0.5
    assert metrics.singular_value_deviation(s_0, s_0) == 0.0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999))
def test_delta_sigma_is_at_most_the_norm_of_the_update(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    e = 0.1 * torch.randn(6, 9, generator=generator, dtype=torch.float64)
    s_0, s_t = torch.linalg.svdvals(w), torch.linalg.svdvals(w + e)
    weyl = torch.linalg.matrix_norm(e, 2).item()
    assert metrics.singular_value_deviation(s_t, s_0) <= weyl * (1 + 1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.3, 1.2])
def test_turning_two_vectors_by_an_angle_costs_its_cosine(angle: float) -> None:
    u_0 = torch.eye(5, dtype=torch.float64)
    c, s = math.cos(angle), math.sin(angle)
    rotation = torch.eye(5, dtype=torch.float64)
    rotation[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    overlap = metrics.vector_overlaps(rotation @ u_0, u_0)
    ones = torch.ones(5, dtype=torch.float64)
    expected = (1 - c) * 2 / 5 / 2  # two of five vectors, and only the left ones
    assert metrics.singular_vector_deviation(overlap, ones) == pytest.approx(expected, abs=1e-16)
    assert metrics.mean_turn(overlap) == pytest.approx(2 * expected, abs=1e-16)


def test_drift_ignores_sign_flips() -> None:
    u = orthonormal(8, 5, 0)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(metrics.vector_overlaps(u * signs, u), torch.ones(5).double())


def test_unrelated_bases_overlap_by_the_known_mean() -> None:
    d = 400
    overlap = metrics.vector_overlaps(orthonormal(d, d, 1), orthonormal(d, d, 2))
    # Coordinates of a random unit vector are nearly N(0, 1/d), of mean modulus √(2/πd).
    assert overlap.mean().item() == pytest.approx(math.sqrt(2 / (math.pi * d)), rel=0.15)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape, got"):
        metrics.singular_value_deviation(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="same shape, got"):
        metrics.vector_overlaps(torch.ones(3, 2), torch.ones(3, 3))
    with pytest.raises(ValueError, match="same shape, got"):
        metrics.singular_vector_deviation(torch.ones(3), torch.ones(4))


def test_condition_number_is_infinite_without_a_smallest_value() -> None:
    assert metrics.condition_number(torch.tensor([6.0, 3.0])) == 2.0
    assert metrics.condition_number(torch.tensor([6.0, 0.0])) == math.inf
    assert metrics.condition_number(torch.tensor([0.0, 0.0])) == math.inf


def test_orthonormality_error_of_scaled_columns() -> None:
    u = orthonormal(9, 4, 3)
    assert metrics.orthonormality_error(u) < 1e-14
    # (1.1² − 1) on each of the four diagonal entries.
    assert metrics.orthonormality_error(1.1 * u) == pytest.approx(2 * 0.21, rel=1e-12)
    assert metrics.orthonormality_error(torch.zeros(9, 4)) == 2.0


def test_ranks_of_flat_and_of_peaked_spectra() -> None:
    flat, peaked = torch.ones(7).double(), torch.tensor([1.0, 0.0, 0.0]).double()
    assert metrics.stable_rank(flat) == pytest.approx(7)
    assert metrics.effective_rank(flat) == pytest.approx(7)
    assert metrics.stable_rank(peaked) == metrics.effective_rank(peaked) == 1.0
    assert metrics.stable_rank(0 * flat) == metrics.effective_rank(0 * flat) == 0.0


def test_frobenius_drift_is_relative_to_the_base() -> None:
    assert metrics.frobenius_drift(1.0, 4.0) == 0.25
    assert math.isnan(metrics.frobenius_drift(1.0, 0.0))


def test_spectral_drift_is_relative_to_the_base() -> None:
    assert metrics.spectral_drift(0.5, 4.0) == 0.125
    assert metrics.spectral_drift(0.0, 4.0) == 0.0
    assert math.isnan(metrics.spectral_drift(1.0, 0.0))


def test_ill_determined_values_are_those_with_a_close_neighbour() -> None:
    s = torch.tensor([10.0, 5.0, 5.0 - 9e-5, 5.0 - 18e-5, 3.0, 2.0, 2.0, 1.0]).double()
    assert metrics.ill_determined_share(s) == 5 / 8  # a chain of three, and a pair
    assert metrics.ill_determined_share(s.flip(0)) == 5 / 8
    assert metrics.ill_determined_share(s, relative_gap=1e-6) == 2 / 8
    assert metrics.ill_determined_share(s, relative_gap=0.0) == 2 / 8
    assert metrics.ill_determined_share(s, relative_gap=0.11) == 7 / 8


@given(scale=st.floats(1e-30, 1e30))
def test_ill_determined_share_is_without_a_unit(scale: float) -> None:
    s = torch.tensor([4.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    assert metrics.ill_determined_share(scale * s) == 0.5


def test_ill_determined_share_of_one_value_and_of_equal_ones() -> None:
    assert metrics.ill_determined_share(torch.tensor([2.0])) == 0.0
    assert metrics.ill_determined_share(torch.tensor([0.0])) == 0.0
    assert metrics.ill_determined_share(torch.zeros(5)) == 1.0
    assert metrics.ill_determined_share(torch.ones(5)) == 1.0
    with pytest.raises(ValueError, match="relative_gap must be 0 or more"):
        metrics.ill_determined_share(torch.ones(5), relative_gap=-1.0)


def test_a_perturbation_of_the_gap_turns_ill_determined_vectors_and_no_others() -> None:
    s = torch.tensor([3.0, 2.0, 2.0 - 1e-6, 1.0], dtype=torch.float64)
    assert metrics.ill_determined_share(s) == 0.5
    w_0 = torch.diag(s)
    w_t = w_0 + 1e-5 * torch.tensor([[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]])
    overlap = metrics.vector_overlaps(torch.linalg.svd(w_t).U, torch.eye(4, dtype=torch.float64))
    assert overlap[[0, 3]].min() > 1 - 1e-8
    assert overlap[[1, 2]].max() < 0.8
