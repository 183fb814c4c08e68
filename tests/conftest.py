"""Fixtures that the tests share; builders are in `tests.helpers`."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Read when torch is first imported, so by no import above: on a busy machine, threads that wait
# for each other make products of tiny matrices a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in the plain run may ask the hub; a missing file is an error, not a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell's background job ignores Ctrl+C, and so does all that it starts; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decompositions of the tests' bases go to a folder of theirs, also those of processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` with its tokenizer as a Hugging Face folder; for reading only."""
    from tests.helpers import tiny_model_folder

    return tiny_model_folder(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; without one the tests are skipped, and fail where CI=true."""
    found = shutil.which("chromium")
    if found is None:
        reason = "There is no chromium on the PATH: install it with apt-get install chromium."
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


# Of a module, no longer: while it lives, its event loop is the thread's, and the next test to
# start one fails.
@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox does not start for root, as whom CI's machines run.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=[*flags, "--disable-background-networking"]
        )
        yield browser
        browser.close()
