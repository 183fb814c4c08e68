"""What is sent to workers: each checkpoint once, and nothing lost on the way."""

from __future__ import annotations

import pickle
from pathlib import Path

from checkpoints_index import Checkpoint, Matrix, Weight
from spectra.analysis.parcels import Packer
from spectra.analysis.plan import StaleStep, Task

MATRIX = Matrix("layers.0.q_proj", 0, "q_proj", (2, 3), "float32")


class Counting:
    """A checkpoint that counts how often it is pickled and unpickled."""

    path = Path("counting")
    method = "test"
    fingerprint = "counting"
    base: str | None = None
    matrices = (MATRIX,)
    pickled = unpickled = 0

    def __init__(self, step: int) -> None:
        self.step = step

    def __getstate__(self) -> dict[str, int]:
        Counting.pickled += 1
        return {"step": self.step}

    def __setstate__(self, state: dict[str, int]) -> None:
        Counting.unpickled += 1
        self.step = state["step"]

    def bind(self, base: Checkpoint) -> Checkpoint:
        return self

    def read(self, matrix: Matrix) -> Weight:
        return Weight()


def test_checkpoints_are_pickled_and_unpickled_once_for_all_tasks() -> None:
    base, first, second = Counting(0), Counting(1), Counting(2)
    packer = Packer()
    for _ in range(5):
        steps = (StaleStep(first, MATRIX, "a"), StaleStep(second, MATRIX, "b", is_base=True))
        opened = pickle.loads(pickle.dumps(packer.parcel(Task(base, MATRIX, steps)))).opened()
        assert opened.base.step == 0 and opened.matrix == MATRIX
        assert [s.checkpoint.step for s in opened.steps] == [1, 2]
        assert [(s.matrix, s.source, s.is_base) for s in opened.steps] == [
            (MATRIX, "a", False),
            (MATRIX, "b", True),
        ]
    assert (Counting.pickled, Counting.unpickled) == (3, 3)
