"""Whether an adapter is the one that a run's snapshots were taken of so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from checkpoints_index import CheckpointError
from checkpoints_index.snapshots import Snapshot, snapshot_file
from spectra.recording.layers import RecordedLayer
from spectra.store import Run

# Both are plain layers: in which dtype they are stored may change within a run.
_PLAIN = ("dense", "delta")
_NAMED = 3


def refuse_other_adapter(run: Run, layers: Sequence[RecordedLayer], start_step: int) -> None:
    """Refuse to go on with adapters of another kind, rank or scaling than before.

    Parameters
    ----------
    run : Run
        The run; its base has the matrices of `layers`.
    layers : sequence of RecordedLayer
        What is recorded now.
    start_step : int
        The step that is gone on from. From 0 all is recorded again, and there is no before.

    Raises
    ------
    ValueError
        If they differ from the last snapshot that stays.
    """
    before = _last_snapshot(run, start_step) if start_step > 0 else None
    if before is None:
        return
    differences = [text for layer in layers for text in _differences(layer, before)]
    if differences:
        more = len(differences) - _NAMED
        listed = "; ".join(differences[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(
            f"{run.path} was begun with another adapter: {listed} (before: at step {before.step}). "
            "Record into a new run."
        )


def _last_snapshot(run: Run, last: int) -> Snapshot | None:
    names = sorted(run.snapshots_path.glob("step-*.safetensors"), reverse=True)
    for path in (p for p in names if p.name <= snapshot_file(last)):
        try:
            return Snapshot(path)
        except CheckpointError:
            continue
    return None


def _differences(layer: RecordedLayer, before: Snapshot) -> Iterator[str]:
    stored = before.recorded.get(layer.matrices[0].name)
    if stored is None or (stored.kind in _PLAIN and layer.kind in _PLAIN):
        return
    if stored.kind != layer.kind:
        yield f"{layer.name} was {stored.kind}, now it is {layer.kind}"
        return
    for part in layer.parts:
        tensor = before.tensors.get(f"{part.path}.{part.name}")
        if tensor is not None and tensor.shape != tuple(part.shape):
            yield f"{part.name} of {layer.name} was {tensor.shape}, now it is {tuple(part.shape)}"
            return
    scaling = layer.entry.get("scaling", 1.0)
    if stored.scaling != scaling:
        yield f"the scaling of {layer.name} was {stored.scaling:g}, now it is {scaling:g}"
