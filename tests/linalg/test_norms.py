"""The spectral norm against a float64 SVD."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectra.linalg import norms
from spectra.linalg.norms import spectral_norm
from tests.helpers import gaussian, matrix_with_spectrum


def cluster(*largest: float) -> Tensor:
    """These values above a decaying rest: 300 values."""
    return torch.cat([torch.tensor(largest).double(), torch.logspace(-0.1, -6, 300 - len(largest))])


def flat(spread: float, size: int = 300) -> Tensor:
    return 1 - spread * torch.linspace(0, 1, size, dtype=torch.float64)


MATRICES = {
    "one by one": gaussian(1, 1),
    "row": gaussian(1, 900),
    "column": gaussian(900, 1),
    "small": gaussian(40, 60),
    "square": gaussian(400, 400),
    "wide": gaussian(300, 800),
    "tall": gaussian(800, 300),
    "transposed view": gaussian(800, 300).T,
    "just iterated": gaussian(norms.LARGEST_GRAM + 1, norms.LARGEST_GRAM + 1),
    "rank one": gaussian(300, 1) @ gaussian(1, 400, 1),
    "rank two": gaussian(300, 2) @ gaussian(2, 400, 1),
    "low rank and noise": gaussian(400, 8) @ gaussian(8, 300, 1) / 30 + gaussian(400, 300, 2),
    "rounding": gaussian(400, 300).bfloat16().double() - gaussian(400, 300),
    "one entry": torch.zeros(300, 300)
    .index_put((torch.tensor([3]), torch.tensor([5])), 2 * torch.ones(1))
    .double(),
    "identity": torch.eye(300, dtype=torch.float64),
    "ones": torch.ones(300, 400, dtype=torch.float64),
    "a pair": matrix_with_spectrum(cluster(1.0, 1.0), 300, 400),
    "a close pair": matrix_with_spectrum(cluster(1.0, 1 - 1e-7), 300, 400),
    "three close": matrix_with_spectrum(cluster(1.0, 1 - 1e-6, 1 - 2e-6), 300, 400),
    "five close": matrix_with_spectrum(cluster(*(1 - 1e-7 * i for i in range(5))), 300, 400),
    "evenly spread": matrix_with_spectrum(flat(1.0), 300, 300),
    "nearly flat": matrix_with_spectrum(flat(1e-3), 300, 300),
    "flat to single precision": matrix_with_spectrum(flat(1e-6), 300, 300),
    "tiny": 1e-200 * gaussian(300, 400),
    "tiny and small": 1e-200 * gaussian(20, 30),
    "huge": 1e200 * gaussian(300, 400),
    "huge and small": 1e200 * gaussian(20, 30),
    "rows of every size": torch.logspace(0, -8, 300).double()[:, None] * gaussian(300, 400),
}


@pytest.mark.parametrize("name", MATRICES)
def test_spectral_norm_is_the_largest_singular_value(name: str) -> None:
    w = MATRICES[name]
    # svdvals itself is good to a few ε; 1e-9 is what the function promises.
    assert spectral_norm(w) == pytest.approx(torch.linalg.svdvals(w)[0].item(), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(257, 330),
    columns=st.integers(257, 330),
    decay=st.floats(0.0, 3.0),
    seed=st.integers(0, 9999),
)
def test_spectral_norm_of_any_decay(rows: int, columns: int, decay: float, seed: int) -> None:
    scales = torch.arange(1, columns + 1, dtype=torch.float64) ** -decay
    w = gaussian(rows, columns, seed) * scales
    assert spectral_norm(w) == pytest.approx(torch.linalg.svdvals(w)[0].item(), rel=1e-9)


def test_zero_matrix_has_norm_zero() -> None:
    assert spectral_norm(torch.zeros(3, 4)) == 0.0
    assert spectral_norm(torch.zeros(300, 300)) == 0.0


def test_spectral_norm_is_the_same_on_every_call_and_leaves_random_state_alone() -> None:
    w = gaussian(300, 300)
    state = torch.random.get_rng_state()
    assert spectral_norm(w) == spectral_norm(w)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(w, gaussian(300, 300))


def test_any_floating_dtype_is_computed_in_float64() -> None:
    w = gaussian(300, 320).bfloat16()
    assert spectral_norm(w) == spectral_norm(w.double())


def test_iteration_that_does_not_converge_gives_way_to_the_gram_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w = gaussian(300, 300)
    expected = torch.linalg.svdvals(w)[0].item()
    monkeypatch.setattr(norms, "_FLOAT32_STEPS", 1)
    monkeypatch.setattr(norms, "_FLOAT64_STEPS", 1)
    # Rounding alone: nothing iterative is left in the value.
    assert spectral_norm(w) == pytest.approx(expected, rel=1e-13)


def test_iteration_does_not_form_the_gram_matrix_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(norms, "_from_gram")
    assert spectral_norm(gaussian(300, 400)) > 0


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 3, 4)])
def test_what_is_not_a_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="non-empty matrix, got shape"):
        spectral_norm(torch.zeros(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [3, 300])
def test_entries_that_are_not_finite_are_refused(bad: float, size: int) -> None:
    w = gaussian(size, size)
    w[1, 2] = bad
    with pytest.raises(ValueError, match="w must be finite"):
        spectral_norm(w)
