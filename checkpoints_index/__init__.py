"""Finds checkpoints and reads single matrices from them, lazily; knows formats, not metrics."""

from checkpoints_index.byte_files import is_remote, name_of
from checkpoints_index.discovery import (
    CheckpointSeries,
    find_checkpoints,
    find_series,
    find_snapshots,
    open_model,
    settle_quantisation,
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
from checkpoints_index.model_readers import find_models
from checkpoints_index.printing import printable
from checkpoints_index.remote import add_bytes_read, bytes_read, counting_bytes

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
    "add_bytes_read",
    "as_location",
    "build_index",
    "bytes_read",
    "clean_name",
    "counting_bytes",
    "find_checkpoints",
    "find_models",
    "find_series",
    "find_snapshots",
    "is_remote",
    "locate",
    "matches",
    "name_of",
    "nothing_in",
    "open_model",
    "printable",
    "settle_quantisation",
]
