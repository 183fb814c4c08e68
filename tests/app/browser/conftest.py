"""Fresh browser contexts, a demo store of real runs, and the dashboard as its users start it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext

HOST = "127.0.0.1"
DEMO = ("sorsa", "sorsa-noreg", "lora")
STEPS, EVERY = 8, 2
_START_SECONDS = 60

MakeContext = Callable[..., BrowserContext]


@pytest.fixture
def fresh(browser: Browser) -> Iterator[MakeContext]:
    """Makes contexts that know nothing of each other; notes errors and what they ask of others."""
    made: list[BrowserContext] = []
    strangers: list[str] = []
    errors: list[str] = []

    def make(**options: Any) -> BrowserContext:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(40_000)
        context.on("request", lambda request: note(request.url))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        made.append(context)
        return context

    def note(url: str) -> None:
        if not url.startswith((f"http://{HOST}:", f"ws://{HOST}:", "data:", "blob:")):
            strangers.append(url)

    yield make
    for context in made:
        context.close()
    assert errors == [], "A script on the page failed."
    assert strangers == [], "The dashboard asked another machine for something."


@pytest.fixture(scope="session")
def demo_runs(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods' runs of the bundled model, trained and analysed: real, and small."""
    from spectra.analysis import analyze
    from spectra.demo import BUNDLED_MODEL, demo_settings
    from spectra.training.problems import word_problems
    from spectra.training.trainer import train

    root = tmp_path_factory.mktemp("demo")
    problems = [(p["question"], p["answer"]) for p in word_problems(7, 8 * STEPS)]
    for method in DEMO:
        settings = replace(demo_settings(method, STEPS), every=EVERY, save_every=STEPS)
        run = train(BUNDLED_MODEL, problems, root / method, settings, progress=False)
        analyze(run.path, progress=False)
    return root


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Run ``spectra dashboard ROOT`` on a free port, and yield its address."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "spectra", "dashboard", str(root), "--port", str(port)]
    log = root.parent / f"dashboard-{port}.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait_for(f"http://{HOST}:{port}/_stcore/health", server, log)
            yield f"http://{HOST}:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    assert "Traceback" not in log.read_text(), log.read_text()[-4000:]


@pytest.fixture(scope="session")
def demo(demo_runs: Path) -> Iterator[str]:
    """The address of a dashboard over the demo runs."""
    with serving(demo_runs) as address:
        yield address


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                answer.read()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"The dashboard did not start:\n{log.read_text()[-4000:]}")
