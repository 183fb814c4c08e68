"""What is planned, of checkpoints that only their headers describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from checkpoints_index import Checkpoint, Matrix, Weight
from spectra.analysis.plan import RowKey, plan_tasks
from spectra.analysis.rows import Quantities

NOTHING_YET: frozenset[RowKey] = frozenset()


@dataclass(frozen=True)
class Described:
    """A checkpoint of which nothing is read."""

    step: int
    matrices: tuple[Matrix, ...]
    path: Path = Path("run")
    method: str = "lora"
    base: str | None = None

    @property
    def fingerprint(self) -> str:
        return f"step {self.step}"

    def bind(self, base: Checkpoint) -> Checkpoint:
        return self

    def read(self, matrix: Matrix) -> Weight:
        raise AssertionError("planning reads no weights")


def matrix(name: str, module: str, layer: int = 0) -> Matrix:
    return Matrix(name, layer, module, (4, 4), "float32")


# Whole, the model has two of each; its adapter has one.
TOWERS = tuple(
    matrix(f"{tower}.layers.0.{module}", f"{tower}.{module}")
    for tower in ("vision", "language")
    for module in ("q_proj", "v_proj")
)
BASE = Described(0, TOWERS)
ADAPTER = Described(5, (matrix("language.layers.0.q_proj", "q_proj", layer=7),))


@pytest.mark.parametrize("modules", [None, ["q_proj"], ["language.q_proj"], ["*.q_proj"]])
def test_rows_have_the_bases_layer_and_module(modules: list[str] | None) -> None:
    (task,) = plan_tasks(BASE, [ADAPTER], modules, NOTHING_YET, Quantities())
    assert task.matrix.module == "language.q_proj"
    assert {(s.matrix.layer, s.matrix.module) for s in task.steps} == {(0, "language.q_proj")}
    assert [s.checkpoint.step for s in task.steps] == [0, 5]


def test_what_is_done_is_found_by_the_bases_layer_and_module() -> None:
    (task,) = plan_tasks(BASE, [ADAPTER], None, NOTHING_YET, Quantities())
    done = {(s.checkpoint.step, s.matrix.layer, s.matrix.module, s.source) for s in task.steps}
    assert plan_tasks(BASE, [ADAPTER], None, done, Quantities()) == []


def test_a_label_chooses_among_matrices_of_one_name() -> None:
    whole = Described(5, TOWERS)
    chosen = plan_tasks(BASE, [whole], ["vision.*"], NOTHING_YET, Quantities())
    assert [t.matrix.module for t in chosen] == ["vision.q_proj", "vision.v_proj"]
    every = plan_tasks(BASE, [whole], ["q_proj"], NOTHING_YET, Quantities())
    assert {t.matrix.module for t in every} == {"vision.q_proj", "language.q_proj"}


def test_two_matrices_under_one_label_are_refused() -> None:
    same = Described(0, tuple(matrix(m.name, "q_proj") for m in TOWERS))
    with pytest.raises(ValueError, match="has two matrices for layer 0 q_proj"):
        plan_tasks(same, [Described(5, same.matrices)], None, NOTHING_YET, Quantities())


@pytest.mark.parametrize("order", [(5, 9), (9, 5)])
def test_a_matrix_that_only_some_checkpoints_have_is_analysed_where_it_is(
    order: tuple[int, int],
) -> None:
    one, both = matrix("layers.0.q_proj", "q_proj"), matrix("layers.0.v_proj", "v_proj")
    base = Described(0, (one, both, matrix("layers.0.k_proj", "k_proj")))
    checkpoints = [Described(order[0], (one,)), Described(order[1], (one, both))]
    tasks = plan_tasks(base, checkpoints, None, NOTHING_YET, Quantities())
    steps = {t.matrix.module: {s.checkpoint.step for s in t.steps} for t in tasks}
    assert steps == {"q_proj": {0, 5, 9}, "v_proj": {0, order[1]}}
