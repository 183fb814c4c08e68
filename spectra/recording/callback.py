"""The hook as a Transformers callback."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import CallbackHandler

from spectra.recording.alerts import Alerts
from spectra.recording.gathering import agreed
from spectra.recording.guarding import Reporter, guarded, guarded_begin
from spectra.recording.recorder import Recorder

logger = logging.getLogger(__name__)

# What the trainer logs, and what it is called in a run.
_LOGGED = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
# TRL's trainers count the tokens of their batches, without padding, and log the total.
_TRLS_TOKENS = "num_tokens"
# Only the log at the end of training has it; the time every one has where tokens are counted.
_LAST_LOG = "train_loss"
# DVCLive has no steps: it counts how often it is told something.
_TRACKERS = tuple(cls for name, cls in INTEGRATION_TO_CALLBACK.items() if name != "dvclive")


class SpectraCallback(TrainerCallback):
    """Attaches a `Recorder` to Transformers' ``Trainer``, and so to TRL's trainers.

    A step is an optimizer step, also under gradient accumulation. Loss, learning rate and
    gradient norm (before clipping) are taken from what the trainer logs, so
    ``logging_steps=1`` records every step's. The tokens seen so far are recorded if the trainer
    counts them without the padding, by ``include_num_input_tokens_seen="non_padding"``; TRL's
    trainers count by themselves, of a resumed training some of them from its last start only,
    and then none are recorded.

    Summaries of the steps that have been analysed go to the trackers that the trainer reports
    to (``report_to``), at the steps they are of. An alert that asks for it ends the training at
    the next step's end; of several processes, when the trainer logs next.

    Parameters
    ----------
    run : Path or str
        The run's folder.
    **options
        ``modules``, ``every`` and all else that `Recorder` takes; plain values do.

    Attributes
    ----------
    recorder : Recorder
        What records.

    Examples
    --------
    >>> Trainer(..., callbacks=[SpectraCallback("runs/a", every=50)])  # doctest: +SKIP
    """

    def __init__(self, run: Path | str, **options: Any) -> None:
        self.recorder = Recorder(run, **options)
        self._may_stop = Alerts(options.get("alerts")).may_stop
        self._recording = False
        self._counts_tokens = self._from_start = False
        self._handler: CallbackHandler | None = None
        self._reporter = Reporter()

    @guarded_begin
    def on_train_begin(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if model is None:
            return
        self._recording = False
        self.recorder.begin(model, state.global_step, total_steps=state.max_steps)
        self._recording = True
        # A checkpoint from before the trainer was told to count does not know how many they were.
        counted = state.global_step == 0 or state.num_input_tokens_seen > 0
        self._from_start = state.global_step == 0
        self._counts_tokens = counted and args.include_num_input_tokens_seen == "non_padding"
        self._handler = _calling_handler()

    @guarded
    def on_step_end(  # noqa: D102
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._recording:
            return
        tokens = state.num_input_tokens_seen if self._counts_tokens else None
        self.recorder.step(state.global_step, tokens=tokens)
        self._report(args, state, control, **kwargs)
        if args.world_size == 1:
            self._stop_if(self.recorder.stop_requested, state, control)

    @guarded
    def on_log(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs:
            return
        if "loss" in logs and args.world_size > 1 and self._may_stop:
            # All processes must end at the same step. Here they wait for each other anyway; they
            # all come here, also where one of them does not record.
            self._stop_if(agreed(self.recorder.stop_requested), state, control)
        if not self._recording:
            return
        if "loss" in logs:
            values = {ours: logs[theirs] for theirs, ours in _LOGGED.items() if theirs in logs}
            total = logs.get(_TRLS_TOKENS)
            # A total that is in the trainer's state goes on from a checkpoint; others begin anew.
            known = self._from_start or total == state.num_input_tokens_seen
            if total is not None and known and not self._counts_tokens:
                values["tokens"] = total
            self.recorder.log(state.global_step, **values)
        if _LAST_LOG in logs:
            # Later, the model may be another (load_best_model_at_end) and the trackers closed.
            self._end(args, state, control, **kwargs)

    @guarded
    def on_save(  # noqa: D102
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # What the trainer would resume behind must not be missing from the curve.
        if self._recording:
            self.recorder.flush()

    @guarded
    def on_train_end(  # noqa: D102
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._recording:
            self._end(args, state, control, **kwargs)

    def _end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._recording = False
        self.recorder.end()
        self._report(args, state, control, **kwargs)

    def _stop_if(self, reason: str | None, state: TrainerState, control: TrainerControl) -> None:
        if reason is not None and not control.should_training_stop:
            control.should_training_stop = True
            logger.warning("Training stops after step %d: %s", state.global_step, reason)

    def _report(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for step, summary, _ in self.recorder.news():
            # Trackers take the step from the state, and nobody shall change the flow by copies.
            then = copy.copy(state)
            then.global_step = step
            for tracker in self._trackers():
                self._reporter.report(
                    tracker, "on_log", args, then, copy.copy(control), logs=dict(summary), **kwargs
                )

    def _trackers(self) -> list[Any]:
        handler = self._handler
        return [] if handler is None else [c for c in handler.callbacks if isinstance(c, _TRACKERS)]


def _calling_handler() -> CallbackHandler | None:
    """Return the trainer's list of callbacks; a callback is given all else, but not that."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, CallbackHandler):
            return caller
        frame = frame.f_back
    return None
