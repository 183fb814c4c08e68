"""W_0 of a recording: written when a run begins, and held against the model when it goes on."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import torch
from torch import Tensor

from checkpoints_index.snapshot_kinds import RECOMPUTED
from checkpoints_index.snapshots import BASE_FILE, Snapshot
from spectra.recording.layers import Part, RecordedLayer
from spectra.recording.snapshot_files import SnapshotLayout, write_snapshot
from spectra.recording.staging import on_cpu
from spectra.store import Run

_NAMED = 3


class Base:
    """The base of a run, and the model that is recorded on it.

    Parameters
    ----------
    run : Run
        The run.
    layers : sequence of RecordedLayer
        What is recorded.
    start_step : int
        The optimizer steps that the model has had.
    """

    def __init__(self, run: Run, layers: Sequence[RecordedLayer], start_step: int) -> None:
        self._run = run
        self._layers = layers
        self._layout = SnapshotLayout(layers, base=True)
        self._at_start = start_step == 0
        self._start_step = start_step
        self.path = run.snapshots_path / BASE_FILE
        self.id = uuid.uuid4().hex

    @property
    def nbytes(self) -> int:
        """Bytes of its file."""
        return self._layout.nbytes + len(self._layout.header(id=self.id, step=0, base=self.id))

    @property
    def dtype(self) -> str:
        """In which its weights are."""
        return str(self._layers[0].base_parts[0].dtype).removeprefix("torch.")

    def stored(self) -> Snapshot | None:
        """Return the base that the run has already, if it fits the model by names and shapes.

        Raises
        ------
        ValueError
            If it does not, or there is none and the model's weights are W_0 no longer.
        checkpoints_index.CheckpointError
            If it is broken.
        """
        if self.path.exists():
            stored = Snapshot(self.path)
            self._refuse_other_matrices(stored)
            self.id = stored.id
            return stored
        if not self._at_start and any(not p.fixed for _, p in self._layout.parts):
            raise ValueError(
                f"{self._run.path} has no base and the model is at step {self._start_step} "
                "already: its weights are no longer W_0. Attach at step 0, or continue the run "
                "that has it."
            )
        return None

    def write(self, wanted: bool) -> None:
        """Write it from the live model; with sharded weights on every process.

        Parameters
        ----------
        wanted : bool
            Whether this is the process that writes.

        Raises
        ------
        OSError
            If it cannot be written; all parts have been gathered all the same.
        """
        pieces = on_cpu([part for _, part in self._layout.parts], wanted)
        try:
            if wanted:
                header = self._layout.header(id=self.id, step=0, base=self.id)
                write_snapshot(self.path, header, pieces)
        finally:
            for _ in pieces:
                pass

    def compare(self, stored: Snapshot | None) -> None:
        """Refuse to go on with weights that are not what the run's base holds.

        Of what training changes, nothing is compared. With sharded weights on every process.

        Parameters
        ----------
        stored : Snapshot, optional
            The run's base; only on the process that writes.

        Raises
        ------
        ValueError
            If they differ; all parts have been gathered all the same.
        """
        parts = [p for _, p in self._layout.parts if p.fixed or self._at_start]
        # Other weights than those before explain other factors.
        parts.sort(key=lambda part: part.name != "weight")
        differing: Part | None = None
        for part, present in zip(parts, on_cpu(parts, stored is not None), strict=True):
            if stored is None or differing is not None:
                continue
            if not _same(part, stored.read_tensor(f"{part.path}.{part.name}"), present):
                differing = part
        if differing is not None:
            self._refuse_other_numbers(differing)

    def _refuse_other_matrices(self, stored: Snapshot) -> None:
        before = {m.name: m.shape for m in stored.matrices}
        now = dict(pair for layer in self._layers for pair in _shapes(layer))
        gone, new = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
        other = sorted(n for n in before.keys() & now.keys() if before[n] != now[n])
        if gone or new or other:
            differences = [
                *([f"it has no {_listed(gone)}"] if gone else []),
                *([f"it has {_listed(new)} besides"] if new else []),
                *(f"{n} has shape {now[n]} and not {before[n]}" for n in other[:_NAMED]),
            ]
            raise ValueError(
                f"{self._run.path} was begun with other matrices than this model has: "
                f"{'; '.join(differences)}. Record into a new run."
            )
        shapes = {name: tensor.shape for name, tensor in stored.tensors.items()}
        wanted = {f"{p.path}.{p.name}": tuple(p.shape) for _, p in self._layout.parts}
        if shapes != wanted:
            first = sorted(dict(shapes.items() ^ wanted.items()))[0]
            raise ValueError(
                f"{self._run.path} holds no or other initial factors than this adapter has, e.g. "
                f"of {first}: it was begun with another. Record into a new run."
            )

    def _refuse_other_numbers(self, part: Part) -> None:
        if part.name != "weight":
            raise ValueError(
                f"{self._run.path} holds other initial factors of {part.path} than this adapter "
                "has: it was begun with another. Record into a new run."
            )
        raise ValueError(
            f"{self._run.path} was begun on another base: {part.path} differs from what is "
            "stored. Record into a new run."
        )


def _same(part: Part, before: Tensor, now: Tensor) -> bool:
    if part.name not in RECOMPUTED or before.dtype != now.dtype:
        return torch.equal(before, now)
    # Entries of unit vectors: decomposed with another library, a few in 100,000 of a real q_proj
    # are rounded to the next float32.
    return bool(((before - now).abs() <= torch.finfo(now.dtype).eps).all())


def _shapes(layer: RecordedLayer) -> list[tuple[str, tuple[int, ...]]]:
    weights = {p.path: tuple(p.shape) for p in layer.base_parts if p.name == "weight"}
    return [(m.name, weights[m.name]) for m in layer.matrices]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
