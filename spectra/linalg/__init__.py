"""Decompositions of matrices in float64, each with its measured error; numbers only."""

from spectra.linalg.choice import (
    SOLVER_VERSION,
    SOLVERS,
    dense_seconds,
    follow,
    follow_values,
    low_rank_seconds,
    prefers_low_rank,
)
from spectra.linalg.decomposition import LEADING, Decomposition, NotConverged, Spectrum, Turned
from spectra.linalg.dense import as_float64, decompose, product_singular_values, singular_values
from spectra.linalg.low_rank import LowRankUpdate
from spectra.linalg.norms import spectral_norm
from spectra.linalg.rounding import PRECISIONS, noise_sample, rounded

__all__ = [
    "LEADING",
    "PRECISIONS",
    "SOLVERS",
    "SOLVER_VERSION",
    "Decomposition",
    "LowRankUpdate",
    "NotConverged",
    "Spectrum",
    "Turned",
    "as_float64",
    "decompose",
    "dense_seconds",
    "follow",
    "follow_values",
    "low_rank_seconds",
    "noise_sample",
    "prefers_low_rank",
    "product_singular_values",
    "rounded",
    "singular_values",
    "spectral_norm",
]
