"""Runs on disk: the folder's layout, the Parquet schema, the one writer and the one reader."""

from spectra.store.attempts import Attempt
from spectra.store.files import whole_file
from spectra.store.follower import Follower
from spectra.store.groups import RunGroup, group_labels, group_runs, regularized_pairs
from spectra.store.run import Run, expand_runs, find_runs, read_runs, run_names, software_versions
from spectra.store.schema import (
    DRIFT,
    DRIFT_QUANTITIES,
    KEYS,
    SPECTRUM,
    SPECTRUM_ARRAYS,
    TRAINING,
    TRAINING_QUANTITIES,
)
from spectra.store.sweeps import STATES, Sweep, SweepRun, find_sweeps
from spectra.store.tables import PartTable

__all__ = [
    "DRIFT",
    "DRIFT_QUANTITIES",
    "KEYS",
    "SPECTRUM",
    "SPECTRUM_ARRAYS",
    "STATES",
    "TRAINING",
    "TRAINING_QUANTITIES",
    "Attempt",
    "Follower",
    "PartTable",
    "Run",
    "RunGroup",
    "Sweep",
    "SweepRun",
    "expand_runs",
    "find_runs",
    "find_sweeps",
    "group_labels",
    "group_runs",
    "read_runs",
    "regularized_pairs",
    "run_names",
    "software_versions",
    "whole_file",
]
