"""A run's folder: what lies where, and `run.json`."""

from __future__ import annotations

import json
import platform
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from spectra.store.files import whole_file
from spectra.store.schema import DRIFT, SPECTRUM, TRAINING
from spectra.store.tables import PartTable, read_training, write_training

FORMAT = 1
"""Version of the folder's layout; a newer one is refused, an older one is read."""

# A recorder or an analysis touches its run at least this often while it works.
_SILENCE_SECONDS = 120.0
_VERSIONED = ("torch", "numpy", "scipy", "transformers", "peft", "safetensors")


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
        """``"finished"``, ``"growing"`` (written to within two minutes) or ``"interrupted"``."""
        if self.read_settings().get("state") == "finished":
            return "finished"
        newest = max((_modified(p) for p in self._living_parts()), default=0.0)
        return "growing" if time.time() - newest < _SILENCE_SECONDS else "interrupted"

    # Tables

    def read_drift(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Return the drift rows; `run` is the folder's present name, so a moved run still fits."""
        return self._named(self.drift.read(columns))

    def read_spectrum(self, step: int | None = None) -> pd.DataFrame:
        """Return the per-index arrays, of one step or of all."""
        filters = None if step is None else [("step", "=", step)]
        return self._named(self.spectrum.read(filters=filters))

    def read_training(self) -> pd.DataFrame:
        """Return one row a recorded step, with `run` and `method`; empty if none was recorded."""
        frame = read_training(self.training_path, TRAINING)
        frame.insert(0, "method", self.method)
        return self._named(frame)

    def write_training(self, rows: list[dict[str, Any]]) -> None:
        """Replace ``training.parquet`` by `rows`, whole or not at all."""
        write_training(self.training_path, rows, TRAINING)

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.drop(columns="run", errors="ignore")
        frame.insert(0, "run", self.name)
        return frame

    def _living_parts(self) -> list[Path]:
        return [
            self.settings_path,
            self.training_path,
            self.snapshots_path,
            self.drift.folder,
        ]


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


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
