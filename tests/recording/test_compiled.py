"""The hook on a model under torch.compile: it compiles nothing again and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from spectra.recording import Recorder
from tests.helpers import lora, plain, seeded, sorsa, tiny_llama, train_steps

ADAPTS = {"dense": plain, "lora": lora, "sorsa": sorsa}
LAST = 3


@pytest.fixture(autouse=True)
def _own_compilations() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(model: nn.Module, way: str, counter: CompileCounter) -> Any:
    if way == "wrapper":
        return torch.compile(model, backend=counter)
    model.compile(backend=counter)
    return model


@pytest.mark.parametrize(
    ("kind", "way"), [("dense", "wrapper"), ("lora", "in place"), ("sorsa", "wrapper")]
)
def test_a_compiled_model_is_left_alone(kind: str, way: str, tmp_path: Path) -> None:
    ends, compiled = [], []
    for recorded in (False, True):
        torch._dynamo.reset()
        counter = CompileCounter()
        model = ADAPTS[kind](tiny_llama()).train()
        called = _compiled(model, way, counter)
        recorder = Recorder(tmp_path, every=1)
        block: Any = recorder.attach(called) if recorded else nullcontext()
        with seeded(0), block:
            for step, loss in train_steps(called, 1, LAST):
                if recorded:
                    recorder.step(step, loss=loss)
        ends.append(model.state_dict())
        compiled.append((counter.frame_count, counter.op_count))
    assert compiled[0] == compiled[1] and compiled[0][0] > 0
    assert ends[0].keys() == ends[1].keys()
    for name, expected in ends[0].items():
        assert torch.equal(ends[1][name], expected), name
