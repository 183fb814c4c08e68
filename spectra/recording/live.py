"""The analysis beside a training: a process of its own that no step waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from spectra.store import Run

LOG_FILE = "analysis.log"
"""In a run's folder: what its analyses beside the training said."""

# What tells a process that it is a part of a distributed training.
_DISTRIBUTED = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
_DISTRIBUTED_PREFIXES = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_", "OMPI_", "PMI_")
_SINGLE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# The end of a log is enough to find its last line in.
_LOG_TAIL = 16 * 1024
_POLL_SECONDS = 0.5
# A step that takes long is written in parts, one a minute.
_PATIENCE_SECONDS = 600.0

# Processes that outlive whoever started them; kept, so that their ends are noticed.
_started: list[subprocess.Popen[bytes]] = []


class LiveAnalysis:
    """`spectra watch` of a run that is being recorded, at the lowest priority.

    The process belongs to no terminal and to no training: it ends by itself, when nobody records
    the run any more and every snapshot has its rows. Of several for one run, one works and the
    others wait for it.

    Parameters
    ----------
    run : Run
        The run; its folder must exist.
    """

    def __init__(self, run: Run) -> None:
        self._folder = run.path.absolute()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """Where the process writes what it says."""
        return self._folder / LOG_FILE

    def start(self) -> None:
        """Start the process; returns at once.

        Raises
        ------
        OSError
            If the log cannot be written or the process not be started.
        """
        # Of those that have ended meanwhile, the system forgets what it knows.
        _started[:] = [process for process in _started if process.poll() is None]
        # -P: the folder that the training runs in is none to import from.
        command = [sys.executable, "-P", "-m", "spectra", "watch", str(self._folder)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--background", "--until-finished"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
        _started.append(self._process)

    def problem(self) -> str | None:
        """Return why the process died, by the last line of its log; None if it did not."""
        code = self._process.poll() if self._process else None
        if not code:
            return None
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            return f"The live analysis was ended by {name}."
        return f"The live analysis failed: {self._last_line() or f'status {code}'}"

    def finish(self, wait: bool) -> bool:
        """Wait until everything recorded has its rows, or let the process do so by itself.

        Parameters
        ----------
        wait : bool
            The recording must be over: its lock released, or the run marked finished.

        Returns
        -------
        bool
            False where the process was given up, because for ten minutes no row was written:
            another analysis may hold the run's lock, or its base be unreadable.
        """
        if not wait or self._process is None:
            return True
        seen, since = self._written(), time.monotonic()
        while time.monotonic() - since < _PATIENCE_SECONDS:
            try:
                self._process.wait(_POLL_SECONDS)
                return True
            except subprocess.TimeoutExpired:
                if (now := self._written()) != seen:
                    seen, since = now, time.monotonic()
        return False

    def _written(self) -> float:
        """Return when a row was last written."""
        try:
            return (self._folder / "drift").stat().st_mtime
        except OSError:
            return 0.0

    def _last_line(self) -> str:
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL))
                lines = log.read().decode("utf-8", "replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _environment() -> dict[str, str]:
    """Return this process's environment, without its part in a training and its accelerators."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _DISTRIBUTED and not name.startswith(_DISTRIBUTED_PREFIXES)
    }
    # From a clone that is not installed, the package is found where it was found here.
    found = [str(Path(__file__).parents[2]), kept.get("PYTHONPATH", "")]
    return (
        kept
        | dict.fromkeys(_SINGLE_THREAD, "1")
        | {
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join(filter(None, found)),
            "PYTHONUNBUFFERED": "1",
        }
    )
