"""The quantities of one matrix, one pure function each, over decompositions."""

from spectra.metrics.updates import frobenius_drift
from spectra.metrics.values import (
    condition_number,
    effective_rank,
    singular_value_deviation,
    stable_rank,
)
from spectra.metrics.vectors import (
    mean_turn,
    orthonormality_error,
    singular_vector_deviation,
    vector_overlaps,
)

__all__ = [
    "condition_number",
    "effective_rank",
    "frobenius_drift",
    "mean_turn",
    "orthonormality_error",
    "singular_value_deviation",
    "singular_vector_deviation",
    "stable_rank",
    "vector_overlaps",
]
