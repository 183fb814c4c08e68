"""Perplexities beside a training: at every recorded step, into the run's curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spectra.recording.recorder import Recorder
from spectra.training.evaluation.perplexity import DEFAULT_BATCH_SIZE, Example, identity, perplexity


class PerplexityCallback(TrainerCallback):
    """Measures perplexities at every recorded step, the base and the last step included.

    Add it behind the `spectra.SpectraCallback` whose recorder it is given. Training is the same
    to the bit with it and without: nothing is drawn, no gradient is touched, and its time is left
    out of the curve's ``seconds``. On resuming, what an earlier attempt measured stays.

    The model is evaluated as it is, in the dtype of its weights, also where the training computes
    products in 16 bits, and with its adapters unmerged. Of several processes each computes the
    whole; sharded models (FSDP, ZeRO-3) are not for this.

    Parameters
    ----------
    recorder : Recorder
        That of the run; its `last_snapshot` tells what is recorded.
    columns : mapping of str to sequence of Example
        What to measure on, by the column: ``perplexity``, ``perplexity_other``.
    batch_size : int
        Examples a forward pass.

    Raises
    ------
    ValueError
        When a training goes on and the run has values on other data.

    Examples
    --------
    >>> recording = SpectraCallback("runs/a")  # doctest: +SKIP
    >>> columns = {"perplexity": examples}  # doctest: +SKIP
    >>> measuring = PerplexityCallback(recording.recorder, columns)  # doctest: +SKIP
    >>> Trainer(..., callbacks=[recording, measuring])  # doctest: +SKIP
    """

    def __init__(
        self,
        recorder: Recorder,
        columns: Mapping[str, Sequence[Example]],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        self._recorder = recorder
        self._columns = dict(columns)
        self._batch_size = batch_size

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
        run = self._recorder.run
        before = run.read_settings().get("evaluation", {}) if run.exists() else {}
        dtype = next(model.parameters()).dtype
        told = {name: identity(examples, dtype) for name, examples in self._columns.items()}
        changed = [name for name in told if before.get(name, told[name]) != told[name]]
        if changed and state.global_step > 0:
            self._recorder.interrupt()
            raise ValueError(
                f"{run.path} has values of {' and '.join(changed)} on other data than is given "
                "now, and one column holds one thing. Give the files as they were, or begin anew "
                "in another folder."
            )
        self._recorder.note(evaluation=before | told)
        if state.global_step == 0:
            self._measure(model, 0)

    def on_step_end(  # noqa: D102
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        # The last step is recorded when the training ends, which is too late to log its values.
        is_recorded = self._recorder.last_snapshot == state.global_step
        if model is not None and (is_recorded or control.should_training_stop):
            self._measure(model, state.global_step)

    def _measure(self, model: nn.Module, step: int) -> None:
        with self._recorder.paused(), _without_autocast(model):
            values = {
                name: perplexity(model, examples, batch_size=self._batch_size)
                for name, examples in self._columns.items()
            }
        self._recorder.log(step, **values)


@contextmanager
def _without_autocast(model: nn.Module) -> Iterator[None]:
    """Undo within a block what Accelerate does to a model in mixed precision.

    It puts a forward into the model's attributes that begins autocast, which no block around it
    ends, and keeps the model's own beside it. Compiling wraps the model that has them.
    """
    inner = getattr(model, "_orig_mod", model)
    attributes = vars(inner)
    if "_original_forward" not in attributes:
        yield
        return
    mixed = inner.forward
    inner.forward = attributes["_original_forward"]
    try:
        yield
    finally:
        inner.forward = mixed
