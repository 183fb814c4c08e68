"""A run's folder and its run.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectra.store import Run, expand_runs, find_runs, read_runs
from spectra.store.files import TEMPORARY_PREFIX
from spectra.store.run import FORMAT, WORKS
from tests.killing import ROOT


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "a")
    run.update_settings(method="lora")
    return run


def test_a_folder_is_a_run_once_it_has_settings(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    assert not run.exists()
    run.update_settings()
    assert run.exists()


def test_settings_are_merged(run: Run) -> None:
    created = run.read_settings()
    stored = run.update_settings(every=5, settings={"lr": 1e-3})
    assert stored == run.read_settings()
    assert stored == created | {"every": 5, "settings": {"lr": 1e-3}}
    assert run.update_settings(every=7) == stored | {"every": 7}


def test_new_settings_say_when_and_with_what(run: Run) -> None:
    settings = run.read_settings()
    assert settings["format"] == FORMAT
    assert settings["created"].endswith("+00:00")
    assert {"python", "spectra", "torch", "numpy"} <= set(settings["versions"])


def test_settings_survive_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run.read_settings()

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.update_settings(every=5)
    assert run.read_settings() == before
    assert [p.name for p in run.path.iterdir()] == ["run.json"]


def test_text_is_stored_readably(run: Run) -> None:
    run.update_settings(note="ΔΣ, 微調")
    assert "ΔΣ, 微調" in run.settings_path.read_text(encoding="utf-8")


def test_the_method_is_unknown_where_nobody_said(tmp_path: Path, run: Run) -> None:
    assert run.method == "lora"
    nameless = Run(tmp_path / "b")
    nameless.update_settings()
    assert nameless.method == "unknown"


# Refusals.


def test_another_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not a run: it has no run\.json"):
        Run(tmp_path).read_settings()


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"format": 1', b"\xff\xfe\x00", b"[1]", b"null", b'"text"', b"1"]
)
def test_broken_settings_are_refused_and_kept(run: Run, content: bytes) -> None:
    run.settings_path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json (is not valid|must hold a) JSON"):
        run.read_settings()
    with pytest.raises(ValueError, match=r"run\.json"):
        run.update_settings(every=5)
    assert run.settings_path.read_bytes() == content


@pytest.mark.parametrize("version", [FORMAT + 1, FORMAT + 0.5, 99])
def test_a_newer_format_is_refused(run: Run, version: float) -> None:
    run.settings_path.write_text(json.dumps({"format": version}))
    with pytest.raises(ValueError, match=rf"has format {version}, .* up to {FORMAT}\. Upgrade"):
        run.read_settings()


@pytest.mark.parametrize("version", ["2", None, [1], {}])
def test_a_format_that_is_no_number_is_refused(run: Run, version: object) -> None:
    run.settings_path.write_text(json.dumps({"format": version}))
    with pytest.raises(ValueError, match=r"run\.json"):
        run.read_settings()


def test_an_older_format_is_read(run: Run) -> None:
    run.settings_path.write_text('{"method": "sorsa"}')
    assert run.method == "sorsa"


# State and locks.

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no locks there")


def test_a_run_is_interrupted_until_it_is_finished(run: Run) -> None:
    assert run.state == "interrupted"
    run.update_settings(state="running")
    assert run.state == "interrupted"
    run.update_settings(state="finished")
    assert run.state == "finished"


@posix_only
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("noted", ["running", "finished"])
def test_a_run_is_growing_while_someone_works_on_it(run: Run, work: str, noted: str) -> None:
    run.update_settings(state=noted)
    before = run.state
    with run.lock(work):
        assert run.state == "growing"
        assert Run(run.path).state == "growing"
    assert run.state == before


@posix_only
@pytest.mark.parametrize("work", WORKS)
def test_a_work_is_done_by_one_at_a_time(run: Run, work: str) -> None:
    with run.lock(work):
        second = Run(run.path).lock(work)
        with pytest.raises(RuntimeError, match=rf"The {work} of .*a is under way in another"):
            second.__enter__()
    with run.lock(work):
        pass


@posix_only
def test_different_works_go_on_at_once(run: Run) -> None:
    with run.lock("recording"), run.lock("analysis"):
        assert run.state == "growing"
    assert run.state == "interrupted"


@posix_only
def test_an_exception_gives_the_lock_back(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt), run.lock("recording"):
        raise KeyboardInterrupt
    assert run.state == "interrupted"
    with run.lock("recording"):
        pass


@posix_only
def test_a_lock_goes_with_its_process(run: Run) -> None:
    script = (
        "import sys, time; from spectra.store import Run\n"
        "with Run(sys.argv[1]).lock('recording'): print('locked', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(run.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        assert run.state == "growing"
        with pytest.raises(RuntimeError, match="under way in another process"):
            run.lock("recording").__enter__()
        process.kill()
    assert run.state == "interrupted"
    with run.lock("recording"):
        assert run.state == "growing"


def test_a_lock_makes_no_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "b")
    with run.lock("recording"):
        assert not run.exists()
    assert find_runs(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="is not a run"):
        _ = run.state


def test_old_leftovers_are_removed_from_every_folder(run: Run) -> None:
    folders = [run.path, run.snapshots_path, run.drift.folder, run.spectrum.folder]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / f"{TEMPORARY_PREFIX}old").touch()
        (folder / "mine").touch()
        os.utime(folder / f"{TEMPORARY_PREFIX}old", (time.time() - 86400,) * 2)
        (folder / f"{TEMPORARY_PREFIX}young").touch()
    run.remove_leftovers()
    for folder in folders:
        assert not (folder / f"{TEMPORARY_PREFIX}old").exists()
        assert (folder / f"{TEMPORARY_PREFIX}young").exists(), "its writer may be at work"
        assert (folder / "mine").exists()
    assert run.exists()


# Names and places.


def test_a_moved_run_gives_its_new_name(tmp_path: Path, run: Run) -> None:
    run.drift.append([{"run": "a", "method": "lora", "step": 1, "layer": 0, "module": "q_proj"}])
    run.spectrum.append([{"run": "a", "step": 1, "layer": 0, "module": "q_proj", "sigma": [1.0]}])
    run.write_training([{"step": 1, "loss": 1.0}])
    moved = Run(run.path.rename(tmp_path / "moved"))
    for frame in (moved.read_drift(), moved.read_spectrum(), moved.read_training()):
        assert frame["run"].tolist() == ["moved"]
        assert frame.columns.tolist().count("run") == 1


def test_a_run_has_its_folders_name_however_it_is_reached(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path)
    assert Run(".").name == "a"
    assert Run("../a").name == "a"


def test_chosen_drift_columns_come_with_the_run(run: Run) -> None:
    run.drift.append([{"step": 1, "layer": 0, "module": "q_proj", "kappa": 2.0}])
    frame = run.read_drift(["kappa"])
    assert set(frame.columns) == {"run", "step", "layer", "module", "kappa"}


def test_the_spectrum_of_one_step(run: Run) -> None:
    run.spectrum.append(
        [{"step": s, "layer": 0, "module": "q_proj", "sigma": [float(s)]} for s in range(4)]
    )
    assert [s.tolist() for s in run.read_spectrum(2)["sigma"]] == [[2.0]]
    assert len(run.read_spectrum()) == 4
    assert len(run.read_spectrum(9)) == 0


def test_another_folder_has_no_rows(tmp_path: Path) -> None:
    for read in (Run(tmp_path).read_drift, Run(tmp_path).read_training):
        with pytest.raises(FileNotFoundError, match="is not a run"):
            read()


def test_runs_are_found_at_any_depth_by_path(tmp_path: Path) -> None:
    for name in ("z", "a/b/c", "a"):
        Run(tmp_path / name).update_settings()
    (tmp_path / "no-run" / "run.json").mkdir(parents=True)
    (tmp_path / "other" / "snapshots").mkdir(parents=True)
    found = [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)]
    assert sorted(found) == ["a", "a/b/c", "z"]
    assert found == [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)]
    assert [run.path for run in find_runs(tmp_path / "z")] == [tmp_path / "z"]


def test_an_empty_root_has_no_runs(tmp_path: Path) -> None:
    assert find_runs(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        find_runs(tmp_path / "none")


# Several runs.


def analysed(path: Path, value: float) -> Run:
    run = Run(path)
    run.update_settings(method="lora")
    run.drift.append([{"step": 1, "layer": 0, "module": "q_proj", "delta_d": value}])
    run.write_training([{"step": 1, "loss": value}])
    return run


def test_paths_expand_to_themselves_or_what_is_below(tmp_path: Path) -> None:
    for name in ("x/a", "x/b", "c", "c/inside"):
        analysed(tmp_path / name, 0.0)
    found = expand_runs([tmp_path / "c", tmp_path / "x"])
    assert [run.path for run in found] == [tmp_path / n for n in ("c", "x/a", "x/b")]


def test_paths_without_runs_are_refused(tmp_path: Path) -> None:
    analysed(tmp_path / "a", 0.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty is not a run"):
        expand_runs([tmp_path / "a", tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="none"):
        expand_runs([tmp_path / "none"])


@pytest.mark.parametrize(("table", "column"), [("drift", "delta_d"), ("training", "loss")])
def test_runs_are_read_under_names_of_their_own(tmp_path: Path, table: str, column: str) -> None:
    runs = [analysed(tmp_path / n, i / 4) for i, n in enumerate(("x/a", "y/a", "b"))]
    frame = read_runs(runs, table)
    assert dict(zip(frame["run"], frame[column], strict=True)) == {
        "x/a": 0.0,
        "y/a": 0.25,
        "b": 0.5,
    }
