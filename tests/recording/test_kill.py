"""A recording process that is killed leaves whole files only, and its run goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from checkpoints_index import find_checkpoints, open_model
from checkpoints_index.snapshots import BASE_FILE, Snapshot
from spectra.recording import Recorder
from spectra.store import Run
from tests.killing import kill_at_random_moments, kill_before_every_change

KILLS = 20
WIDTH = 256
MATRICES = 4
EVERY = 2
CHECKPOINT = 2
"""The step whose state the trainer keeps, to resume from."""
LAST = 3
SNAPSHOTS = [2, 3]

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX's")


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


def record(folder: Path) -> None:
    """Record the run to its end, from the trainer's checkpoint if there is one."""
    checkpoint = folder / "checkpoint"
    start = CHECKPOINT if checkpoint.exists() else 0
    model = Tower(start)
    with Recorder(folder / "run", every=EVERY, overwrite=True).attach(model, start) as recorder:
        for step in range(start + 1, LAST + 1):
            model.set(step)
            recorder.step(step, loss=float(step))
            if step == CHECKPOINT:
                recorder.flush()
                checkpoint.touch()


def record_twice(folder: Path) -> None:
    """Record the run, and its second half once more."""
    record(folder)
    record(folder)


def record_forever(folder: Path) -> None:
    """Record the run, and its second half again and again."""
    while True:
        record(folder)


def check(folder: Path) -> int:
    """Check what a killed process left, resume it, check that; returns the snapshots it left."""
    left = check_files(folder / "run")
    record(folder)
    check_files(folder / "run")
    run = Run(folder / "run")
    found = find_checkpoints(run.path)
    assert [checkpoint.step for checkpoint in found] == SNAPSHOTS
    training = run.read_training()
    assert training["step"].tolist() == list(range(1, LAST + 1))
    assert training["loss"].tolist() == training["step"].tolist()
    assert run.state == "finished"
    assert all(path.suffix == ".safetensors" for path in run.snapshots_path.iterdir())
    assert not [path for path in run.snapshots_path.iterdir() if path.name.startswith(".")]
    return left


def check_files(path: Path) -> int:
    """Check every file of a run, earlier attempts' too; returns how many snapshots there are."""
    files = [p for p in path.rglob("*.safetensors") if not p.name.startswith(".")]
    for file in files:
        step = 0 if file.name == BASE_FILE else int(file.stem.removeprefix("step-"))
        tensors = load_file(file)
        assert sum(tensor.numel() for tensor in tensors.values()) == MATRICES * WIDTH**2
        assert all((tensor == step).all() for tensor in tensors.values())
        snapshot = Snapshot(file)
        assert snapshot.step == step
        assert len(snapshot.matrices) == MATRICES
        for matrix in snapshot.matrices:
            weight = snapshot.read(matrix).dense
            assert weight is not None and weight.shape == (WIDTH, WIDTH) and (weight == step).all()
    base = path / "snapshots" / BASE_FILE
    assert base.exists() or not files
    run = Run(path)
    if run.exists():
        run.read_settings()
        training = run.read_training()
        assert training["loss"].tolist() == training["step"].tolist()
        assert len(open_model(base).matrices) == MATRICES
        assert run.state != "growing"  # the lock went with the process
    return len(files)


@pytest.mark.slow
@posix
def test_runs_killed_at_random_moments_are_whole_and_go_on(tmp_path: Path) -> None:
    # `python -m tests.benchmarks.hook_kills` kills more of them.
    folders = [tmp_path / f"{i}" for i in range(KILLS)]
    kill_at_random_moments(record_forever, folders)
    assert max(check(folder) for folder in folders) > len(SNAPSHOTS)


@pytest.mark.slow
@posix
def test_runs_killed_before_any_change_of_a_file_are_whole_and_go_on(tmp_path: Path) -> None:
    *killed, done = kill_before_every_change(record_twice, tmp_path)
    assert Run(done / "run").state == "finished"
    left = [check(folder) for folder in killed]
    # Two threads change files, and not in the same order each time.
    assert left[0] == 0
    assert len(set(left)) > len(SNAPSHOTS)  # each of the two records them one by one
