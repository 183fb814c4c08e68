"""Attempts of a run: what a later one records again is set aside and can be had again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from spectra.store import Run, find_runs
from spectra.store.attempts import EARLIER, begin_attempt

State = dict[int, str]
"""Which attempt recorded each step."""


class KilledError(BaseException):
    """Ends a process between two changes of files."""


def snapshot(folder: Path, step: int) -> Path:
    return folder / "snapshots" / f"step-{step:08d}.safetensors"


def record(run: Run, start: int, last: int, label: float, **settings: Any) -> None:
    """Begin behind `start` and record every step up to `last`, as a recorder would."""
    changes = begin_attempt(run, start, label=label)
    run.update_settings(**changes, state="running")
    run.snapshots_path.mkdir(exist_ok=True)
    (run.snapshots_path / "base.safetensors").write_text("base")
    before = run.read_training()
    rows = [{"step": s, "loss": x} for s, x in zip(before["step"], before["loss"], strict=True)]
    for step in range(start if start == 0 else start + 1, last + 1):
        snapshot(run.path, step).write_text(str(label))
        if step > 0:
            rows.append({"step": step, "loss": label})
    run.write_training(rows)
    run.update_settings(**settings)


def state(run: Run) -> State:
    """What the run holds, and that its curve agrees with its snapshots."""
    found = {
        int(p.stem.removeprefix("step-")): p.read_text()
        for p in sorted(run.snapshots_path.glob("step-*"))
    }
    frame = run.read_training()
    curve = dict(zip(frame["step"].tolist(), map(str, frame["loss"]), strict=True))
    assert list(curve) == sorted(curve)
    assert curve == {step: label for step, label in found.items() if step > 0}
    return found


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_what_is_recorded_again_is_set_aside(run: Run) -> None:
    record(run, 0, 5, 1.0)
    record(run, 3, 6, 2.0)
    assert state(run) == {0: "1.0", 1: "1.0", 2: "1.0", 3: "1.0", 4: "2.0", 5: "2.0", 6: "2.0"}
    (earlier,) = run.earlier_attempts()
    assert (earlier.number, earlier.start_step, earlier.end_step) == (1, 0, 3)
    assert earlier.steps == (4, 5)
    noted = run.read_settings()["attempts"]
    assert [(a["start_step"], a["label"]) for a in noted] == [(0, 1.0), (3, 2.0)]


def test_a_run_that_goes_on_behind_its_end_has_no_earlier_attempt(run: Run) -> None:
    record(run, 0, 5, 1.0)
    record(run, 5, 7, 2.0)
    assert run.earlier_attempts() == []
    assert not (run.path / EARLIER).exists()
    assert [a["start_step"] for a in run.read_settings()["attempts"]] == [0, 5]


def test_beginning_again_at_zero_sets_all_aside(run: Run) -> None:
    record(run, 0, 2, 1.0)
    record(run, 0, 1, 2.0)
    assert state(run) == {0: "2.0", 1: "2.0"}
    assert run.earlier_attempts()[0].steps == (0, 1, 2)
    assert run.earlier_attempts()[0].end_step == -1


@pytest.mark.parametrize("seed", range(20))
def test_any_attempt_can_be_restored_as_it_was(seed: int, run: Run, tmp_path: Path) -> None:
    chance = random.Random(seed)
    states: list[State] = []
    present: State = {}
    for label in range(1, chance.randint(3, 8)):
        start = chance.randint(0, max(present, default=0))
        last = start + chance.randint(0, 5)
        present = {s: text for s, text in present.items() if s <= start and start > 0}
        steps = range(start if start == 0 else start + 1, last + 1)
        present |= {step: f"{label}.0" for step in steps}
        record(run, start, last, float(label))
        assert state(run) == present
        states.append(present)
    for earlier in run.earlier_attempts():
        restored = run.restore_attempt(earlier.number, tmp_path / f"{earlier.number}")
        assert state(restored) == states[earlier.number - 1]
        assert len(restored.read_settings()["attempts"]) == earlier.number
    # Of the others, nothing is missing in those that came after.
    known = {a.number for a in run.earlier_attempts()}
    for number, then in enumerate(states[:-1], start=1):
        if number not in known:
            assert then.items() <= states[number].items()


def test_a_restored_run_says_what_was_noted_of_its_steps(run: Run, tmp_path: Path) -> None:
    missed = [{"step": s, "reason": "full"} for s in (2, 4, 5)]
    alerts = [{"step": 5, "message": "high"}]
    record(run, 0, 5, 1.0, state="finished", last_step=5, missing=missed, alerts=alerts)
    record(run, 3, 4, 2.0, method="lora")
    assert run.read_settings()["missing"] == missed[:1]
    assert run.read_settings()["alerts"] == []
    run.update_settings(missing=[*missed[:1], {"step": 4, "reason": "slow"}])
    record(run, 1, 2, 3.0)
    assert run.read_settings()["missing"] == []

    first = run.restore_attempt(1, tmp_path / "first").read_settings()
    assert first["missing"] == missed
    assert first["alerts"] == alerts
    assert (first["state"], first["last_step"]) == ("finished", 5)
    assert first["restored_from"] == {"run": "run", "attempt": 1}
    second = Run(tmp_path / "second")
    assert run.restore_attempt(2, second.path).path == second.path
    assert second.read_settings()["missing"] == [*missed[:1], {"step": 4, "reason": "slow"}]
    assert second.state == "interrupted"
    assert second.method == "lora"
    assert (second.snapshots_path / "base.safetensors").read_text() == "base"


def test_what_is_restored_outlives_the_run(run: Run, tmp_path: Path) -> None:
    record(run, 0, 3, 1.0)
    record(run, 1, 3, 2.0)
    restored = run.restore_attempt(1, tmp_path / "restored")
    for path in (*run.snapshots_path.iterdir(), snapshot(run.path / EARLIER / "attempt-1", 3)):
        path.unlink()
    assert state(restored) == {0: "1.0", 1: "1.0", 2: "1.0", 3: "1.0"}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "restored"}


def test_snapshots_are_copied_where_files_cannot_be_linked(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(run, 0, 3, 1.0)
    record(run, 1, 3, 2.0)

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    restored = run.restore_attempt(1, tmp_path / "restored")
    assert state(restored) == {0: "1.0", 1: "1.0", 2: "1.0", 3: "1.0"}


def test_earlier_attempts_are_no_runs(run: Run) -> None:
    record(run, 0, 5, 1.0)
    record(run, 3, 6, 2.0)
    assert [found.path for found in find_runs(run.path)] == [run.path]


@pytest.mark.parametrize("number", [0, 2, 3])
def test_an_attempt_that_is_not_there_is_refused(number: int, run: Run, tmp_path: Path) -> None:
    record(run, 0, 5, 1.0)
    record(run, 3, 6, 2.0)
    with pytest.raises(ValueError, match=f"no earlier attempt {number}; it has 1"):
        run.restore_attempt(number, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_attempt_is_restored_into_a_new_folder_only(run: Run, tmp_path: Path) -> None:
    record(run, 0, 5, 1.0)
    record(run, 3, 6, 2.0)
    with pytest.raises(FileExistsError, match="exists; an attempt is restored into a new folder"):
        run.restore_attempt(1, run.path)
    with pytest.raises(FileNotFoundError, match="is not a run"):
        Run(tmp_path / "other").earlier_attempts()


def test_a_restoring_that_fails_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(run, 0, 5, 1.0)
    record(run, 3, 6, 2.0)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.restore_attempt(1, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_from_before_attempts_were_noted_has_had_one(run: Run, tmp_path: Path) -> None:
    record(run, 0, 5, 1.0)
    settings = run.read_settings()
    settings.pop("attempts")
    run.settings_path.unlink()
    run.update_settings(**settings)
    record(run, 3, 4, 2.0)
    assert [a["start_step"] for a in run.read_settings()["attempts"]] == [0, 3]
    assert set(state(run.restore_attempt(1, tmp_path / "out")).values()) == {"1.0"}


@pytest.mark.parametrize(("killed", "again"), [(3, 3), (3, 5), (3, 1), (3, 0), (0, 3), (0, 0)])
def test_a_begin_that_is_killed_anywhere_loses_nothing(
    killed: int, again: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {s: "1.0" for s in range(6) if s <= again and again > 0}
    replace = Path.replace
    for changes in range(100):
        run = Run(tmp_path / f"{changes}" / "run")
        missed = [{"step": 4, "reason": "full"}]
        record(run, 0, 5, 1.0, state="finished", last_step=5, missing=missed)
        left = changes

        def replace_until_killed(self: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise KilledError
            left -= 1
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace_until_killed)
            try:
                run.update_settings(**begin_attempt(run, killed))
                break
            except KilledError:
                pass
        # Before the next one begins, all is the first one's still, wherever it lies.
        if run.earlier_attempts():
            between = run.restore_attempt(1, tmp_path / f"{changes}" / "between")
            assert state(between) == {s: "1.0" for s in range(6)}
            settings = between.read_settings()
            assert (settings["state"], settings["last_step"]) == ("finished", 5)
            assert settings["missing"] == [{"step": 4, "reason": "full"}]
        record(run, again, again + 1, 2.0)
        expected = kept | {s: "2.0" for s in ((0, 1) if again == 0 else (again + 1,))}
        assert state(run) == expected
        noted = run.read_settings()["attempts"]
        assert [a["start_step"] for a in noted] == [0, again]
        assert (noted[0]["state"], noted[0]["last_step"]) == ("finished", 5)
        if any(a.number == 1 for a in run.earlier_attempts()):
            restored = run.restore_attempt(1, tmp_path / f"{changes}" / "out")
            assert state(restored) == {s: "1.0" for s in range(6)}
        else:
            assert again == 5
    # run.json, the snapshots one by one, both tables and run.json once more
    assert changes == 1 + (6 if killed == 0 else 2) + 2 + 1
