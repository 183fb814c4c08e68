"""A sweep's folder: ``sweep.json`` and beside it the runs, a folder each.

The file says what was asked for and has a row a run: what varies, its settings, its state, its
seconds. Several processes may work on one sweep; each changes its own runs' rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spectra.store.files import whole_file
from spectra.store.locks import FileLock
from spectra.store.run import FORMAT, Run

STATES = ("waiting", "running", "interrupted", "failed", "done")
"""Of a run in a sweep; one that is neither begun nor over waits."""

_PAUSE_SECONDS = 0.01


@dataclass(frozen=True)
class SweepRun:
    """A run's row in ``sweep.json``.

    Attributes
    ----------
    name : str
        Of its folder in the sweep's.
    method : str
    seed : int
    varies : mapping
        What else the sweep varies, as far as it means something to the method: by field.
    settings : mapping
        All of its settings, resolved.
    state : str
        One of `STATES`.
    seconds : float, optional
        That training and analysis took, without what was done before an interruption.
    error : str, optional
        Why it failed, in a line.
    """

    name: str
    method: str
    seed: int
    varies: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    state: str = "waiting"
    seconds: float | None = None
    error: str | None = None

    def described(self) -> dict[str, Any]:
        """Return method, seed and what varies as the cells of a table."""
        varies = {k: "+".join(v) if isinstance(v, list) else v for k, v in self.varies.items()}
        return {"method": self.method, "seed": self.seed} | varies


class Sweep:
    """Runs of several methods, seeds and settings that belong together: a folder.

    Parameters
    ----------
    path : Path or str
        The folder; it need not exist yet (see `plan`).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def file_path(self) -> Path:
        """``sweep.json``."""
        return self.path / "sweep.json"

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    def run(self, name: str) -> Run:
        """Return one of its runs."""
        return Run(self.path / name)

    def exists(self) -> bool:
        """Whether the folder is a sweep."""
        return self.file_path.is_file()

    def read(self) -> dict[str, Any]:
        """Return ``sweep.json``.

        Raises
        ------
        FileNotFoundError
            If the folder is not a sweep.
        ValueError
            If the file is damaged or of a newer format.
        """
        try:
            stored = json.loads(self.file_path.read_bytes())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.path} is not a sweep: it has no sweep.json. Give a folder that "
                "`spectra sweep` wrote."
            ) from error
        except ValueError as error:
            raise ValueError(f"{self.file_path} is not valid JSON ({error}).") from error
        if not isinstance(stored, dict) or not isinstance(stored.get("runs"), list):
            raise ValueError(f"{self.file_path} must hold a JSON object with a list of runs.")
        version = stored.get("format", 0)
        if not isinstance(version, int | float) or version > FORMAT:
            raise ValueError(
                f"{self.file_path} has format {version!r}, this version reads up to {FORMAT}. "
                "Upgrade spectra-svd."
            )
        return stored

    def runs(self) -> list[SweepRun]:
        """Return its runs, in the order in which they are trained.

        A run whose process was killed is ``"interrupted"``.

        Raises
        ------
        FileNotFoundError, ValueError
            As `read`; also where a run's row lacks something.
        """
        try:
            rows = [SweepRun(**row) for row in self.read()["runs"]]
        except TypeError as error:
            raise ValueError(
                f"{self.file_path} has a run that cannot be read ({error})."
            ) from error
        return [
            replace(row, state="interrupted")
            if row.state == "running" and not self.run(row.name).is_locked("sweep")
            else row
            for row in rows
        ]

    def plan(self, asked: Mapping[str, Any], runs: Sequence[SweepRun]) -> None:
        """Write down what is asked for; what is known of runs that are there already is kept.

        Parameters
        ----------
        asked : mapping
            What the user wrote.
        runs : sequence of SweepRun
            The runs that it stands for. Those of before, which it does not, stay listed if they
            have been begun.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._changing():
            known = {row["name"]: row for row in self.read()["runs"]} if self.exists() else {}
            wanted = [
                asdict(run) | {k: known[run.name].get(k) for k in ("state", "seconds", "error")}
                if run.name in known
                else asdict(run)
                for run in runs
            ]
            names = {run.name for run in runs}
            others = [row for n, row in known.items() if n not in names and self.run(n).exists()]
            self._write({"asked": dict(asked), "runs": [*wanted, *others]})

    def update(self, name: str, **changes: Any) -> None:
        """Change a run's row.

        Raises
        ------
        FileNotFoundError, ValueError
            As `read`.
        OSError
            If the file cannot be written.
        """
        with self._changing():
            stored = self.read()
            for row in stored["runs"]:
                if row["name"] == name:
                    row.update(changes)
            self._write(stored)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Be the only process that changes the file; the others are done in a moment."""
        lock = FileLock(self.path / ".sweep.lock")
        while not lock.acquire():
            time.sleep(_PAUSE_SECONDS)
        try:
            yield
        finally:
            lock.release()

    def _write(self, content: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with whole_file(self.file_path) as temporary:
            text = json.dumps(
                {"format": FORMAT, "changed": now} | dict(content) | {"changed": now},
                indent=2,
                ensure_ascii=False,
                default=str,
            )
            temporary.write_text(text + "\n", encoding="utf-8")


def find_sweeps(root: Path | str) -> list[Sweep]:
    """Return the sweeps in `root` and below it, by path; `root` itself may be one."""
    return [Sweep(p.parent) for p in sorted(Path(root).rglob("sweep.json")) if p.is_file()]
