"""What a training run costs: time of a step, memory, trained parameters."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class CostCallback(TrainerCallback):
    """Measures a training.

    Attributes
    ----------
    measured : dict
        When it has ended: ``trainable_parameters``; ``seconds_per_step``, the median over the
        steps from one's beginning to the next one's, with data, recording and all; and
        ``peak_memory`` in bytes, with ``memory`` saying of what: ``"gpu"`` what torch allocated
        there, ``"process"`` what the process had resident. Of a run that was continued, these are
        of its last part.
    """

    def __init__(self) -> None:
        self.measured: dict[str, Any] = {}
        self._trainable = 0
        self._begun: list[float] = []

    def on_train_begin(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        parameters = [] if model is None else model.parameters()
        self._trainable = sum(p.numel() for p in parameters if p.requires_grad)
        self._begun = []
        _forget_peak()

    def on_step_begin(self, *_: Any, **__: Any) -> None:  # noqa: D102
        self._begun.append(time.perf_counter())

    def on_train_end(self, *_: Any, **__: Any) -> None:  # noqa: D102
        times = [*self._begun, time.perf_counter()]
        seconds = [after - before for before, after in zip(times[:-1], times[1:], strict=True)]
        peak, kind = _peak()
        self.measured = {
            "trainable_parameters": self._trainable,
            "seconds_per_step": statistics.median(seconds) if seconds else None,
            "peak_memory": peak,
            "memory": kind,
        }


def _forget_peak() -> None:
    """Begin to look for the peak now, as far as the system lets it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # not Linux: then it is that of the whole process so far


def _peak() -> tuple[int, str]:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), "gpu"
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = next(line for line in lines if line.startswith("VmHWM:"))
        return int(found.split()[1]) * 1024, "process"
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"
