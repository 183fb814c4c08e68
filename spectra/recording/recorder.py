"""The hook for any training loop."""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from checkpoints_index import CheckpointError
from checkpoints_index.safetensors_files import TensorFile
from checkpoints_index.snapshots import BASE_FILE, FORMAT, METADATA_KEY, Snapshot, snapshot_file
from spectra.recording.alerts import Alerts, Raised
from spectra.recording.feed import DriftFeed
from spectra.recording.gathering import is_writer
from spectra.recording.layers import RecordedLayer, find_layers, on_cpu
from spectra.store import TRAINING_QUANTITIES, Run, whole_file
from spectra.store.files import remove_leftovers

DEFAULT_MODULES = ("q_proj", "v_proj")
DEFAULT_EVERY = 50
# Training rows are rewritten whole, so not at every step; a kill loses at most this much.
_FLUSH_SECONDS = 10.0
# Locks of this process, by the run's folder.
_HELD: dict[Path, ExitStack] = {}
logger = logging.getLogger(__name__)


class Recorder:
    """Records chosen weights and the training's curve into a run, from any loop.

    Snapshots are taken of step 0, of every `every`-th step and of the last one. Adapters are
    stored as their factors, never merged; plain layers as their weight. W_0 is stored once.
    The model, its gradients and the random state are only read.

    Parameters
    ----------
    run : Path or str
        The run's folder; made if missing. An existing run is continued: rows and snapshots of
        steps that are trained again are replaced.
    modules : sequence of str
        Names or globs of the layers to record, by the last part of their path.
    every : int
        Steps between snapshots.
    method : str, optional
        What to call the method; found out from the model by default.
    base : str, optional
        What to call the base model; ``model.config``'s name by default.
    settings : dict, optional
        Resolved hyperparameters, stored in ``run.json``.
    overwrite : bool
        Let a finished run be replaced; without it that is refused.

    Examples
    --------
    >>> recorder = Recorder("runs/a", every=50)  # doctest: +SKIP
    >>> with recorder.attach(model):  # doctest: +SKIP
    ...     for step, batch in enumerate(batches, start=1):
    ...         loss = train_step(batch)
    ...         recorder.step(step, loss=loss)
    """

    def __init__(
        self,
        run: Path | str,
        modules: Sequence[str] = DEFAULT_MODULES,
        every: int = DEFAULT_EVERY,
        *,
        method: str | None = None,
        base: str | None = None,
        settings: dict[str, Any] | None = None,
        overwrite: bool = False,
        alerts: Any = (),
    ) -> None:
        self._alerts = Alerts(alerts)
        self._feed: DriftFeed | None = None
        self._news: list[tuple[int, dict[str, float], tuple[Raised, ...]]] = []
        self.stop_requested: str | None = None
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}.")
        if isinstance(modules, str):
            raise TypeError(f"modules must be a sequence of names, e.g. ({modules!r},).")
        self.run = Run(run)
        self.modules = tuple(modules)
        self.every = every
        self._method = method
        self._base = base
        self._settings = settings
        self._overwrite = overwrite
        self._layers: list[RecordedLayer] = []
        self._base_id = ""
        self._rows: dict[int, dict[str, Any]] = {}
        self._last_step: int | None = None
        self._last_snapshot: int | None = None
        self._started = 0.0
        self._flushed = 0.0

    @contextmanager
    def attach(self, model: nn.Module, start_step: int = 0) -> Iterator[Recorder]:
        """Record `model` inside a ``with`` block.

        Parameters
        ----------
        model : nn.Module
            As it is trained: after adapters are added and parameters are frozen.
        start_step : int
            How many optimizer steps it has already had in this run; more than 0 on resuming.

        Raises
        ------
        ValueError
            If nothing in the model matches, if it does not fit what the run already holds, or
            if the run is finished and recording would replace what it holds.
        RuntimeError
            If another process is recording into the run.
        """
        self.begin(model, start_step)
        try:
            yield self
        except BaseException:
            try:
                self.flush()
            finally:
                self._release()
            raise
        self.end()

    def begin(self, model: nn.Module, start_step: int = 0, total_steps: int | None = None) -> None:
        """Start recording; `attach` without the ``with``. Parameters and errors as there."""
        if not is_writer():
            return
        layers = find_layers(model, self.modules)
        self._take_lock()
        self._layers = layers
        try:
            self._base_id = self._ensure_base(start_step)
            self._refuse_to_replace(start_step)
        except BaseException:
            self._release()
            raise
        kinds = {layer.kind for layer in self._layers}
        changes: dict[str, Any] = {
            "method": self._method or ("full-ft" if kinds == {"dense"} else min(kinds - {"dense"})),
            "modules": list(self.modules),
            "every": self.every,
            "state": "running",
            "base": {
                "name": self._base or _model_name(model),
                "dtype": str(self._layers[0].w_0().dtype).removeprefix("torch."),
                "weights": f"snapshots/{BASE_FILE}",
            },
        }
        if self._settings is not None:
            changes["settings"] = self._settings
        self.run.update_settings(**changes)
        self._forget_from(start_step + 1)
        self._last_step = start_step
        self._last_snapshot = None
        self._feed = DriftFeed(self.run, len(layers), self._alerts)
        self._feed.start()
        self.stop_requested = None
        self._started = time.monotonic() - max(
            (r.get("seconds") or 0.0 for r in self._rows.values()), default=0.0
        )
        # Dense layers at step 0 are the base, which is stored already.
        if start_step == 0 and kinds != {"dense"}:
            self._write_snapshot(0)

    def step(self, step: int, **values: float | Tensor | None) -> None:
        """Tell that an optimizer step is done: log it, and take a snapshot if one is due.

        Parameters
        ----------
        step : int
            Number of optimizer steps done, counting from 1; not micro-batches.
        **values : float or Tensor, optional
            Any of ``loss``, ``grad_norm``, ``lr``, ``ortho_loss``.

        Raises
        ------
        RuntimeError
            If no model is attached.
        ValueError
            If `step` is not beyond the last one.
        TypeError
            For a value that has no column.
        OSError
            If the snapshot cannot be written; what was recorded before stays whole.
        """
        if not is_writer():
            return
        if not self._layers:
            raise RuntimeError("No model is attached; call step inside `with recorder.attach(…)`.")
        if step <= (self._last_step or 0):
            raise ValueError(
                f"step must count finished optimizer steps upwards from 1; the last was "
                f"{self._last_step}, got {step}. With enumerate, use start=1."
            )
        self.log(step, **values)
        self._last_step = step
        self._look()
        if step % self.every == 0:
            self._write_snapshot(step)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def news(self) -> list[tuple[int, dict[str, float], tuple[Raised, ...]]]:
        """Return step, summary and raised alerts of what was analysed since the last call."""
        self._look()
        news, self._news = self._news, []
        return news

    def interrupt(self) -> None:
        """Write what is in memory and let the run go, unfinished."""
        self.flush()
        if self._feed is not None:
            self._feed.stop()
        self._release()

    def _look(self) -> None:
        for drift in self._feed.take() if self._feed is not None else ():
            self._news.append((drift.step, drift.summary, drift.alerts))
            for raised in drift.alerts:
                logger.warning("%s", raised.message)
                if raised.stop:
                    self.stop_requested = raised.message

    def log(self, step: int, **values: float | Tensor | None) -> None:
        """Note values of a step without counting it as done; later calls add to earlier ones."""
        if not is_writer():
            return
        unknown = values.keys() - TRAINING_QUANTITIES.keys()
        if unknown:
            raise TypeError(
                f"step has no column for {', '.join(sorted(unknown))}; it has "
                f"{', '.join(TRAINING_QUANTITIES)}."
            )
        row = self._rows.setdefault(step, {"step": step})
        row.setdefault("seconds", time.monotonic() - self._started)
        for name, value in values.items():
            if value is not None:
                row[name] = float(value.detach() if isinstance(value, Tensor) else value)

    def flush(self) -> None:
        """Write the training rows that are still in memory."""
        if not is_writer():
            return
        if self._rows or self.run.training_path.exists():
            self.run.write_training([self._rows[step] for step in sorted(self._rows)])
        self._flushed = time.monotonic()

    def end(self) -> None:
        """Take the last step's snapshot, write everything and mark the run finished."""
        if not is_writer():
            return
        if self._last_step and self._last_snapshot != self._last_step:
            self._write_snapshot(self._last_step)
        self.flush()
        if self._feed is not None:
            self._feed.stop()
        self.run.update_settings(state="finished", last_step=self._last_step)
        self._release()

    def _take_lock(self) -> None:
        # A notebook's cell that was interrupted and is run again takes over from itself.
        self._release()
        held = ExitStack()
        held.enter_context(self.run.lock("recording"))
        _HELD[self.run.path.resolve()] = held

    def _release(self) -> None:
        self._layers = []
        held = _HELD.pop(self.run.path.resolve(), None)
        if held is not None:
            held.close()

    def _refuse_to_replace(self, start_step: int) -> None:
        if self._overwrite or not self.run.exists():
            return
        stored = self.run.read_settings()
        last = stored.get("last_step") or 0
        if stored.get("state") == "finished" and last > start_step:
            raise ValueError(
                f"{self.run.path} is a finished run of {last} steps, and recording from step "
                f"{start_step} would replace them. Choose another folder, or pass overwrite=True."
            )

    def _write_snapshot(self, step: int) -> None:
        tensors = {
            f"{layer.name}.{part}": on_cpu(tensor)
            for layer in self._layers
            for part, tensor in layer.tensors().items()
        }
        path = self.run.snapshots_path / snapshot_file(step)
        self._write(path, tensors, step, {e.name: e.description() for e in self._layers})
        self._last_snapshot = step
        self.flush()

    def _ensure_base(self, start_step: int) -> str:
        path = self.run.snapshots_path / BASE_FILE
        if path.exists():
            return self._check_base(Snapshot(path), start_step)
        if start_step > 0 and any(layer.kind == "dense" for layer in self._layers):
            raise ValueError(
                f"{self.run.path} has no base and the model is at step {start_step} already: its "
                "weights are no longer W_0. Attach at step 0, or continue the run that has it."
            )
        tensors = {f"{layer.name}.weight": on_cpu(layer.w_0()) for layer in self._layers}
        for layer in self._layers:
            for part, tensor in layer.initial_tensors().items():
                tensors[f"{layer.name}.{part}"] = on_cpu(tensor)
        return self._write(path, tensors, 0, {e.name: {"kind": "dense"} for e in self._layers})

    def _check_base(self, stored: Snapshot, start_step: int) -> str:
        """Refuse to continue a run with other matrices or another base than it began with."""
        matrices = {m.name: m for m in stored.matrices}
        shapes = {name: matrix.shape for name, matrix in matrices.items()}
        present = {layer.name: tuple(layer.w_0().shape) for layer in self._layers}
        if shapes != present:
            differing = sorted(dict(shapes.items() ^ present.items()))
            raise ValueError(
                f"{self.run.path} was begun with other matrices than this model has; they differ "
                f"in {', '.join(differing[:3])} ({len(differing)} in all). Record into a new run."
            )
        file = TensorFile(stored.path)
        for layer in self._layers:
            # In training, a plain layer is no longer its base.
            if layer.kind != "dense" or start_step == 0:
                w_0 = on_cpu(layer.w_0())
                if not torch.equal(stored.read(matrices[layer.name]).on(w_0), w_0.double()):
                    raise ValueError(
                        f"{self.run.path} was begun on another base: {layer.name} differs from "
                        "what is stored. Record into a new run."
                    )
            for part, tensor in layer.initial_tensors().items():
                name = f"{layer.name}.{part}"
                if name not in file.shapes or not torch.equal(file.read(name), on_cpu(tensor)):
                    raise ValueError(
                        f"{self.run.path} holds no or other initial factors of {layer.name} than "
                        "this adapter has: it was begun with another. Record into a new run."
                    )
        return stored.id

    def _write(
        self, path: Path, tensors: dict[str, Tensor], step: int, matrices: dict[str, Any]
    ) -> str:
        snapshot_id = uuid.uuid4().hex
        header = {
            "format": FORMAT,
            "id": snapshot_id,
            "step": step,
            "base": self._base_id or snapshot_id,
            "matrices": matrices,
        }
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(header)})
        return snapshot_id

    def _forget_from(self, step: int) -> None:
        """Drop what an earlier, interrupted attempt recorded of steps that come again."""
        rows = self.run.read_training().drop(columns=["run", "method"])
        self._rows = {
            int(row["step"]): {str(k): v for k, v in row.items() if not _is_missing(v)}
            for row in rows.to_dict("records")
            if row["step"] < step
        }
        self.run.remove_leftovers()
        # With the lock in hand, no unfinished snapshot has a writer any more; an analysis may be
        # at work in the other folders.
        remove_leftovers(self.run.snapshots_path, older_than=time.time())
        for path in self.run.snapshots_path.glob("step-*.safetensors"):
            try:
                stale = Snapshot(path).step >= step
            except CheckpointError:
                continue
            if stale:
                logger.info("%s: %s is recorded again.", self.run.path, path.name)
                path.unlink()


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _model_name(model: nn.Module) -> str:
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    return str(name) or type(model).__name__
