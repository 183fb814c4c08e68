"""Every solver against one truth, what they do with hostile input, and who is asked."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import lapack
from torch import Tensor

from spectra.linalg import (
    SOLVERS,
    Decomposition,
    Spectrum,
    Turned,
    choice,
    decompose,
    dense_seconds,
    follow,
    follow_values,
    low_rank_seconds,
    prefers_low_rank,
    symmetric,
)
from tests.helpers import gaussian, matrix_with_spectrum, orthonormal
from tests.linalg.test_low_rank import (
    BASES,
    DRIFTS,
    Factors,
    assert_right,
    assert_values_right,
    exact,
    random_update,
    sorsa_update,
)

# A new solver is one row here.
NAMES = {"low-rank": {"low-rank", "gram", "svd"}, "gram": {"gram", "svd"}, "svd": {"svd"}}


def formed(w_0: Tensor, update: Factors | None) -> Tensor:
    return w_0 if update is None else w_0.double() + update[0].double() @ update[1].double()


def assert_all_right(
    solver: str, base: Decomposition, w_t: Tensor, update: Factors | None = None
) -> Turned:
    """With and without vectors; each says which solver it was."""
    names = NAMES.get(solver, NAMES["low-rank"])
    spectrum = follow_values(base, lambda: w_t, update, solver)
    assert spectrum.solver in {f"{name}-values" for name in names}
    assert_values_right(spectrum, base, w_t)
    found = follow(base, lambda: w_t, update, solver)
    assert found.solver in names
    assert_right(found, base, w_t)
    return found


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("name", BASES)
def test_every_solver_gives_what_a_full_svd_gives(name: str, drift: float, solver: str) -> None:
    base = exact(BASES[name])
    update = random_update(base, 1 if len(base.s) < 5 else 2, drift, seed=1)
    assert_all_right(solver, base, formed(BASES[name], update), update)


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("name", BASES)
def test_every_solver_follows_sorsa(name: str, solver: str) -> None:
    base = exact(BASES[name])
    update = sorsa_update(base, min(2, len(base.s) - 1), 1e-3, "USV")
    assert_all_right(solver, base, formed(BASES[name], update), update)


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("drift", [1e-9, 1e-3, 10.0])
@pytest.mark.parametrize("name", BASES)
def test_updates_of_full_rank_are_followed(name: str, drift: float, solver: str) -> None:
    w_0 = BASES[name]
    update = gaussian(w_0.shape[0], w_0.shape[1], 9)
    norms = torch.linalg.matrix_norm(w_0, 2) / torch.linalg.matrix_norm(update, 2)
    assert_all_right(solver, exact(w_0), w_0 + drift * norms * update)


# Hostile input: right from some solver, which is named.

WIDE = gaussian(12, 20)
B, A = gaussian(12, 2, 1), gaussian(2, 20, 2)
KILLED = exact(WIDE)

HOSTILE: dict[str, tuple[Tensor, Factors | None]] = {
    "no update": (WIDE, None),
    "a zero update": (WIDE, (0 * B, A)),
    "an update of rank 0": (WIDE, (B[:, :0], A[:0])),
    "a zero base": (torch.zeros(12, 20).double(), (B, A)),
    "zero everywhere": (torch.zeros(5, 7).double(), None),
    "back to zero": (WIDE, (-WIDE, torch.eye(20).double())),
    "a multiple of the base": (WIDE, (0.5 * WIDE, torch.eye(20).double())),
    "one huge value": (WIDE, (1e14 * B[:, :1], A[:1])),
    "one huge value in the base": (matrix_with_spectrum([1e14, *[1.0] * 9], 10, 12), None),
    "identity": (torch.eye(12).double(), (B, A[:, :12])),
    "orthogonal": (orthonormal(14, 14), (gaussian(14, 1), gaussian(1, 14, 1))),
    "exactly rank deficient": (gaussian(12, 4) @ gaussian(4, 20, 1), (B, A)),
    "made rank deficient": (WIDE, (-KILLED.u[:, :2] * KILLED.s[:2], KILLED.vh[:2])),
    "made singular": (WIDE, (-KILLED.u[:, -1:] * KILLED.s[-1], KILLED.vh[-1:])),
    "a dead row": (WIDE, (-torch.eye(12)[:, :1].double(), WIDE[:1])),
    "a row": (WIDE[:1], (B[:1, :1], A[:1])),
    "a column": (WIDE[:, :1], (B, A[:, :1])),
    "one number": (WIDE[:1, :1], (B[:1, :1], A[:1, :1])),
    "more factors than rows": (WIDE, (gaussian(12, 30, 3), gaussian(30, 20, 4))),
    "a transposed view": (gaussian(20, 12).T, (B, A)),
    "strided views": (gaussian(24, 40)[::2, ::2], (gaussian(24, 4)[::2, ::2], A)),
    "float32": (WIDE.float(), (B.float(), A.float())),
    "bfloat16": (WIDE.bfloat16(), (B.bfloat16(), A.bfloat16())),
    "large entries": (1e150 * WIDE, (1e150 * B, A)),
    "huge entries": (1e200 * WIDE, (1e200 * B, A)),
    "small entries": (1e-150 * WIDE, (1e-150 * B, A)),
    "tiny entries": (1e-200 * WIDE, (1e-200 * B, A)),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_matrices_get_right_numbers_from_some_solver(name: str, solver: str) -> None:
    w_0, update = HOSTILE[name]
    for base in (exact(w_0), decompose(w_0)):
        assert_all_right(solver, base, formed(w_0, update), update)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tensors_that_require_grad_give_plain_numbers(solver: str) -> None:
    w_0 = WIDE.clone().requires_grad_()
    b, a = B.clone().requires_grad_(), A.clone().requires_grad_()
    base = decompose(w_0)
    found: tuple[Turned | Spectrum, ...] = (
        follow(base, lambda: w_0 + b @ a, (b, a), solver),
        follow_values(base, lambda: w_0 + b @ a, (b, a), solver),
    )
    assert not any(one.s.requires_grad for one in found)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["W_t", "b", "a"])
def test_what_is_not_finite_is_refused(where: str, bad: float, solver: str) -> None:
    broken = {"W_t": WIDE.clone(), "b": B.clone(), "a": A.clone()}
    broken[where][1, 1] = bad
    update = None if where == "W_t" else (broken["b"], broken["a"])
    w_t, base = formed(broken["W_t"], update), exact(WIDE)
    with pytest.raises(ValueError, match=r"must be finite, but \d+ of its 240 entries are NaN"):
        follow(base, lambda: w_t, update, solver)
    with pytest.raises(ValueError, match=r"must be finite, but \d+ of its 240 entries are NaN"):
        follow_values(base, lambda: w_t, update, solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float16_that_overflowed_is_refused(solver: str) -> None:
    update = (1e5 * B).half(), A
    with pytest.raises(ValueError, match="must be finite"):
        follow(exact(WIDE), lambda: formed(WIDE, update), update, solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_product_that_overflows_is_refused(solver: str) -> None:
    update = 1e200 * B, 1e200 * A
    with pytest.raises(ValueError, match="must be finite"):
        follow(exact(WIDE), lambda: formed(WIDE, update), update, solver)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(12, 19), (20, 12), (12, 12), (13, 20)])
def test_a_matrix_of_another_shape_is_refused(shape: tuple[int, int], solver: str) -> None:
    with pytest.raises(ValueError, match="shape"):
        follow(exact(WIDE), lambda: gaussian(*shape), None, solver)
    with pytest.raises(ValueError, match="shape"):
        follow_values(exact(WIDE), lambda: gaussian(*shape), None, solver)


# LAPACK's iterations that do not converge: the next solver.


def failing(*_: Any, **__: Any) -> Any:
    raise torch.linalg.LinAlgError("did not converge")


def failing_scipy(*_: Any, **__: Any) -> Any:
    raise scipy.linalg.LinAlgError("SVD did not converge")


def break_lapack(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Let routines of torch's, or stages of SciPy's, fail to converge."""
    for name in names:
        if hasattr(torch.linalg, name):
            patch.setattr(torch.linalg, name, failing)
            continue
        patch.setattr(symmetric.lapack, name, partial(_reports_failure, getattr(lapack, name)))


