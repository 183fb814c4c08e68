"""Following a folder: what is analysed when, what is awaited, told, kept and computed anew."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import spectra
from spectra.analysis import WatchedStep, analyze, arrivals, following, watch
from spectra.analysis.arrivals import Folder
from spectra.store import Run
from tests.analysis.test_analyze import METHODS, count_decompositions, record
from tests.helpers import lora, shake, tiny_llama, tiny_model_folder, train_steps

LIVE_SECONDS = 60.0
"""No test waits so long; where one does, it fails and does not hang."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is awaited in seconds, for a checkpoint to be whole or a base to come, is short."""
    monkeypatch.setattr(arrivals, "_QUIET_SECONDS", 0.1)
    monkeypatch.setattr(following, "_RETRY_SECONDS", 0.05)


def follow(path: Path, **options: Any) -> Generator[WatchedStep, None, None]:
    options = {"interval": 0.02, "idle": LIVE_SECONDS / 60, "workers": 1} | options
    return watch(path, **options)


def steps_of(watched: Iterator[WatchedStep], count: int) -> list[int]:
    return [next(watched).step for _ in range(count)]


def everything(path: Path, **options: Any) -> list[WatchedStep]:
    """All that is there and can be analysed, until nothing came for half a second."""
    return list(follow(path, idle=0.5 / 60, **options))


def save(folder: Path, seed: int) -> Path:
    """Whole weights at one step, as a trainer saves them."""
    tiny_llama(seed).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path / "base")


def same_rows(left: pd.DataFrame, right: pd.DataFrame) -> None:
    """Equal but for what a run is called: other orders of work give other roundings."""
    left, right = (f.drop(columns=["run", "residual"]) for f in (left, right))
    pd.testing.assert_frame_equal(left, right, rtol=1e-9, atol=1e-12)


# What is analysed.


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_followed_while_it_is_recorded(tmp_path: Path, method: str) -> None:
    model = METHODS[method](tiny_llama())
    watched = follow(tmp_path / "run", until_finished=True)
    recorder = spectra.Recorder(tmp_path / "run", every=2, method=method)
    drift = Run(tmp_path / "run").drift
    with recorder.attach(model):
        recorder.step(1)
        for step in (2, 4, 6):
            shake(model, seed=step)
            recorder.step(step)
            if step == 2:
                assert steps_of(watched, 2) == [0, 2]
            else:
                assert next(watched).step == step
            # A step is on disk when it is told of, and is one part.
            assert len(drift.parts()) == 1 + step // 2
            assert set(drift.read()["step"]) == {0, *range(2, step + 1, 2)}
    assert list(watched) == []
    alone = analyze(tmp_path / "run", out=tmp_path / "alone")
    same_rows(Run(tmp_path / "run").read_drift(), alone)
    assert len(drift.parts()) == 1, "at its end a run's rows are one part"


@pytest.mark.parametrize("kind", ["whole", "adapter", "torch"])
def test_another_trainers_checkpoints_are_followed(tmp_path: Path, base: Path, kind: str) -> None:
    out = tmp_path / "out"
    watched = follow(out, base=base, out=tmp_path / "run")
    model = lora(tiny_llama())
    for step in (10, 20, 30):
        shake(model, seed=step)
        folder = out / f"checkpoint-{step}"
        if kind == "adapter":
            model.save_pretrained(str(folder), save_embedding_layers=False)
        elif kind == "whole":
            save(folder, seed=step)
        else:
            out.mkdir(exist_ok=True)
            torch.save(tiny_llama(step).state_dict(), out / f"step_{step}.pt")
        done = next(watched) if step > 10 else [next(watched) for _ in range(2)][-1]
        assert (done.step, done.rows) == (step, 4)
        assert set(done.drift["step"]) == {step}
    watched.close()
    run = Run(tmp_path / "run")
    settings = run.read_settings()
    assert settings["base"]["name"] == str(base)
    assert len(settings["checkpoints"]) == 3
    same_rows(run.read_drift(), analyze(out, base=base, out=tmp_path / "alone"))


