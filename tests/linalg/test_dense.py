"""The dense solver against a plain float64 SVD."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectra.linalg import decompose, dense, product_singular_values, singular_values
from tests.helpers import gaussian, matrix_with_spectrum, orthonormal

EPS = torch.finfo(torch.float64).eps

PROPERTIES = settings(max_examples=20, deadline=None, derandomize=True)


def few_small(*values: float) -> Tensor:
    """Values between 1 and 2, and a few that the Gram matrix alone would lose."""
    return torch.cat([torch.linspace(2, 1, 30), torch.tensor(values)]).double()


def nearly_dead_row(seed: int) -> Tensor:
    """Rank 14 of 17, and a row that is 1e-30 of what it was: the last value is about 1e-45."""
    w = matrix_with_spectrum(torch.linspace(2, 1, 14, dtype=torch.float64), 17, 36, seed)
    w[3] *= 1e-30
    return w


MATRICES = {
    "square": gaussian(40, 40),
    "wide": gaussian(24, 60),
    "tall": gaussian(60, 24),
    "row": gaussian(1, 9),
    "column": gaussian(9, 1),
    "one by one": gaussian(1, 1),
    "two by two": gaussian(2, 2),
    "zero": torch.zeros(6, 8, dtype=torch.float64),
    "one entry": torch.eye(5, 1).double() @ torch.eye(1, 7).double(),
    "identity": torch.eye(12, dtype=torch.float64),
    "orthogonal": orthonormal(20, 20),
    "rank deficient": gaussian(30, 5) @ gaussian(5, 40, 1),
    "singular by one": gaussian(20, 19) @ gaussian(19, 20, 1),
    "repeated values": matrix_with_spectrum([5.0, 3.0, 3.0, 3.0, 1.0], 5, 8),
    "a repeated pair": matrix_with_spectrum([*range(12, 2, -1), 2.0, 2.0], 12, 15),
    "ill conditioned": matrix_with_spectrum(torch.logspace(0, -9, 20), 20, 30),
    "hardly conditioned": matrix_with_spectrum(torch.logspace(0, -4.5, 20), 20, 30),
    "one small value": matrix_with_spectrum(few_small(1e-6), 31, 40),
    "some small values": matrix_with_spectrum(few_small(3e-4, 1e-5, 1e-7), 33, 33),
    "small values far apart": matrix_with_spectrum(few_small(2e-4, 1e-12), 32, 50),
    "a nearly dead row": nearly_dead_row(4),
    "one huge value": matrix_with_spectrum([1e14, *([1.0] * 9)], 10, 12),
    "nearly repeated": matrix_with_spectrum([2.0, 2.0 + 1e-12, 1.0], 3, 7),
    "a cluster": matrix_with_spectrum(1 + 1e-7 * torch.arange(40.0, 0, -1).double(), 40, 44),
    "transposed view": gaussian(60, 24).T,
    "strided view": gaussian(48, 120)[::2, ::3],
    "large entries": 1e120 * gaussian(10, 12),
    "huge entries": 1e300 * gaussian(10, 12),
    "small entries": 1e-150 * gaussian(10, 12),
    "minute entries": 1e-300 * gaussian(10, 12),
}


@pytest.mark.parametrize("solver", ["auto", "gram", "svd"])
@pytest.mark.parametrize("name", MATRICES)
def test_singular_values_equal_an_svd(name: str, solver: str) -> None:
    w = MATRICES[name]
    expected = torch.linalg.svdvals(w)
    # Backward stability: an absolute error of a small multiple of ε σ_max.
    tolerance = 100 * EPS * max(expected[0].item(), 1e-307)
    torch.testing.assert_close(decompose(w, solver).s, expected, rtol=0, atol=tolerance)
    spectrum = singular_values(w, solver)
    # √λ is wrong by ε σ_max²/σ; from 3e-4 σ_max down, values are found by other means.
    torch.testing.assert_close(spectrum.s, expected, rtol=0, atol=20 * tolerance)
    assert (spectrum.s >= 0).all() and (spectrum.s.diff() <= 0).all()
    assert spectrum.residual < 1e-8


@pytest.mark.parametrize("solver", ["auto", "svd"])
@pytest.mark.parametrize("name", MATRICES)
def test_factors_reproduce_the_matrix_and_are_orthonormal(name: str, solver: str) -> None:
    w = MATRICES[name]
    result = decompose(w, solver)
    k = min(w.shape)
    assert result.u.shape == (w.shape[0], k)
    assert result.vh.shape == (k, w.shape[1])
    assert (result.s.diff() <= 0).all()
    scale = max(w.abs().max().item(), 1e-307)
    w, s = w / scale, result.s / scale
    norm = torch.linalg.matrix_norm(w).item()
    assert torch.linalg.matrix_norm((result.u * s) @ result.vh - w).item() <= 1e-13 * norm
    # Vectors from a Gram matrix are refined where they would be worse than 1e-9 each.
    for gram in (result.u.T @ result.u, result.vh @ result.vh.T):
        assert torch.linalg.matrix_norm(gram - torch.eye(k)).item() < 1e-7
    assert 0 <= result.residual < 1e-8


@pytest.mark.parametrize("name", MATRICES)
def test_condition_number_keeps_its_digits(name: str) -> None:
    w = MATRICES[name]
    expected = torch.linalg.svdvals(w)
    if not expected[-1] > 1e-7 * expected[0]:
        return
    for s in (decompose(w).s, singular_values(w).s):
        assert (s[-1] / expected[-1] - 1).abs().item() < 1e-8


@pytest.mark.parametrize("name", MATRICES)
def test_vectors_are_those_of_an_svd(name: str) -> None:
    w = MATRICES[name]
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    found = decompose(w)
    infinity = s.new_full((1,), torch.inf)
    gaps = torch.cat([infinity, s.diff().abs(), infinity])
    clear = torch.minimum(gaps[:-1], gaps[1:]) > 1e-6 * s[0]
    overlaps = [(found.u * u).sum(0).abs()]
    if clear[-1] and s[-1] > 1e-6 * s[0]:  # else the long side's last vector is arbitrary
        overlaps.append((found.vh * vh).sum(1).abs())
    for overlap in overlaps if w.shape[0] <= w.shape[1] else overlaps[1:]:
        assert (1 - overlap[clear]).abs().max() < 1e-13 if clear.any() else True


def test_good_matrices_get_the_gram_matrix_and_those_it_would_spoil_the_svd() -> None:
    for name in ("square", "wide", "tall", "row", "a repeated pair"):
        assert decompose(MATRICES[name]).solver == "gram", name
    for name in ("square", "wide", "tall", "row", "a cluster", "some small values"):
        assert singular_values(MATRICES[name]).solver == "gram-values", name
    for name in ("repeated values", "rank deficient", "ill conditioned", "zero", "a cluster"):
        assert decompose(MATRICES[name]).solver == "svd", name
    for name in ("rank deficient", "ill conditioned", "zero"):
        assert singular_values(MATRICES[name]).solver == "svd-values", name


def test_an_svd_asked_for_by_name_is_what_runs() -> None:
    assert decompose(MATRICES["wide"], "svd").solver == "svd"
    assert singular_values(MATRICES["wide"], "svd").solver == "svd-values"


@pytest.mark.parametrize("seed", [4, 6, 8, 71, 97])
def test_values_found_through_the_inverse_are_never_nan(seed: int) -> None:
    """Lanczos on an inverse of norm 1e90 once gave negative eigenvalues, and their roots."""
    w = nearly_dead_row(seed)
    expected = torch.linalg.svdvals(w)
    torch.testing.assert_close(singular_values(w).s, expected, rtol=0, atol=1e-13)


def test_where_the_search_for_small_values_fails_the_svd_steps_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise dense.ArpackError(-8)

    w = MATRICES["one small value"]
    assert singular_values(w).solver == "gram-values"
    monkeypatch.setattr(dense, "eigsh", fail)
    assert singular_values(w).solver == "svd-values"


def test_where_no_eigenvalues_are_found_the_svd_steps_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(dense, "eigenvectors", fail)
    monkeypatch.setattr(dense, "eigenvalues", fail)
    assert decompose(MATRICES["wide"]).solver == "svd"
    assert singular_values(MATRICES["wide"]).solver == "svd-values"


@pytest.mark.parametrize("scale", [1e-200, 1e-120, 1e120, 1e200])
def test_entries_whose_squares_leave_float64_get_the_svd(scale: float) -> None:
    result = decompose(scale * gaussian(4, 6))
    assert result.solver == "svd" and torch.isfinite(result.s).all()
    assert singular_values(scale * gaussian(4, 6)).solver == "svd-values"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_decomposed_in_float64(dtype: torch.dtype) -> None:
    w = gaussian(8, 12).to(dtype)
    expected = torch.linalg.svdvals(w.double())
    torch.testing.assert_close(decompose(w).s, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(singular_values(w).s, expected, rtol=1e-13, atol=0)


def test_the_input_is_not_changed() -> None:
    for w in (gaussian(8, 12), gaussian(12, 8), gaussian(12, 8).T):
        before = w.clone()
        for solver in ("auto", "svd"):
            decompose(w, solver)
            singular_values(w, solver)
        assert torch.equal(w, before)


def test_tensors_that_require_grad_are_decomposed_as_they_are() -> None:
    w = gaussian(8, 12).requires_grad_()
    found = decompose(w)
    assert not any(x.requires_grad for x in (found.u, found.s, found.vh, singular_values(w).s))


@pytest.mark.parametrize("decomposing", [decompose, singular_values])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_entries_are_refused(bad: float, decomposing: object) -> None:
    w = gaussian(4, 4)
    w[1, 2] = bad
    assert callable(decomposing)
    with pytest.raises(ValueError, match="1 of its 16 entries are NaN or Inf"):
        decomposing(w)


@pytest.mark.parametrize("decomposing", [decompose, singular_values])
@pytest.mark.parametrize("w", [torch.zeros(3), torch.zeros(0, 4), torch.zeros(2, 2, 2)])
def test_what_is_no_matrix_is_refused(w: Tensor, decomposing: object) -> None:
    assert callable(decomposing)
    with pytest.raises(ValueError, match="must be a non-empty matrix, got shape"):
        decomposing(w)


def test_unknown_solvers_are_refused() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        decompose(gaussian(3, 4), "fast")
    with pytest.raises(ValueError, match="must be one of"):
        singular_values(gaussian(3, 4), "fast")


@PROPERTIES
@given(m=st.integers(1, 12), n=st.integers(1, 12), seed=st.integers(0, 999))
def test_transposition_swaps_left_and_right(m: int, n: int, seed: int) -> None:
    w = gaussian(m, n, seed)
    straight, swapped = decompose(w), decompose(w.T)
    torch.testing.assert_close(straight.s, swapped.s, rtol=1e-11, atol=1e-13)
    overlap = (straight.u * swapped.vh.T).sum(0).abs()
    torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=0, atol=1e-6)
    values = singular_values(w).s, singular_values(w.T).s
    torch.testing.assert_close(*values, rtol=1e-11, atol=1e-13)


@PROPERTIES
@given(scale=st.floats(-300, 300), seed=st.integers(0, 999))
def test_scaling_scales_the_values(scale: float, seed: int) -> None:
    w, c = gaussian(7, 9, seed), 10.0**scale
    torch.testing.assert_close(decompose(c * w).s / c, decompose(w).s, rtol=1e-11, atol=0)
    values = singular_values(c * w).s / c
    torch.testing.assert_close(values, singular_values(w).s, rtol=1e-11, atol=0)


def test_orthogonal_transforms_leave_the_values_alone() -> None:
    w, q = gaussian(9, 14), orthonormal(9, 9, 5)
    torch.testing.assert_close(decompose(q @ w).s, decompose(w).s, rtol=1e-12, atol=0)


def test_product_of_factors_has_the_singular_values_of_the_formed_product() -> None:
    u, s, vh = gaussian(20, 4), gaussian(1, 4, 1)[0], gaussian(4, 30, 2)
    expected = torch.linalg.svdvals((u * s) @ vh)[:4]
    found = product_singular_values(u, s, vh)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_a_product_with_a_factor_that_is_not_finite_is_refused() -> None:
    u = gaussian(20, 4)
    u[3, 1] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        product_singular_values(u, torch.ones(4), gaussian(4, 30))
