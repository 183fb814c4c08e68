"""The drift of a run's steps, as an analysis beside the training computes it."""

from __future__ import annotations

import logging
import math
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spectra.recording.alerts import Alerts, Raised
from spectra.store import KEYS, Run

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
# A folder that does not answer must not hold up the trainer's end.
_PATIENCE_SECONDS = 10.0
# A step, and the digest of the snapshot and the engine behind its rows: recorded again, a step
# has another.
_Analysis = tuple[int, str]


@dataclass(frozen=True)
class StepDrift:
    """A step that has been analysed wholly.

    Attributes
    ----------
    step : int
        Which one.
    summary : dict of str to float
        See `summary`.
    alerts : tuple of Raised
        The alerts that it raised.
    """

    step: int
    summary: dict[str, float]
    alerts: tuple[Raised, ...] = ()


def summary(rows: Any) -> dict[str, float]:
    """Return a handful of numbers for a step, over all its matrices.

    Parameters
    ----------
    rows : DataFrame
        The step's drift rows.

    Returns
    -------
    dict of str to float
        ``spectra/delta_sigma`` and ``spectra/delta_d`` (means), ``spectra/kappa`` (median),
        ``spectra/intruders`` (sum) and ``spectra/ortho``, the largest ‖UᵀU − I‖_F of the trained
        factors; what no matrix has, or is not finite, is left out.
    """
    numbers = {
        "delta_sigma": rows["delta_sigma"].mean(),
        "delta_d": rows["delta_d"].mean(),
        "kappa": rows["kappa"].median(),
        "intruders": rows["intruders"].sum(min_count=1),
        "ortho": rows[["ortho_u", "ortho_v"]].max().max(),
    }
    return {f"spectra/{k}": float(v) for k, v in numbers.items() if math.isfinite(v)}


class DriftFeed:
    """Gives each step of a run when the drift of all its matrices is there, once.

    A thread of its own reads what appears below ``RUN/drift``, and judges it; the training's
    thread only takes what is ready. A step that is recorded and analysed again is given again.

    Parameters
    ----------
    run : Run
        Its present rows are old: they are not given.
    matrices : int
        How many a step has.
    alerts : Alerts, optional
        What the steps are checked against.
    seconds : float
        Between two looks into the folder.
    """

    def __init__(
        self,
        run: Run,
        matrices: int,
        alerts: Alerts | None = None,
        seconds: float = _POLL_SECONDS,
    ) -> None:
        self._table = run.drift
        self._matrices = matrices
        self._alerts = alerts or Alerts()
        self._seconds = seconds
        # Of every part that was read, the rows of steps that are not complete.
        self._parts: dict[Path, dict[_Analysis, pa.Table]] = {}
        self._given: set[_Analysis] = set()
        self._ready: queue.SimpleQueue[StepDrift] = queue.SimpleQueue()
        self._looking = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned = False

    def start(self) -> None:
        """Take note of the rows there are, and begin to follow the folder."""
        with self._looking:
            try:
                self._note_old()
                self._complete()
            except Exception as error:
                self._warn(error)
        self._thread = threading.Thread(target=self._follow, name="spectra-feed", daemon=True)
        self._thread.start()

    def take(self) -> list[StepDrift]:
        """Return the steps that became complete since the last call, without waiting."""
        taken = []
        while not self._ready.empty():
            taken.append(self._ready.get_nowait())
        return taken

    def stop(self) -> None:
        """Look a last time, and end the thread; what is ready can still be taken."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_SECONDS)
            self._thread = None

    def look(self) -> None:
        """Read and judge what is there now; the thread does so by itself."""
        with self._looking:
            try:
                for step, table in self._complete():
                    rows = table.to_pandas().drop_duplicates(["layer", "module"], keep="last")
                    alerts = tuple(self._alerts.check(step, rows))
                    self._ready.put(StepDrift(step, summary(rows), alerts))
            except Exception as error:
                self._warn(error)

    def _follow(self) -> None:
        last = False
        while not last:
            last = self._stopping.wait(self._seconds)
            self.look()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            folder = self._table.folder
            logger.warning("Not all of %s can be followed (%s); training goes on.", folder, error)
            logger.debug("While following %s:", folder, exc_info=True)

    def _note_old(self) -> None:
        """Count as given what is complete in one part, without reading it: most of a long run."""
        for part in self._table.parts():
            try:
                keys = self._table.read_part(part, [*KEYS, "source"])
            except OSError:
                continue  # said, if it stays so, when it is read
            matrices = keys.group_by(["step", "source", "layer", "module"]).aggregate([])
            counts = matrices.group_by(["step", "source"]).aggregate([("layer", "count")])
            complete = counts.filter(pc.field("layer_count") >= self._matrices).to_pylist()
            self._given |= {(row["step"], row["source"]) for row in complete}

    def _complete(self) -> list[tuple[int, pa.Table]]:
        """Read the parts that are new, and return the steps that became complete, in order."""
        # An analysis rewrites all its rows as one part when it ends, and deletes the others.
        listed = self._table.parts()
        known = {part: self._parts[part] for part in listed if part in self._parts}
        new: set[_Analysis] = set()
        for part in listed:
            if part in known:
                continue
            try:
                known[part] = self._read_part(part)
            except FileNotFoundError:
                continue  # its rows are in a newer part
            except OSError as error:
                known[part] = {}
                self._warn(error)
            new |= known[part].keys()
        self._parts = known
        complete = []
        for analysis in sorted(new):
            rows = [part[analysis] for part in known.values() if analysis in part]
            table = pa.concat_tables(rows, promote_options="permissive")
            if table.group_by(["layer", "module"]).aggregate([]).num_rows >= self._matrices:
                self._given.add(analysis)
                complete.append((analysis[0], table))
                for part_rows in known.values():
                    part_rows.pop(analysis, None)
        return complete

    def _read_part(self, part: Path) -> dict[_Analysis, pa.Table]:
        """Return a part's rows of steps that have not been given, by step and source."""
        keys = self._table.read_part(part, [*KEYS, "source"])
        listed = keys.group_by(["step", "source"]).aggregate([]).to_pylist()
        new = {(row["step"], str(row["source"])) for row in listed} - self._given
        if not new:
            return {}
        where = {"step": sorted({step for step, _ in new})}
        rows = self._table.read_part(part, self._table.schema.names, where)
        rows = pa.concat_tables(
            [self._table.schema.empty_table(), rows], promote_options="permissive"
        )
        return {
            (step, source): rows.filter((pc.field("step") == step) & (pc.field("source") == source))
            for step, source in new
        }
