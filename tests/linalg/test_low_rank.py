"""The rank-structured solver against a float64 SVD of W_0 + B A: right, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from spectra.linalg import (
    Decomposition,
    LowRankUpdate,
    NotConverged,
    Spectrum,
    Turned,
    decompose,
    follow,
    secular,
)
from spectra.linalg.decomposition import LEADING, NEIGHBOURS
from tests.helpers import gaussian, matrix_with_spectrum, orthonormal

EPS = torch.finfo(torch.float64).eps

Factors = tuple[Tensor, Tensor]


# The truth, and what may differ from it.


def exact(w: Tensor) -> Decomposition:
    """LAPACK's float64 SVD, as a base whose every digit is known to the test."""
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    return Decomposition(u, s, vh, "svd", 0.0)


def assert_values_right(found: Turned | Spectrum, base: Decomposition, w_t: Tensor) -> None:
    s = torch.linalg.svdvals(w_t.double())
    # W_t = W_0 + B A is itself rounded to ε of the larger of both.
    scale = max(s[0].item(), base.s[0].item())
    assert found.s.shape == s.shape and (found.s.diff() <= 0).all() and (found.s >= 0).all()
    torch.testing.assert_close(found.s, s, rtol=0, atol=1e-12 * scale)
    if s[-1] > 1e-7 * scale:
        assert abs(found.s[-1] / s[-1] - 1).item() < 1e-6  # κ < 1e7 keeps six digits
    assert math.isfinite(found.residual) and found.residual >= 0


def assert_right(found: Turned, base: Decomposition, w_t: Tensor) -> None:
    """Everything in `found` is what a float64 SVD of W_t gives, as far as that is determined."""
    assert_values_right(found, base, w_t)
    truth = exact(w_t)
    k, s = len(base.s), truth.s
    scale = max(s[0].item(), base.s[0].item())
    infinity = s.new_full((1,), torch.inf)
    gaps = torch.cat([infinity, s.diff().abs(), infinity])
    gap = torch.minimum(gaps[:-1], gaps[1:])
    width, p = min(NEIGHBOURS, k - 1), min(LEADING, k)
    index = torch.arange(k)[:, None] + torch.arange(-width, width + 1)
    inside = (index >= 0) & (index < k)
    turn_error, drift_allowed = 0.0, 0.0
    for x_0, x_t, near, leading in (
        (base.u, truth.u, found.near_u, found.leading_u),
        (base.vh.T, truth.vh.T, found.near_v, found.leading_v),
    ):
        assert near.shape == (k, 2 * width + 1) and leading.shape == (k, p)
        assert ((near >= 0) & (near <= 1)).all() and torch.isfinite(leading).all()
        full = (x_0.T @ x_t).abs()  # (k, k), columns of W_t
        expected = torch.where(inside, full.T.gather(1, index.clamp(0, k - 1)), 0.0)
        assert (near[~inside] == 0).all()
        error = (near - expected).abs().amax(1)
        in_leading = (leading.abs() - full[:, :p]).abs().amax(0)
        error[:p] = torch.maximum(error[:p], in_leading)
        # Wedin: a residual turns a vector by about itself over the distance to the next value,
        # which is −σ, or 0 with the null space, where u and v come from one eigenvector.
        nearest = torch.minimum(gap, s)
        allowed = (200 * EPS + 10 * found.residual) * scale / nearest
        allowed[nearest <= 0] = 1.0
        assert (error <= allowed).all(), f"{(error / allowed).max():.1e} times too much"
        # Only the long side's own vectors can turn into a null space. Where an SVD is good to
        # 1e-9, every overlap has seven digits.
        own_gap = gap if len(x_0) == k else torch.minimum(gap, s)
        assert (error[own_gap > 1e-6 * scale] <= 1e-7).all()
        turn_error += ((near[:, width] - full.diagonal()).sum() / (2 * k)).item()
        drift_allowed += (allowed / 2).clamp(max=1.0).mean().item()
    assert abs(turn_error) <= 1e-9 + drift_allowed  # ΔD
    if base.u.shape[0] == base.vh.shape[1]:
        # Signs: u and v of one pair belong together.
        inner = base.u.T @ w_t.double() @ base.vh.T
        back = (found.leading_u * (inner @ found.leading_v)).sum(0)
        torch.testing.assert_close(back, found.s[:p], rtol=0, atol=1e-7 * scale)


