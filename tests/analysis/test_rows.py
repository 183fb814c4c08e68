"""Every number of a drift row against a plain float64 SVD."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

from checkpoints_index import TrainedFactors, Weight
from spectra.analysis import rows
from spectra.analysis.base_cache import BaseCache
from spectra.analysis.rows import BaseMatrix, Quantities
from spectra.linalg import SOLVERS, rounded
from spectra.store import SPECTRUM_ARRAYS
from tests.helpers import gaussian, low_rank_factors, matrix_with_spectrum, orthonormal

VALUES_ONLY = Quantities(vectors=False)


def plain_svd_row(w_t: Tensor, w_0: Tensor) -> dict[str, float]:
    """ΔΣ, ΔD and κ straight from the paper's formulas and torch.linalg.svd."""
    u_0, s_0, vh_0 = torch.linalg.svd(w_0, full_matrices=False)
    u_t, s_t, vh_t = torch.linalg.svd(w_t, full_matrices=False)
    k = len(s_0)
    total_u = sum(abs(torch.dot(u_t[:, i], u_0[:, i]).item()) for i in range(k))
    total_v = sum(abs(torch.dot(vh_t[i], vh_0[i]).item()) for i in range(k))
    share = s_t / s_t.sum()
    share = share[share > 0]
    return {
        "delta_sigma": sum(abs(s_t[i].item() - s_0[i].item()) for i in range(k)) / k,
        "delta_u": 1 - total_u / k,
        "delta_v": 1 - total_v / k,
        "delta_d": 1 - (total_u + total_v) / (2 * k),
        "sigma_max": s_t[0].item(),
        "sigma_min": s_t[-1].item(),
        "kappa": s_t[0].item() / s_t[-1].item() if s_t[-1] > 0 else math.inf,
        "stable_rank": (torch.linalg.matrix_norm(w_t) / s_t[0]).square().item(),
        "effective_rank": math.exp(-(share * share.log()).sum().item()),
        "frobenius_drift": (
            torch.linalg.matrix_norm(w_t - w_0) / torch.linalg.matrix_norm(w_0)
        ).item(),
        "spectral_drift": (
            torch.linalg.matrix_norm(w_t - w_0, 2) / torch.linalg.matrix_norm(w_0, 2)
        ).item(),
    }


