"""The hook as a Lightning callback."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spectra.recording.alerts import Alerts
from spectra.recording.gathering import agreed
from spectra.recording.guarding import Reporter, guarded, guarded_begin
from spectra.recording.recorder import Recorder

logger = logging.getLogger(__name__)

# Names under which modules log these quantities; ours come first. Lightning adds "_step".
_LOGGED = {
    "loss": ("loss", "train_loss", "train/loss"),
    "grad_norm": ("grad_norm", "grad_2.0_norm_total"),
}


def _callback_classes() -> tuple[type, ...]:
    """Return the base class of each package that Lightning comes in; a trainer knows its own."""
    found: list[type] = []
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found.append(importlib.import_module(package).Callback)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != package.split(".")[0]:
                raise
    if not found:
        raise ModuleNotFoundError("No module named 'lightning'", name="lightning")
    return tuple(found)


if TYPE_CHECKING:
    from lightning.pytorch import Callback as _Callback
else:
    _Callback = type("_Callback", _callback_classes(), {})


class LightningCallback(_Callback):
    """Attaches a `Recorder` to Lightning's ``Trainer``, of either of its packages.

    A step is what ``trainer.global_step`` counts: optimizer steps, so fewer than batches under
    gradient accumulation, and more with several optimizers. The loss is that of
    ``training_step``, averaged over the batches of a step; otherwise, and the gradient's norm,
    what the module logs as ``loss`` or ``train_loss`` and ``grad_norm``. The learning rate is
    that of the first optimizer's first group.

    Summaries of the steps that have been analysed go to the trainer's loggers, at the steps they
    are of. An alert that asks for it sets ``trainer.should_stop``; of several processes, at one
    of every ``log_every_n_steps`` steps.

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
    >>> Trainer(..., callbacks=[LightningCallback("runs/a", every=50)])  # doctest: +SKIP
    """

    def __init__(self, run: Path | str, **options: Any) -> None:
        super().__init__()
        self.recorder = Recorder(run, **options)
        self._may_stop = Alerts(options.get("alerts")).may_stop
        self._recording = False
        self._step = 0
        self._losses: list[Tensor] = []
        self._lr: float | None = None
        self._reporter = Reporter()

    @guarded_begin
    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:  # noqa: D102
        self._recording = False
        if trainer.fast_dev_run:
            return  # a trial of the code, not a run
        # Here, weights and counters of a checkpoint have been restored.
        self._step = trainer.global_step
        self._losses = []
        total = trainer.estimated_stepping_batches
        total_steps = int(total) if total != float("inf") else None
        self.recorder.begin(pl_module, self._step, total_steps=total_steps)
        self._recording = True

    @guarded
    def on_before_optimizer_step(  # noqa: D102
        self, trainer: Any, pl_module: nn.Module, optimizer: Any
    ) -> None:
        # Afterwards, a scheduler may have set the next step's.
        if optimizer is trainer.optimizers[0] or self._lr is None:
            self._lr = optimizer.param_groups[0]["lr"]

    @guarded
    def on_train_batch_end(  # noqa: D102
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.global_step != self._step  # or gradients are accumulated
        self._step = trainer.global_step
        often = self._step % (trainer.log_every_n_steps or 1) == 0
        if stepped and trainer.world_size > 1 and self._may_stop and often:
            # All processes must end at the same step, and asking each time would slow them. They
            # all come here, also where one of them does not record.
            self._stop_if(agreed(self.recorder.stop_requested), trainer)
        if not self._recording:
            return
        self._note_loss(outputs, trainer, pl_module)
        if stepped:
            self.recorder.step(self._step, **self._values(trainer))
            self._report(trainer)
            if trainer.world_size == 1:
                self._stop_if(self.recorder.stop_requested, trainer)

    @guarded
    def on_save_checkpoint(  # noqa: D102
        self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]
    ) -> None:
        # What the trainer would resume behind must not be missing from the curve.
        if self._recording:
            self.recorder.flush()

    @guarded
    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:  # noqa: D102
        if self._recording:
            self._recording = False
            self.recorder.end()
            self._report(trainer)

    @guarded
    def on_exception(  # noqa: D102
        self, trainer: Any, pl_module: nn.Module, exception: BaseException
    ) -> None:
        if self._recording:
            self._recording = False
            self.recorder.interrupt()

    def _note_loss(self, outputs: Any, trainer: Any, pl_module: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # Lightning has divided it by the number of batches.
            automatic = pl_module.automatic_optimization
            parts = trainer.accumulate_grad_batches if automatic else 1
            self._losses.append(parts * loss.detach())

    def _values(self, trainer: Any) -> dict[str, Any]:
        """Return what is known of the step that is done."""
        values: dict[str, Any] = {"lr": self._lr}
        if trainer.log_every_n_steps and self._step % trainer.log_every_n_steps == 0:
            logged = trainer.logged_metrics
            for ours, names in _LOGGED.items():
                present = [n for name in names for n in (name, f"{name}_step") if n in logged]
                if present:
                    values[ours] = logged[present[0]]
        if self._losses:
            values["loss"] = torch.stack(self._losses).mean()
        self._losses, self._lr = [], None
        return values

    def _stop_if(self, reason: str | None, trainer: Any) -> None:
        if reason is not None and not trainer.should_stop:
            trainer.should_stop = True
            logger.warning("Training stops after step %d: %s", self._step, reason)

    def _report(self, trainer: Any) -> None:
        for step, summary, _ in self.recorder.news():
            for tracker in trainer.loggers:
                self._reporter.report(tracker, "log_metrics", dict(summary), step=step)