def right_or_refused(base: Decomposition, update: Factors) -> bool:
    """Whether the solver solved it; if so, rightly, and the same values without vectors."""
    b, a = update
    w_t = (base.u * base.s) @ base.vh + b.double() @ a.double()
    try:
        spectrum = LowRankUpdate(base, b, a).values()
    except (NotConverged, torch.linalg.LinAlgError):
        pass  # an honest refusal: a dense solver takes over
    else:
        assert spectrum.solver == "low-rank-values"
        assert_values_right(spectrum, base, w_t)
    try:
        found = LowRankUpdate(base, b, a).turned()
    except (NotConverged, torch.linalg.LinAlgError):
        return False
    assert found.solver == "low-rank"
    assert_right(found, base, w_t)
    return True


# Bases and updates.


def heavy_tailed(k: int) -> Tensor:
    s = torch.linalg.svdvals(gaussian(k, 2 * k, 5))
    s[:3] *= torch.tensor([1e4, 300.0, 8.0])
    return s


def clustered_bottom(k: int) -> Tensor:
    bottom = 1e-3 * (1 + 1e-4 * torch.arange(k // 4, 0, -1, dtype=torch.float64))
    return torch.cat([torch.linspace(3, 1, k - k // 4, dtype=torch.float64), bottom])


BASES = {
    "square": gaussian(40, 40),
    "wide": gaussian(24, 60),
    "tall": gaussian(60, 24),
    "2x2": gaussian(2, 2, 4),
    "2x9": gaussian(2, 9, 4),
    "8x3": gaussian(8, 3, 4),
    "5x5": gaussian(5, 5, 4),
    "17x20": gaussian(17, 20, 4),
    "decaying": matrix_with_spectrum(torch.logspace(0, -7, 32), 32, 48),
    "heavy tailed": matrix_with_spectrum(heavy_tailed(32), 48, 32),
    "clustered bottom": matrix_with_spectrum(clustered_bottom(32), 32, 32),
    "well separated": matrix_with_spectrum(torch.arange(32.0, 0, -1), 32, 40),
    "signed permutation": torch.diag(torch.arange(-3.0, 21)).double()[4:].flip(0),
}
DRIFTS = (1e-12, 1e-9, 1e-6, 1e-3, 1e-1, 1.0, 10.0)


def random_update(base: Decomposition, r: int, drift: float, seed: int = 0) -> Factors:
    """B A with a spectral norm of drift · σ_max."""
    b = gaussian(base.u.shape[0], r, 2 * seed)
    a = gaussian(r, base.vh.shape[1], 2 * seed + 1)
    return b * (drift * base.s[0] / torch.linalg.matrix_norm(b @ a, 2)), a


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("name", BASES)
def test_every_number_is_that_of_a_full_svd(name: str, drift: float) -> None:
    base = exact(BASES[name])
    rank = 1 if len(base.s) < 5 else 3
    solved = right_or_refused(base, random_update(base, rank, drift))
    # Where the spectrum is spread over decades, vectors may need the digits of a dense solver.
    assert solved or name in ("decaying", "heavy tailed", "clustered bottom")


@pytest.mark.parametrize("rank", range(1, 17))
@pytest.mark.parametrize("name", ["square", "wide", "17x20"])
def test_every_rank_below_the_matrix_is_solved(name: str, rank: int) -> None:
    base = exact(BASES[name])
    assert right_or_refused(base, random_update(base, rank, 0.03, rank))


def test_many_groups_of_roots_are_solved_as_one() -> None:
    base = exact(gaussian(300, 320))
    for rank, drift in ((1, 1e-6), (4, 1e-2), (16, 0.5)):
        assert right_or_refused(base, random_update(base, rank, drift))


def test_far_poles_enter_as_exactly_as_near_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    base = exact(BASES["square"])
    update = random_update(base, 3, 1e-2)
    near = LowRankUpdate(base, *update).turned()
    monkeypatch.setattr(secular, "_FEWEST_NEAR_POLES", 3)
    monkeypatch.setattr(secular, "_GROUP_PRODUCTS", 0.0)
    monkeypatch.setattr(secular, "_SMALLEST_GROUP", 1)
    assert right_or_refused(base, update)
    far = LowRankUpdate(base, *update).turned()
    torch.testing.assert_close(far.s, near.s, rtol=1e-14, atol=0)
    torch.testing.assert_close(far.near_u, near.near_u, rtol=0, atol=1e-11)


def test_drift_far_below_rounding_keeps_its_own_digits() -> None:
    """First-order perturbation: dσ_i = u_iᵀ B A v_i, with an error of second order."""
    base = exact(BASES["well separated"])
    b, a = random_update(base, 2, 1e-13)
    moved = LowRankUpdate(base, b, a)
    expected = ((base.u.T @ b) * (base.vh @ a.T)).sum(1)
    equation, roots = moved._solve()
    delta = roots.delta.flip(0)
    assert (equation.poles[roots.anchor.flip(0)] == base.s).all()
    torch.testing.assert_close(delta, expected, rtol=1e-9, atol=1e-11 * expected.abs().max().item())


# SORSA: W_t = W_0 − U S Vᵀ + U' S' V'ᵀ, an update of rank 2r whose factors nearly cancel.


def sorsa_update(base: Decomposition, r: int, drift: float, trained: str) -> Factors:
    u, s, vh = base.u[:, :r], base.s[:r], base.vh[:r]
    u_p, s_p, vh_p = u, s, vh
    if "S" in trained:
        s_p = s * (1 + drift * gaussian(1, r, 3)[0])
    if "U" in trained:
        u_p = u + drift * gaussian(len(u), r, 4) / len(u) ** 0.5
    if "V" in trained:
        vh_p = vh + drift * gaussian(r, vh.shape[1], 5) / vh.shape[1] ** 0.5
    if "rotation" in trained:
        turn = gaussian(r, r, 6)
        u_p = u @ torch.matrix_exp(drift * (turn - turn.T))
    return torch.cat([u_p * s_p, -u * s], dim=1), torch.cat([vh_p, vh])


@pytest.mark.parametrize("drift", [1e-12, 1e-9, 1e-6, 1e-3, 1e-1])
@pytest.mark.parametrize("trained", ["USV", "S", "U", "rotation", "S and rotation"])
@pytest.mark.parametrize("name", ["square", "wide", "tall", "heavy tailed", "decaying"])
def test_sorsa_adapters_are_followed(name: str, trained: str, drift: float) -> None:
    base = exact(BASES[name])
    for rank in (1, 4):
        solved = right_or_refused(base, sorsa_update(base, rank, drift, trained))
        if name in ("square", "wide", "tall") and trained in ("USV", "U"):
            assert solved


@pytest.mark.parametrize("drift", [1e-9, 1e-6])
@pytest.mark.parametrize("name", ["heavy tailed", "decaying"])
def test_sorsa_on_a_decaying_spectrum_needs_no_dense_solver(name: str, drift: float) -> None:
    base = exact(BASES[name])
    LowRankUpdate(base, *sorsa_update(base, 4, drift, "USV")).turned()


def test_where_only_s_is_trained_nothing_else_moves() -> None:
    base = exact(BASES["wide"])
    b, a = sorsa_update(base, 3, 1e-3, "S")
    found = LowRankUpdate(base, b, a).turned()
    assert (found.overlap_u > 1 - 1e-12).all() and (found.overlap_v > 1 - 1e-12).all()
    assert (found.s[3:] - base.s[3:]).abs().max() <= 4 * EPS * base.s[0]
    assert (found.s[:3] - base.s[:3]).abs().min() > 1e-6


def test_an_update_of_a_few_base_directions_leaves_the_others_exactly_alone() -> None:
    k = 12
    base = exact(torch.diag(torch.arange(k, 0.0, -1)).double())
    b, a = torch.zeros(k, 2).double(), torch.zeros(2, k).double()
    b[2, 0], b[5, 1], a[0, 5], a[1, 5] = 0.3, 0.2, 0.7, 0.4
    found = LowRankUpdate(base, b, a).turned()
    others = [i for i in range(k) if i not in (2, 5)]
    assert torch.equal(found.s[others], base.s[others])
    assert (found.overlap_u[others] == 1).all() and (found.overlap_v[others] == 1).all()
    assert right_or_refused(base, (b, a))


# Factors of every make.


def lora_variants() -> Iterator[tuple[str, Callable[[Tensor, Tensor], Factors]]]:
    zero = torch.zeros
    yield "zero column", lambda b, a: (torch.cat([b, zero(len(b), 2).double()], 1), a[[0, 1, 0, 1]])
    yield "equal columns", lambda b, a: (torch.cat([b, b], 1), torch.cat([a, a]))
    yield "cancelling columns", lambda b, a: (torch.cat([b, b, -b], 1), torch.cat([2 * a, a, a]))
    yield "float32", lambda b, a: (b.float(), a.float())
    yield "bfloat16", lambda b, a: (b.bfloat16(), a.bfloat16())
    yield "float16", lambda b, a: (b.half(), a.half())
    yield "mixed dtypes", lambda b, a: (b.bfloat16(), a)
    yield "tiny b, huge a", lambda b, a: (1e-8 * b, 1e8 * a)
    yield "minute b, vast a", lambda b, a: (1e-120 * b, 1e120 * a)
    scales = torch.tensor([1e8, 1e-8], dtype=torch.float64)
    yield "unbalanced columns", lambda b, a: (b * scales, a / scales[:, None])
    yield "transposed views", lambda b, a: (b.T.contiguous().T, a.T.contiguous().T)
    yield "more columns than rows", lambda b, a: (b.repeat(1, 40), a.repeat(40, 1) / 40)


VARIANTS = dict(lora_variants())


@pytest.mark.parametrize("variant", VARIANTS)
def test_factors_of_every_make_are_taken(variant: str) -> None:
    base = exact(BASES["wide"])
    b, a = VARIANTS[variant](*random_update(base, 2, 0.01))
    before = b.clone(), a.clone()
    assert right_or_refused(base, (b, a))
    assert torch.equal(b, before[0]) and torch.equal(a, before[1])


def test_dependent_columns_do_not_count_as_rank() -> None:
    b, a = VARIANTS["cancelling columns"](gaussian(24, 2), gaussian(2, 60, 1))
    assert LowRankUpdate(exact(BASES["wide"]), b, a).rank == 2


@pytest.mark.parametrize("r", [0, 3])
def test_an_update_of_zero_gives_the_base(r: int) -> None:
    base = exact(BASES["tall"])
    b, a = torch.zeros(60, r).double(), torch.ones(r, 24).double()
    found = LowRankUpdate(base, b, a).turned()
    assert torch.equal(found.s, base.s) and found.residual == 0.0
    assert (found.overlap_u == 1).all() and (found.overlap_v == 1).all()
    assert torch.equal(LowRankUpdate(base, b, a).values().s, base.s)


def test_factors_that_require_grad_give_plain_numbers() -> None:
    base = exact(BASES["wide"])
    b, a = (factor.requires_grad_() for factor in random_update(base, 2, 0.01))
    found = LowRankUpdate(base, b, a).turned()
    assert not found.s.requires_grad and not found.near_u.requires_grad


# What it refuses.


def test_a_product_beyond_float64_is_refused() -> None:
    base = exact(BASES["wide"])
    with pytest.raises((NotConverged, torch.linalg.LinAlgError)):
        LowRankUpdate(base, 1e200 * gaussian(24, 2), 1e200 * gaussian(2, 60)).turned()


@pytest.mark.parametrize(
    "shapes", [((24, 2), (2, 59)), ((23, 2), (2, 60)), ((24, 2), (3, 60)), ((2, 24), (60, 2))]
)
def test_factors_that_do_not_fit_are_refused(shapes: tuple[tuple[int, int], ...]) -> None:
    b, a = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"shapes \(24, r\) and \(r, 60\), got"):
        LowRankUpdate(exact(BASES["wide"]), b, a)


@pytest.mark.parametrize(
    "w_0",
    [
        torch.eye(8).double(),
        orthonormal(9, 6),
        torch.zeros(4, 6).double(),
        gaussian(8, 3) @ gaussian(3, 9),
        matrix_with_spectrum([2.0, 1.0 + 2e-15, 1.0], 3, 5),
    ],
    ids=["identity", "orthogonal", "zero", "rank deficient", "nearly repeated"],
)
def test_a_base_without_vectors_of_its_own_is_refused(w_0: Tensor) -> None:
    b, a = torch.ones(len(w_0), 1), torch.ones(1, w_0.shape[1])
    with pytest.raises(NotConverged, match="repeated or vanishing"):
        LowRankUpdate(exact(w_0), b, a)


def test_an_update_of_full_rank_is_refused() -> None:
    base = exact(gaussian(5, 9))
    with pytest.raises(NotConverged, match="not of low rank"):
        LowRankUpdate(base, gaussian(5, 5), gaussian(5, 9))


# Updates made to break it. It may refuse, but what it gives must be right.


def pairs(base: Decomposition, picked: list[int], change: Tensor) -> Factors:
    """σ_i → σ_i + change_i for the picked pairs, vectors kept."""
    return base.u[:, picked], base.vh[picked] * change[:, None]


def kill(base: Decomposition, picked: list[int], _: int) -> Factors:
    return pairs(base, picked, -base.s[picked])


def nearly_kill(base: Decomposition, picked: list[int], seed: int) -> Factors:
    return pairs(base, picked[:1], -base.s[picked[:1]] * (1 - 10.0 ** (-8 - seed % 8)))


def project(base: Decomposition, picked: list[int], seed: int) -> Factors:
    q = base.u @ orthonormal(len(base.s), 1, seed)
    return -q, q.T @ (base.u * base.s) @ base.vh


def nearly_project(base: Decomposition, picked: list[int], seed: int) -> Factors:
    b, a = project(base, picked, seed)
    return b * (1 - 10.0 ** (-8 - seed % 8)), a


def negate(base: Decomposition, picked: list[int], _: int) -> Factors:
    return pairs(base, picked, -2 * base.s[picked])


def swap(base: Decomposition, picked: list[int], _: int) -> Factors:
    two = [picked[0], (picked[0] + 1) % len(base.s)]
    return pairs(base, two, base.s[two].flip(0) - base.s[two])


def tie(base: Decomposition, picked: list[int], seed: int) -> Factors:
    to = base.s[(picked[0] + 1) % len(base.s)]
    nudge = (0.0, 1e-15, 1e-12, 1e-9)[seed % 4]
    return pairs(base, picked[:1], to * (1 + nudge) - base.s[picked[:1]])


def equalise(base: Decomposition, picked: list[int], _: int) -> Factors:
    return pairs(base, picked, base.s[0] - base.s[picked])


def scaled_block(base: Decomposition, picked: list[int], seed: int) -> Factors:
    return pairs(base, picked, base.s[picked] * (-1.0, 1.0, -0.5, 1e-9)[seed % 4])


def all_but_one_scaled(base: Decomposition, picked: list[int], seed: int) -> Factors:
    most = list(range(len(base.s) - 1))
    return pairs(base, most, base.s[most] * (1.0, -0.5, 2.0)[seed % 3])


def made_orthogonal(base: Decomposition, picked: list[int], _: int) -> Factors:
    most = list(range(len(base.s) - 1))
    return pairs(base, most, base.s[-1] - base.s[most])


def crossed(base: Decomposition, picked: list[int], seed: int) -> Factors:
    other = (picked[0] + 1 + seed) % len(base.s)
    return base.u[:, picked[:1]], base.vh[[other]] * base.s[0]


def one_direction_and_outside(base: Decomposition, picked: list[int], seed: int) -> Factors:
    b, a = gaussian(len(base.u), 2, seed), gaussian(2, base.vh.shape[1], seed + 1)
    b -= base.u @ (base.u.T @ b)
    a -= (a @ base.vh.T) @ base.vh
    return b + base.u[:, picked[:1]], a + 0.5 * base.vh[picked[:1]]


def rotated(base: Decomposition, picked: list[int], seed: int) -> Factors:
    u, vh = base.u[:, picked], base.vh[picked]
    turn = orthonormal(len(picked), len(picked), seed)
    return torch.cat([u @ turn, -u], 1) * base.s[picked].repeat(2), torch.cat([vh, vh])


def one_entry(base: Decomposition, picked: list[int], seed: int) -> Factors:
    b, a = torch.zeros(len(base.u), 1).double(), torch.zeros(1, base.vh.shape[1]).double()
    b[seed % len(base.u), 0] = base.s[0]
    a[0, seed % base.vh.shape[1]] = 1.0
    return b, a


def one_huge_direction(base: Decomposition, picked: list[int], seed: int) -> Factors:
    return random_update(base, 1, 10.0 ** (6 + seed % 8), seed)


WILD_UPDATES: dict[str, Callable[[Decomposition, list[int], int], Factors]] = {
    "some values to exactly 0": kill,
    "a value to nearly 0": nearly_kill,
    "projected to a singular matrix": project,
    "projected to a nearly singular matrix": nearly_project,
    "signs turned": negate,
    "two directions swapped": swap,
    "a value onto its neighbour": tie,
    "values made equal": equalise,
    "a block scaled": scaled_block,
    "all but one scaled": all_but_one_scaled,
    "made orthogonal": made_orthogonal,
    "u of one pair, v of another": crossed,
    "outside the base but for one direction": one_direction_and_outside,
    "rotated within a span": rotated,
    "one entry": one_entry,
    "one huge direction": one_huge_direction,
}

SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "random": lambda k: torch.linalg.svdvals(gaussian(k, k, k)),
    "whole numbers": lambda k: torch.arange(k, 0, -1).double(),
    "powers of 2": lambda k: 2.0 ** torch.arange(0, -k, -1).double(),
    "decaying": lambda k: torch.logspace(0, -7, k).double(),
    "nearly flat": lambda k: 1 + 1e-8 * torch.arange(k, 0, -1).double(),
}


def wild_cases(kind: str) -> Iterator[tuple[Decomposition, Factors]]:
    """Sizes, shapes and spectra for one kind of update; bases are known exactly."""
    for seed, (spectrum, shape) in enumerate(
        (spectrum, shape) for spectrum in SPECTRA.values() for shape in (0, 6, -6)
    ):
        for k in (2, 5) if seed % 4 < 2 else (3, 12):
            m, n = k + max(shape, 0), k + max(-shape, 0)
            if seed % 2:  # an exactly diagonal W_0
                u, v = torch.eye(m, k).double(), torch.eye(n, k).double()
            else:
                u, v = orthonormal(m, k, seed), orthonormal(n, k, seed + 1)
            base = Decomposition(u, spectrum(k), v.T, "svd", 0.0)
            picked = sorted({seed % k, (seed // 2 + 2) % k, k // 2})[: max(k // 2, 1)]
            yield base, WILD_UPDATES[kind](base, picked, seed + k)


@pytest.mark.parametrize("kind", WILD_UPDATES)
def test_what_is_made_to_break_it_is_solved_rightly_or_refused(kind: str) -> None:
    for base, update in wild_cases(kind):
        right_or_refused(base, update)


# Found by searching at random; each once gave wrong numbers with a small residual.


def test_values_alone_are_certified_as_those_with_vectors() -> None:
    """σ² of a small value is lost in Σσ²: that sum alone certifies nothing about it."""
    s = torch.logspace(0, -7, 8).double()
    base = Decomposition(orthonormal(8, 8), s, orthonormal(8, 8, 1).T, "svd", 0.0)
    for i in range(7):
        right_or_refused(base, pairs(base, [i, i + 1], s[[i + 1, i]] - s[[i, i + 1]]))
    s = torch.tensor([4e4, 2.0, 1.5, 1.0], dtype=torch.float64)
    base = Decomposition(orthonormal(4, 4), s, orthonormal(23, 4, 1).T, "svd", 0.0)
    for i in range(3):
        right_or_refused(base, pairs(base, [i, i + 1], s[[i + 1, i]] - s[[i, i + 1]]))


@pytest.mark.parametrize("digits", range(4, 17, 2))
@pytest.mark.parametrize("shape", [(20, 20), (20, 33), (33, 20)])
def test_vectors_of_a_vanishing_value_are_right_or_refused(
    shape: tuple[int, int], digits: int
) -> None:
    u, v = orthonormal(shape[0], 20), orthonormal(shape[1], 20, 1)
    base = Decomposition(u, torch.linspace(2, 1, 20).double(), v.T, "svd", 0.0)
    q = u @ orthonormal(20, 1, 2)
    right_or_refused(base, (-q * (1 - 10.0**-digits), q.T @ (u * base.s) @ v.T))


@pytest.mark.parametrize(("k", "seed"), [(3, 27), (3, 47), (2, 73), (5, 124), (2, 148), (5, 267)])
def test_a_vector_that_was_lost_in_its_mirror_image_is_refused(k: int, seed: int) -> None:
    """At σ = 0, (u, v) and (u, −v) of −σ are one eigenspace, and v may get length 0 of it."""
    u, v = orthonormal(k, k, seed), orthonormal(k, k, seed + 1)
    base = Decomposition(u, torch.linspace(2, 1, k).double(), v.T, "svd", 0.0)
    right_or_refused(base, project(base, [0], seed))


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e-100, 1e100, 1e150, 1e200, 1e300])
def test_entries_of_any_size_are_solved_or_refused(scale: float) -> None:
    w_0 = gaussian(9, 14)
    b, a = gaussian(9, 2, 2), gaussian(2, 14, 3)
    found = follow(decompose(scale * w_0), lambda: scale * (w_0 + b @ a), (scale * b, a))
    expected = scale * torch.linalg.svdvals(w_0 + b @ a)
    torch.testing.assert_close(found.s, expected, rtol=1e-12, atol=0)
    try:
        direct = LowRankUpdate(decompose(scale * w_0), scale * b, a).turned()
    except (NotConverged, torch.linalg.LinAlgError):
        return
    torch.testing.assert_close(direct.s, expected, rtol=1e-12, atol=0)
