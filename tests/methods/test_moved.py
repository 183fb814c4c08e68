"""The one node that adds what moved: its value and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectra.methods.core.moved import AddMoved
from tests.helpers import gaussian

M, N, R = 4, 5, 2


def factors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, b_0, a, a_0 = gaussian(M, R, 1), gaussian(M, R, 2), gaussian(R, N, 3), gaussian(R, N, 4)
    return b.requires_grad_(), b_0, a.requires_grad_(), a_0


def test_it_adds_the_product_of_what_moved() -> None:
    b, b_0, a, a_0 = factors()
    x, result = gaussian(6, N, 5).reshape(2, 3, N), gaussian(6, M, 6).reshape(2, 3, M)
    expected = result + x @ (b @ a - b_0 @ a_0).T
    torch.testing.assert_close(AddMoved.apply(result.clone(), x, b, b_0, a, a_0), expected)


@pytest.mark.parametrize("wanted", ["all", "factors", "x", "b", "a"])
def test_its_gradients_are_those_of_finite_differences(wanted: str) -> None:
    x, w = gaussian(6, N, 5).reshape(2, 3, N), gaussian(M, N, 6)
    b, b_0, a, a_0 = factors()
    x.requires_grad_(wanted in ("all", "x"))
    b.requires_grad_(wanted in ("all", "factors", "b"))
    a.requires_grad_(wanted in ("all", "factors", "a"))

    def layer(x: Tensor, b: Tensor, a: Tensor) -> Tensor:
        return AddMoved.apply(x @ w.T, x, b, b_0, a, a_0)

    assert torch.autograd.gradcheck(layer, (x, b, a))
