"""Gram matrices and their eigenvectors against a plain product and torch.linalg.eigh."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spectra.linalg import symmetric
from spectra.linalg.symmetric import eigenvalues, eigenvectors, gram
from tests.helpers import gaussian, matrix_with_spectrum

EPS = torch.finfo(torch.float64).eps

MATRICES = {
    "two rows": gaussian(2, 5),
    "three rows": gaussian(3, 3),
    "square": gaussian(40, 40),
    "wide": gaussian(33, 90),
    "ill conditioned": matrix_with_spectrum(torch.logspace(0, -9, 20), 20, 30),
    "repeated values": matrix_with_spectrum([2.0] * 5 + [1.0] * 5, 10, 12),
    "rank deficient": gaussian(30, 4) @ gaussian(4, 35, 1),
    "diagonal": torch.diag(torch.arange(12.0, 0, -1)).double(),
    "zero": torch.zeros(6, 9).double(),
}


@pytest.mark.parametrize("k", [1, 2, 255, 256, 257, 513])
def test_the_lower_triangle_is_that_of_the_product(k: int) -> None:
    w = gaussian(k, k + 3)
    expected = w @ w.T
    torch.testing.assert_close(
        gram(w).tril(), expected.tril(), rtol=0, atol=100 * EPS * expected.max().item()
    )


@pytest.mark.parametrize("w", [gaussian(12, 20), gaussian(20, 12), gaussian(7, 7), gaussian(1, 4)])
def test_the_short_side_is_taken(w: Tensor) -> None:
    expected = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    assert torch.allclose(gram(w).tril(), expected.tril(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_eigenvectors_are_those_of_the_gram_matrix(name: str, flipped: bool) -> None:
    w = MATRICES[name]
    product = w @ w.T
    w = w.T.contiguous() if flipped and len(w) < w.shape[1] else w
    values, vectors = eigenvectors(gram(w))
    expected = torch.linalg.eigh(product).eigenvalues.flip(0)
    # Backward stability: ε times the largest eigenvalue, a few dozen times.
    tolerance = 100 * EPS * max(expected[0].item(), 1e-300)
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(values, expected, rtol=0, atol=tolerance)
    back = (vectors * values) @ vectors.T
    torch.testing.assert_close(back, product, rtol=0, atol=tolerance)
    unit = torch.eye(len(product)).double()
    torch.testing.assert_close(vectors.T @ vectors, unit, rtol=0, atol=100 * EPS)
    alone = eigenvalues(gram(w)).flip(0)
    torch.testing.assert_close(alone, expected, rtol=0, atol=tolerance)


def test_a_single_number_is_its_own_eigenvalue() -> None:
    w = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    values, vectors = eigenvectors(gram(w))
    assert values.tolist() == [25.0]
    assert vectors.abs().tolist() == [[1.0]]
    assert eigenvalues(gram(w)).tolist() == [25.0]


@pytest.mark.parametrize("stage", ["dsytrd", "dstevd", "dormqr", "dsterf"])
def test_a_failure_that_lapack_reports_is_raised(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(symmetric.lapack, stage)

    def reports_failure(*args: Any, **options: Any) -> tuple[Tensor, ...]:
        return (*original(*args, **options)[:-1], 7)

    monkeypatch.setattr(symmetric.lapack, stage, reports_failure)
    solve = eigenvalues if stage == "dsterf" else eigenvectors
    product = gram(gaussian(5, 8))
    with pytest.raises(torch.linalg.LinAlgError, match="info 7"):
        solve(product)
