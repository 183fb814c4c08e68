"""Gram matrices and their eigenvectors against a plain product and torch.linalg.eigh."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spectra.linalg import symmetric
from spectra.linalg.symmetric import eigenvectors, gram
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


def test_the_lower_triangle_does_not_depend_on_the_memory_layout() -> None:
    w = gaussian(12, 20)
    assert torch.allclose(gram(w.T.contiguous().T).tril(), gram(w).tril(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_eigenvectors_are_those_of_the_gram_matrix(
    name: str, staged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(symmetric, "_STAGED", 2 if staged else 10**6)
    w = MATRICES[name]
    product = w @ w.T
    values, vectors = eigenvectors(gram(w))
    expected = torch.linalg.eigh(product).eigenvalues
    # Backward stability: ε times the largest eigenvalue, a few dozen times.
    tolerance = 100 * EPS * max(expected[-1].item(), 1e-300)
    assert (values.diff() >= 0).all()
    torch.testing.assert_close(values, expected, rtol=0, atol=tolerance)
    back = (vectors * values) @ vectors.T
    torch.testing.assert_close(back, product, rtol=0, atol=tolerance)
    unit = torch.eye(len(w)).double()
    torch.testing.assert_close(vectors.T @ vectors, unit, rtol=0, atol=100 * EPS)


def test_both_ways_give_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    w = gaussian(70, 120)
    driver = eigenvectors(gram(w))
    monkeypatch.setattr(symmetric, "_STAGED", 2)
    staged = eigenvectors(gram(w))
    torch.testing.assert_close(staged[0], driver[0], rtol=1e-12, atol=0)
    overlap = (staged[1] * driver[1]).sum(0).abs()
    torch.testing.assert_close(overlap, torch.ones(70).double(), rtol=0, atol=1e-10)


def test_large_matrices_take_the_staged_way() -> None:
    assert 1024 < symmetric._STAGED < 4096


@pytest.mark.parametrize("stage", ["dsytrd", "dstevd", "dormqr"])
def test_a_failure_that_lapack_reports_is_raised(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(symmetric.lapack, stage)

    def reports_failure(*args: Any, **options: Any) -> tuple[Tensor, ...]:
        return (*original(*args, **options)[:-1], 7)

    monkeypatch.setattr(symmetric, "_STAGED", 2)
    monkeypatch.setattr(symmetric.lapack, stage, reports_failure)
    product = gram(gaussian(5, 8))
    with pytest.raises(torch.linalg.LinAlgError, match="info 7"):
        eigenvectors(product)
