"""Fixtures that the tests share; builders are in `tests.helpers`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

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
