"""The one node that adds what moved: its value and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectra.methods import SorsaConfig, SorsaLinear
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


@pytest.mark.parametrize("kind", ["forward", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("bias", [False, True])
def test_hooks_on_the_base_see_its_own_output_and_gradient(bias: bool, kind: str) -> None:
    """Torch lets nobody overwrite what a backward hook watches; a forward hook may keep it."""
    layer = SorsaLinear(nn.Linear(N, M, bias=bias), "default", SorsaConfig(r=R))
    with torch.no_grad():
        layer.sorsa_s["default"].mul_(2)
    x = gaussian(6, N, 5).float().requires_grad_()  # else torch warns of the hooks
    layer(x).sum().backward()
    expected = layer.sorsa_s["default"].grad
    layer.zero_grad()

    seen: list[Any] = []
    base = layer.get_base_layer()
    getattr(base, f"register_{kind}_hook")(lambda *arguments: seen.append(arguments[-1]))
    layer(x).sum().backward()
    torch.testing.assert_close(layer.sorsa_s["default"].grad, expected)
    if kind == "forward":
        assert torch.equal(seen[0], base.forward(x))