def _reports_failure(original: Any, *arguments: Any, **options: Any) -> Any:
    return (*original(*arguments, **options)[:-1], 3)


@pytest.mark.parametrize("broken", [(), ("dstevd",), ("svd",), ("dstevd", "svd")])
@pytest.mark.parametrize("solver", NAMES)
def test_another_algorithm_steps_in_where_one_does_not_converge(
    solver: str, broken: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, w_t = exact(WIDE), formed(WIDE, (B, A))
    with monkeypatch.context() as patch:
        break_lapack(patch, *broken)
        found = follow(base, lambda: w_t, (B, A), solver)
    assert found.solver in NAMES[solver]
    if "dstevd" in broken and solver != "low-rank":
        assert found.solver == "svd"
    assert_right(found, base, w_t)


@pytest.mark.parametrize("broken", [("dsterf",), ("svdvals",), ("dsterf", "svdvals", "svd")])
@pytest.mark.parametrize("solver", NAMES)
def test_values_come_from_another_algorithm_where_one_does_not_converge(
    solver: str, broken: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    w_t = formed(WIDE, (B, A))
    with monkeypatch.context() as patch:
        break_lapack(patch, *broken)
        found = follow_values(None, lambda: w_t, None, solver)
    if "dsterf" in broken or solver == "svd":
        assert found.solver == "svd-values"
    else:
        assert found.solver == "gram-values"
    assert_values_right(found, exact(WIDE), w_t)


def test_where_no_algorithm_converges_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    base = exact(WIDE)
    break_lapack(monkeypatch, "dstevd", "dsterf", "svd", "svdvals")
    monkeypatch.setattr(scipy.linalg, "svd", failing_scipy)
    for solver in SOLVERS:
        with pytest.raises(torch.linalg.LinAlgError, match="No SVD of LAPACK's converges"):
            follow(base, lambda: WIDE, None, solver)
        with pytest.raises(torch.linalg.LinAlgError, match="No SVD of LAPACK's converges"):
            follow_values(base, lambda: WIDE, None, solver)


@pytest.mark.parametrize("stage", ["dsytrd", "dstevd", "dormqr"])
def test_a_stage_of_lapack_that_reports_failure_is_not_believed(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert follow(exact(WIDE), lambda: WIDE, None, "gram").solver == "gram"
    break_lapack(monkeypatch, stage)
    found = follow(exact(WIDE), lambda: WIDE, None, "gram")
    assert found.solver == "svd"
    assert_right(found, exact(WIDE), WIDE)


# Who is asked.


def test_small_updates_of_large_matrices_are_for_the_low_rank_solver() -> None:
    assert prefers_low_rank((4096, 4096), 8)
    assert prefers_low_rank((512, 512), 1)
    assert not prefers_low_rank((64, 64), 4)
    assert not prefers_low_rank((1024, 4096), 512)
    assert not prefers_low_rank((30, 4096), 15)  # 2 r = k


def test_costs_grow_with_size_and_rank() -> None:
    for vectors in (True, False):
        dense = [dense_seconds(k, 4096, vectors) for k in (64, 512, 4096)]
        ranks = [low_rank_seconds(1024, 4096, r, vectors) for r in (1, 8, 64, 256)]
        assert dense == sorted(dense) and ranks == sorted(ranks)
    assert dense_seconds(512, 512, vectors=False) < dense_seconds(512, 512)
    assert low_rank_seconds(512, 512, 4, vectors=False) < low_rank_seconds(512, 512, 4)


def test_auto_takes_the_faster_solver_and_the_result_says_which() -> None:
    w_0 = gaussian(512, 512)
    base = decompose(w_0)
    b, a = random_update(base, 1, 0.01)
    assert follow(base, lambda: pytest.fail("formed"), (b, a)).solver == "low-rank"
    assert follow(base, lambda: w_0 + b @ a).solver == "gram"
    assert follow(exact(WIDE), lambda: WIDE + B @ A, (B, A)).solver == "gram"


def test_a_matrix_is_formed_only_for_a_dense_solver() -> None:
    base = exact(WIDE)
    formed_for = []
    for solver in SOLVERS:

        def form(solver: str = solver) -> Tensor:
            formed_for.append(solver)
            return WIDE + B @ A

        follow(base, form, (B, A), solver)
        follow_values(base, form, (B, A), solver)
    assert formed_for == ["auto"] * 2 + ["gram"] * 2 + ["svd"] * 2


@pytest.mark.parametrize(
    ("solver", "names"),
    [("low-rank", ("low-rank", "low-rank-values")), ("gram", ("gram", "gram-values"))]
    + [("svd", ("svd", "svd-values"))],
)
def test_a_solver_asked_for_by_name_is_the_one_that_runs(
    solver: str, names: tuple[str, str]
) -> None:
    base, w_t = exact(WIDE), WIDE + B @ A
    assert follow(base, lambda: w_t, (B, A), solver).solver == names[0]
    assert follow_values(base, lambda: w_t, (B, A), solver).solver == names[1]


@pytest.mark.parametrize("name", ["identity", "orthogonal", "a zero base", "a row"])
def test_a_base_without_vectors_of_its_own_falls_back_to_a_dense_solver(name: str) -> None:
    w_0, update = HOSTILE[name]
    found = follow(exact(w_0), lambda: formed(w_0, update), update, "low-rank")
    assert found.solver in ("gram", "svd")
    values = follow_values(exact(w_0), lambda: formed(w_0, update), update, "low-rank")
    assert values.solver in ("gram-values", "svd-values")


def test_values_without_a_base_come_from_a_dense_solver() -> None:
    assert follow_values(None, lambda: WIDE, (B, A), "low-rank").solver == "gram-values"


@pytest.mark.parametrize("update", [None, (B, A)], ids=["dense", "factors"])
@pytest.mark.parametrize("base", [None, KILLED], ids=["no base", "base"])
def test_unknown_solvers_are_refused(base: Decomposition | None, update: Factors | None) -> None:
    with pytest.raises(ValueError, match="must be one of auto, low-rank, gram, svd, got 'fast'"):
        follow(KILLED, lambda: WIDE, update, "fast")
    with pytest.raises(ValueError, match="must be one of auto, low-rank, gram, svd, got 'fast'"):
        follow_values(base, lambda: WIDE, update, "fast")


def test_input_is_left_as_it_was() -> None:
    w_t, b, a, base = (WIDE + B @ A).clone(), B.clone(), A.clone(), exact(WIDE)
    before = [x.clone() for x in (w_t, b, a, base.u, base.s, base.vh)]
    for solver in SOLVERS:
        follow(base, lambda: w_t, (b, a), solver)
        follow_values(base, lambda: w_t, (b, a), solver)
    after = (w_t, b, a, base.u, base.s, base.vh)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


# Invariances.

PROPERTIES = settings(max_examples=8, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10**6)
SHAPES = st.tuples(st.integers(4, 14), st.integers(4, 14))


def example(shape: tuple[int, int], seed: int) -> tuple[Tensor, Factors]:
    w_0 = gaussian(*shape, seed)
    return w_0, random_update(exact(w_0), 1, 0.05, seed + 1)


def both(
    solver: str, base: Decomposition, w_0: Tensor, update: Factors
) -> tuple[Tensor, Tensor, Tensor]:
    found = follow(base, lambda: w_0 + update[0] @ update[1], update, solver)
    return found.s, found.near_u, found.near_v


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12 * expected[0][0].item())
    for x, y in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-7)


@pytest.mark.parametrize("solver", NAMES)
@PROPERTIES
@given(shape=SHAPES, seed=SEEDS)
def test_signs_of_the_base_vectors_do_not_count(
    solver: str, shape: tuple[int, int], seed: int
) -> None:
    w_0, update = example(shape, seed)
    base = exact(w_0)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, base.s.shape, generator=generator) * 2.0 - 1
    flipped = Decomposition(base.u * signs, base.s, base.vh * signs[:, None], "svd", 0.0)
    assert_same(both(solver, flipped, w_0, update), both(solver, base, w_0, update))


