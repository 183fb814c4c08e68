"""The analysis beside a training: a process that outlives it, and no longer than needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import spectra
from spectra.recording.live import LiveAnalysis
from spectra.store import Run
from tests.helpers import lora, tiny_llama, train_steps

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 240.0
"""An interpreter with torch starts in some seconds, at the lowest priority on a busy machine."""


def wait_for(condition: Callable[[], Any], what: str) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < ends, f"{what} did not come"
        time.sleep(0.05)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run of which no analysis is left over when the test ends."""
    run = Run(tmp_path / "run")
    yield run
    for pid in analyses_of(run):
        os.kill(pid, signal.SIGKILL)


def analyses_of(run: Run) -> list[int]:
    """Process ids of the live analyses of a run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "watch" in words and str(run.path) in words:
            found.append(int(entry.name))
    return found


def steps_of(run: Run) -> set[int]:
    return set(run.drift.read(["step"])["step"])


def test_the_run_is_analysed_while_it_is_recorded(run: Run) -> None:
    recorder = spectra.Recorder(run.path, every=2, analyze="live", wait=True)
    model = lora(tiny_llama())
    with recorder.attach(model):
        wait_for(lambda: steps_of(run) == {0}, "the first step's drift")
        for step, _ in train_steps(model, 1, 4):
            recorder.step(step)
            recorder.flush()
            if step % 2 == 0:
                written = time.monotonic()
                wait_for(lambda: max(steps_of(run)) == step, "a step's drift")  # noqa: B023
                assert time.monotonic() - written < 10.0
        assert run.state == "growing"
    assert analyses_of(run) == []
    live = run.read_drift()
    alone = spectra.analyze(run.path, out=run.path.with_name("alone"))
    kept = [f.drop(columns=["run", "residual"]) for f in (live, alone)]
    pd.testing.assert_frame_equal(kept[0], kept[1], rtol=1e-9, atol=1e-12)
    log = (run.path / "analysis.log").read_text()
    assert "run: step 4, 4 rows in" in log and "Traceback" not in log


def test_it_gives_way_to_the_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.chdir(run.path.parent)
    (run.path.parent / "torch.py").write_text("raise SystemExit('the wrong torch')")
    relative = Run("run")
    with spectra.Recorder(relative.path, every=1).attach(lora(tiny_llama())) as recorder:
        live = LiveAnalysis(relative)
        live.start()
        wait_for(lambda: steps_of(run) == {0}, "the first step's drift")
        (pid,) = analyses_of(run)
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        assert os.getsid(pid) == pid  # Ctrl+C in the training's terminal does not reach it
        assert group_of(pid) in (None, 19)
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        settings = dict(v.split("=", 1) for v in variables if v)
        assert not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & settings.keys()
        assert settings["CUDA_VISIBLE_DEVICES"] == "" and settings["OMP_NUM_THREADS"] == "1"
        # The analysis opens it for a moment, to see whether the training is still there.
        lock = str(run.path / ".recording.lock")
        wait_for(lambda: lock not in opened_by(pid), "the training's lock to be left alone")
        recorder.step(1)
        assert live.problem() is None
    live.finish(wait=True)
    assert live.problem() is None and steps_of(run) == {0, 1}


def opened_by(process: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):  # closed since
            found.add(os.readlink(link))
    return found


def group_of(process: int) -> int | None:
    """The priority of a process's whole session, where the kernel divides by sessions.

    The file is empty for a process of the root group, as one that init started without a session.
    """
    file = Path(f"/proc/{process}/autogroup")
    words = file.read_text().split() if file.exists() else []
    return int(words[-1]) if words else None


def test_what_shares_a_session_with_a_training_leaves_the_session_alone() -> None:
    before = group_of(os.getpid())
    code = "from spectra.background import go_to_background as go; go(); input()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE)
    wait_for(lambda: os.getpriority(os.PRIO_PROCESS, process.pid) == 19, "the lowest priority")
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    assert group_of(os.getpid()) == before


_TRAINER = """
    import sys, time, spectra
    from tests.helpers import lora, tiny_llama, train_steps
    model = lora(tiny_llama())
    recorder = spectra.Recorder(sys.argv[1], every=1, analyze="live")
    recorder.begin(model)
    for step, _ in train_steps(model, 1, 6):
        recorder.step(step)
        recorder.flush()
    print("recorded", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT])
def test_it_finishes_what_a_killed_training_left(run: Run, ended_by: signal.Signals) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_TRAINER), str(run.path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "recorded\n"
    os.killpg(trainer.pid, ended_by)  # as a terminal does
    trainer.wait()
    trainer.stdout.close()
    wait_for(lambda: not analyses_of(run), "the analysis' end")
    assert steps_of(run) == set(range(7))
    assert "Analysed 7 steps" in (run.path / "analysis.log").read_text()


def test_of_two_for_one_run_one_works(run: Run) -> None:
    """As when a training is resumed while the analysis of its first attempt is still at work."""
    model = lora(tiny_llama())
    recorder = spectra.Recorder(run.path, every=1, analyze="live", wait=True)
    with recorder.attach(model):
        second = LiveAnalysis(run)
        wait_for(lambda: steps_of(run) == {0}, "the first step's drift")
        second.start()
        log = run.path / "analysis.log"
        wait_for(lambda: "by another process: waiting" in log.read_text(), "the second's word")
        for step, _ in train_steps(model, 1, 3):
            recorder.step(step)
            recorder.flush()
    second.finish(wait=True)
    assert steps_of(run) == {0, 1, 2, 3}
    words = log.read_text()
    assert words.count("run: step 3, 4 rows") == 1
    assert words.count("by another process: waiting") == 1


def test_why_it_died_is_told(run: Run) -> None:
    with spectra.Recorder(run.path, every=1).attach(lora(tiny_llama())):
        live = LiveAnalysis(run)
        assert live.problem() is None
        live.start()
        wait_for(lambda: steps_of(run) == {0}, "the first step's drift")
        os.kill(analyses_of(run)[0], signal.SIGKILL)
        wait_for(live.problem, "the news of its death")
        assert live.problem() == "The live analysis was ended by SIGKILL."
        # A damaged table is what an analysis cannot go on from.
        part = run.drift.folder / "part-0.parquet"
        part.write_bytes(b"no parquet")
        live.start()
        wait_for(live.problem, "the news of its death")
        problem = str(live.problem())
        assert problem.startswith(f"The live analysis failed: spectra: {part} is not a readable")
    live.finish(wait=True)


def test_the_end_does_not_wait_for_an_analysis_that_gets_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spectra.recording.live._PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("spectra.recording.live._POLL_SECONDS", 0.05)
    live = LiveAnalysis(Run(tmp_path))
    # It stands for one that waits for a lock which is never given back.
    live._process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not live.finish(wait=True)
        assert live.finish(wait=False)
    finally:
        live._process.communicate(b"\n", timeout=30)
    assert live.finish(wait=True)
