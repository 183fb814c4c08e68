"""Sweeps: trained to the end whatever happens on the way, each run once."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from distributed import LocalCluster
from safetensors.torch import load_file
from transformers import Trainer

import spectra.sweep
from checkpoints_index.snapshots import snapshot_file
from spectra.cli import main
from spectra.store import Sweep, SweepRun
from spectra.sweep import ERROR_FILE, in_time, summary, sweep
from spectra.training.trainer import FINAL

_PATIENCE_SECONDS = 120
SETTINGS = {
    "rank": 3,
    "learning_rate": "1e-2",
    "batch_size": 4,
    "micro_batch_size": 4,
    "max_length": 64,
    "max_steps": 4,
    "every": 2,
    "save_every": 2,
}


# Long enough to be killed on the way.
LONG = SETTINGS | {"max_steps": 30}


def write_sweep(folder: Path, model: Path, **keys: Any) -> Path:
    words = ("the", "old", "river", "sings", "of", "a", "small", "bird")
    rows = [{"question": " ".join(words[i:]), "answer": words[i]} for i in range(8)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared = {"model": str(model), "data": "pairs.jsonl", "out": "runs"}
    asked = shared | {"methods": ["lora", "sorsa"], "seeds": [1], "settings": SETTINGS} | keys
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(asked, sort_keys=False))
    return path


@pytest.fixture
def write_file(tmp_path: Path, model_folder: Path) -> Callable[..., Path]:
    return partial(write_sweep, tmp_path, model_folder)


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of `LONG` that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep(write_sweep(folder, model_folder, settings=LONG, analyze=False), progress=False)
    return folder / "runs"


def quietly(file: Path, **options: Any) -> tuple[list[SweepRun], list[str]]:
    said: list[str] = []
    return sweep(file, progress=False, say=said.append, **options), said


def assert_same_weights(found: Path, expected: Path) -> None:
    for name in ("lora-seed1", "sorsa-seed1"):
        file = Path(name, FINAL, "adapter_model.safetensors")
        ours, theirs = load_file(found / file), load_file(expected / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[tensor], theirs[tensor]) for tensor in ours)


def fail(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing should be trained")


def test_every_run_is_trained_analysed_and_told_of(
    write_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_file(seeds=[1, 2])
    rows, said = quietly(file)
    names = ["lora-seed1", "sorsa-seed1", "lora-seed2", "sorsa-seed2"]
    assert [(row.name, row.state) for row in rows] == [(name, "done") for name in names]
    assert said[0] == f"4 runs in {tmp_path / 'runs'}."
    assert [line.split(";")[0].split(": ")[0] for line in said[2::2]] == [
        f"[{i}/4] {name}" for i, name in enumerate(names, start=1)
    ]
    assert all(" left" in line for line in said[2:-1:2]) and "left" not in said[-1]
    made = Sweep(tmp_path / "runs")
    for row in rows:
        run = made.run(row.name)
        assert set(run.read_drift()["step"]) == {0, 2, 4} and run.state == "finished"
        stored = run.read_settings()["settings"]
        assert stored["seed"] == row.seed and stored["rank"] == row.settings["rank"] == 3
        assert row.seconds is not None and row.seconds > 0

    # A mean and a deviation that were computed another way.
    table = summary(made.path)
    assert table["method"].tolist() == ["lora", "sorsa"] and table["seeds"].tolist() == [2, 2]
    losses = [made.run(n).read_training()["loss"].mean() for n in names[::2]]
    assert table["loss"][0] == pytest.approx(np.mean(losses))
    assert table["loss_sd"][0] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    drift = [made.run(n).read_drift().query("step == 4") for n in names[1::2]]
    assert table["delta_d"][1] == pytest.approx(np.mean([d["delta_d"].mean() for d in drift]))

    monkeypatch.setattr(spectra.sweep, "train", fail)
    again, said = quietly(file)
    assert again == rows and said == [f"4 runs in {made.path}, 4 of them done."]

    shutil.rmtree(made.path / "lora-seed2")
    rows, said = quietly(file, only="sorsa*")  # has no part in it
    assert said == [f"2 runs in {made.path}, 2 of them done."]
    assert summary(made.path)["seeds"].tolist() == [1, 2]


def test_seeds_and_values_may_be_added(write_file: Callable[..., Path], tmp_path: Path) -> None:
    quietly(write_file(methods=["lora"]))
    rows, said = quietly(write_file(seeds=[1, 2]), only="*-seed2")
    assert [row.name for row in rows] == ["lora-seed2", "sorsa-seed2"]
    listed = {row.name: row.state for row in Sweep(tmp_path / "runs").runs()}
    assert listed == {
        "lora-seed1": "done",
        "sorsa-seed1": "waiting",
        "lora-seed2": "done",
        "sorsa-seed2": "done",
    }
    # What is asked for no more stays listed where it is there.
    quietly(write_file(methods=["sorsa"]))
    listed = {row.name: row.state for row in Sweep(tmp_path / "runs").runs()}
    assert set(listed) == {"sorsa-seed1", "lora-seed1", "lora-seed2", "sorsa-seed2"}
    with pytest.raises(ValueError, match="No run is called dora; there are sorsa-seed1."):
        quietly(write_file(methods=["sorsa"]), only="dora")


def test_a_run_that_fails_costs_no_other_and_is_tried_again(
    write_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_file(methods=["sorsa", "lora"])
    train, made = spectra.sweep.train, Sweep(tmp_path / "runs")
    models = []

    def dies_in_the_middle(model: Any, data: Any, out: Path, *args: Any, **kwargs: Any) -> Any:
        whole = Trainer.training_step

        def step(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            models.append(weakref.ref(trainer.model))
            if trainer.state.global_step == 2 and out.name == "sorsa-seed1":
                raise OSError(28, "No space left on device")
            return whole(trainer, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "training_step", step)
            return train(model, data, out, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(spectra.sweep, "train", dies_in_the_middle)
        assert main(["sweep", str(file)]) == 1
    printed = capsys.readouterr()
    line = "[1/2] sorsa-seed1 failed: OSError: [Errno 28] No space left on device"
    assert line in printed.out.splitlines()
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith("spectra: 1 of 2 runs failed: sorsa-seed1.")
    assert [row.state for row in made.runs()] == ["failed", "done"]
    assert "dies_in_the_middle" in (made.path / "sorsa-seed1" / ERROR_FILE).read_text()
    # Nobody records it any more, and no model of a run is kept.
    assert made.run("sorsa-seed1").state == "interrupted"
    gc.collect()
    assert models and all(model() is None for model in models)

    assert main(["sweep", str(file)]) == 0
    assert "sorsa" in capsys.readouterr().out
    assert [(row.state, row.error) for row in made.runs()] == [("done", None)] * 2
    assert not (made.path / "sorsa-seed1" / ERROR_FILE).exists()


def test_a_killed_sweep_goes_on_and_ends_like_an_undisturbed_one(
    write_file: Callable[..., Path], tmp_path: Path, undisturbed: Path
) -> None:
    file = write_file(settings=LONG)
    process = subprocess.Popen([sys.executable, "-m", "spectra", "sweep", str(file)])
    made = Sweep(tmp_path / "runs")
    try:
        snapshot = made.run("sorsa-seed1").snapshots_path / snapshot_file(6)
        wait_for(lambda: snapshot.exists() or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [row.state for row in made.runs()] == ["done", "interrupted"]
    finished = (made.path / "lora-seed1" / FINAL).stat().st_mtime_ns
    rows, said = quietly(file)
    assert [row.state for row in rows] == ["done", "done"]
    assert said[0].endswith("1 of them done.") and said[1] == "[2/2] sorsa-seed1"
    assert (made.path / "lora-seed1" / FINAL).stat().st_mtime_ns == finished
    assert len(made.run("sorsa-seed1").read_settings()["attempts"]) == 2
    assert_same_weights(made.path, undisturbed)


def test_a_run_that_another_sweep_is_at_is_left_to_it(
    write_file: Callable[..., Path], tmp_path: Path
) -> None:
    made = Sweep(tmp_path / "runs")
    with made.run("sorsa-seed1").lock("sweep"):
        rows, said = quietly(write_file())
    assert [row.state for row in rows] == ["done", "waiting"]
    assert said[-1] == "[2/2] sorsa-seed1 is being trained by another sweep"
    assert not made.run("sorsa-seed1").exists()


def test_what_another_sweep_has_just_done_is_not_done_again(
    write_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both began when nothing was done; this one comes to the run when it is."""
    file = write_file(methods=["lora"])
    whole = spectra.sweep.finished
    seen: list[set[str]] = []

    def first_nothing(plan: Any) -> set[str]:
        seen.append(whole(plan) if seen else set())
        return seen[-1]

    quietly(file)
    monkeypatch.setattr(spectra.sweep, "finished", first_nothing)
    monkeypatch.setattr(spectra.sweep, "train", fail)
    rows, said = quietly(file)
    assert said[-1] == "[1/1] lora-seed1: done by another sweep"
    assert seen == [set(), {"lora-seed1"}] and rows[0].state == "done"