@pytest.mark.parametrize("solver", NAMES)
@PROPERTIES
@given(shape=SHAPES, seed=SEEDS)
def test_orthogonal_transforms_of_both_sides_leave_drift_alone(
    solver: str, shape: tuple[int, int], seed: int
) -> None:
    w_0, (b, a) = example(shape, seed)
    base = exact(w_0)
    left, right = orthonormal(shape[0], shape[0], seed), orthonormal(shape[1], shape[1], seed + 1)
    turned = Decomposition(left @ base.u, base.s, base.vh @ right, "svd", 0.0)
    found = both(solver, turned, left @ w_0 @ right, (left @ b, a @ right))
    assert_same(found, both(solver, base, w_0, (b, a)))


@pytest.mark.parametrize("solver", NAMES)
@PROPERTIES
@given(shape=SHAPES, seed=SEEDS)
def test_transposition_swaps_u_and_v(solver: str, shape: tuple[int, int], seed: int) -> None:
    w_0, (b, a) = example(shape, seed)
    base = exact(w_0)
    transposed = Decomposition(base.vh.T, base.s, base.u.T, "svd", 0.0)
    s, near_u, near_v = both(solver, transposed, w_0.T, (a.T, b.T))
    assert_same((s, near_v, near_u), both(solver, base, w_0, (b, a)))