def test_each_training_in_a_folder_has_a_run_whichever_comes_first(
    tmp_path: Path, base: Path
) -> None:
    root = tmp_path / "all"
    watched = follow(root, base=base, out=tmp_path / "runs")
    save(root / "second" / "checkpoint-5", seed=1)
    assert {next(watched).run.path for _ in range(2)} == {tmp_path / "runs" / "second"}
    save(root / "first" / "checkpoint-7", seed=2)
    assert {next(watched).run.path for _ in range(2)} == {tmp_path / "runs" / "first"}
    save(root / "checkpoint-9", seed=3)
    assert {next(watched).run.path for _ in range(2)} == {tmp_path / "runs"}
    watched.close()
    assert everything(root, base=base, out=tmp_path / "runs") == []


def test_trainings_take_turns(tmp_path: Path) -> None:
    for name in ("a", "b"):
        record(tmp_path / name, "lora", steps=6)
    done = [(s.run.name, s.step) for s in everything(tmp_path)]
    assert done == [(name, step) for step in (0, 2, 4, 6) for name in ("a", "b")]


def test_a_run_that_begins_later_is_followed_too(tmp_path: Path) -> None:
    watched = follow(tmp_path)
    record(tmp_path / "a", "lora", steps=2)
    assert steps_of(watched, 2) == [0, 2]
    record(tmp_path / "b", "sorsa", steps=2)
    assert [(s.run.name, s.step) for s in (next(watched), next(watched))] == [("b", 0), ("b", 2)]


def test_a_matrix_that_only_some_checkpoints_have_is_analysed_where_it_is(
    tmp_path: Path, base: Path
) -> None:
    def adapter(step: int, modules: Sequence[str]) -> None:
        model = lora(tiny_llama(), target_modules=list(modules))
        shake(model, seed=step)
        folder = tmp_path / "out" / f"checkpoint-{step}"
        model.save_pretrained(str(folder), save_embedding_layers=False)

    options: dict[str, Any] = {"base": base, "out": tmp_path / "run"}
    adapter(1, ["q_proj"])
    watched = follow(tmp_path / "out", **options)
    steps = [next(watched) for _ in range(2)]
    adapter(2, ["q_proj", "v_proj"])
    steps += [next(watched) for _ in range(2)]
    adapter(3, ["v_proj"])
    steps += [next(watched)]
    watched.close()
    found = [(s.step, sorted(set(s.drift["module"]))) for s in steps]
    # The base's rows are those of the matrices seen so far.
    assert found == [
        (0, ["q_proj"]),
        (1, ["q_proj"]),
        (0, ["v_proj"]),
        (2, ["q_proj", "v_proj"]),
        (3, ["v_proj"]),
    ]
    alone = analyze(tmp_path / "out", base=base, out=tmp_path / "alone")
    same_rows(Run(tmp_path / "run").read_drift(), alone)


def test_what_is_done_is_not_done_again(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "out" / "checkpoint-5", seed=1)
    options: dict[str, Any] = {"base": base, "out": tmp_path / "run"}
    assert [s.step for s in everything(tmp_path / "out", **options)] == [0, 5]
    made = count_decompositions(monkeypatch)
    assert everything(tmp_path / "out", **options) == []
    assert analyze(tmp_path / "out", **options)["step"].nunique() == 2
    assert not made
    save(tmp_path / "out" / "checkpoint-6", seed=2)
    assert [s.step for s in everything(tmp_path / "out", **options)] == [6]


# What is awaited and told.


def test_what_does_not_exist_yet_is_awaited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, base = tmp_path / "later" / "out", tmp_path / "later" / "base"
    watched = follow(out, base=base, out=tmp_path / "run")
    steps: list[int] = []
    thread = threading.Thread(target=lambda: steps.extend(steps_of(watched, 2)))
    with caplog.at_level(logging.INFO, logger="spectra"):
        thread.start()
        wait_for(lambda: f"Waiting for checkpoints in {out}" in caplog.text)
        save(out / "checkpoint-3", seed=1)
        wait_for(lambda: f"Waiting for the base. The base {base}" in caplog.text)
        time.sleep(0.3)  # some looks more
        tiny_model_folder(base)
        thread.join(LIVE_SECONDS)
    assert steps == [0, 3]
    assert caplog.text.count("Waiting for the base") == 1
    assert caplog.text.count("Waiting for checkpoints") == 1
    watched.close()


def wait_for(condition: Any) -> None:
    ends = time.monotonic() + LIVE_SECONDS
    while not condition():
        assert time.monotonic() < ends, "what was waited for did not come"
        time.sleep(0.02)


