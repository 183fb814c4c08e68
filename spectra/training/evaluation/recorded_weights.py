"""The model of a recorded step: its base, with W_t of every recorded matrix put in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints_index import Checkpoint, Matrix, find_snapshots
from checkpoints_index.logical import logical_matrices
from checkpoints_index.snapshots import BASE_FILE, Snapshot
from spectra.recording.live_weights import configuration, live_weights
from spectra.store import Run

# Thaws other layers later, so that what was trained at the beginning is not all that was.
_LISA = "lisa"
# W_0 as recorded and as loaded may differ by their dtypes' rounding, and where it is a residual
# and a product by that of float32 in computing it: relative, in the Frobenius norm.
_FLOAT32_ROUNDINGS = 16.0


def why_final_only(settings: Mapping[str, Any]) -> str | None:
    """Say why a run's snapshots are not all of the model, or ``None`` where they are.

    Parameters
    ----------
    settings : mapping
        The run's ``run.json``.
    """
    if settings.get("method") == _LISA:
        return "lisa trains every layer by turns, and snapshots hold the recorded weights only"
    counts = settings.get("parameters")
    if not isinstance(counts, Mapping):
        return "run.json does not tell whether all trained weights were recorded"
    if counts["recorded"] < counts["trained"]:
        return (
            f"{counts['recorded']:,} of the {counts['trained']:,} trained parameters were recorded"
        )
    return None


class RecordedModel:
    """A base model that can be put into the state of any recorded step.

    Exact where all that was trained is recorded: W_t is computed in float64 and rounded once, to
    the model's dtype.

    Parameters
    ----------
    run : Run
        The run.
    model : nn.Module
        Its base, without adapters; its weights are replaced.

    Attributes
    ----------
    model : nn.Module
        What was given.

    Raises
    ------
    ValueError
        If the model is not the run's base.
    checkpoints_index.CheckpointError
        If the run's snapshots are broken.
    """

    def __init__(self, run: Run, model: nn.Module) -> None:
        self.model = model
        self._base = Snapshot(run.snapshots_path / BASE_FILE)
        self._states = recorded_states(run)
        stored = live_weights(model)
        described = {name: weight.described for name, weight in stored.items()}
        self._places = {m.matrix.name: m for m in logical_matrices(described, configuration(model))}
        self._weights = {name: weight.parameter for name, weight in stored.items() if weight.live}
        self._bases = {matrix.name: matrix for matrix in self._base.matrices}
        for matrix in self._base.matrices:
            self._refuse_another(run, matrix)

    def show(self, step: int) -> nn.Module:
        """Put the weights of a recorded step into the model and return it."""
        source = self._states[step]
        for matrix in source.matrices:
            w_0 = self._base.read(self._bases[matrix.name])
            assert w_0.dense is not None, "a base's snapshot holds whole matrices"
            self._put(matrix.name, source.read(matrix).on(w_0.dense))
        return self.model

    @torch.no_grad()
    def _put(self, name: str, w_t: Tensor) -> None:
        place = self._places[name]
        weight = self._weights[place.tensor]()
        rounded = w_t.to(weight.dtype).to(weight.device)
        target = place.of(weight)
        if target.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr():
            target.copy_(rounded)
        else:  # a part of a fused layer that is no view: where each of its numbers lies
            numbers = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
            weight.view(-1)[place.of(numbers).flatten()] = rounded.flatten()

    def _refuse_another(self, run: Run, matrix: Matrix) -> None:
        place = self._places.get(matrix.name)
        if place is None or place.matrix.shape != matrix.shape:
            has = f"one of shape {place.matrix.shape}" if place else "none"
            raise ValueError(
                f"The base of {run.path} has {matrix.name} of shape {matrix.shape}, this model "
                f"has {has}. Give the run's base with --base."
            )
        w_0 = self._base.read(matrix).dense
        assert w_0 is not None
        weight = self._weights[place.tensor]().detach()
        size = torch.linalg.matrix_norm(w_0.double())
        difference = torch.linalg.matrix_norm(place.of(weight).double().cpu() - w_0.double())
        coarsest = max(torch.finfo(d).eps for d in (weight.dtype, getattr(torch, matrix.dtype)))
        computing = _FLOAT32_ROUNDINGS * torch.finfo(torch.float32).eps
        if difference > (coarsest / 2 + computing) * size:
            raise ValueError(
                f"{matrix.name} of this model is not W_0 of {run.path}: they differ by "
                f"{difference / size:.1e} of its norm. Give the run's base with --base."
            )


def recorded_states(run: Run) -> dict[int, Checkpoint]:
    """Return what holds each recorded step's weights; for step 0 the base, if it has no other.

    Raises
    ------
    checkpoints_index.CheckpointError
        If the snapshots are broken.
    """
    found = {snapshot.step: snapshot for snapshot in find_snapshots(run.snapshots_path)}
    found.setdefault(0, Snapshot(run.snapshots_path / BASE_FILE))
    return dict(sorted(found.items()))
