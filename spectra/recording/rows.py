"""The training's curve: told by the loop at every step, written by the thread now and then."""

from __future__ import annotations

import math
from array import array
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectra.store import TRAINING_QUANTITIES, Run

Number = float | Tensor


class TrainingRows:
    """A run's training rows as columns, which a hundred thousand steps do not make slow to write.

    Parameters
    ----------
    run : Run
        Its rows are continued.

    Raises
    ------
    OSError
        If they cannot be read.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        frame = run.read_training() if run.exists() else None
        # Read where there is no run yet: the columns are the same, and empty.
        self._steps = array("q", [] if frame is None else frame["step"].tolist())
        self._columns = {
            name: array("d", [] if frame is None else frame[name].tolist())
            for name in TRAINING_QUANTITIES
        }
        self._index = {step: i for i, step in enumerate(self._steps)}
        self._told: deque[tuple[int, float, dict[str, Number], Any]] = deque()
        self._unwritten = False

    @property
    def seconds(self) -> float:
        """How long the run was trained so far."""
        return max((s for s in self._columns["seconds"] if not math.isnan(s)), default=0.0)

    def tell(self, step: int, seconds: float, values: dict[str, Number]) -> None:
        """Note numbers of a step; what is on an accelerator is copied there and not waited for."""
        event = None
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name], event = _detached(value)
        self._told.append((step, seconds, values, event))

    @property
    def waiting(self) -> bool:
        """Whether something was told that is not written."""
        return self._unwritten or bool(self._told)

    def write(self) -> None:
        """Write all that was told, on the thread that writes.

        Raises
        ------
        OSError
            If it cannot be written; it is kept for the next time.
        """
        self._unwritten = True
        while self._told:
            self._settle(*self._told.popleft())
        steps = np.frombuffer(self._steps, dtype=np.int64)
        columns = {n: np.frombuffer(c, dtype=np.float64) for n, c in self._columns.items()}
        if (np.diff(steps) < 0).any():  # a log of an earlier step came late
            order = np.argsort(steps)
            steps, columns = steps[order], {n: c[order] for n, c in columns.items()}
        self._run.write_training({"step": steps} | columns)
        self._unwritten = False

    def _settle(self, step: int, seconds: float, values: dict[str, Number], event: Any) -> None:
        at = self._index.get(step)
        if at is None:
            at = self._index[step] = len(self._steps)
            self._steps.append(step)
            for column in self._columns.values():
                column.append(math.nan)
            self._columns["seconds"][at] = seconds
        if event is not None:
            event.synchronize()
        for name, value in values.items():
            self._columns[name][at] = float(value)


def _detached(value: Tensor) -> tuple[Number, Any]:
    """Return the number where reading it waits for nobody, else a copy and when it is there."""
    if value.numel() != 1:
        raise ValueError(f"A value of a step must be one number, got {tuple(value.shape)}.")
    value = value.detach()
    if value.device.type == "cpu":
        return value.item(), None
    with torch.no_grad():
        value = value.clone()
    if value.device.type != "cuda":
        return value, None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(value.device))
    return value, event
