"""The hook as a Transformers callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spectra.recording.recorder import Recorder


class SpectraCallback(TrainerCallback):
    """Attaches a `Recorder` to Transformers' ``Trainer``, and so to TRL's trainers.

    A step is an optimizer step, also under gradient accumulation. Loss, learning rate and
    gradient norm (before clipping) are taken from what the trainer logs, so
    ``logging_steps=1`` records every step's.

    Parameters
    ----------
    run : Path or str
        The run's folder.
    **options
        ``modules``, ``every`` and all else that `Recorder` takes.

    Examples
    --------
    >>> Trainer(..., callbacks=[SpectraCallback("runs/a", every=50)])  # doctest: +SKIP
    """

    def __init__(self, run: Path | str, **options: Any) -> None:
        self.recorder = Recorder(run, **options)

    def on_train_begin(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and model is not None:
            self.recorder.begin(model, state.global_step)

    def on_step_end(  # noqa: D102
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.recorder.step(state.global_step)

    def on_log(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            names = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
            values = {ours: logs[theirs] for theirs, ours in names.items() if theirs in logs}
            self.recorder.log(state.global_step, **values)

    def on_save(  # noqa: D102
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # What the trainer would resume behind must not be missing from the curve.
        if state.is_world_process_zero:
            self.recorder.flush()

    def on_train_end(  # noqa: D102
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.recorder.end()
