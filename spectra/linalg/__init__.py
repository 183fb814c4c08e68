"""Decompositions of matrices in float64, each with its measured error; numbers only."""

from spectra.linalg.decomposition import Decomposition
from spectra.linalg.dense import as_float64, decompose, product_singular_values, singular_values

__all__ = ["Decomposition", "as_float64", "decompose", "product_singular_values", "singular_values"]
