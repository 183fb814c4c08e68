"""Runs functions in several processes that are one gloo process group on this machine.

The libraries are imported once: a launcher imports the functions' module and forks the ranks of
each call.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# A call takes seconds; one that takes this long hangs.
_PATIENCE_SECONDS = 60


class Ranks:
    """A launcher of process groups; a context.

    Parameters
    ----------
    module : str
        The module whose functions are called.
    """

    def __init__(self, module: str, size: int = 2) -> None:
        self.size = size
        self._process = subprocess.Popen(
            [sys.executable, *_warnings(), "-m", "tests.ranks", module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=_PATIENCE_SECONDS)

    def __call__(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function of the module in each rank, and raise what one of them raised.

        Parameters
        ----------
        function : callable
            It is given the arguments; rank and size are the process group's.
        *arguments
            Paths and what JSON holds.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        given = [str(a) if isinstance(a, Path) else a for a in arguments]
        print(
            json.dumps([function.__name__, given, self.size]), file=self._process.stdin, flush=True
        )
        line = self._process.stdout.readline()
        assert line, "the launcher of the ranks ended"
        failures = json.loads(line)
        assert not failures, "\n".join(failures)


def _warnings() -> list[str]:
    """Return the plain suite's filters, as arguments of Python."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    filters = settings["tool"]["pytest"]["ini_options"]["filterwarnings"]
    return [argument for one in filters for argument in ("-W", one)]


def _serve(module: Any) -> None:
    with os.fdopen(os.dup(1), "w") as replies:
        # What a library prints is no reply.
        os.dup2(2, 1)
        for line in sys.stdin:
            function, arguments, size = json.loads(line)
            failures = _run(getattr(module, function), arguments, size)
            print(json.dumps(failures), file=replies, flush=True)


def _run(function: Callable[..., None], arguments: Sequence[Any], size: int) -> list[str]:
    """Return the tracebacks of the ranks that failed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    children: dict[int, tuple[int, int]] = {}
    for rank in range(size):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            }
            failed = 1
            try:
                _rank(function, arguments)
                failed = 0
            except BaseException:
                os.write(write, traceback.format_exc()[-4000:].encode())
            os._exit(failed)
        os.close(write)
        children[rank] = (child, read)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    failures = []
    running = set(children)
    while running:
        for rank in sorted(running):
            child, read = children[rank]
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                running.discard(rank)
                if status:
                    report = os.read(read, 65536).decode(errors="replace")
                    failures.append(f"rank {rank} ended with {status}: {report}")
                    # Others wait for it in vain.
                    deadline = min(deadline, time.monotonic() + 5)
                os.close(read)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return failures


def _rank(function: Callable[..., None], arguments: Sequence[Any]) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    _serve(importlib.import_module(sys.argv[1]))