def test_a_checkpoint_in_the_writing_is_awaited(
    tmp_path: Path,
    base: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its file grows, then has its size before its content: nothing is read of either."""
    monkeypatch.setattr(arrivals, "_QUIET_SECONDS", 2.0)  # far above a write's 0.04
    whole = save(tmp_path / "whole", seed=1)
    content = (whole / "model.safetensors").read_bytes()
    out = tmp_path / "out" / "checkpoint-5"
    out.mkdir(parents=True)
    shutil.copy(whole / "config.json", out)
    watched = follow(tmp_path / "out", base=base, out=tmp_path / "run")
    steps: list[WatchedStep] = []
    thread = threading.Thread(target=lambda: steps.extend(next(watched) for _ in range(2)))
    thread.start()
    with (out / "model.safetensors").open("wb", buffering=0) as file:
        half = len(content) // 2
        file.write(content[:half])
        time.sleep(0.3)
        file.truncate(len(content))
        for place in range(half, len(content), len(content) // 16 + 1):
            time.sleep(0.04)
            file.write(content[place : place + len(content) // 16 + 1])
            assert not steps
    thread.join(LIVE_SECONDS)
    watched.close()
    assert [s.step for s in steps] == [0, 5]
    same_rows(
        Run(tmp_path / "run").read_drift(),
        analyze(whole.parent / "out", base=base, out=tmp_path / "alone"),
    )
    assert not [r for r in caplog.records if r.levelname != "INFO"]


def test_a_broken_checkpoint_is_told_once_and_spares_the_others(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    for step in (1, 2, 3):
        save(out / f"checkpoint-{step}", seed=step)
    file = out / "checkpoint-2" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(b"\xff" * len(content))
    watched = follow(out, base=base, out=tmp_path / "run")
    assert steps_of(watched, 3) == [0, 1, 3]
    save(out / "checkpoint-4", seed=4)
    assert next(watched).step == 4
    assert caplog.text.count(f"{file} is not a whole safetensors file") == 1
    file.write_bytes(content)
    assert next(watched).step == 2
    watched.close()


def test_a_broken_snapshot_is_told_once_and_spares_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record(tmp_path / "run", "lora")
    file = tmp_path / "run" / "snapshots" / "step-00000002.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    assert [s.step for s in everything(tmp_path / "run")] == [0, 4]
    assert caplog.text.count(f"{file} is shorter than it says") == 1
    file.write_bytes(content)
    assert [s.step for s in everything(tmp_path / "run")] == [2]


def test_a_base_that_does_not_fit_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tmp_path / "small"
    tiny_llama(layers=1).save_pretrained(base)
    save(tmp_path / "out" / "checkpoint-1", seed=1)
    assert everything(tmp_path / "out", base=base, out=tmp_path / "run") == []
    assert caplog.text.count("has no matrix 'model.layers.1") == 1


def test_an_analysis_elsewhere_is_awaited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record(tmp_path / "run", "lora")
    with Run(tmp_path / "run").lock("analysis"):
        assert everything(tmp_path / "run") == []
    assert caplog.text.count("is being analysed by another process: waiting") == 1
    assert [s.step for s in everything(tmp_path / "run")] == [0, 2, 4]


def test_while_a_run_is_followed_others_leave_it_alone(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora")
    watched = follow(tmp_path / "run")
    next(watched)
    assert Run(tmp_path / "run").state == "growing"
    with pytest.raises(RuntimeError, match="The analysis of .* is under way"):
        analyze(tmp_path / "run")
    watched.close()
    assert len(analyze(tmp_path / "run")) == 12


# What changes under the hand.


def test_rows_of_checkpoints_that_their_trainer_deletes_stay(tmp_path: Path, base: Path) -> None:
    out = tmp_path / "out"
    watched = follow(out, base=base, out=tmp_path / "run")
    for step in range(1, 7):
        save(out / f"checkpoint-{step}", seed=step)
        assert next(watched).step == (step if step > 1 else 0)
        if step == 1:
            assert next(watched).step == 1
        if step > 2:
            shutil.rmtree(out / f"checkpoint-{step - 2}")
    watched.close()
    run = Run(tmp_path / "run")
    before = run.read_drift()
    assert set(before["step"]) == set(range(7))
    assert [s.step for s in everything(out, base=base, out=run.path)] == []
    same_rows(analyze(out, base=base, out=run.path), before)
    assert len(run.drift.parts()) == 1
    assert len(run.read_spectrum()) == len(before)


@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_checkpoint_that_is_deleted_at_the_wrong_moment_is_told(
    tmp_path: Path,
    base: Path,
    moment: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deleted before or while it is read; what was computed by then is kept."""
    out = tmp_path / "out"
    for step in (1, 2, 3):
        save(out / f"checkpoint-{step}", seed=step)
    real = following.compute

    def deleting(tasks: Sequence[Any], *arguments: Any) -> Iterator[Any]:
        computed = real(tasks, *arguments)
        if tasks[0].steps[0].checkpoint.step == 2 - (moment == "before"):
            yield next(computed)
            shutil.rmtree(out / "checkpoint-2")
        yield from computed

    monkeypatch.setattr(following, "compute", deleting)
    done = [(s.step, s.rows) for s in everything(out, base=base, out=tmp_path / "run")]
    kept = [(2, 1)] if moment == "while" else []
    assert done == [(0, 4), (1, 4), *kept, (3, 4)]
    told = "after 1 of its rows were computed" if moment == "while" else "before it was analysed"
    assert caplog.text.count(f"checkpoint-2 was deleted {told}.") == 1
    assert len(Run(tmp_path / "run").read_drift()) == sum(rows for _, rows in done)


def test_a_checkpoint_that_is_written_anew_is_computed_anew(tmp_path: Path, base: Path) -> None:
    out = tmp_path / "out"
    save(out / "checkpoint-1", seed=1)
    save(out / "checkpoint-2", seed=2)
    watched = follow(out, base=base, out=tmp_path / "run")
    assert steps_of(watched, 3) == [0, 1, 2]
    shutil.rmtree(out / "checkpoint-2")
    save(out / "checkpoint-2", seed=3)
    assert next(watched).step == 2
    watched.close()
    fresh = analyze(out, base=base, out=tmp_path / "alone")
    same_rows(Run(tmp_path / "run").read_drift(), fresh)


def test_a_checkpoint_that_is_written_anew_while_it_is_read_gives_no_mixed_rows(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    save(out / "checkpoint-1", seed=1)
    other = save(tmp_path / "other", seed=2)
    real = following.compute

    def rewriting(tasks: Sequence[Any], *arguments: Any) -> Iterator[Any]:
        computed = real(tasks, *arguments)
        if tasks[0].steps[0].checkpoint.step == 1:
            monkeypatch.setattr(following, "compute", real)
            yield next(computed)
            shutil.copy(other / "model.safetensors", out / "checkpoint-1")
        yield from computed

    monkeypatch.setattr(following, "compute", rewriting)
    steps = [(s.step, s.rows) for s in everything(out, base=base, out=tmp_path / "run")]
    assert steps == [(0, 4), (1, 4)]
    rows = Run(tmp_path / "run").drift
    assert len(rows.parts()) == 1 and rows.read()["source"].nunique() == 2  # the base's, and one
    same_rows(rows.read(), analyze(out, base=base, out=tmp_path / "alone"))


def test_steps_that_are_recorded_again_replace_those_before(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recorder = spectra.Recorder(folder, every=2)
    model = lora(tiny_llama())
    recorder.begin(model)
    watched = follow(folder)
    for step, _ in train_steps(model, 1, 8):
        recorder.step(step)
    assert steps_of(watched, 5) == [0, 2, 4, 6, 8]
    # Killed, the run goes on from step 4 with other data, and ends earlier.
    again = spectra.Recorder(folder, every=2)
    resumed = lora(tiny_llama())
    shake(resumed, seed=9)
    with again.attach(resumed, start_step=4):
        for step in (5, 6):
            again.step(step)
    assert next(watched).step == 6
    assert set(Run(folder).drift.read()["step"]) == {0, 2, 4, 6}, "step 8 is no more"
    watched.close()
    same_rows(Run(folder).read_drift(), analyze(folder, out=tmp_path / "alone"))


def test_a_run_that_is_recorded_anew_is_followed_on_its_new_base(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    record(folder, "lora")
    watched = follow(folder)
    assert steps_of(watched, 3) == [0, 2, 4]
    shutil.rmtree(folder / "snapshots")
    recorder = spectra.Recorder(folder, every=2, overwrite=True)
    model = lora(tiny_llama(seed=5))
    with recorder.attach(model):
        shake(model)
        recorder.step(2)
    assert steps_of(watched, 2) == [0, 2]
    watched.close()
    same_rows(Run(folder).read_drift(), analyze(folder, out=tmp_path / "alone"))


# When it ends.


def test_it_ends_when_the_recording_is_over_and_everything_analysed(tmp_path: Path) -> None:
    recorder = spectra.Recorder(tmp_path / "run", every=1)
    model = lora(tiny_llama())
    recorder.begin(model)
    watched = follow(tmp_path / "run", until_finished=True, idle=None)
    assert next(watched).step == 0
    recorder.step(1)
    assert next(watched).step == 1
    for step in (2, 3):
        recorder.step(step)
    recorder.end()
    assert [s.step for s in watched] == [2, 3]


def test_a_folder_of_runs_ends_when_the_last_recording_is_over(tmp_path: Path) -> None:
    record(tmp_path / "a", "lora")
    recorder = spectra.Recorder(tmp_path / "b", every=1)
    recorder.begin(lora(tiny_llama()))
    watched = follow(tmp_path, until_finished=True, idle=None)
    assert steps_of(watched, 4) == [0, 0, 2, 4]
    recorder.end()
    assert list(watched) == []


def test_it_ends_when_the_run_is_deleted(tmp_path: Path) -> None:
    record(tmp_path / "run", "lora")
    watched = follow(tmp_path / "run", until_finished=True, idle=None)
    next(watched)
    shutil.rmtree(tmp_path / "run")
    assert list(watched) == []
    assert not (tmp_path / "run").exists()


def test_without_news_it_ends_after_the_given_minutes(tmp_path: Path) -> None:
    started = time.monotonic()
    assert list(watch(tmp_path / "nothing", interval=0.01, idle=0.2 / 60)) == []
    assert 0.2 <= time.monotonic() - started < LIVE_SECONDS


def test_an_interruption_keeps_what_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "run", "lora")
    real = following.compute

    def interrupted(tasks: Sequence[Any], *arguments: Any) -> Iterator[Any]:
        computed = real(tasks, *arguments)
        yield next(computed)
        if tasks[0].steps[0].checkpoint.step == 2:
            raise KeyboardInterrupt
        yield from computed

    monkeypatch.setattr(following, "compute", interrupted)
    watched = follow(tmp_path / "run")
    assert next(watched).step == 0
    with pytest.raises(KeyboardInterrupt):
        next(watched)
    assert len(Run(tmp_path / "run").drift.read()) == 5
    monkeypatch.setattr(following, "compute", real)
    assert [(s.step, s.rows) for s in everything(tmp_path / "run")] == [(2, 3), (4, 4)]


def test_what_cannot_be_followed_is_refused(tmp_path: Path, base: Path) -> None:
    record(tmp_path / "run", "lora")
    with pytest.raises(ValueError, match="is a file. Give its folder"):
        watch(base / "model.safetensors")
    with pytest.raises(ValueError, match="watch follows folders of this machine"):
        watch("memory://somewhere")
    with pytest.raises(ValueError, match="interval must be above 0"):
        watch(tmp_path, interval=0.0)
    with pytest.raises(ValueError, match="solver must be one of"):
        watch(tmp_path, solver="fast")
    with pytest.raises(ValueError, match="out takes one run"):
        next(follow(tmp_path, out=tmp_path / "elsewhere"))
    save(tmp_path / "out" / "checkpoint-1", seed=1)
    with pytest.raises(ValueError, match="is a recorded run with a base of its own"):
        next(follow(tmp_path / "out", base=base, out=tmp_path / "run"))


# What looking costs.


def test_an_unchanged_folder_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a checkpoint nor a list of names is opened where nothing has changed."""
    whole = save(tmp_path / "out" / "checkpoint-1", seed=1)
    shutil.copytree(whole, tmp_path / "out" / "checkpoint-2")
    broken = tmp_path / "out" / "checkpoint-3"
    shutil.copytree(whole, broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    for path in [*tmp_path.rglob("*"), tmp_path / "out"]:
        os.utime(path, (1e9, 1e9))
    folder = Folder(tmp_path / "out")
    assert folder.look()
    assert [e.state for e in folder.index().entries] == ["complete", "complete", "broken"]
    opened: list[str] = []
    real = Path.stat

    def noted(path: Path, **options: Any) -> os.stat_result:
        opened.append(str(path))
        return real(path, **options)

    monkeypatch.setattr(os, "scandir", lambda path: opened.append(str(path)))
    monkeypatch.setattr(Path, "stat", noted)
    index = folder.index()
    assert not folder.look()
    assert folder.index() is index
    assert not opened
