"""A recording process that is killed leaves whole snapshots only, and its run goes on."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from checkpoints_index import find_checkpoints, open_model
from checkpoints_index.snapshots import BASE_FILE
from spectra.recording import Recorder
from spectra.store import Run
from tests.killing import kill_at_random_moments

KILLS = 10
WIDTH = 256
MATRICES = 4


class Tower(nn.Module):
    """Layers with a q_proj and a v_proj; every weight is the number of its step."""

    def __init__(self, step: int = 0) -> None:
        super().__init__()
        names = ("q_proj", "v_proj")
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH, bias=False) for name in names})
            for _ in range(MATRICES // 2)
        )
        self.set(step)

    @torch.no_grad()
    def set(self, step: int) -> None:
        for parameter in self.parameters():
            parameter.fill_(step)


def record_forever(folder: Path) -> None:
    model = Tower()
    recorder = Recorder(folder, every=1)
    recorder.begin(model)
    for step in itertools.count(1):
        model.set(step)
        recorder.step(step, loss=float(step))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX's")
def test_killed_recorders_leave_whole_snapshots(tmp_path: Path) -> None:
    folders = [tmp_path / f"run-{i}" for i in range(KILLS)]
    kill_at_random_moments(record_forever, folders)
    reached = []
    for folder in folders:
        snapshots = folder / "snapshots"
        files = [p for p in snapshots.iterdir() if not p.name.startswith(".")]
        for path in files:
            tensors = load_file(path)
            assert sum(len(tensor) for tensor in tensors.values()) == MATRICES
            step = 0 if path.name == BASE_FILE else int(path.stem.removeprefix("step-"))
            for tensor in tensors.values():
                assert tensor.shape == (MATRICES // 2, WIDTH, WIDTH)
                assert (tensor == step).all()
        if not (snapshots / BASE_FILE).exists():
            assert files == []
            continue
        found = find_checkpoints(folder)
        assert [c.step for c in found] == list(range(1, len(found) + 1))
        assert len(open_model(snapshots / BASE_FILE).matrices) == MATRICES
        run = Run(folder)
        if found:
            assert run.state == "interrupted"  # the lock went with the process
            # A step's rows follow its snapshot.
            training = run.read_training()
            assert len(found) - 1 <= len(training) <= len(found)
            assert training["step"].tolist() == training["loss"].tolist()
        reached.append(len(found))
        _resume(folder, len(found))
    assert max(reached) > 0


def _resume(folder: Path, step: int) -> None:
    recorder = Recorder(folder, every=1)
    with recorder.attach(Tower(step), start_step=step):
        recorder.step(step + 1, loss=1.0)
    assert [c.step for c in find_checkpoints(folder)] == list(range(1, step + 2))
    assert Run(folder).state == "finished"
    assert {p.suffix for p in (folder / "snapshots").iterdir()} == {".safetensors"}
    assert not [p for p in (folder / "snapshots").iterdir() if p.name.startswith(".")]
