"""Writes and reads snapshots of a live model without a training loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from checkpoints_index.snapshots import BASE_FILE, Snapshot, snapshot_file
from spectra.recording.layers import RecordedLayer, find_layers
from spectra.recording.snapshot_files import SnapshotLayout, write_snapshot
from tests.helpers import MODULES


def staged(layout: SnapshotLayout) -> Tensor:
    """The body of a layout, filled from the live model."""
    body = torch.empty(layout.nbytes, dtype=torch.uint8)
    for part, view in layout.views(body):
        view.copy_(part.take(part.live().detach()))
    return body


def write_base(folder: Path, layers: Sequence[RecordedLayer]) -> Snapshot:
    """Write W_0 as it is now."""
    layout = SnapshotLayout(layers, base=True)
    header = layout.header(id="base", step=0, base="base")
    write_snapshot(folder / BASE_FILE, header, layout.pieces(staged(layout)))
    return Snapshot(folder / BASE_FILE)


def write_step(
    folder: Path,
    layers: Sequence[RecordedLayer],
    step: int = 1,
    dtype: torch.dtype | None = None,
) -> Snapshot:
    """Write W_t as it is now; the folder must have its base already."""
    layout = SnapshotLayout(layers, dtype=dtype)
    header = layout.header(id=f"step {step}", step=step, base="base")
    base = Snapshot(folder / BASE_FILE)
    path = folder / snapshot_file(step)
    write_snapshot(path, header, layout.pieces(staged(layout.staging), base))
    return Snapshot(path)


def record(
    folder: Path,
    model: nn.Module,
    modules: Sequence[str] = MODULES,
    dtype: torch.dtype | None = None,
) -> Snapshot:
    """Write base and step 1 of a model that does not change in between."""
    layers = find_layers(model, modules)
    write_base(folder, layers)
    return write_step(folder, layers, dtype=dtype)


def weights(snapshot: Snapshot) -> dict[str, Tensor]:
    """W_t of every matrix in float64, on the base beside it."""
    base = snapshot.beside
    w_0 = {m.name: base.read(m).dense for m in base.matrices}
    return {
        m.name: snapshot.read(m).on(w_0[m.name])  # type: ignore[arg-type]
        for m in snapshot.matrices
    }
