"""Turns checkpoints into drift rows: what is stale, who computes it, in what order."""

from spectra.analysis.base_cache import BaseCache
from spectra.analysis.cost import Estimate
from spectra.analysis.pipeline import analyze, estimate

__all__ = ["BaseCache", "Estimate", "analyze", "estimate"]
