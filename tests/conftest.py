"""Fixtures that the tests share; builders are in `tests.helpers`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers import tiny_model_folder

# Nothing in the plain run may ask the hub; a missing file is an error, not a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` with its tokenizer as a Hugging Face folder; for reading only."""
    return tiny_model_folder(tmp_path_factory.mktemp("tiny-llama"))
