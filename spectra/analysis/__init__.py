"""Turns checkpoints into drift rows: what is stale, who computes it, in what order."""

from spectra.analysis.pipeline import analyze

__all__ = ["analyze"]