BASES = {
    "square": gaussian(48, 48),
    "wide": gaussian(24, 72),
    "tall": gaussian(72, 24),
    "rank deficient": gaussian(40, 12) @ gaussian(12, 56, 1),
    "repeated values": matrix_with_spectrum([4.0] * 6 + [2.0] * 6 + [1.0], 13, 20),
    "ill conditioned": matrix_with_spectrum(torch.logspace(0, -8, 24), 24, 40),
    "row": gaussian(1, 16),
    "column": gaussian(16, 1),
}
DRIFTS = {"tiny": 1e-9, "small": 1e-6, "middle": 1e-3, "large": 1e-1}
VALUES = ("sigma_max", "sigma_min", "kappa", "stable_rank", "effective_rank")
TURNS = ("delta_u", "delta_v", "delta_d", "matched_d", "subspace_d", "intruders")


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rank", [None, 1])
def test_rows_agree_with_a_plain_svd(base: str, drift: str, rank: int | None) -> None:
    w_0 = BASES[base]
    m, n = w_0.shape
    if rank is None:
        update = gaussian(m, n, 7)
    else:
        b, a = low_rank_factors(m, n, rank, 7)
        update = b @ a
    w_t = w_0 + DRIFTS[drift] * update / torch.linalg.matrix_norm(update)
    found, _ = BaseMatrix(w_0).drift(Weight(dense=w_t))
    expected = plain_svd_row(w_t, w_0)
    determined = base not in ("rank deficient", "repeated values")
    for name in ("delta_sigma", *(("delta_u", "delta_v", "delta_d") if determined else ())):
        assert found[name] == pytest.approx(expected[name], abs=1e-8), name
    for name in (*VALUES, "frobenius_drift"):
        assert found[name] == pytest.approx(expected[name], rel=1e-8, abs=1e-15), name
    # The spectral norm is iterated to 1e-9; W_t − W_0 itself is rounded to ε ‖W_0‖.
    assert found["spectral_drift"] == pytest.approx(expected["spectral_drift"], rel=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("base", ["square", "wide", "tall", "ill conditioned"])
def test_factors_and_formed_weights_give_the_same_row(base: str, drift: str, solver: str) -> None:
    w_0 = BASES[base]
    b, a = low_rank_factors(w_0.shape[0], w_0.shape[1], 4)
    b = b * DRIFTS[drift]
    matrix = BaseMatrix(w_0, Quantities(solver=solver))
    from_factors, arrays = matrix.drift(Weight(update=(b, a)))
    from_weights, expected = BaseMatrix(w_0).drift(Weight(dense=w_0 + b @ a))
    # κ = 1e8 leaves no more of the last value; rounding W_0 + B A hides a small ‖B A‖.
    loose = 1e-7 if base == "ill conditioned" else 1e-8
    for name in ("delta_sigma", *TURNS, *VALUES, "ill_determined"):
        assert from_factors[name] == pytest.approx(from_weights[name], rel=loose, abs=1e-8), name
    for name in ("frobenius_drift", "spectral_drift"):
        assert from_factors[name] == pytest.approx(from_weights[name], rel=1e-6), name
    np.testing.assert_allclose(arrays["sigma"], expected["sigma"], rtol=0, atol=1e-12)
    for name in ("overlap_u", "overlap_v"):
        np.testing.assert_allclose(arrays[name], expected[name], rtol=0, atol=1e-7)


def test_a_row_says_which_solver_ran_and_what_its_residual_was() -> None:
    w_0 = BASES["wide"]
    b, a = low_rank_factors(24, 72, 2)
    dense = Weight(dense=w_0 + b @ a)
    for weight, solver, expected in (
        (Weight(update=(b, a)), "low-rank", "low-rank"),
        (dense, "low-rank", "gram"),
        (Weight(update=(b, a)), "auto", "gram"),
        (dense, "svd", "svd"),
    ):
        for vectors, suffix in ((True, ""), (False, "-values")):
            row, _ = BaseMatrix(w_0, Quantities(vectors=vectors, solver=solver)).drift(weight)
            assert row["solver"] == expected + suffix
            assert 0 <= row["residual"] < 1e-12


@pytest.mark.parametrize("drift", [0.0, 0.1])
@pytest.mark.parametrize("quantities", [Quantities(), VALUES_ONLY])
def test_arrays_that_wait_to_be_written_hold_no_kept_decomposition(
    drift: float, quantities: Quantities, tmp_path: Path
) -> None:
    w_0 = BASES["wide"]
    weight = Weight(dense=w_0 + drift * gaussian(24, 72, 1))
    BaseMatrix(w_0, quantities, BaseCache(tmp_path)).drift(weight)
    # Now S_0 is a part of the map of a file that holds U_0 and V_0 too.
    _, arrays = BaseMatrix(w_0, quantities, BaseCache(tmp_path)).drift(weight)
    for name, array in arrays.items():
        assert array.flags.owndata, name


def test_an_unknown_solver_is_refused() -> None:
    matrix = BaseMatrix(gaussian(4, 5), Quantities(solver="fast"))
    with pytest.raises(ValueError, match="must be one of auto, low-rank, gram, svd, got 'fast'"):
        matrix.drift(Weight(dense=gaussian(4, 5, 1)))


# Columns of the vectors, each by its definition.


def decomposed(w: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u.numpy(), s.numpy(), vh.numpy().T


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(17, 17), (12, 30), (30, 9)])
@pytest.mark.parametrize("size", [0.03, 0.3, 3.0])
def test_columns_of_the_vectors_follow_their_definitions(
    shape: tuple[int, int], size: float, solver: str
) -> None:
    w_0 = gaussian(*shape)
    b, a = low_rank_factors(*shape, 2, 5)
    b = size * 20 * b
    row, _ = BaseMatrix(w_0, Quantities(solver=solver)).drift(Weight(update=(b, a)))
    u_0, _, v_0 = decomposed(w_0)
    u_t, _, v_t = decomposed(w_0 + b @ a)
    in_u, in_v = np.abs(u_0.T @ u_t), np.abs(v_0.T @ v_t)
    k, p = min(shape), min(*shape, 16)
    # All indices are within 16 of each other here, so the best pairing is over all.
    pairs = scipy.optimize.linear_sum_assignment(in_u + in_v, maximize=True)
    matched = 1 - (in_u + in_v)[pairs].sum() / (2 * k)
    assert row["matched_d"] == pytest.approx(matched, abs=1e-9)
    assert row["matched_d"] <= row["delta_d"] + 1e-12
    turns = [
        1 - np.cos(scipy.linalg.subspace_angles(x_0[:, :p], x_t[:, :p])).mean()
        for x_0, x_t in ((u_0, u_t), (v_0, v_t))
    ]
    assert row["subspace_d"] == pytest.approx(sum(turns) / 2, abs=1e-9)
    assert row["intruders"] == (in_u[:, : min(10, k)].max(axis=0) < 0.5).sum()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(24, 24), (12, 30), (30, 18)])
