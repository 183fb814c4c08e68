"""The attempts of a run that was begun more than once, and how to get an earlier one back.

``run.json`` lists every attempt under ``attempts``, with the step it began behind. What a later
one trains again is set aside by renaming, so a run holds one series, the latest::

    RUN/earlier/attempt-1/snapshots/        what attempt 2 recorded again, as attempt 1 had it
    RUN/earlier/attempt-1/training.parquet
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from spectra.store.files import TEMPORARY_PREFIX
from spectra.store.schema import TRAINING
from spectra.store.tables import read_training, write_training

if TYPE_CHECKING:
    from spectra.store.run import Run

EARLIER = "earlier"
_STEP, _SUFFIX = "step-", ".safetensors"
_SNAPSHOTS, _TRAINING = "snapshots", "training.parquet"
# Lists in run.json that speak of single steps.
_OF_STEPS = ("missing", "alerts")


@dataclass(frozen=True)
class Attempt:
    """An attempt that a later one recorded again, in part or as a whole.

    Attributes
    ----------
    number : int
        Counted from 1.
    start_step : int
        The step it began behind.
    end_step : int
        The last step that it shares with the attempt that followed; -1 for none.
    steps : tuple of int
        Steps of the snapshots that only it has.
    """

    number: int
    start_step: int
    end_step: int
    steps: tuple[int, ...]


def begin_attempt(run: Run, start_step: int, **entry: Any) -> dict[str, Any]:
    """Set aside what is trained again behind `start_step`; return changes for ``run.json``.

    At any moment of it a kill leaves each snapshot in one of two places, and the next attempt,
    whatever step it begins behind, puts each into its own.

    Parameters
    ----------
    run : Run
        The run, with its lock held.
    start_step : int
        Number of steps that the new attempt goes on from; 0 begins again.
    **entry
        What to note of the new attempt.
    """
    stored = run.read_settings() if run.exists() else {}
    attempts = _attempts(stored)
    changes: dict[str, Any] = {}
    if attempts:
        before = attempts[-1]
        # Where an earlier begin was killed, it has noted these already.
        before.setdefault("state", stored.get("state"))
        before.setdefault("last_step", stored.get("last_step"))
        run.update_settings(attempts=attempts, state="running", last_step=None)
        last = _last_shared(start_step)
        _divide(run, _folder(run, len(attempts)), last)
        for name in _OF_STEPS:
            noted = stored.get(name, [])
            changes[name] = [e for e in noted if e["step"] <= last]
            before[name] = [e for e in noted if e["step"] > last]
    return changes | {"attempts": [*attempts, {"start_step": start_step} | entry]}


def earlier_attempts(run: Run) -> list[Attempt]:
    """Return the attempts of which something was set aside, oldest first."""
    attempts = _attempts(run.read_settings())
    found = []
    for number, entry in enumerate(attempts, start=1):
        folder = _folder(run, number)
        if folder.is_dir():
            steps = tuple(sorted(_snapshots(folder / _SNAPSHOTS)))
            found.append(Attempt(number, entry["start_step"], _end(run, attempts, number), steps))
    return found


def restore_attempt(run: Run, number: int, out: Path) -> Run:
    """Make a run of its own of an earlier attempt, as it was when the next one began."""
    settings = run.read_settings()
    attempts = _attempts(settings)
    known = [a.number for a in earlier_attempts(run)]
    if number not in known:
        listed = ", ".join(map(str, known)) or "none"
        raise ValueError(f"{run.path} has no earlier attempt {number}; it has {listed}.")
    if out.exists():
        raise FileExistsError(f"{out} exists; an attempt is restored into a new folder.")
    held = [(_folder(run, n), entry) for n, entry in enumerate(attempts, start=1)]
    held.append((run.path, settings))
    snapshots: dict[int, Path] = {}
    rows = []
    noted: dict[str, list[dict[str, Any]]] = {name: [] for name in _OF_STEPS}
    shared: float = math.inf
    # Up to the step that the next attempt began behind it shares what that one had, and so on.
    for n, (folder, notes) in enumerate(held[number - 1 :], start=number):
        snapshots |= {s: p for s, p in _snapshots(folder / _SNAPSHOTS).items() if s <= shared}
        frame = read_training(folder / _TRAINING, TRAINING)
        rows.append(frame[frame["step"] <= shared])
        for name in _OF_STEPS:
            noted[name] += [e for e in notes.get(name, []) if e["step"] <= shared]
        if n < len(attempts):
            shared = min(shared, _end(run, attempts, n))
    entry = attempts[number - 1]
    settings |= {name: sorted(noted[name], key=lambda e: e["step"]) for name in _OF_STEPS} | {
        "attempts": attempts[:number],
        "state": entry.get("state"),
        "last_step": entry.get("last_step"),
        "restored_from": {"run": run.name, "attempt": number},
    }
    return _write_run(run, out, settings, list(snapshots.values()), rows)


def _write_run(
    run: Run,
    out: Path,
    settings: dict[str, Any],
    snapshots: list[Path],
    rows: list[pd.DataFrame],
) -> Run:
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=out.parent))
    try:
        made = type(run)(unfinished)
        made.snapshots_path.mkdir()
        files = run.snapshots_path.glob(f"[!.]*{_SUFFIX}")
        for path in (*(p for p in files if _step_of(p) is None), *snapshots):
            _link(path, made.snapshots_path / path.name)
        _write_rows(made.training_path, rows)
        made.update_settings(**settings)
        unfinished.chmod(run.path.stat().st_mode)
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return type(run)(out)


def _attempts(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is noted; runs from before attempts were noted had their first one."""
    if not settings:
        return []
    first = {"start_step": 0, "time": settings.get("created")}
    return [dict(a) for a in settings.get("attempts") or [first]]


