"""Finds checkpoints and reads single matrices from them, lazily; knows formats, not metrics."""

from checkpoints_index.discovery import find_checkpoints, find_snapshots, open_model
from checkpoints_index.errors import CheckpointError
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
    "Matrix",
    "TrainedFactors",
    "Weight",
    "clean_name",
    "find_checkpoints",
    "find_snapshots",
    "locate",
    "matches",
    "open_model",
]
