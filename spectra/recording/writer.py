"""The one thread that writes, and what becomes of what it cannot write."""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from spectra.store import Run

# Of the curve and the notes in run.json, a kill loses at most this much.
_TIDY_SECONDS = 10.0
# Unless tidying up comes to take more than one part in so many of the thread's time: the curve is
# rewritten whole, and its thread is felt where cores are few.
_TIDY_SHARE = 100
# So many missing steps are listed; of more, only how many they are.
_MOST_LISTED = 1000
logger = logging.getLogger(__name__)

Missing = dict[str, Any]
GONE = "gone"
"""The cause of all that fails because a folder or file was deleted."""


def cause_of(error: Exception) -> str:
    """Return by what errors are told apart: there is one warning of each."""
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.ENOENT:
        return GONE
    return errno.errorcode.get(code, "OSError") if code else type(error).__name__


class Notes:
    """What ``run.json`` is to say of the recording so far; any thread may add to it.

    Parameters
    ----------
    run : Run
        The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._changes: dict[str, Any] = {}
        self._missing: list[Missing] = []
        self._alerts: list[dict[str, Any]] = []
        self._more = 0
        self._warned: set[str] = set()
        self._guard = threading.Lock()

    def set(self, **changes: Any) -> None:
        """Note entries of ``run.json``, to be written with the next `write`."""
        with self._guard:
            self._changes |= changes

    def continue_from(self, missing: list[Missing], alerts: list[dict[str, Any]]) -> None:
        """Keep on the lists what an attempt before this one missed and was warned of."""
        with self._guard:
            self._missing = list(missing)
            self._alerts = list(alerts)

    @property
    def missing(self) -> list[Missing]:
        """The steps whose snapshots could not be taken or written, with the reasons."""
        with self._guard:
            return list(self._missing)

    def miss(self, step: int, reason: str, cause: str) -> None:
        """Note that a step has no snapshot; the first one of each cause is warned of."""
        with self._guard:
            if self._missing and self._missing[-1]["step"] == step:
                return  # the last step, which was tried again
            if len(self._missing) < _MOST_LISTED:
                self._missing.append({"step": step, "reason": reason})
            else:
                self._more += 1
                last = f"{reason} (and {self._more} steps before, the last of them not listed)"
                self._missing[-1] = {"step": step, "reason": last}
            self._changes["missing"] = self._missing
        self.warn(
            cause,
            f"has no snapshot of step {step} ({reason}); training goes on. Others that are missing "
            'for the same reason are listed in run.json under "missing"',
        )

    def found(self, step: int) -> None:
        """Take back that a step is missing: the training's last one is tried again."""
        with self._guard:
            if self._missing and self._missing[-1]["step"] == step:
                self._missing.pop()
                self._changes["missing"] = self._missing

    def alert(self, **entry: Any) -> None:
        """Note that an alert was raised."""
        with self._guard:
            if len(self._alerts) < _MOST_LISTED:
                self._alerts.append(entry)
                self._changes["alerts"] = self._alerts

    def warn(self, cause: str, message: str) -> None:
        """Warn once of each cause."""
        with self._guard:
            if cause in self._warned:
                return
            self._warned.add(cause)
        logger.warning("%s %s.", self._run.path, message)

    @property
    def waiting(self) -> bool:
        """Whether there is something to write."""
        return bool(self._changes)

    def write(self) -> None:
        """Write them into ``run.json``.

        Raises
        ------
        OSError
            If that fails; they are kept for the next time.
        """
        with self._guard:
            changes, self._changes = self._changes, {}
            for name, listed in (("missing", self._missing), ("alerts", self._alerts)):
                if name in changes:
                    changes[name] = list(listed)
        try:
            if changes:
                self._run.update_settings(**changes)
        except BaseException:
            with self._guard:
                self._changes = changes | self._changes
            raise


class WritingThread:
    """Does one job after the other, and tidies up now and then.

    Parameters
    ----------
    tidy : callable
        What to do every few seconds, the less often the longer it takes. Like every job, it deals
        with its own failures.
    """

    def __init__(self, tidy: Callable[[], None]) -> None:
        self._tidy = tidy
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tidied = time.monotonic()
        self._pause = 0.0
        self._thread = threading.Thread(target=self._work, name="spectra-writer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def do(self, job: Callable[[], None]) -> None:
        """Queue a job; returns at once."""
        self._jobs.put(job)

    def drain(self, seconds: float) -> bool:
        """Wait until all that is queued is done, and all is tidy; whether it came to that."""
        done = threading.Event()
        self.do(self._tidy_up)
        self.do(done.set)
        return self._thread.is_alive() and done.wait(seconds)

    def stop(self, seconds: float) -> bool:
        """Do what is queued, tidy up a last time and end; whether it came to that."""
        self.do(self._tidy_up)
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=max(_TIDY_SECONDS, self._pause))
            except queue.Empty:
                job = self._tidy_up
            if job is None:
                return
            # First the curve, then the snapshot: who goes on from one has all rows up to it.
            if job != self._tidy_up and time.monotonic() - self._tidied > self._pause:
                self._tidy_up()
            job()

    def _tidy_up(self) -> None:
        begun = time.monotonic()
        self._tidy()
        self._tidied = time.monotonic()
        self._pause = _TIDY_SHARE * (self._tidied - begun)