@pytest.mark.parametrize("size", [1e-6, 0.3])
def test_arrays_follow_a_plain_svd(shape: tuple[int, int], size: float, solver: str) -> None:
    w_0 = gaussian(*shape)
    b, a = low_rank_factors(*shape, 2, 5)
    w_t = w_0 + size * 20 * b @ a
    u_0, s_0, v_0 = decomposed(w_0)
    u_t, s_t, v_t = decomposed(w_t)
    in_u, in_v = np.abs(u_0.T @ u_t), np.abs(v_0.T @ v_t)
    p = min(*shape, 16)
    for weight in (Weight(update=(size * 20 * b, a)), Weight(dense=w_t)):
        row, arrays = BaseMatrix(w_0, Quantities(solver=solver)).drift(weight)
        assert set(arrays) == {*SPECTRUM_ARRAYS}
        assert row["sigma_0_mean"] == pytest.approx(s_0.mean(), rel=1e-12)
        np.testing.assert_allclose(arrays["sigma"], s_t, rtol=0, atol=1e-12 * s_0[0])
        # The change keeps digits that σ in float32 could not.
        np.testing.assert_allclose(arrays["sigma_change"], s_t - s_0, rtol=0, atol=1e-13 * s_0[0])
        assert np.abs(arrays["sigma_change"]).mean() == pytest.approx(row["delta_sigma"])
        for name, full in (("leading_u", in_u), ("leading_v", in_v)):
            assert arrays[name].shape == (p * p,)
            found = arrays[name].reshape(p, p)
            np.testing.assert_allclose(found, full[:p, :p], rtol=0, atol=1e-9)
            overlap = arrays["overlap" + name[-2:]][:p]
            np.testing.assert_allclose(found.diagonal(), overlap, rtol=0, atol=1e-12)


def test_rows_of_the_leading_overlaps_are_the_bases_vectors() -> None:
    """W_t = W_0 with its first two left vectors exchanged for the third and first."""
    u, v = orthonormal(20, 3), orthonormal(9, 3, 1)
    s = torch.tensor([4.0, 2.0, 1.0]).double()
    w_0, w_t = (u * s) @ v.T, (u[:, [2, 0, 1]] * s) @ v.T
    _, arrays = BaseMatrix(w_0).drift(Weight(dense=w_t))
    found = arrays["leading_u"].reshape(9, 9)[:3, :3]
    np.testing.assert_allclose(found, [[0, 1, 0], [0, 0, 1], [1, 0, 0]], rtol=0, atol=1e-7)
    found = arrays["leading_v"].reshape(9, 9)[:3, :3]
    np.testing.assert_allclose(found, np.eye(3), rtol=0, atol=1e-7)


def test_a_large_new_direction_is_an_intruder_and_moves_the_others_on() -> None:
    w_0 = matrix_with_spectrum(torch.arange(20.0, 0, -1), 24, 20)
    u, _, vh = torch.linalg.svd(w_0)
    # Orthogonal to every left vector of W_0, and along the last right one.
    row, _ = BaseMatrix(w_0).drift(Weight(update=(40.0 * u[:, 20:21], vh[19:])))
    assert row["intruders"] == 1
    assert row["delta_u"] == pytest.approx(1.0, abs=1e-3)
    assert row["matched_d"] < 0.1


@pytest.mark.parametrize("gap", [1e-7, 1e-3])
def test_ill_determined_counts_close_values_of_the_trained_matrix(gap: float) -> None:
    s = torch.cat([torch.arange(10.0, 2, -1), torch.tensor([2.0 + gap, 2.0])]).double()
    w_t = matrix_with_spectrum(s, 10, 14)
    row, _ = BaseMatrix(gaussian(10, 14)).drift(Weight(dense=w_t))
    assert row["ill_determined"] == (0.2 if gap < 1e-5 else 0.0)


# Nothing changed.


