"""A run's folder: what lies where, and `run.json`."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from spectra.store.attempts import EARLIER, Attempt, earlier_attempts, restore_attempt
from spectra.store.files import remove_leftovers, whole_file
from spectra.store.locks import FileLock, is_locked
from spectra.store.schema import DRIFT, SPECTRUM, TRAINING
from spectra.store.tables import PartTable, read_training, write_training

FORMAT = 1
"""Version of the folder's layout; a newer one is refused, an older one is read."""

WORKS = ("recording", "analysis", "sweep")
"""What a process can be doing to a run; each is done by one process at a time.

A sweep trains and analyses a run, which are works of their own."""

# Files this old that are still unfinished belong to a process that was killed.
_LEFTOVER_SECONDS = 3600.0
_VERSIONED = ("torch", "numpy", "scipy", "transformers", "peft", "bitsandbytes", "safetensors")


class Run:
    """One fine-tuning and what was recorded and computed about it: a folder.

    Parameters
    ----------
    path : Path or str
        The folder; it need not exist yet (see `create`).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    # What lies where.

    @property
    def settings_path(self) -> Path:
        """``run.json``."""
        return self.path / "run.json"

    @property
    def training_path(self) -> Path:
        """``training.parquet``."""
        return self.path / "training.parquet"

    @property
    def snapshots_path(self) -> Path:
        """Folder of what the hook wrote."""
        return self.path / "snapshots"

    @property
    def earlier_path(self) -> Path:
        """Folder of what earlier attempts recorded of steps that were trained again."""
        return self.path / EARLIER

    @property
    def checkpoints_path(self) -> Path:
        """Folder of the trainer's own checkpoints, from which a run resumes."""
        return self.path / "checkpoints"

    @property
    def drift(self) -> PartTable:
        """Table of drift rows."""
        return PartTable(self.path / "drift", DRIFT)

    @property
    def spectrum(self) -> PartTable:
        """Table of per-index arrays."""
        return PartTable(self.path / "spectrum", SPECTRUM)

    # run.json

    @property
    def name(self) -> str:
        """The folder's name: what figures call the run."""
        return self.path.resolve().name

    def exists(self) -> bool:
        """Whether the folder is a run."""
        return self.settings_path.is_file()

    def read_settings(self) -> dict[str, Any]:
        """Return ``run.json``.

        Raises
        ------
        FileNotFoundError
            If the folder is not a run.
        ValueError
            If the file is damaged or of a newer format.
        """
        try:
            content = self.settings_path.read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.path} is not a run: it has no run.json. Give a folder that "
                "spectra.Recorder, `spectra train` or `spectra analyze --out` wrote."
            ) from error
        try:
            settings = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{self.settings_path} is not valid JSON ({error}).") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{self.settings_path} must hold a JSON object.")
        version = settings.get("format", 0)
        if not isinstance(version, int | float) or version > FORMAT:
            raise ValueError(
                f"{self.settings_path} has format {version!r}, this version reads up to "
                f"{FORMAT}. Upgrade spectra-svd."
            )
        return settings

    def update_settings(self, **changes: Any) -> dict[str, Any]:
        """Merge `changes` into ``run.json``, creating it with versions and time if missing.

        Returns
        -------
        dict
            The settings as now stored.
        """
        settings = self.read_settings() if self.exists() else _new_settings()
        settings.update(changes)
        with whole_file(self.settings_path) as temporary:
            text = json.dumps(settings, indent=2, ensure_ascii=False, default=str)
            temporary.write_text(text + "\n", encoding="utf-8")
        return settings

    @property
    def method(self) -> str:
        """The fine-tuning method, ``"unknown"`` where nobody said."""
        return str(self.read_settings().get("method", "unknown"))

    @property
    def state(self) -> str:
        """``"growing"`` while a process works on it, else ``"finished"`` or ``"interrupted"``."""
        if any(self.is_locked(work) for work in WORKS):
            return "growing"
        done = self.read_settings().get("state") == "finished"
        return "finished" if done else "interrupted"

    @contextmanager
    def lock(self, work: str) -> Iterator[FileLock]:
        """Be the only process that does this work on the run, within a block.

        Parameters and errors as of `take_lock`.
        """
        held = self.take_lock(work)
        try:
            yield held
        finally:
            held.release()

    def take_lock(self, work: str) -> FileLock:
        """Become the only process that does this work on the run, until the lock is released.

        The lock goes with the process, so a killed one leaves none behind; a forked child does
        not have it.

        Parameters
        ----------
        work : str
            One of `WORKS`.

        Raises
        ------
        RuntimeError
            If another process, or another part of this one, is at it.
        OSError
            If the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        held = FileLock(self._lock_path(work))
        if not held.acquire():
            raise RuntimeError(
                f"The {work} of {self.path} is under way in another process. Wait for it, or "
                "use another folder."
            )
        return held

    def is_locked(self, work: str) -> bool:
        """Whether a process is at this work, one of `WORKS`."""
        return is_locked(self._lock_path(work))

    @property
    def is_recorded(self) -> bool:
        """Whether the recording is over: it said so, or its process is there no more."""
        try:
            if self.read_settings().get("state") == "finished":
                return True
        except (OSError, ValueError):
            if not self._lock_path("recording").exists():
                return False  # not begun
        # Without locks, one that was killed cannot be told from one that is at work.
        return not self.is_locked("recording") and sys.platform != "win32"

    def remove_leftovers(self) -> None:
        """Delete unfinished files that a killed process left behind an hour ago or more."""
        for folder in (self.path, self.snapshots_path, self.drift.folder, self.spectrum.folder):
            remove_leftovers(folder, time.time() - _LEFTOVER_SECONDS)

    def _lock_path(self, work: str) -> Path:
        return self.path / f".{work}.lock"

    # Attempts

    def earlier_attempts(self) -> list[Attempt]:
        """Return the attempts of which a later one recorded something again, oldest first.

        Raises
        ------
        FileNotFoundError
            If the folder is not a run.
        """
        return earlier_attempts(self)

    def restore_attempt(self, number: int, out: Path | str) -> Run:
        """Make a run of its own of an earlier attempt, as it was when the next one began.

        The new run has the base, the snapshots and the training rows; its drift is for
        `spectra.analyze` to compute. Snapshots are hard links where the file system has them, so
        this takes no space.

        Parameters
        ----------
        number : int
            Which attempt; see `earlier_attempts`.
        out : Path or str
            A new folder.

        Raises
        ------
        ValueError
            If there is no such attempt.
        FileExistsError
            If `out` exists.
        """
        return restore_attempt(self, number, Path(out))

    # Tables

    def read_drift(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Return the drift rows; `run` is the folder's present name, so a moved run still fits.

        Raises
        ------
        FileNotFoundError
            If the folder is not a run.
        OSError
            If a part cannot be read.
        """
        self.read_settings()
        return self._named(self.drift.read(columns))

    def read_spectrum(
        self,
        step: int | None = None,
        *,
        steps: Collection[int] | None = None,
        modules: Collection[str] | None = None,
        layers: Collection[int] | None = None,
        columns: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Return the arrays behind the drift rows; what is not asked for is not read.

        Parameters
        ----------
        step : int, optional
            One step.
        steps, modules, layers : collection, optional
            Only rows of these; all by default.
        columns : collection of str, optional
            Read only these, and the keys; all by default. See
            `spectra.store.SPECTRUM_ARRAYS`. Arrays that an earlier version of Spectra did not
            compute are None.

        Raises
        ------
        FileNotFoundError
            If the folder is not a run.
        OSError
            If a part cannot be read.
        """
        self.read_settings()
        if step is not None:
            steps = {step} if steps is None else {step} & set(steps)
        chosen = {"step": steps, "module": modules, "layer": layers}
        where = {name: values for name, values in chosen.items() if values is not None}
        return self._named(self.spectrum.read(columns, where or None))

    def read_training(self) -> pd.DataFrame:
        """Return one row a recorded step, with `run` and `method`; empty if none was recorded."""
        frame = read_training(self.training_path, TRAINING)
        frame.insert(0, "method", self.method)
        return self._named(frame)

    def write_training(self, rows: list[dict[str, Any]] | Mapping[str, Any]) -> None:
        """Replace ``training.parquet`` by `rows`, or columns of them, whole or not at all."""
        write_training(self.training_path, rows, TRAINING)

    def update_training(self, step: int, **values: float) -> None:
        """Set values of one step in ``training.parquet``; all else in it stays as it is.

        Hold the lock of the recording meanwhile: who records has the rows in memory.

        Raises
        ------
        OSError
            If the table cannot be read or written; it is then as it was.
        """
        frame = read_training(self.training_path, TRAINING).set_index("step")
        for name, value in values.items():
            frame.loc[step, name] = value
        rows = frame.sort_index().reset_index()
        self.write_training({str(name): column for name, column in rows.items()})

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.drop(columns="run", errors="ignore")
        frame.insert(0, "run", self.name)
        return frame


def find_runs(root: Path | str) -> list[Run]:
    """Return the runs in `root` and below it, by path; `root` itself may be one.

    Raises
    ------
    FileNotFoundError
        If `root` does not exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder. Give the one that holds your runs.")
    return [Run(p.parent) for p in sorted(root.rglob("run.json")) if p.is_file()]


def expand_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Return the runs that `paths` name: a run itself, or all runs below a folder.

    Raises
    ------
    FileNotFoundError
        If a path is neither a run nor a folder that has one below it.
    """
    runs = []
    for path in paths:
        found = [Run(path)] if Run(path).exists() else find_runs(path)
        if not found:
            Run(path).read_settings()  # says what a run is
        runs += found
    return runs


def read_runs(runs: Sequence[Run], table: str) -> pd.DataFrame:
    """Return the rows of several runs, each under a name of its own.

    Parameters
    ----------
    runs : sequence of Run
        Runs of the same name are told apart by the folders above them.
    table : {"drift", "training"}
        Which rows.

    Raises
    ------
    FileNotFoundError
        If one is not a run.
    OSError
        If one cannot be read.
    """
    frames = []
    for run, name in zip(runs, run_names(runs), strict=True):
        frame = run.read_drift() if table == "drift" else run.read_training()
        frames.append(frame.assign(run=name))
    return pd.concat(frames, ignore_index=True)


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: its folder's, with the folders above it where two share it."""
    paths = [run.path.resolve() for run in runs]
    twins: dict[str, set[Path]] = {}
    for path in paths:
        twins.setdefault(path.name, set()).add(path)
    # Of the folders above, since one run may lie within another of its name.
    shared = {n: os.path.commonpath([p.parent for p in of_name]) for n, of_name in twins.items()}
    return [
        path.relative_to(shared[path.name]).as_posix() if len(twins[path.name]) > 1 else path.name
        for path in paths
    ]


def software_versions() -> dict[str, str]:
    """Return the versions that decide the numbers: ours, Python's and the libraries'."""
    versions = {"python": platform.python_version(), "spectra": _version("spectra-svd")}
    return versions | {name: v for name in _VERSIONED if (v := _version(name)) != "absent"}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def _new_settings() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": software_versions(),
    }
