"""A writer that is killed leaves whole files only."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from spectra.store import Run
from spectra.store.files import TEMPORARY_PREFIX
from tests.killing import kill_at_random_moments

LAYERS = 50
KILLS = 8


def write_forever(folder: Path) -> None:
    """Append a step's rows, note it, and compact now and then; a value tells its step."""
    run = Run(folder)
    for step in itertools.count():
        value = float(step)
        run.drift.append(
            [
                {"step": step, "layer": layer, "module": "q_proj", "delta_d": value}
                for layer in range(LAYERS)
            ]
        )
        run.write_training([{"step": s, "loss": float(s)} for s in range(step + 1)])
        run.update_settings(last=step, padding="x" * 10_000)
        if step % 4 == 3:
            run.drift.compact(range(step + 1))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX's")
def test_killed_writers_leave_whole_files(tmp_path: Path) -> None:
    folders = [tmp_path / f"run-{i}" for i in range(KILLS)]
    kill_at_random_moments(write_forever, folders)
    reached = []
    for run in map(Run, folders):
        for path in run.path.rglob("*.parquet"):
            if not path.name.startswith(TEMPORARY_PREFIX):
                assert pq.read_table(path).num_rows > 0
        frame = run.drift.read()
        steps = frame.groupby("step")
        last = len(steps) - 1
        # Every step up to the last is there, with all its rows and its own values.
        assert list(steps.groups) == list(range(last + 1))
        assert (steps.size() == LAYERS).all()
        assert (frame["delta_d"] == frame["step"]).all()
        if run.exists():
            assert last - 1 <= run.read_settings()["last"] <= last
            training = run.read_training()
            assert training["step"].tolist() == list(range(len(training)))
            assert last <= len(training) <= last + 1
        # The next compaction puts everything in order.
        run.drift.compact(range(last + 1))
        assert len(run.drift.parts()) <= 1
        pd.testing.assert_frame_equal(run.drift.read(), frame)
        reached.append(last)
    assert max(reached) > 0
