"""lm-eval behind our command: what it is given, and that no generated code runs unasked.

The package itself is no dependency of the tests; a stand-in takes its place.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spectra.training.evaluation.lm_eval import lm_eval

RESULTS = {"tiny_sums": {"alias": "tiny_sums", "exact_match,none": 0.25}}
SWITCH = "HF_ALLOW_CODE_EVAL"


class Stand:
    """Takes lm-eval's place and notes what it is asked."""

    def __init__(self) -> None:
        self.model: dict[str, Any] = {}
        self.include: Any = None
        self.asked: dict[str, Any] = {}
        self.switch: str | None = None
        self.fail: Callable[[], None] = lambda: None

    def build(self, **options: Any) -> str:
        self.model = options
        return "the model"

    def manage(self, *, include_path: str | None) -> str:
        self.include = include_path
        return "the tasks"

    def evaluate(self, **options: Any) -> dict[str, Any]:
        self.asked, self.switch = options, os.environ.get(SWITCH)
        self.fail()
        return {"results": RESULTS, "samples": {"tiny_sums": [object()]}}


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    made = Stand()
    names = ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.tasks")
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    modules["lm_eval"].simple_evaluate = made.evaluate
    modules["lm_eval.models.huggingface"].HFLM = made.build
    modules["lm_eval.tasks"].TaskManager = made.manage
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv(SWITCH, raising=False)
    return made


def test_the_loaded_model_is_handed_over_as_it_is(stand: Stand, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.json"
    found = lm_eval(
        "model", "tokenizer", "tiny_sums", limit=3, batch_size=5, max_length=77,
        task_folder=tmp_path, out=out,
    )  # fmt: skip
    assert found == RESULTS
    assert stand.model == {
        "pretrained": "model",
        "tokenizer": "tokenizer",
        "batch_size": 5,
        "max_length": 77,
    }
    assert stand.asked == {
        "model": "the model",
        "tasks": ["tiny_sums"],
        "limit": 3,
        "task_manager": "the tasks",
        "confirm_run_unsafe_code": False,
    }
    assert stand.include == str(tmp_path)
    assert json.loads(out.read_text())["results"] == RESULTS


@pytest.mark.parametrize("before", [None, "1"])
@pytest.mark.parametrize("unsafe", [False, True])
def test_generated_code_runs_only_where_that_is_asked_for(
    unsafe: bool, before: str | None, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        monkeypatch.setenv(SWITCH, before)
    lm_eval("model", "tokenizer", "humaneval", unsafe_code=unsafe)
    assert stand.switch == ("1" if unsafe else "0")
    assert stand.asked["confirm_run_unsafe_code"] is unsafe
    assert os.environ.get(SWITCH) == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("task humaneval is marked as unsafe"), "runs the code .* --unsafe-code"),
        (OSError("code_eval is not there"), "Nothing was run"),
        (KeyError("no such task"), "lm-eval could not run humaneval .KeyError: 'no such task'"),
    ],
)
def test_what_it_raises_becomes_one_clear_line(
    error: Exception, message: str, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    stand.fail = fail
    with pytest.raises(ValueError, match=message):
        lm_eval("model", "tokenizer", "humaneval")
    assert SWITCH not in os.environ


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ModuleNotFoundError, match=r"minerva_math needs lm_eval.*\[lm-eval\]"):
        lm_eval("model", "tokenizer", "minerva_math")
