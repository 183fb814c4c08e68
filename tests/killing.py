"""Runs a writer in another process and kills it in the middle of its work, many times.

At random moments, which may lie within the writing of a file; or before every change of a folder
in turn, which leaves out none of the states that the folder goes through.
"""

from __future__ import annotations

import importlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Up to this long after its first file, a writer that does nothing but write is at any point.
_LONGEST_SECONDS = 0.25
_PATIENCE_SECONDS = 300
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


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
    _run("moments", writer, str(seed), *map(str, folders))


def kill_before_every_change(writer: Callable[[Path], None], root: Path) -> list[Path]:
    """Run ``writer(folder)`` in new folders, and end the n-th before its n-th change of files.

    A change is a file that is opened for writing, moved or removed, or a folder that is made.

    Parameters
    ----------
    writer : callable
        A module's function that writes below the folder and returns.
    root : Path
        Where the folders are made.

    Returns
    -------
    list of Path
        The folders; in the last one, the writer came to its end.
    """
    _run("changes", writer, str(root))
    return sorted(root.iterdir(), key=lambda folder: int(folder.name))


def _run(how: str, writer: Callable[[Path], None], *arguments: str) -> None:
    command = [sys.executable, "-m", "tests.killing", how, writer.__module__, writer.__name__]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def _moments(writer: Callable[[Path], None], seed: str, *folders: str) -> None:
    moments = random.Random(int(seed))
    for folder in map(Path, folders):
        folder.mkdir(parents=True)
        child = _fork(writer, folder)
        while not any(folder.iterdir()) and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, _LONGEST_SECONDS))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"{writer.__name__} ended by itself; it must write until it is killed.")


def _changes(writer: Callable[[Path], None], root: str) -> None:
    for number in itertools.count(1):
        folder = Path(root, str(number))
        folder.mkdir(parents=True)

        def until_killed(folder: Path, number: int = number) -> None:
            _die_before(number, folder)
            writer(folder)

        _, status = os.waitpid(_fork(until_killed, folder), 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))


def _die_before(number: int, folder: Path) -> None:
    """Have this process killed just before its n-th change below the folder."""
    left = itertools.count(number - 1, -1)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in _CHANGES or (event == "open" and (arguments[2] or 0) & _WRITING)
        # Files may be named by bytes or by a descriptor; ours are not.
        if changes and str(arguments[0]).startswith(str(folder)) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def _fork(work: Callable[[Path], None], folder: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            work(folder)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def _main(how: str, module: str, function: str, *arguments: str) -> None:
    writer = getattr(importlib.import_module(module), function)
    kill = _moments if how == "moments" else _changes
    kill(writer, *arguments)


if __name__ == "__main__":
    _main(*sys.argv[1:])
