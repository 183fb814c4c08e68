"""The rank-structured solver against a float64 SVD of the formed matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectra.linalg import (
    Decomposition,
    LowRankUpdate,
    NotConverged,
    decompose,
    follow,
    follow_values,
)
from tests.helpers import gaussian, low_rank_factors, matrix_with_spectrum, orthonormal

EPS = torch.finfo(torch.float64).eps

BASES: dict[str, Callable[[], Tensor]] = {
    "square": lambda: gaussian(60, 60),
    "wide": lambda: gaussian(40, 90),
    "tall": lambda: gaussian(90, 40),
    "large": lambda: gaussian(300, 320),
    "two by two": lambda: gaussian(2, 2),
    "three by five": lambda: gaussian(3, 5),
    "ill conditioned": lambda: matrix_with_spectrum(torch.logspace(0, -6, 50), 50, 70),
    "heavy tail": lambda: matrix_with_spectrum(torch.arange(1, 61) ** -1.5, 60, 60),
    "outliers": lambda: matrix_with_spectrum([300.0, 90.0, *torch.linspace(2, 1, 46)], 48, 64),
    "close at the bottom": lambda: matrix_with_spectrum(
        [*torch.linspace(3, 1, 30), *(0.1 + 1e-4 * torch.arange(10))], 40, 40
    ),
}


def svd(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(w, full_matrices=False)


def with_size(b: Tensor, a: Tensor, norm: float) -> tuple[Tensor, Tensor]:
    return b * (norm / torch.linalg.matrix_norm(b @ a, ord=2)), a


def assert_follows(w_0: Tensor, b: Tensor, a: Tensor, solver: str = "low-rank") -> None:
    """Values, overlaps and certificate of `solver` are those of an SVD of W_0 + B A."""
    u_0, s_0, vh_0 = svd(w_0)
    base = Decomposition(u_0, s_0, vh_0, "svd", 0.0)
    w_t = w_0 + b.double() @ a.double()
    found = follow(base, lambda: w_t, (b, a), solver)
    assert found.solver == solver
    u, s, vh = svd(w_t)
    k = len(s)
    torch.testing.assert_close(found.s, s, rtol=0, atol=40 * EPS * s[0].item())
    # Vectors of both turn by about ε σ_max over the gap to the next value.
    gaps = torch.cat([s.new_full((1,), torch.inf), s.diff().abs(), s.new_full((1,), torch.inf)])
    loose = (1e4 * EPS * s[0] / torch.minimum(gaps[:-1], gaps[1:]) + 1e-11).clamp(max=1.0)
    width = found.near_u.shape[1] // 2
    for near, leading, overlaps in (
        (found.near_u, found.leading_u, (u_0.T @ u).abs()),
        (found.near_v, found.leading_v, (vh_0 @ vh.T).abs()),
    ):
        p = leading.shape[1]
        assert ((leading.abs() - overlaps[:, :p]).abs() <= loose[:p]).all()
        for i in range(k):
            for d in range(-width, width + 1):
                expected = overlaps[i + d, i].item() if 0 <= i + d < k else 0.0
                assert abs(near[i, width + d].item() - expected) <= loose[i]
    assert 0 <= found.residual < 1e-10


@pytest.mark.parametrize("drift", [1e-12, 1e-9, 1e-6, 1e-3, 1e-1, 1.0])
@pytest.mark.parametrize("base", [name for name in BASES if name != "large"])
def test_it_follows_an_svd_at_every_drift(base: str, drift: float) -> None:
    w_0 = BASES[base]()
    rank = 1 if min(w_0.shape) < 8 else 3
    b, a = low_rank_factors(w_0.shape[0], w_0.shape[1], rank, 5)
    size = drift * torch.linalg.matrix_norm(w_0, ord=2).item()
    assert_follows(w_0, *with_size(b, a, size))


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("drift", [1e-4, 1e-1, 10.0])
def test_it_follows_an_svd_at_every_rank(rank: int, drift: float) -> None:
    w_0 = BASES["large"]()
    b, a = low_rank_factors(w_0.shape[0], w_0.shape[1], rank, 5)
    u_0, s_0, vh_0 = svd(w_0)
    b, a = with_size(b, a, drift * s_0[0].item())
    found = LowRankUpdate(Decomposition(u_0, s_0, vh_0, "svd", 0.0), b, a).turned()
    u, s, vh = svd(w_0 + b @ a)
    torch.testing.assert_close(found.s, s, rtol=0, atol=40 * EPS * s[0].item())
    torch.testing.assert_close(found.overlap_u, (u * u_0).sum(0).abs(), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.overlap_v, (vh * vh_0).sum(1).abs(), rtol=0, atol=1e-8)


def sorsa_update(w_0: Tensor, rank: int, change: str) -> tuple[Tensor, Tensor]:
    """The factors of a SORSA adapter: trained principal part beside the initial one."""
    u, s, vh = (x.clone() for x in svd(w_0))
    u_0, s_0, vh_0 = u[:, :rank], s[:rank], vh[:rank]
    scale = 1 + 0.1 * gaussian(1, rank, 3)[0] if "values" in change else torch.ones_like(s_0)
    turn = 0.01 * gaussian(u_0.shape[0], rank, seed=4) if "vectors" in change else 0.0 * u_0
    b = torch.cat([(u_0 + turn) * (s_0 * scale), -u_0 * s_0], dim=1)
    return b, torch.cat([vh_0, vh_0])


@pytest.mark.parametrize("shape", [(50, 50), (30, 80), (80, 30)])
@pytest.mark.parametrize("change", ["values", "vectors", "values and vectors"])
def test_it_follows_sorsa(shape: tuple[int, int], change: str) -> None:
    w_0 = gaussian(*shape, seed=1)
    assert_follows(w_0, *sorsa_update(w_0, 4, change))


def test_directions_that_the_update_leaves_alone_keep_their_pairs_exactly() -> None:
    w_0 = matrix_with_spectrum(torch.arange(20, 0, -1.0), 20, 30)
    b, a = sorsa_update(w_0, 3, "values")
    base = decompose(w_0, "svd")
    found = LowRankUpdate(base, b, a).turned()
    assert torch.equal(found.s[3:], base.s[3:])
    assert (found.overlap_u[3:] == 1).all() and (found.overlap_v[3:] == 1).all()


def test_two_values_that_cross_swap_their_vectors() -> None:
    s = torch.tensor([5.0, 4.0, 3.0, 2.0], dtype=torch.float64)
    u, v = orthonormal(6, 4), orthonormal(9, 4, 1)
    base = Decomposition(u, s, v.T, "svd", 0.0)
    found = LowRankUpdate(base, 1.5 * u[:, 2:3], v[:, 2:3].T).turned()  # 3 becomes 4.5
    torch.testing.assert_close(found.s, torch.tensor([5.0, 4.5, 4.0, 2.0]).double())
    torch.testing.assert_close(found.overlap_u, torch.tensor([1.0, 0.0, 0.0, 1.0]).double())
    width = found.near_u.shape[1] // 2
    assert found.near_u[1, width + 1] == found.near_u[2, width - 1] == pytest.approx(1.0)


FACTORS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "as they are": lambda b, a: (b, a),
    "badly balanced": lambda b, a: (1e8 * b, 1e-8 * a),
    "a column twice": lambda b, a: (torch.cat([b, b[:, :1]], 1), torch.cat([a, a[:1]])),
    "a column of zeros": lambda b, a: (torch.cat([b, 0 * b[:, :1]], 1), torch.cat([a, a[:1]])),
    "not contiguous": lambda b, a: (b.T.contiguous().T, a.T.contiguous().T),
    "float32": lambda b, a: (b.float(), a.float()),
    "bfloat16": lambda b, a: (b.bfloat16(), a.bfloat16()),
}


@pytest.mark.parametrize("name", FACTORS)
def test_the_form_of_the_factors_does_not_matter(name: str) -> None:
    w_0 = gaussian(30, 44)
    b, a = FACTORS[name](*low_rank_factors(30, 44, 3))
    assert_follows(w_0, b, a)


HOSTILE = {
    "repeated values": torch.eye(12, dtype=torch.float64),
    "zero": torch.zeros(6, 8, dtype=torch.float64),
    "rank deficient": gaussian(20, 5) @ gaussian(5, 24, 1),
    "huge condition number": matrix_with_spectrum([1e14, *([1.0] * 9)], 10, 12),
    "row": gaussian(1, 9),
    "column": gaussian(9, 1),
    "tiny": 1e-150 * gaussian(8, 9),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_where_it_cannot_be_used_a_dense_solver_is(name: str) -> None:
    w_0 = HOSTILE[name]
    b, a = low_rank_factors(w_0.shape[0], w_0.shape[1], 1, 3)
    b = b * max(torch.linalg.matrix_norm(w_0).item(), 1e-150)
    base = decompose(w_0)
    w_t = w_0 + b @ a
    expected = torch.linalg.svdvals(w_t)
    found = follow(base, lambda: w_t, (b, a), "low-rank")
    values = follow_values(base, lambda: w_t, (b, a), "low-rank")
    for s in (found.s, values.s):
        torch.testing.assert_close(s, expected, rtol=0, atol=1e-11 * expected[0].item())
    assert found.solver in ("gram", "svd", "low-rank")
    assert torch.isfinite(found.near_u).all() and torch.isfinite(found.near_v).all()


def test_an_update_that_makes_the_matrix_singular_is_right_or_refused() -> None:
    w_0 = matrix_with_spectrum([4.0, 3.0, 2.0, 1.0], 4, 6)
    u, s, vh = svd(w_0)
    b, a = -u[:, 3:] * s[3], vh[3:]
    found = follow(Decomposition(u, s, vh, "svd", 0.0), lambda: w_0 + b @ a, (b, a), "low-rank")
    torch.testing.assert_close(found.s, torch.tensor([4.0, 3.0, 2.0, 0.0]).double())


def test_no_update_changes_nothing() -> None:
    base = decompose(gaussian(12, 15))
    b, a = torch.zeros(12, 2, dtype=torch.float64), gaussian(2, 15)
    found = LowRankUpdate(base, b, a).turned()
    assert torch.equal(found.s, base.s) and (found.overlap_u == 1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_are_refused(bad: float) -> None:
    w_0 = gaussian(12, 15)
    b, a = low_rank_factors(12, 15, 2)
    b[0, 0] = bad
    with pytest.raises(ValueError, match="NaN or Inf"):
        follow(decompose(w_0), lambda: w_0 + b @ a, (b, a), "low-rank")


def test_factors_of_another_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have the shapes \(12, r\) and \(r, 15\)"):
        LowRankUpdate(decompose(gaussian(12, 15)), gaussian(13, 2), gaussian(2, 15))


def test_an_update_of_full_rank_is_left_to_the_dense_solvers() -> None:
    with pytest.raises(NotConverged, match="not of low rank"):
        LowRankUpdate(decompose(gaussian(6, 8)), gaussian(6, 6), gaussian(6, 8))


def test_values_alone_are_those_with_vectors() -> None:
    base = decompose(gaussian(80, 90))
    update = LowRankUpdate(base, *low_rank_factors(80, 90, 4))
    assert torch.equal(update.values().s, update.turned().s)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 4), exponent=st.integers(-8, 0))
def test_it_is_never_wrong_without_saying_so(seed: int, rank: int, exponent: int) -> None:
    w_0 = gaussian(24, 30, seed)
    b, a = low_rank_factors(24, 30, rank, seed + 1)
    b, a = with_size(b, a, 10.0**exponent)
    base = decompose(w_0)
    try:
        found = LowRankUpdate(base, b, a).turned()
    except NotConverged:
        return
    u, s, vh = svd(w_0 + b @ a)
    torch.testing.assert_close(found.s, s, rtol=0, atol=1e-13 * s[0].item())
    torch.testing.assert_close(found.overlap_u, (u * base.u).sum(0).abs(), rtol=0, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
def test_scale_signs_rotations_and_transposition(seed: int, scale: float) -> None:
    w_0 = gaussian(20, 26, seed)
    b, a = low_rank_factors(20, 26, 2, seed + 1)
    base = decompose(w_0, "svd")
    plain = LowRankUpdate(base, b, a).turned()

    scaled = Decomposition(base.u, scale * base.s, base.vh, "svd", 0.0)
    other = LowRankUpdate(scaled, scale * b, a).turned()
    torch.testing.assert_close(other.s, scale * plain.s, rtol=1e-11, atol=0)
    torch.testing.assert_close(other.near_u, plain.near_u, rtol=0, atol=1e-8)

    signs = torch.where(gaussian(1, 20, seed + 2)[0] > 0, 1.0, -1.0)
    flipped = Decomposition(base.u * signs, base.s, signs[:, None] * base.vh, "svd", 0.0)
    other = LowRankUpdate(flipped, b, a).turned()
    torch.testing.assert_close(other.near_v, plain.near_v, rtol=0, atol=1e-8)

    q_u, q_v = orthonormal(20, 20, seed + 3), orthonormal(26, 26, seed + 4)
    rotated = Decomposition(q_u @ base.u, base.s, base.vh @ q_v.T, "svd", 0.0)
    other = LowRankUpdate(rotated, q_u @ b, a @ q_v.T).turned()
    torch.testing.assert_close(other.s, plain.s, rtol=1e-11, atol=0)
    torch.testing.assert_close(other.near_u, plain.near_u, rtol=0, atol=1e-8)

    swapped = Decomposition(base.vh.T, base.s, base.u.T, "svd", 0.0)
    other = LowRankUpdate(swapped, a.T, b.T).turned()
    torch.testing.assert_close(other.near_u, plain.near_v, rtol=0, atol=1e-8)
    torch.testing.assert_close(other.near_v, plain.near_u, rtol=0, atol=1e-8)