@pytest.mark.parametrize("solver", NAMES)
@PROPERTIES
@given(shape=SHAPES, seed=SEEDS, scale=st.floats(-90, 90))
def test_scaling_scales_the_values_and_leaves_the_overlaps(
    solver: str, shape: tuple[int, int], seed: int, scale: float
) -> None:
    w_0, (b, a) = example(shape, seed)
    base, c = exact(w_0), 10.0**scale
    scaled = Decomposition(base.u, c * base.s, base.vh, "svd", 0.0)
    s, *near = both(solver, scaled, c * w_0, (c * b, a))
    assert_same((s / c, *near), both(solver, base, w_0, (b, a)))


@pytest.mark.parametrize("solver", NAMES)
@PROPERTIES
@given(shape=SHAPES, seed=SEEDS, drift=st.floats(-14, 1))
def test_no_value_moves_by_more_than_the_update(
    solver: str, shape: tuple[int, int], seed: int, drift: float
) -> None:
    w_0 = gaussian(*shape, seed)
    base = exact(w_0)
    b, a = random_update(base, 2, 10.0**drift, seed + 1)
    found = follow_values(base, lambda: w_0 + b @ a, (b, a), solver)
    size = torch.linalg.matrix_norm(b @ a, 2)
    assert (found.s - base.s).abs().max() <= size * (1 + 1e-9) + 1e-13 * base.s[0]  # Weyl


