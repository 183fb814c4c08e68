"""Matched drift against all permutations, a dense assignment and planted crossings."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from spectra import metrics
from tests.helpers import gaussian, orthonormal


def near(overlaps: Tensor, w: int) -> Tensor:
    """The band that the engine hands over: [i, w + d] = |overlaps[i, i + d]|."""
    k = len(overlaps)
    band = torch.zeros(k, 2 * w + 1, dtype=torch.float64)
    for i, d in itertools.product(range(k), range(-w, w + 1)):
        if 0 <= i + d < k:
            band[i, w + d] = overlaps[i, i + d].abs()
    return band


def within(overlaps: Tensor, w: int) -> Tensor:
    """|overlaps| with 0 where the indices differ by more than w."""
    return overlaps.abs().triu(-w).tril(w)


def random_overlaps(k: int, seed: int, noise: float) -> Tensor:
    """Overlaps of an orthonormal basis with itself, turned by a random rotation."""
    return torch.linalg.qr(torch.eye(k, dtype=torch.float64) + noise * gaussian(k, k, seed)).Q


def singular_overlaps(w_t: Tensor, w_0: Tensor) -> tuple[Tensor, Tensor]:
    u_t, _, vh_t = torch.linalg.svd(w_t, full_matrices=False)
    u_0, _, vh_0 = torch.linalg.svd(w_0, full_matrices=False)
    return u_t.T @ u_0, vh_t @ vh_0.T


def compose(u: Tensor, s: list[float], v: Tensor) -> Tensor:
    return (u * torch.tensor(s, dtype=torch.float64)) @ v.T


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 6),
    seed=st.integers(0, 9999),
    noise=st.sampled_from([0.01, 0.3, 1.0, 30.0]),
    data=st.data(),
)
def test_matched_drift_is_the_best_over_all_permutations(
    k: int, seed: int, noise: float, data: st.DataObject
) -> None:
    w = data.draw(st.integers(0, k - 1))
    u, v = random_overlaps(k, seed, noise), random_overlaps(k, seed + 1, noise)
    total = within(u, w) + within(v, w)
    best = max(
        sum(total[i, j].item() for i, j in enumerate(p)) for p in itertools.permutations(range(k))
    )
    expected = 1 - best / (2 * k)
    actual = metrics.matched_vector_deviation(near(u, w), near(v, w))
    assert actual == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("w", [0, 1, 5, 16, 119])
@pytest.mark.parametrize("noise", [0.001, 0.02, 0.1, 100.0])
def test_matched_drift_equals_a_dense_assignment(w: int, noise: float) -> None:
    k = 120
    u, v = random_overlaps(k, 3, noise), random_overlaps(k, 4, noise)
    total = (within(u, w) + within(v, w)).numpy()
    best = total[linear_sum_assignment(total, maximize=True)].sum()
    actual = metrics.matched_vector_deviation(near(u, w), near(v, w))
    assert actual == pytest.approx(1 - best / (2 * k), abs=1e-14)


# Ties and zeros are where a sparse solver could drop an edge or fail to find a pairing.
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_tied_overlaps_equal_a_dense_assignment(levels: int, seed: int) -> None:
    k, w = 60, 4
    generator = torch.Generator().manual_seed(seed)
    u = torch.randint(0, levels, (k, k), generator=generator).double() / max(1, levels - 1)
    total = 2 * within(u, w).numpy()
    best = total[linear_sum_assignment(total, maximize=True)].sum()
    actual = metrics.matched_vector_deviation(near(u, w), near(u, w))
    assert actual == pytest.approx(1 - best / (2 * k), abs=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_overlaps_that_are_all_equal_match_by_index(value: float) -> None:
    overlaps = torch.full((30, 30), value, dtype=torch.float64)
    assert metrics.matched_vector_deviation(near(overlaps, 3), near(overlaps, 3)) == 1 - value


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), noise=st.floats(0.0, 3.0), w=st.integers(0, 8))
def test_matched_drift_is_never_above_delta_d(seed: int, noise: float, w: int) -> None:
    u, v = random_overlaps(20, seed, noise), random_overlaps(20, seed + 1, noise)
    near_u, near_v = near(u, w), near(v, w)
    by_index = metrics.singular_vector_deviation(near_u[:, w], near_v[:, w])
    matched = metrics.matched_vector_deviation(near_u, near_v)
    assert 0 <= matched <= by_index
    if w == 0:
        assert matched == by_index


def test_vectors_that_did_not_turn_have_exactly_no_drift() -> None:
    k, w = 50, 4
    near_u = near(0.3 * gaussian(k, k).tanh(), w)
    near_u[:, w] = 1.0
    assert metrics.matched_vector_deviation(near_u, near_u) == 0.0
    near_u[:, w] = 1.0 + 1e-15  # what rounding makes of a unit vector with itself
    assert metrics.matched_vector_deviation(near_u, near_u) == 0.0


def test_two_singular_values_that_cross_are_drift_only_by_index() -> None:
    u, v = orthonormal(9, 6, 0), orthonormal(6, 6, 1)
    w_0 = compose(u, [6, 5, 4, 3, 2, 1], v)
    w_t = compose(u, [6, 3.5, 4, 3, 2, 1], v)  # the second fell below the third
    near_u, near_v = (near(o, 2) for o in singular_overlaps(w_t, w_0))
    assert metrics.singular_vector_deviation(near_u[:, 2], near_v[:, 2]) == pytest.approx(2 / 6)
    assert metrics.matched_vector_deviation(near_u, near_v) == pytest.approx(0, abs=1e-13)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(7)))
def test_singular_values_in_any_new_order_are_no_matched_drift(order: list[int]) -> None:
    u, v = orthonormal(7, 7, 2), orthonormal(10, 7, 3)
    w_0 = compose(u, [7, 6, 5, 4, 3, 2, 1], v)
    w_t = compose(u, [1.0 + i for i in order], v)
    near_u, near_v = (near(o, 6) for o in singular_overlaps(w_t, w_0))
    assert metrics.matched_vector_deviation(near_u, near_v) == pytest.approx(0, abs=1e-12)


def test_a_new_direction_at_the_top_is_one_drifted_vector_not_all() -> None:
    k = 24
    u, v = orthonormal(40, k + 1, 4), orthonormal(40, k + 1, 5)
    s = [float(k - i) for i in range(k)]
    w_0 = compose(u[:, :k], s, v[:, :k])
    w_t = compose(u, [*s, 30.0], v)  # a direction that the base did not have
    overlaps = [o[:k, :k] for o in singular_overlaps(w_t, w_0)]
    near_u, near_v = (near(o, 2) for o in overlaps)
    assert metrics.singular_vector_deviation(near_u[:, 2], near_v[:, 2]) > 0.9
    # The new vector matches nothing; the other k − 1 sit one index further on.
    assert metrics.matched_vector_deviation(near_u, near_v) == pytest.approx(1 / k, abs=1e-12)


def test_moves_beyond_the_band_count_as_drift() -> None:
    k = 10
    order = torch.arange(k).roll(5)
    swapped = torch.eye(k, dtype=torch.float64)[order]
    assert metrics.matched_vector_deviation(near(swapped, 5), near(swapped, 5)) == 0.0
    assert metrics.matched_vector_deviation(near(swapped, 4), near(swapped, 4)) == 1.0


def test_left_and_right_vectors_share_one_pairing() -> None:
    identity = torch.eye(2, dtype=torch.float64)
    near_u, near_v = near(identity, 1), near(identity.flip(0), 1)
    # Either pairing fits one side only.
    assert metrics.matched_vector_deviation(near_u, near_v) == 0.5


def test_a_single_vector_is_matched_with_itself() -> None:
    overlap = torch.tensor([[0.75]], dtype=torch.float64)
    assert metrics.matched_vector_deviation(overlap, overlap) == 0.25


def test_unrelated_bases_match_by_the_documented_level() -> None:
    d, w = 400, 16
    near_u = near(orthonormal(d, d, 6).T @ orthonormal(d, d, 7), w)
    near_v = near(orthonormal(d, d, 8).T @ orthonormal(d, d, 9), w)
    matched = metrics.matched_vector_deviation(near_u, near_v)
    assert 1 - matched == pytest.approx(1.7 / math.sqrt(d), rel=0.1)


def test_bands_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(k, 2w \+ 1\), got"):
        metrics.matched_vector_deviation(torch.ones(3, 3), torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"shape \(k, 2w \+ 1\), got"):
        metrics.matched_vector_deviation(torch.ones(3, 2), torch.ones(3, 2))
    bad = torch.ones(3, 3)
    bad[1, 1] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        metrics.matched_vector_deviation(torch.ones(3, 3), bad)