def test_a_lost_worker_of_a_cluster_costs_a_retry(
    write_file: Callable[..., Path], tmp_path: Path, undisturbed: Path
) -> None:
    file = write_file(settings=LONG)
    made = Sweep(tmp_path / "runs")
    killed: list[str] = []
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        # The scheduler reports the lost worker; that is what is wanted here.
        warnings.catch_warnings(action="ignore"),
    ):
        (worker,) = cluster.workers.values()

        def kill() -> None:
            wait_for(lambda: any(made.path.glob(f"*/snapshots/{snapshot_file(6)}")))
            killed.extend(row.name for row in made.runs() if row.state == "running")
            os.kill(worker.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        rows, said = quietly(file, scheduler=cluster.scheduler_address)
        killer.join()
    assert [row.state for row in rows] == ["done", "done"]
    # Two threads, but one run at a time: else they would share torch's random state.
    (lost,) = killed
    attempts = {row.name: made.run(row.name).read_settings()["attempts"] for row in rows}
    assert {name: len(a) for name, a in attempts.items()} == {
        row.name: 1 + (row.name == lost) for row in rows
    }
    assert said[0].startswith("2 runs") and said[-1].startswith("[2/2] ")
    assert_same_weights(made.path, undisturbed)


def test_a_run_that_no_worker_came_to_is_told_of(tmp_path: Path) -> None:
    """As when the only worker is lost again and again, before it has made the run's folder."""
    made = Sweep(tmp_path)
    made.plan({}, [SweepRun(name="lora-seed1", method="lora", seed=1, varies={})])
    outcome = spectra.sweep._failed(made, "lora-seed1", RuntimeError("no worker"))
    assert (outcome.state, outcome.error) == ("failed", "RuntimeError: no worker")
    assert [row.state for row in made.runs()] == ["failed"]
    assert "no worker" in (tmp_path / "lora-seed1" / ERROR_FILE).read_text()


def test_the_dry_run_lists_the_runs_and_trains_nothing(
    write_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(write_file(seeds=[1, 2])), "--dry-run", "--only", "lora*"]) == 0
    out = f"lora-seed1\nlora-seed2\n2 runs would be in {tmp_path / 'runs'}.\n"
    assert capsys.readouterr().out == out and not (tmp_path / "runs").exists()
    assert main(["sweep", str(write_file(speed=1))]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "speed is no key here" in error


@pytest.mark.parametrize(
    ("seconds", "text"), [(35.4, "35 s"), (125, "2 min"), (7800, "2 h 10 min"), (7199, "120 min")]
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
