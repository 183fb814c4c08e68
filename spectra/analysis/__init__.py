"""Turns checkpoints into drift rows: what is stale, who computes it, in what order."""

from spectra.analysis.base_cache import BaseCache
from spectra.analysis.cost import Estimate
from spectra.analysis.following import WatchedStep
from spectra.analysis.pipeline import analyze, estimate
from spectra.analysis.watch import watch

__all__ = ["BaseCache", "Estimate", "WatchedStep", "analyze", "estimate", "watch"]