def _divide(run: Run, folder: Path, last: int) -> None:
    """Let the run hold the steps up to `last`, and `folder` what of its attempt lies beyond."""
    aside = folder / _SNAPSHOTS
    for step, path in _snapshots(run.snapshots_path).items():
        if step > last:
            aside.mkdir(parents=True, exist_ok=True)
            path.replace(aside / path.name)
    for step, path in _snapshots(aside).items():
        if step <= last:
            path.replace(run.snapshots_path / path.name)
    here = read_training(run.training_path, TRAINING)
    there = read_training(folder / _TRAINING, TRAINING)
    if (there["step"] <= last).any():
        _write_rows(run.training_path, [here, there])
    elif not (here["step"] > last).any():
        return
    # What is moved is written to its new place before it goes from the old one.
    rows = _joined([here, there])
    _write_rows(folder / _TRAINING, [rows[rows["step"] > last]])
    _write_rows(run.training_path, [rows[rows["step"] <= last]])


def _write_rows(path: Path, frames: list[pd.DataFrame]) -> None:
    write_training(path, {str(k): v for k, v in _joined(frames).items()}, TRAINING)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    rows = pd.concat(filled, ignore_index=True).drop_duplicates("step")
    return rows.sort_values("step", ignore_index=True)


def _end(run: Run, attempts: list[dict[str, Any]], number: int) -> int:
    """Return the last step that an attempt shares with the next one."""
    if number < len(attempts):
        return _last_shared(attempts[number]["start_step"])
    # The next one was killed before it was noted: all that is in the run is this one's.
    return max(_snapshots(run.snapshots_path), default=-1)


def _last_shared(start_step: int) -> int:
    # Who begins at 0 records step 0 again, and an adapter's first factors may be others.
    return start_step if start_step > 0 else -1


def _folder(run: Run, number: int) -> Path:
    return run.earlier_path / f"attempt-{number}"


def _snapshots(folder: Path) -> dict[int, Path]:
    found = {_step_of(path): path for path in folder.glob(f"{_STEP}*{_SUFFIX}")}
    return {step: path for step, path in found.items() if step is not None}


def _step_of(path: Path) -> int | None:
    digits = path.name.removeprefix(_STEP).removesuffix(_SUFFIX)
    return int(digits) if digits.isdecimal() else None


def _link(source: Path, target: Path) -> None:
    # Snapshots are never written to again, so both names may stand for the same bytes.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
