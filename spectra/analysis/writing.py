"""What an analysis writes to a run: its rows, and what they were computed from."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from checkpoints_index import Checkpoint
from checkpoints_index.model_folders import ModelCheckpoint
from spectra.analysis.rows import Row
from spectra.store import Run

# Finished rows wait at most so long in memory before they are on disk.
WRITE_SECONDS = 5.0


class RowWriter:
    """Collects rows and writes them every few seconds, arrays before the rows that need them.

    Parameters
    ----------
    run : Run
        Where to.
    seconds : float, optional
        Rows wait so long in memory at most.
    """

    def __init__(self, run: Run, seconds: float | None = None) -> None:
        self._run = run
        self._keys = {"run": run.name, "method": run.method}
        self._seconds = WRITE_SECONDS if seconds is None else seconds
        self._drift: list[Row] = []
        self._spectrum: list[Row] = []
        self._written = time.monotonic()

    def add(self, drift: Row, spectrum: Row) -> None:
        """Take a row of each table; that of spectrum may be empty."""
        self._drift.append(self._keys | drift)
        if spectrum:
            self._spectrum.append(self._keys | spectrum)
        if time.monotonic() - self._written > self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write what there is as one part."""
        self._run.spectrum.append(self._spectrum)
        self._run.drift.append(self._drift)
        self._spectrum, self._drift = [], []
        self._written = time.monotonic()


def describe_run(
    run: Run,
    base: Checkpoint,
    modules: Sequence[str],
    methods: Collection[str],
    checkpoints: Sequence[Path],
) -> None:
    """Write down what is analysed, where no hook has done so.

    Raises
    ------
    ValueError
        If the run's rows are those against another base.
    """
    described = run.read_settings().get("base", {}) if run.exists() else {}
    dequantised = base.dequantised if isinstance(base, ModelCheckpoint) else None
    now = _named(str(base.path), dequantised)
    before = _named(described.get("name", base.path), described.get("dequantised"))
    if described.get("name") is not None and before != now:
        raise ValueError(
            f"{run.path} was analysed against the base {before}, now it is {now}. Choose "
            "another --out."
        )
    run.update_settings(
        method="+".join(sorted(set(methods))),
        modules=list(modules),
        base={
            "name": str(base.path),
            "fingerprint": base.fingerprint,
            # "nf4", where W_0 is not the weights that these were quantised from.
            "dequantised": dequantised,
            # A quantisation's name, such as "q4_0", where W_0 is what that stands for.
            "dtypes": sorted({m.dtype for m in base.matrices}),
        },
        checkpoints=list(map(str, checkpoints)),
        state="finished",
    )


def _named(base: str, dequantised: str | None) -> str:
    return base if dequantised is None else f"{base} (de-quantised from {dequantised})"
