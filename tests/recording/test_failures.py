"""Whatever happens to the run's folder, training goes on to the same bits, and the run says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spectra.store import Run
from tests.killing import ROOT
from tests.recording.trouble import BEGINS, ENDS, LAST, Outcome, train

MISSED = list(range(BEGINS, ENDS))
KEPT = [step for step in range(1, LAST + 1) if step not in MISSED]
# The most that a process may need to be told no like anybody else: a root that obeys modes, and
# mounts of its own.
_OBEYS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
_CONFINEMENTS: tuple[list[str], ...] = (
    ["unshare", "--user", "--map-root-user", "--mount", *_OBEYS],
    _OBEYS,
    [],
)


@pytest.fixture(scope="module")
def bare() -> Outcome:
    return train()


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of the trainings that need a process of their own."""
    confinement = next(c for c in _CONFINEMENTS if _works(c))
    folder = tmp_path_factory.mktemp("trouble")
    done = subprocess.run(
        [*confinement, sys.executable, "-m", "tests.recording.trouble", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _works(confinement: list[str]) -> bool:
    try:
        return subprocess.run([*confinement, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def missing(settings: dict[str, Any]) -> list[int]:
    return [entry["step"] for entry in settings.get("missing", [])]


def named(outcomes: dict[str, Any], name: str) -> dict[str, Any]:
    return next(outcome for key, outcome in outcomes.items() if name in key)


@pytest.mark.parametrize("name", ["full", "read-only folder"])
def test_a_disk_that_fails_for_a_while_costs_its_steps_only(
    confined: dict[str, Any], name: str
) -> None:
    outcome = named(confined, name)
    assert outcome["same training"]
    (warning,) = outcome["warnings"]
    assert f"step {BEGINS}" in warning
    assert outcome["snapshots"] == KEPT
    assert missing(outcome["settings"]) == MISSED
    reasons = {"full disk": "full|No space left", "full limit": "File too large"}
    for entry in outcome["settings"]["missing"]:
        expected = next((r for key, r in reasons.items() if key in confined), "")
        if name != "full":
            expected = "Permission denied"
        assert any(part in entry["reason"] for part in expected.split("|")), entry
    # The curve waited.
    assert outcome["rows"] == list(range(1, LAST + 1))
    assert outcome["state"] == "finished"
    assert not [file for file in outcome["files"] if file.startswith(".")]


def test_a_disk_that_stays_full_costs_what_comes_after(confined: dict[str, Any]) -> None:
    outcome = named(confined, "to the end")
    assert outcome["same training"]
    assert len(outcome["warnings"]) == 1
    before = list(range(1, BEGINS))
    assert outcome["snapshots"] == before
    assert outcome["rows"][: len(before)] == before
    # Where run.json cannot be written, at least the recorder says it.
    assert missing(outcome) == list(range(BEGINS, LAST + 1))
    assert outcome["settings"]["method"] == "full-ft"
    assert not [file for file in outcome["files"] if file.startswith(".")]


def _replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("in the way")


@pytest.mark.parametrize("what", ["run", "snapshots", "snapshots by a file"])
def test_a_folder_that_is_deleted_costs_what_was_in_it(
    bare: Outcome, what: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    delete = {
        "run": partial(shutil.rmtree, run),
        "snapshots": partial(shutil.rmtree, run / "snapshots"),
        "snapshots by a file": partial(_replace_by_file, run / "snapshots"),
    }
    outcome = train(run, {BEGINS: delete[what]})
    assert outcome.same_training(bare)
    assert outcome.recorder is not None
    assert len(outcome.warnings) == 1, outcome.warnings
    # Without its base, no snapshot has a meaning.
    assert missing({"missing": outcome.recorder.missing}) == list(range(BEGINS, LAST + 1))
    if what != "run":
        assert missing(Run(run).read_settings()) == list(range(BEGINS, LAST + 1))


def test_a_schedule_that_raises_costs_the_steps_at_which_it_does(
    bare: Outcome, tmp_path: Path
) -> None:
    def due(step: int) -> bool:
        if step in MISSED:
            raise RuntimeError("no idea")
        return True

    outcome = train(tmp_path, every=due)
    assert outcome.same_training(bare)
    (warning,) = outcome.warnings
    assert "no idea" in warning and f"step {BEGINS}" in warning
    assert outcome.whole_snapshots(tmp_path) == KEPT
    assert missing(Run(tmp_path).read_settings()) == MISSED


def test_an_alert_that_raises_is_warned_of_once(bare: Outcome, tmp_path: Path) -> None:
    asked = threading.Semaphore(0)

    def alert(rows: Any) -> str:
        asked.release()
        raise RuntimeError("no idea")

    def analysed(step: int) -> None:
        """Stand in for the analysis of a step, and wait until the alert was asked about it."""
        places = [(layer, module) for layer in range(2) for module in ("q_proj", "v_proj")]
        Run(tmp_path).drift.append(
            [
                {"step": step, "layer": n, "module": m, "delta_sigma": 1.0, "source": "x"}
                for n, m in places
            ]
        )
        assert asked.acquire(timeout=30)

    outcome = train(tmp_path, {3: partial(analysed, 1), 5: partial(analysed, 2)}, alerts=[alert])
    assert outcome.same_training(bare)
    (warning,) = outcome.warnings
    assert "no idea" in warning
    assert outcome.whole_snapshots(tmp_path) == list(range(1, LAST + 1))


def test_a_disk_that_does_not_keep_up_costs_snapshots_not_time(
    bare: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, fsync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        assert gate.wait(60)
        fsync(descriptor)

    # One snapshot is being written, one waits, and there is no room for others.
    monkeypatch.setattr("spectra.recording.staging._MOST_BYTES", 0)
    begins = 2
    outcome = train(
        tmp_path,
        {begins: lambda: monkeypatch.setattr(os, "fsync", slow), ENDS: gate.set},
        settle=False,
    )
    assert outcome.same_training(bare)
    (warning,) = outcome.warnings
    skipped = missing(Run(tmp_path).read_settings())
    assert f"step {skipped[0]}" in warning
    assert set(range(begins + 2, ENDS)) <= set(skipped) <= set(range(begins + 1, LAST))
    assert outcome.whole_snapshots(tmp_path) == [
        step for step in range(1, LAST + 1) if step not in skipped
    ]
    assert Run(tmp_path).read_training()["step"].tolist() == list(range(1, LAST + 1))
    assert Run(tmp_path).state == "finished"
