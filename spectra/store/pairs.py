"""Runs in pairs: one trained with the orthonormal regularizer and its twin without."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from spectra.store.run import Run

REGULARIZED, UNREGULARIZED = "sorsa", "sorsa-noreg"
# The regularizer's weight, and what a preset sets otherwise for the two methods.
_MAY_DIFFER = frozenset(
    {"method", "gamma", "learning_rate", "reduction", "squared", "clip_together"}
)


def pair_runs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return the pairs of SORSA runs with and without the regularizer, for Theorem 5.

    Two runs are a pair if their stored settings (seed, rank, model, data, …) differ in nothing
    but the method, γ and the learning rate, which Table 2 sets otherwise for the two. Of several
    that fit, one in the same folder comes first; a run is in one pair at most.

    Parameters
    ----------
    runs : sequence of Run

    Returns
    -------
    list of (Run, Run)
        The regularized one first, in the order of `runs`.

    Raises
    ------
    OSError, ValueError
        If the settings of a run cannot be read.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Theorem 5 and Table 2.
    """
    told = [(run, run.read_settings()) for run in runs]
    free = [(run, settings) for run, settings in told if settings.get("method") == UNREGULARIZED]
    pairs = []
    for run, settings in told:
        if settings.get("method") != REGULARIZED:
            continue
        fitting = [twin for twin in free if _common(twin[1]) == _common(settings)]
        if fitting:
            nearest = min(fitting, key=lambda twin: _distance(run, twin[0]))
            free.remove(nearest)
            pairs.append((run, nearest[0]))
    return pairs


def _common(settings: dict[str, Any]) -> str:
    """Return what a pair's settings must have in common; runs of other tools tell nothing."""
    own = settings.get("settings")
    own = own if isinstance(own, dict) else {}
    kept = {key: value for key, value in own.items() if key not in _MAY_DIFFER}
    return json.dumps([settings.get("seed"), kept], sort_keys=True, default=str)


def _distance(run: Run, other: Run) -> int:
    """Return how many folders lie between two runs."""
    here, there = run.path.resolve(), other.path.resolve()
    common = len(os.path.commonpath([here, there]).split(os.sep))
    return len(here.parts) + len(there.parts) - 2 * common
