"""Products by SciPy's BLAS against torch's own, in every memory layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spectra.linalg.products import matmul, one_torch_thread
from tests.helpers import gaussian

EPS = torch.finfo(torch.float64).eps

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.T.contiguous().T,
    "rows of a larger one": lambda x: torch.cat([x, x])[: len(x)],
    "columns of a larger one": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "every other column": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
}


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 5, 3), (7, 1, 3), (7, 5, 1), (1, 1, 1)])
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_the_product_is_torchs(left: str, right: str, shape: tuple[int, int, int]) -> None:
    m, inner, n = shape
    a, b = LAYOUTS[left](gaussian(m, inner)), LAYOUTS[right](gaussian(inner, n, 1))
    kept = a.clone(), b.clone()
    found = matmul(a, b)
    expected = a @ b
    assert found.shape == (m, n)
    assert found.is_contiguous()
    # Sums of up to 5 products of numbers below 4, added up in another order.
    torch.testing.assert_close(found, expected, rtol=0, atol=100 * EPS)
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


def test_torchs_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="on the way"), one_torch_thread():
            assert torch.get_num_threads() == 1
            raise ValueError("on the way")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
