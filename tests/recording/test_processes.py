"""The hook beside other processes and recorders, and when its own process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints_index import find_checkpoints
from spectra.recording import Recorder
from spectra.store import Run
from tests.helpers import lora, plain, shake, tiny_llama, token_rows, train_steps
from tests.killing import ROOT

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX's")

# What a script that never ends its recording does.
_SCRIPT = """
import sys, time
from torch import nn
from spectra.recording import Recorder
import spectra.recording.session as session

write = session.write_snapshot
def slowly(*args):
    time.sleep(0.2)
    write(*args)
session.write_snapshot = slowly
recorder = Recorder(sys.argv[1], every=1)
layer = nn.ModuleDict({"q_proj": nn.Linear(8, 8, bias=False)})
recorder.begin(nn.ModuleDict({"layers": nn.ModuleList([layer])}))
for step in (1, 2, 3):
    recorder.step(step, loss=float(step))
{end}
"""


def steps(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in find_checkpoints(run)]


@pytest.mark.parametrize(
    ("end", "code"), [("", 0), ("sys.exit(3)", 3), ("raise KeyError('lost')", 1)]
)
def test_what_is_pending_is_written_when_the_interpreter_ends(
    end: str, code: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.replace("{end}", end), tmp_path / "run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert steps(tmp_path / "run") == [1, 2, 3]
    run = Run(tmp_path / "run")
    assert run.read_training()["loss"].tolist() == [1.0, 2.0, 3.0]
    assert run.state == "interrupted"
    assert "Traceback" not in done.stderr or code == 1
    assert "Spectra" not in done.stderr


@posix
def test_a_child_of_the_training_does_not_hold_its_run(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, every=1)
    recorder.begin(lora(tiny_llama()))
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    try:
        recorder.step(1)
        recorder.end()
        assert Run(tmp_path).state == "finished"
        Recorder(tmp_path, overwrite=True).begin(lora(tiny_llama()))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@posix
def test_a_child_that_uses_and_ends_the_recorder_changes_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, every=1)
    recorder.begin(lora(tiny_llama()))
    recorder.step(1, loss=1.0)
    recorder.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            recorder.step(2, loss=9.0)
            recorder.flush()
            recorder.end()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert Run(tmp_path).state == "growing"
    assert steps(tmp_path) == [0, 1]
    recorder.step(2, loss=2.0)
    recorder.end()
    assert steps(tmp_path) == [0, 1, 2]
    assert Run(tmp_path).read_training()["loss"].tolist() == [1.0, 2.0]


@posix
def test_workers_of_a_data_loader_come_and_go(tmp_path: Path) -> None:
    model = lora(tiny_llama()).train()
    rows: Any = torch.utils.data.DataLoader(
        [token_rows(i)[0] for i in range(8)],  # type: ignore[arg-type]
        batch_size=2,
        num_workers=1,
        multiprocessing_context="fork",
    )
    with Recorder(tmp_path, every=1).attach(model) as recorder:
        for epoch in range(2):
            for step, batch in enumerate(rows, start=1 + 4 * epoch):
                loss = model(input_ids=batch, labels=batch).loss
                recorder.step(step, loss=loss)
    assert steps(tmp_path) == list(range(9))
    assert Run(tmp_path).state == "finished"


def test_two_recorders_record_two_models_at_once(tmp_path: Path) -> None:
    models = {"a": lora(tiny_llama(0)), "b": plain(tiny_llama(1))}
    recorders = {name: Recorder(tmp_path / name, every=2) for name in models}
    for name, recorder in recorders.items():
        recorder.begin(models[name])
    loops = {name: train_steps(model, 1, 5) for name, model in models.items()}
    for _ in range(5):
        for name, loop in loops.items():
            step, loss = next(loop)
            recorders[name].step(step, loss=loss)
    for recorder in recorders.values():
        recorder.end()
    assert steps(tmp_path / "a") == [0, 2, 4, 5]
    assert steps(tmp_path / "b") == [2, 4, 5]

    alone = plain(tiny_llama(1))
    with Recorder(tmp_path / "alone", every=2).attach(alone) as recorder:
        for step, loss in train_steps(alone, 1, 5):
            recorder.step(step, loss=loss)
    for found, expected in zip(
        find_checkpoints(tmp_path / "b"), find_checkpoints(tmp_path / "alone"), strict=True
    ):
        for matrix in expected.matrices:
            weight = expected.read(matrix).dense
            assert weight is not None
            assert torch.equal(found.read(matrix).dense, weight)  # type: ignore[arg-type]


def test_a_folder_is_where_it_was_when_the_recorder_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recorder = Recorder("run", every=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with recorder.attach(lora(tiny_llama())):
        recorder.step(1)
    assert steps(tmp_path / "run") == [0, 1]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_is_taken_over_from_a_loop_that_was_left(tmp_path: Path) -> None:
    first = Recorder(tmp_path, every=1)
    model = lora(tiny_llama())
    first.begin(model)
    shake(model, seed=1)
    first.step(1)
    with Recorder(tmp_path, every=1).attach(lora(tiny_llama())) as second:
        second.step(1)
        second.step(2)
        # The first one's has nothing to say any more.
        first.step(2)
        first.end()
    assert steps(tmp_path) == [0, 1, 2]
    last = find_checkpoints(tmp_path)[-1]
    fresh = Recorder(tmp_path / "fresh", every=1)
    with fresh.attach(lora(tiny_llama())):
        fresh.step(1)
    expected = find_checkpoints(tmp_path / "fresh")[-1]
    for matrix in expected.matrices:
        found, wanted = last.read(matrix).update, expected.read(matrix).update
        assert found is not None and wanted is not None
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert Run(tmp_path).state == "finished"
