"""Tasks on their way to other processes: each checkpoint is pickled once, not once a task.

What is known of a model's matrices takes 11 MiB and a second to pickle where experts are 18,000 of
them; and there are as many tasks.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from joblib.externals.loky.backend.reduction import dumps

from checkpoints_index import Checkpoint, Matrix
from spectra.analysis.plan import StaleStep, Task

# A worker keeps so many checkpoints; a chunk seldom has more.
_KEPT = 16


@dataclass(frozen=True)
class Parcel:
    """A task with its checkpoints as bytes.

    Attributes
    ----------
    base : bytes
        Where W_0 is, pickled.
    matrix : Matrix
        Which one.
    steps : tuple
        Of each stale step its checkpoint, pickled, and what else it is.
    """

    base: bytes
    matrix: Matrix
    steps: tuple[tuple[bytes, Matrix, str, bool], ...]

    def opened(self) -> Task:
        """Return the task; checkpoints that came with another one are not unpickled again."""
        steps = tuple(
            StaleStep(_opened(sent), matrix, source, is_base)
            for sent, matrix, source, is_base in self.steps
        )
        return Task(_opened(self.base), self.matrix, steps)


class Packer:
    """Makes parcels of tasks that share their checkpoints."""

    def __init__(self) -> None:
        # With the checkpoint, whose identity would otherwise be another's once it is gone.
        self._packed: dict[int, tuple[Checkpoint, bytes]] = {}

    def parcel(self, task: Task) -> Parcel:
        """Return a task as it is sent."""
        steps = ((self._sent(s.checkpoint), s.matrix, s.source, s.is_base) for s in task.steps)
        return Parcel(self._sent(task.base), task.matrix, tuple(steps))

    def _sent(self, checkpoint: Checkpoint) -> bytes:
        found = self._packed.get(id(checkpoint))
        if found is None:
            found = checkpoint, bytes(dumps(checkpoint))
            self._packed[id(checkpoint)] = found
        return found[1]


_load: Callable[[bytes], Checkpoint] = pickle.loads
_opened = lru_cache(maxsize=_KEPT)(_load)
