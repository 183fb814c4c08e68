"""MATH, HumanEval and whatever else EleutherAI's lm-eval has, on a model that is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spectra.store import whole_file

EXTRA = "lm-eval"
PREFIX = "lm-eval:"
"""What a task's name begins with that is lm-eval's, on the command line."""
DEFAULT_MAX_LENGTH = 2048
"""Tokens of prompt and response together, as in the paper's §6 for MATH and HumanEval."""
NOTE = (
    "Prompts and rules are lm-eval's own, not the paper's Listings 1 and 2: numbers compare with "
    "other numbers of lm-eval, of the same version of the task."
)
# Without it, the library that computes pass@k refuses to run code.
_CODE_SWITCH = "HF_ALLOW_CODE_EVAL"


def lm_eval(
    model: Any,
    tokenizer: Any,
    task: str,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    max_length: int = DEFAULT_MAX_LENGTH,
    task_folder: Path | str | None = None,
    unsafe_code: bool = False,
    out: Path | None = None,
) -> dict[str, dict[str, float | str]]:
    """Evaluate a loaded model on one task or group of lm-eval's.

    Parameters
    ----------
    model, tokenizer
        Of Transformers.
    task : str
        Its name there, such as ``"minerva_math"`` or ``"humaneval"``.
    limit : int, optional
        The first so many problems of each task.
    batch_size : int
        Problems at once.
    max_length : int
        Tokens of prompt and response.
    task_folder : Path or str, optional
        Folder with task files of one's own.
    unsafe_code : bool
        Let tasks run the code that the model writes. Without it none is run, and such a task is
        refused.
    out : Path, optional
        A JSON file for lm-eval's results, configuration and outputs.

    Returns
    -------
    dict of str to dict
        By task: lm-eval's results, such as ``"exact_match,none"``.

    Raises
    ------
    ModuleNotFoundError
        If lm-eval is not installed.
    ValueError
        If there is no such task, it runs code and that is not allowed, or lm-eval fails.

    Notes
    -----
    Data sets of its tasks are lm-eval's to download.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The task {task} needs {error.name}, which is not installed. Install Spectra with "
            f'its extra "{EXTRA}": pip install ".[{EXTRA}]" in a clone.',
            name=error.name,
        ) from error
    folder = None if task_folder is None else str(task_folder)
    with _code_allowed(unsafe_code):
        try:
            found = simple_evaluate(
                model=HFLM(
                    pretrained=model,
                    tokenizer=tokenizer,
                    batch_size=batch_size,
                    max_length=max_length,
                ),
                tasks=[task],
                limit=limit,
                task_manager=TaskManager(include_path=folder),
                confirm_run_unsafe_code=unsafe_code,
            )
        except Exception as error:  # of many kinds, from its tasks too
            raise ValueError(_reason(task, error, unsafe_code)) from error
    assert found is not None, "only other processes than the first get nothing"
    if out is not None:
        with whole_file(out) as temporary:
            text = json.dumps(dict(found), indent=1, ensure_ascii=False, default=str)
            temporary.write_text(text + "\n", encoding="utf-8")
    return {name: dict(values) for name, values in found["results"].items()}


def _reason(task: str, error: Exception, unsafe_code: bool) -> str:
    said = " ".join(str(error).split())
    if not unsafe_code and ("unsafe" in said or "code_eval" in said or _CODE_SWITCH in said):
        return (
            f"{task} runs the code that the model writes, on this machine and as you. Nothing was "
            "run. If you want that, in a sandbox best, give --unsafe-code."
        )
    return f"lm-eval could not run {task} ({type(error).__name__}: {said or 'no reason given'})."


@contextmanager
def _code_allowed(allowed: bool) -> Iterator[None]:
    """Say within a block whether code may be run, whatever the environment says."""
    before = os.environ.get(_CODE_SWITCH)
    os.environ[_CODE_SWITCH] = "1" if allowed else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CODE_SWITCH]
        else:
            os.environ[_CODE_SWITCH] = before
