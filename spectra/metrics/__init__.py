"""The quantities of one matrix, one pure function each, over decompositions."""

from spectra.metrics.matching import matched_vector_deviation
from spectra.metrics.subspaces import intruder_dimensions, principal_angles, subspace_deviation
from spectra.metrics.updates import frobenius_drift, spectral_drift
from spectra.metrics.values import (
    condition_number,
    effective_rank,
    ill_determined_share,
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
    "ill_determined_share",
    "intruder_dimensions",
    "matched_vector_deviation",
    "mean_turn",
    "orthonormality_error",
    "principal_angles",
    "singular_value_deviation",
    "singular_vector_deviation",
    "spectral_drift",
    "stable_rank",
    "subspace_deviation",
    "vector_overlaps",
]