@pytest.mark.parametrize("quantities", [Quantities(), VALUES_ONLY], ids=["vectors", "values"])
@pytest.mark.parametrize("base", BASES)
def test_an_unchanged_matrix_has_exactly_no_drift(base: str, quantities: Quantities) -> None:
    w_0 = BASES[base]
    m, n = w_0.shape
    zero = torch.zeros(m, 2).double(), torch.ones(2, n).double()
    for weight in (Weight(dense=w_0.clone()), Weight(), Weight(update=zero)):
        row, spectrum = BaseMatrix(w_0, quantities).drift(weight)
        assert row["solver"] == "unchanged"
        assert row["delta_sigma"] == row["frobenius_drift"] == row["spectral_drift"] == 0.0
        assert row["sigma_max"] == pytest.approx(torch.linalg.matrix_norm(w_0, 2).item())
        assert row["residual"] < 1e-8
        if quantities.vectors:
            assert all(row[name] == 0.0 for name in TURNS)
            assert (spectrum["overlap_u"] == 1).all() and (spectrum["overlap_v"] == 1).all()
            p = min(m, n, 16)
            for name in ("leading_u", "leading_v"):
                assert (spectrum[name].reshape(p, p) == np.eye(p)).all()
        assert (spectrum["sigma_change"] == 0).all()
        assert row["sigma_0_mean"] == pytest.approx(decomposed(w_0)[1].mean(), rel=1e-9)


def test_an_unchanged_matrix_is_decomposed_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, "decompose", "follow")
    matrix = BaseMatrix(gaussian(8, 9))
    for _ in range(3):
        matrix.drift(Weight(dense=gaussian(8, 9)))
    assert calls == ["decompose"]


def test_a_zero_base_has_no_relative_drift() -> None:
    w_0 = torch.zeros(4, 6).double()
    for w_t in (w_0.clone(), gaussian(4, 6)):
        row, _ = BaseMatrix(w_0).drift(Weight(dense=w_t))
        assert math.isnan(row["frobenius_drift"]) and math.isnan(row["spectral_drift"])


def test_float32_drift_below_the_reference_noise_is_still_seen() -> None:
    """A float32 SVD is wrong by more than this in ΔΣ; a float64 one of float32 weights is not."""
    w_0 = gaussian(64, 64).float()
    w_t = w_0.clone()
    w_t[3, 5] += 1e-6
    row, _ = BaseMatrix(w_0).drift(Weight(dense=w_t))
    expected = plain_svd_row(w_t.double(), w_0.double())["delta_sigma"]
    assert 0 < expected < 1e-7
    assert row["delta_sigma"] == pytest.approx(expected, rel=1e-6)


# The trained factors.


def test_factor_columns_follow_their_closed_forms() -> None:
    u, v = orthonormal(20, 3), orthonormal(30, 3, 1)
    scale = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    factors = TrainedFactors(u * scale, torch.tensor([4.0, 2.0, 1.0]), v.T)
    row, _ = BaseMatrix(gaussian(20, 30)).drift(Weight(factors=factors))
    assert row["kappa_u"] == pytest.approx(4.0, rel=1e-12)
    assert row["kappa_v"] == pytest.approx(1.0, rel=1e-12)
    assert row["kappa_p"] == pytest.approx(8.0 / 0.5, rel=1e-12)
    assert row["ortho_u"] == pytest.approx(math.sqrt(3.0**2 + 0.75**2), rel=1e-12)
    assert row["ortho_v"] < 1e-14


# Values only.


@pytest.mark.parametrize("solver", SOLVERS)
def test_values_only_gives_the_same_values_and_no_vectors(solver: str) -> None:
    w_0 = gaussian(20, 30)
    b, a = low_rank_factors(20, 30, 2, 3)
    for weight in (Weight(dense=w_0 + b @ a), Weight(update=(b, a))):
        full, _ = BaseMatrix(w_0).drift(weight)
        only = BaseMatrix(w_0, Quantities(vectors=False, solver=solver))
        values, spectrum = only.drift(weight, "bfloat16")
        assert not {*TURNS, "d_noise"} & values.keys()
        assert set(spectrum) == {"sigma", "sigma_change"}
        for name in ("delta_sigma", *VALUES, "frobenius_drift", "spectral_drift"):
            assert values[name] == pytest.approx(full[name], rel=1e-10), name


