"""Balanced factors: the same product, and what rounding them costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectra.exporting.factors import balanced, padded, squared_norm
from tests.helpers import gaussian, low_rank_factors, matrix_with_spectrum

EPS = torch.finfo(torch.float64).eps


def cancelling(size: float) -> tuple[Tensor, Tensor]:
    """Trained and initial principal part side by side, which differ by `size`; (24, 8), (8, 20)."""
    u, s, vh = torch.linalg.svd(matrix_with_spectrum([9.0, 7.0, 5.0, 3.0], 24, 20))
    b, a = u[:, :4] * s[:4], vh[:4]
    moved_b, moved_a = b + size * gaussian(24, 4, 1), a + size * gaussian(4, 20, 2)
    return torch.cat([moved_b, -b], dim=1), torch.cat([moved_a, a])


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_the_product_stays_and_each_column_weighs_as_much_as_its_row(size: float) -> None:
    b, a = cancelling(size)
    new_b, new_a = balanced(b, a)
    tolerance = 100 * EPS * float(torch.linalg.matrix_norm(b) * torch.linalg.matrix_norm(a))
    torch.testing.assert_close(new_b @ new_a, b @ a, rtol=0, atol=tolerance)
    torch.testing.assert_close(new_b.norm(dim=0), new_a.norm(dim=1))
    assert new_b.shape == (24, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_costs_a_share_of_the_update_and_not_of_the_parts_that_cancel(
    dtype: torch.dtype,
) -> None:
    b, a = cancelling(1e-3)
    update = b @ a

    def error(factors: tuple[Tensor, Tensor]) -> float:
        rounded = [factor.to(dtype).double() for factor in factors]
        return float(torch.linalg.matrix_norm(rounded[0] @ rounded[1] - update))

    # Each factor's entries err by at most eps/2 of themselves; the norms of √S multiply to at
    # most the sum of the singular values, which is at most √8 of the update's norm.
    bound = 2 * 8**0.5 * torch.finfo(dtype).eps * float(torch.linalg.matrix_norm(update))
    assert error(balanced(b, a)) < bound < error((b, a))


def test_factors_that_do_not_cancel_keep_their_columns() -> None:
    b, a = low_rank_factors(12, 9, 3)
    b = torch.cat([b, torch.zeros(12, 1, dtype=torch.float64)], dim=1)
    a = torch.cat([a, torch.ones(1, 9, dtype=torch.float64)])
    new_b, new_a = balanced(b, a)
    assert new_b.shape == (12, 3)
    ratio = new_b / b[:, :3]
    torch.testing.assert_close(ratio, ratio[:1].expand(12, 3))
    torch.testing.assert_close(new_b @ new_a, b @ a)


def test_an_update_of_nothing_has_no_columns() -> None:
    b, a = cancelling(0.0)
    assert balanced(b, a)[0].shape == (24, 0)
    assert balanced(torch.zeros(5, 2).double(), torch.ones(2, 4).double())[1].shape == (0, 4)


def test_padding_adds_zeros_only() -> None:
    b, a = low_rank_factors(6, 5, 2)
    wide, tall = padded(b, a, 4)
    assert (wide.shape, tall.shape) == ((6, 4), (4, 5))
    assert torch.equal(wide[:, :2], b) and not wide[:, 2:].any()
    assert torch.equal(tall[:2], a) and not tall[2:].any()


def test_the_norm_needs_no_product() -> None:
    b, a = low_rank_factors(12, 9, 3)
    assert squared_norm(b, a) == pytest.approx(float(torch.linalg.matrix_norm(b @ a)) ** 2)
