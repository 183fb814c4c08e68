"""The dense solver against a plain float64 SVD."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectra.linalg import decompose, product_singular_values, singular_values

EPS = torch.finfo(torch.float64).eps


def gaussian(m: int, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=torch.float64)


def with_spectrum(s: Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    u = torch.linalg.qr(gaussian(m, len(s), seed)).Q
    v = torch.linalg.qr(gaussian(n, len(s), seed + 1)).Q
    return (u * s.double()) @ v.T


MATRICES = {
    "square": gaussian(40, 40),
    "wide": gaussian(24, 60),
    "tall": gaussian(60, 24),
    "row": gaussian(1, 9),
    "column": gaussian(9, 1),
    "one by one": gaussian(1, 1),
    "zero": torch.zeros(6, 8, dtype=torch.float64),
    "identity": torch.eye(12, dtype=torch.float64),
    "rank deficient": gaussian(30, 5) @ gaussian(5, 40, 1),
    "repeated values": with_spectrum(torch.tensor([5.0, 3.0, 3.0, 3.0, 1.0]), 5, 8),
    "ill conditioned": with_spectrum(torch.logspace(0, -9, 20), 20, 30),
    "hardly conditioned": with_spectrum(torch.logspace(0, -4.5, 20), 20, 30),
    "one huge value": with_spectrum(torch.tensor([1e14, *([1.0] * 9)]), 10, 12),
    "nearly repeated": with_spectrum(torch.tensor([2.0, 2.0 + 1e-12, 1.0]), 3, 7),
    "transposed view": gaussian(60, 24).T,
    "tiny entries": 1e-150 * gaussian(10, 12),
}


@pytest.mark.parametrize("name", MATRICES)
def test_singular_values_equal_an_svd(name: str) -> None:
    w = MATRICES[name]
    expected = torch.linalg.svdvals(w)
    # Backward stability: an absolute error of a small multiple of ε σ_max.
    tolerance = 100 * EPS * max(expected[0].item(), 1e-300)
    torch.testing.assert_close(decompose(w).s, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(singular_values(w).s, expected, rtol=0, atol=1e4 * tolerance)
    assert singular_values(w).residual < 1e-13


@pytest.mark.parametrize("name", MATRICES)
def test_factors_reproduce_the_matrix_and_are_orthonormal(name: str) -> None:
    w = MATRICES[name]
    result = decompose(w)
    k = min(w.shape)
    assert result.u.shape == (w.shape[0], k)
    assert result.vh.shape == (k, w.shape[1])
    assert (result.s.diff() <= 0).all()
    norm = torch.linalg.matrix_norm(w).item()
    back = (result.u * result.s) @ result.vh
    assert torch.linalg.matrix_norm(back - w).item() <= 1e-13 * norm
    # Gram vectors of the smaller singular values lose up to ε κ² of their orthogonality.
    for gram in (result.u.T @ result.u, result.vh @ result.vh.T):
        assert torch.linalg.matrix_norm(gram - torch.eye(k)).item() < 1e-5
    assert result.residual < 1e-5


@pytest.mark.parametrize("name", MATRICES)
def test_condition_number_keeps_its_digits(name: str) -> None:
    w = MATRICES[name]
    expected = torch.linalg.svdvals(w)
    if expected[-1] > 1e-7 * expected[0]:
        relative = (decompose(w).s[-1] / expected[-1] - 1).abs().item()
        assert relative < 1e-8


def test_close_singular_values_get_the_svd_and_good_ones_the_gram_matrix() -> None:
    assert decompose(MATRICES["wide"]).solver == "gram"
    for name in ("rank deficient", "ill conditioned", "zero"):
        assert decompose(MATRICES[name]).solver == "svd"


def test_where_eigh_does_not_converge_the_svd_steps_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Tensor) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    assert decompose(MATRICES["wide"]).solver == "svd"


def test_entries_that_overflow_when_squared_get_the_svd() -> None:
    result = decompose(1e200 * gaussian(4, 6))
    assert result.solver == "svd" and torch.isfinite(result.s).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_decomposed_in_float64(dtype: torch.dtype) -> None:
    w = gaussian(8, 12).to(dtype)
    expected = torch.linalg.svdvals(w.double())
    torch.testing.assert_close(decompose(w).s, expected, rtol=1e-13, atol=0)


def test_the_input_is_not_changed() -> None:
    w = gaussian(8, 12)
    before = w.clone()
    decompose(w)
    assert torch.equal(w, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_entries_are_refused(bad: float) -> None:
    w = gaussian(4, 4)
    w[1, 2] = bad
    with pytest.raises(ValueError, match="1 of its 16 entries are NaN or Inf"):
        decompose(w)


@pytest.mark.parametrize("w", [torch.zeros(3), torch.zeros(0, 4), torch.zeros(2, 2, 2)])
def test_what_is_no_matrix_is_refused(w: Tensor) -> None:
    with pytest.raises(ValueError, match="must be a non-empty matrix, got shape"):
        decompose(w)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 12), n=st.integers(1, 12), seed=st.integers(0, 999))
def test_transposition_swaps_left_and_right(m: int, n: int, seed: int) -> None:
    w = gaussian(m, n, seed)
    straight, swapped = decompose(w), decompose(w.T)
    torch.testing.assert_close(straight.s, swapped.s, rtol=1e-11, atol=1e-13)
    overlap = (straight.u * swapped.vh.T).sum(0).abs()
    torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 999))
def test_scaling_scales_the_values(scale: float, seed: int) -> None:
    w = gaussian(7, 9, seed)
    torch.testing.assert_close(decompose(scale * w).s, scale * decompose(w).s, rtol=1e-11, atol=0)


def test_orthogonal_transforms_leave_the_values_alone() -> None:
    w, q = gaussian(9, 14), torch.linalg.qr(gaussian(9, 9, 5)).Q
    torch.testing.assert_close(decompose(q @ w).s, decompose(w).s, rtol=1e-12, atol=0)


def test_product_of_factors_has_the_singular_values_of_the_formed_product() -> None:
    u, s, vh = gaussian(20, 4), gaussian(1, 4, 1)[0], gaussian(4, 30, 2)
    expected = torch.linalg.svdvals((u * s) @ vh)[:4]
    found = product_singular_values(u, s, vh)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