def test_values_only_spares_the_vectors_of_the_base_unless_they_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = counted(monkeypatch, "decompose")
    b, a = low_rank_factors(8, 9, 1)
    for w_t in (Weight(dense=gaussian(8, 9, 1)), Weight(update=(b, a))):
        BaseMatrix(gaussian(8, 9), VALUES_ONLY).drift(w_t)
    assert calls == []
    BaseMatrix(gaussian(8, 9), Quantities(False, "low-rank")).drift(Weight(update=(b, a)))
    assert calls == ["decompose"]
    monkeypatch.setattr(rows, "prefers_low_rank", lambda *_, **__: True)
    for steps in (1, 100):
        matrix = BaseMatrix(gaussian(8, 9), VALUES_ONLY, steps=steps)
        matrix.drift(Weight(update=(b, a)))
    assert calls == ["decompose"] * 2


# Noise.


def test_noise_is_what_storing_the_base_does_to_it() -> None:
    w_0 = gaussian(20, 30)
    stored = Weight(dense=w_0.bfloat16())
    assert torch.equal(w_0.bfloat16().double(), rounded(w_0, "bfloat16"))
    row, _ = BaseMatrix(w_0).drift(stored, "bfloat16")
    assert row["sigma_noise"] == row["delta_sigma"] > 0
    assert row["d_noise"] == row["delta_d"] > 0
    values, _ = BaseMatrix(w_0, VALUES_ONLY).drift(stored, "bfloat16")
    assert values["sigma_noise"] == values["delta_sigma"]
    assert values["sigma_noise"] == pytest.approx(row["sigma_noise"], rel=1e-9)


def test_noise_shrinks_with_the_precision_and_is_none_in_float64() -> None:
    matrix = BaseMatrix(gaussian(20, 32))
    weight = Weight(dense=gaussian(20, 32, 1))
    floors = [
        matrix.drift(weight, dtype)[0] for dtype in ("bfloat16", "float16", "float32", "float64")
    ]
    for name in ("sigma_noise", "d_noise"):
        noise = [row[name] for row in floors]
        assert noise == sorted(noise, reverse=True) and noise[2] > 0
        assert noise[3] == 0.0


def test_quantisations_that_are_not_reproduced_have_no_noise_floor() -> None:
    w_0 = gaussian(8, 32)
    row, _ = BaseMatrix(w_0).drift(Weight(dense=w_0.float()), "q4_k")
    assert row["sigma_noise"] is row["d_noise"] is None
    assert row["delta_sigma"] < 1e-6
    values, _ = BaseMatrix(w_0, VALUES_ONLY).drift(Weight(dense=w_0.float()), "q4_k")
    assert values["sigma_noise"] is None and "d_noise" not in values


def test_adapters_leave_the_base_unrounded() -> None:
    b, a = low_rank_factors(8, 9, 1)
    for weight in (Weight(update=(b, a)), Weight()):
        row, _ = BaseMatrix(gaussian(8, 9)).drift(weight, "bfloat16")
        assert row["sigma_noise"] == row["d_noise"] == 0.0
        values, _ = BaseMatrix(gaussian(8, 9), VALUES_ONLY).drift(weight, "bfloat16")
        assert values["sigma_noise"] == 0.0


def test_a_trained_weight_stored_as_its_difference_has_the_noise_of_its_own_precision() -> None:
    w_0, w_t = gaussian(20, 30), gaussian(20, 30, 1)
    whole, _ = BaseMatrix(w_0).drift(Weight(dense=w_t), "bfloat16")
    delta = Weight(delta=w_t - w_0, rounded=True)
    row, _ = BaseMatrix(w_0).drift(delta, "bfloat16")
    assert row["sigma_noise"] == whole["sigma_noise"] > 0
    assert row["d_noise"] == whole["d_noise"] > 0
    assert row["delta_sigma"] == pytest.approx(whole["delta_sigma"], rel=1e-9)


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize(
    ("w_0", "precision", "reason"),
    [(1e6 * gaussian(8, 9), "float16", "float16"), (gaussian(8, 9), "q4_0", "32")],
)
def test_a_noise_floor_that_cannot_be_measured_costs_nothing_else(
    w_0: Tensor, precision: str, reason: str, vectors: bool, caplog: pytest.LogCaptureFixture
) -> None:
    weight = Weight(dense=1.01 * w_0)
    found, _ = BaseMatrix(w_0, Quantities(vectors)).drift(weight, precision)
    expected, _ = BaseMatrix(w_0, Quantities(vectors)).drift(weight, "float64")
    noise = {"sigma_noise", "d_noise"} if vectors else {"sigma_noise"}
    assert {name for name, value in found.items() if value is None} == noise
    assert found | dict.fromkeys(noise, 0.0) == expected
    assert f"No noise floor of {precision}" in caplog.text and reason in caplog.text