def test_solvers_agree_with_each_other_on_every_base() -> None:
    for w_0 in BASES.values():
        base = exact(w_0)
        update = random_update(base, 1, 1e-3)
        w_t = formed(w_0, update)
        form = partial(torch.clone, w_t)
        values = [follow_values(base, form, update, name).s for name in NAMES]
        for s in values[1:]:
            torch.testing.assert_close(s, values[0], rtol=0, atol=1e-12 * values[0][0].item())


def test_no_solver_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for w_0, update in HOSTILE.values():
            w_t = formed(w_0, update)
            for solver in SOLVERS:
                follow(exact(w_0), partial(torch.clone, w_t), update, solver)
                follow_values(exact(w_0), partial(torch.clone, w_t), update, solver)


def test_the_choice_is_by_cost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    base, w_t = exact(WIDE), WIDE + B @ A
    asked: list[tuple[tuple[int, int], int, bool]] = []

    for faster, name in ((True, "low-rank"), (False, "gram")):

        def prefers(
            shape: tuple[int, int], rank: int, vectors: bool = True, faster: bool = faster
        ) -> bool:
            asked.append((shape, rank, vectors))
            return faster

        monkeypatch.setattr(choice, "prefers_low_rank", prefers)
        assert follow(base, lambda: w_t, (B, A)).solver == name
        assert follow_values(base, lambda: w_t, (B, A)).solver == f"{name}-values"
    assert asked == [((12, 20), 2, True), ((12, 20), 2, False)] * 2
