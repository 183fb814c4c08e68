"""Analysis in the middle of a training, at known moments, for what reacts to its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import TrainerCallback

import spectra
from spectra.recording.feed import DriftFeed, StepDrift
from spectra.recording.recorder import Recorder
from spectra.recording.staging import Staging
from spectra.store import Run


@pytest.fixture
def prompt_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are on disk are known at once, not up to a second later."""
    look_before_taking(monkeypatch)


def look_before_taking(patch: pytest.MonkeyPatch) -> None:
    """What `prompt_feed` does, for processes without fixtures."""
    take = DriftFeed.take

    def look_and_take(self: DriftFeed) -> list[StepDrift]:
        self.look()
        return take(self)

    patch.setattr(DriftFeed, "take", look_and_take)


@pytest.fixture
def patient_staging(monkeypatch: pytest.MonkeyPatch) -> None:
    """No snapshot is skipped, though these steps take less time than writing one."""
    take = Staging.take
    monkeypatch.setattr(Staging, "take", lambda self, seconds=0.0: take(self, 60.0))


def analyse(recorder: Recorder) -> None:
    """Bring the drift up to date with what was recorded until now."""
    recorder.flush()
    spectra.analyze(recorder.run.path, workers=1, progress=False)


class AnalyseBetweenSteps(TrainerCallback):
    """Analyses all snapshots before the next step begins."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        analyse(self.recorder)


def drift_after(run: Path) -> pd.DataFrame:
    """All drift rows of a finished run."""
    spectra.analyze(run, workers=1, progress=False)
    return Run(run).read_drift()


def tensorboard_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The scalars in all event files below a folder: tag → step → value, the last one."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for path in sorted({p.parent for p in folder.rglob("events.out.tfevents.*")}):
        accumulator = EventAccumulator(str(path)).Reload()
        for tag in accumulator.Tags()["scalars"]:
            scalars = {event.step: event.value for event in accumulator.Scalars(tag)}
            found.setdefault(tag, {}).update(scalars)
    return found