def test_a_named_precision_counts_instead_of_the_files() -> None:
    w_0, weight = gaussian(8, 32), Weight(dense=gaussian(8, 32, 1))
    named, _ = BaseMatrix(w_0, Quantities(precision="q4_0")).drift(weight, "float32")
    stored, _ = BaseMatrix(w_0).drift(weight, "q4_0")
    assert named == stored
    assert named["sigma_noise"] > BaseMatrix(w_0).drift(weight, "float32")[0]["sigma_noise"]


# Steps.


def counted(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """List the calls of what `rows` computes with."""
    calls: list[str] = []
    for name in names:
        original: Any = getattr(rows, name)

        def call(*args: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
            calls.append(_name)
            return _original(*args, **options)

        monkeypatch.setattr(rows, name, call)
    return calls


COMPUTING = ("decompose", "follow", "follow_values", "singular_values", "spectral_norm")


@pytest.mark.parametrize("quantities", [Quantities(), VALUES_ONLY], ids=["vectors", "values"])
def test_the_same_weights_again_cost_nothing(
    quantities: Quantities, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = BaseMatrix(gaussian(8, 9), quantities)
    b, a = low_rank_factors(8, 9, 1)
    for make in (
        lambda: Weight(dense=gaussian(8, 9, 1)),
        lambda: Weight(update=(b.clone(), a.clone())),
        lambda: Weight(),
    ):
        first, arrays = matrix.drift(make(), "bfloat16")
        with monkeypatch.context() as patch:
            calls = counted(patch, *COMPUTING)
            again, same_arrays = matrix.drift(make(), "bfloat16")
        assert calls == []
        assert again == first
        assert all(np.array_equal(same_arrays[name], arrays[name]) for name in arrays)


def test_other_weights_of_the_same_bytes_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = BaseMatrix(gaussian(8, 9))
    calls = counted(monkeypatch, "follow")
    for w_t in (gaussian(8, 9, 1), gaussian(8, 9, 2), gaussian(8, 9, 1), gaussian(8, 9, 1).float()):
        matrix.drift(Weight(dense=w_t))
    assert len(calls) == 4


def test_a_step_that_is_not_finite_does_not_spoil_the_next() -> None:
    w_0, good = gaussian(8, 9), Weight(dense=gaussian(8, 9, 1))
    expected, _ = BaseMatrix(w_0).drift(good)
    broken = gaussian(8, 9, 2)
    broken[0, 0] = float("nan")
    b, a = low_rank_factors(8, 9, 1)
    for quantities in (Quantities(), Quantities(solver="low-rank")):
        matrix = BaseMatrix(w_0, quantities)
        for bad in (Weight(dense=broken), Weight(update=(b * float("inf"), a))):
            for _ in range(2):
                with pytest.raises(ValueError, match="must be finite"):
                    matrix.drift(bad)
            assert matrix.drift(good)[0] == expected


def test_rows_handed_out_can_be_changed_without_changing_the_next() -> None:
    matrix, weight = BaseMatrix(gaussian(8, 9)), Weight(dense=gaussian(8, 9, 1))
    first, _ = matrix.drift(weight)
    expected = dict(first)
    first.clear()
    assert matrix.drift(weight)[0] == expected


# What is refused.


@pytest.mark.parametrize("quantities", [Quantities(), VALUES_ONLY], ids=["vectors", "values"])
def test_a_weight_of_another_shape_is_refused(quantities: Quantities) -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 5\), the checkpoint's has \(4, 6\)"):
        BaseMatrix(gaussian(4, 5), quantities).drift(Weight(dense=gaussian(4, 6)))
    with pytest.raises(ValueError, match=r"shape \(4, 5\), the checkpoint's has \(4, 6\)"):
        BaseMatrix(gaussian(4, 5), quantities).drift(Weight(update=low_rank_factors(4, 6, 1)))


@pytest.mark.parametrize("quantities", [Quantities(), VALUES_ONLY], ids=["vectors", "values"])
def test_a_base_that_is_not_finite_is_refused(quantities: Quantities) -> None:
    w_0 = gaussian(4, 5)
    w_0[2, 2] = float("nan")
    for weight in (Weight(dense=gaussian(4, 5)), Weight(dense=w_0.clone()), Weight()):
        with pytest.raises(ValueError, match="must be finite, but 1 of its 20 entries"):
            BaseMatrix(w_0, quantities).drift(weight)
