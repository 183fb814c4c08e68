"""Runs a writer in another process and kills it in the middle of its work, many times."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Up to this long after its first file, a writer that does nothing but write is at any point.
_LONGEST_SECONDS = 0.25
_PATIENCE_SECONDS = 120


def kill_at_random_moments(
    writer: Callable[[Path], None], folders: Sequence[Path], seed: int = 0
) -> None:
    """For each folder, run ``writer(folder)`` and end it by SIGKILL some time after it began.

    The libraries are imported once: each writer is a fork of a process that did only that.

    Parameters
    ----------
    writer : callable
        A module's function that writes below the folder and never returns.
    folders : sequence of Path
        One for each kill; created.
    seed : int
        Decides the moments, as far as the machine is equally busy.
    """
    command = [sys.executable, "-m", "tests.killing", writer.__module__, writer.__name__]
    done = subprocess.run(
        [*command, str(seed), *map(str, folders)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def _main(module: str, function: str, seed: str, *folders: str) -> None:
    writer = getattr(importlib.import_module(module), function)
    moments = random.Random(int(seed))
    for folder in map(Path, folders):
        folder.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            try:
                writer(folder)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            os._exit(1)
        while not any(folder.iterdir()) and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, _LONGEST_SECONDS))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"{function} ended by itself; it must write until it is killed.")


if __name__ == "__main__":
    _main(*sys.argv[1:])
