"""Finds checkpoints and reads single matrices from them, lazily; knows formats, not metrics."""

from checkpoints_index.discovery import (
    CheckpointSeries,
    find_checkpoints,
    find_series,
    find_snapshots,
    open_model,
)
from checkpoints_index.errors import CheckpointError, IncompleteCheckpointError
from checkpoints_index.index import Entry, Index, Series, as_location, build_index, nothing_in
from checkpoints_index.index_store import IndexStore
from checkpoints_index.matrices import (
    Checkpoint,
    Matrix,
    TrainedFactors,
    Weight,
    clean_name,
    locate,
    matches,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointSeries",
    "Entry",
    "IncompleteCheckpointError",
    "Index",
    "IndexStore",
    "Matrix",
    "Series",
    "TrainedFactors",
    "Weight",
    "as_location",
    "build_index",
    "clean_name",
    "find_checkpoints",
    "find_series",
    "find_snapshots",
    "locate",
    "matches",
    "nothing_in",
    "open_model",
]
