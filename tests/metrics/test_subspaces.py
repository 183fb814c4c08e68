"""Subspace quantities against known rotations and planted directions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectra import metrics
from tests.helpers import gaussian, matrix_with_spectrum, orthonormal


def leading(w_t: Tensor, w_0: Tensor, p: int) -> tuple[Tensor, Tensor]:
    u_t, _, vh_t = torch.linalg.svd(w_t, full_matrices=False)
    u_0, _, vh_0 = torch.linalg.svd(w_0, full_matrices=False)
    return u_0.T @ u_t[:, :p], vh_0 @ vh_t[:p].T


def turned_out(angles: list[float], d: int) -> Tensor:
    """Rotation of R^d that turns axis i by angles[i] towards axis r + i."""
    rotation = torch.eye(d, dtype=torch.float64)
    r = len(angles)
    for i, angle in enumerate(angles):
        c, s = math.cos(angle), math.sin(angle)
        rotation[i, i] = rotation[r + i, r + i] = c
        rotation[r + i, i], rotation[i, r + i] = s, -s
    return rotation


@pytest.mark.parametrize("angles", [[0.0, 0.5], [1e-4, 0.1, 1.5], [0.3], [math.pi / 2, 0.7]])
def test_principal_angles_are_the_angles_of_the_rotation(angles: list[float]) -> None:
    r = len(angles)
    # Any bases of the two subspaces.
    mix_0, mix_t = orthonormal(r, r, 1), orthonormal(r, r, 2)
    overlaps = mix_0.T @ turned_out(angles, 8)[:r, :r] @ mix_t
    expected = torch.tensor(sorted(angles), dtype=torch.float64)
    # A cosine wrong by a few ε moves an angle θ by ε/θ, and one of 0 by √ε.
    torch.testing.assert_close(metrics.principal_angles(overlaps), expected, rtol=1e-11, atol=1e-7)


def test_principal_angles_of_equal_subspaces_are_zero_to_the_resolution_of_a_cosine() -> None:
    assert metrics.principal_angles(torch.eye(4)).eq(0).all()
    assert metrics.principal_angles(orthonormal(16, 16)).max() < 1e-7


@pytest.mark.parametrize("angles", [[0.0, 0.0], [1e-3, 0.2], [1.0, 1.2]])
def test_subspace_deviation_is_one_minus_the_mean_cosine(angles: list[float]) -> None:
    turned, still = turned_out(angles, 7)[:, :2], torch.eye(7, 2, dtype=torch.float64)
    expected = sum(1 - math.cos(angle) for angle in angles) / 2
    assert metrics.subspace_deviation(turned, turned) == pytest.approx(expected, abs=1e-15)
    assert metrics.subspace_deviation(turned, still) == pytest.approx(expected / 2, abs=1e-15)


def test_subspace_deviation_of_identical_subspaces_is_exactly_zero() -> None:
    still = torch.eye(40, 16, dtype=torch.float64)
    assert metrics.subspace_deviation(still, still) == 0.0
    assert metrics.subspace_deviation(-still, still, r=3) == 0.0


def test_subspace_deviation_looks_at_the_leading_r_only() -> None:
    turned = torch.eye(9, 6, dtype=torch.float64)
    turned[5, 5], turned[8, 5] = 0.0, 1.0  # the sixth vector left for good
    assert metrics.subspace_deviation(turned, turned, r=5) == 0.0
    assert metrics.subspace_deviation(turned, turned) == pytest.approx(1 / 6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), r=st.integers(1, 6))
def test_subspace_deviation_ignores_rotations_inside_and_signs(seed: int, r: int) -> None:
    u, v = orthonormal(12, 12, seed)[:, :r], orthonormal(12, 12, seed + 1)[:, :r]
    expected = metrics.subspace_deviation(u, v)
    mix, signs = orthonormal(r, r, seed + 2), gaussian(1, r, seed).sign()
    # Another basis of the trained subspace (right), or of the base's (left).
    assert metrics.subspace_deviation(u @ mix, v) == pytest.approx(expected, abs=1e-14)
    assert metrics.subspace_deviation(u * signs, v * signs) == pytest.approx(expected, abs=1e-14)
    base_mixed = torch.cat([mix.T @ u[:r], u[r:]])
    assert metrics.subspace_deviation(base_mixed, v) == pytest.approx(expected, abs=1e-14)


def test_a_crossing_inside_the_leading_subspace_is_no_deviation() -> None:
    u, v = orthonormal(12, 8, 0), orthonormal(10, 8, 1)
    s_0 = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1], dtype=torch.float64)
    s_t = s_0[[2, 0, 1, 3, 4, 5, 6, 7]]
    both = leading((u * s_t) @ v.T, (u * s_0) @ v.T, 8)
    assert metrics.subspace_deviation(*both, r=3) == pytest.approx(0, abs=1e-14)
    # With r = 2 one of the two directions was exchanged for the third.
    assert metrics.subspace_deviation(*both, r=2) == pytest.approx(0.5, abs=1e-14)


def test_unrelated_subspaces_deviate_by_the_documented_level() -> None:
    d, r = 400, 16
    deviation = metrics.subspace_deviation(orthonormal(d, r, 1), orthonormal(d, r, 2))
    assert 1 - deviation == pytest.approx(0.85 * math.sqrt(r / d), rel=0.1)


@pytest.mark.parametrize("strengths", [[], [50.0], [50.0, 40.0, 30.0]])
def test_every_planted_direction_is_an_intruder(strengths: list[float]) -> None:
    d, k = 60, 30
    u, v = orthonormal(d, d, 0), orthonormal(d, d, 1)
    s = torch.linspace(20, 1, k, dtype=torch.float64)
    w_0 = (u[:, :k] * s) @ v[:, :k].T + 1e-3 * matrix_with_spectrum([1.0] * d, d, d, 7)
    # A direction to which every singular vector of the base contributes a little.
    new_u, new_v = orthonormal(d, 3, 2), orthonormal(d, 3, 3)
    w_t = w_0.clone()
    for i, strength in enumerate(strengths):
        w_t += strength * torch.outer(new_u[:, i], new_v[:, i])
    leading_u, _ = leading(w_t, w_0, 16)
    assert metrics.intruder_dimensions(leading_u) == len(strengths)
    assert metrics.intruder_dimensions(leading_u, k=1) == min(1, len(strengths))


def test_intruders_ignore_signs_and_order_of_the_base() -> None:
    leading_u = orthonormal(30, 16, 5)
    count = metrics.intruder_dimensions(leading_u)
    assert metrics.intruder_dimensions(-leading_u.flip(0)) == count
    assert metrics.intruder_dimensions(torch.eye(30, 16).flip(0)) == 0


def test_a_cosine_of_epsilon_is_no_intruder() -> None:
    leading_u = torch.tensor([[0.5, 0.49], [0.1, -0.2], [0.0, 0.0]], dtype=torch.float64)
    assert metrics.intruder_dimensions(leading_u, k=2) == 1
    assert metrics.intruder_dimensions(leading_u, k=2, epsilon=0.51) == 2
    assert metrics.intruder_dimensions(leading_u, k=2, epsilon=0.49) == 0


def test_a_matrix_smaller_than_k_is_counted_whole() -> None:
    assert metrics.intruder_dimensions(0.4 * torch.eye(4), k=10) == 4


def test_what_does_not_fit_is_refused() -> None:
    square, nan = torch.eye(4), torch.full((4, 4), math.nan)
    with pytest.raises(ValueError, match=r"shape \(r, r\), got \(4, 3\)"):
        metrics.principal_angles(torch.ones(4, 3))
    with pytest.raises(ValueError, match="overlaps must be finite"):
        metrics.principal_angles(nan)
    with pytest.raises(ValueError, match=r"both have the shape \(k, p\), got"):
        metrics.subspace_deviation(square, square[:, :3])
    for r in (0, 5):
        with pytest.raises(ValueError, match="r must be between 1 and p = 4"):
            metrics.subspace_deviation(square, square, r=r)
    with pytest.raises(ValueError, match="must be finite"):
        metrics.subspace_deviation(square, nan)
    with pytest.raises(ValueError, match="leading_u must have the shape"):
        metrics.intruder_dimensions(torch.ones(3))
    for k in (0, 4):
        with pytest.raises(ValueError, match="k must be between 1 and the 3 leading"):
            metrics.intruder_dimensions(square[:, :3], k=k)
    for epsilon in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="epsilon must be above 0"):
            metrics.intruder_dimensions(square, epsilon=epsilon)
    with pytest.raises(ValueError, match="leading_u must be finite"):
        metrics.intruder_dimensions(nan)
