"""The index on disk: what was found and read below a folder, to be refreshed by what changed.

One JSON file a folder, in the user's cache, as the folder itself may be read-only. Nothing here can
fail a search: a file that is missing, damaged or of another version is no file, and what cannot be
written is not kept. Matrices, which the steps of a training share, are written once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from checkpoints_index.formats import READERS, SNAPSHOTS_RUN
from checkpoints_index.matrices import Matrix
from checkpoints_index.readers import Candidate
from checkpoints_index.walking import Details, Folder, Found, Stamp

logger = logging.getLogger(__name__)

FORMAT = 3
"""Version of the file: another one is not read but made anew."""

# Indices of folders that nobody looked at for so long are deleted.
_KEPT_SECONDS = 90 * 24 * 3600.0
_PREFIX = ".index-tmp-"

T = TypeVar("T")

# What reading a file that is no index of ours raises.
_DAMAGE = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


class IndexStore:
    """Indices kept in a folder.

    Parameters
    ----------
    folder : Path or str, optional
        Created when first written to. By default ``checkpoints_index`` in the user's cache.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder) if folder is not None else _default_folder()

    def file(self, root: Path) -> Path:
        """Return where the index of `root` is kept."""
        digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
        return self.folder / f"{digest[:32]}.json"

    def read(self, root: Path) -> dict[str, Folder]:
        """Return what is known of `root` and the folders below it, which may be nothing."""
        try:
            content = json.loads(self.file(root).read_bytes())
            if content["format"] != _version() or content["root"] != str(root.resolve()):
                return {}
            groups = [tuple(map(_matrix, group)) for group in content["matrices"]]
            return {
                _relative(relative): _folder(root, relative, folder, groups)
                for relative, folder in content["folders"].items()
            }
        except FileNotFoundError:
            return {}
        except _DAMAGE as error:
            logger.info("The kept index of %s is made anew (%r).", root, error)
            return {}

    def write(self, root: Path, folders: Mapping[str, Folder]) -> None:
        """Keep what is known of `root`, whole or not at all."""
        groups: dict[tuple[Matrix, ...], int] = {}
        described = {path: _written(f, groups) for path, f in folders.items()}
        content = {
            "format": _version(),
            "root": str(root.resolve()),
            "matrices": [[_row(matrix) for matrix in group] for group in groups],
            "folders": described,
        }
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=_PREFIX, dir=self.folder)
            with open(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(content, separators=(",", ":")))
            os.replace(temporary, self.file(root))
            self._forget_old()
        # A name that is no text cannot be written as such.
        except (OSError, ValueError) as error:
            logger.info("The index of %s is not kept: %s", root, error)
            if temporary is not None:
                with suppress(OSError):
                    os.unlink(temporary)

    def _forget_old(self) -> None:
        for file in self.folder.iterdir():
            if file.suffix == ".json" or file.name.startswith(_PREFIX):
                with suppress(OSError):
                    if file.stat().st_mtime < time.time() - _KEPT_SECONDS:
                        file.unlink()


class IndexInMemory(IndexStore):
    """The index of one folder, kept by who looks at it again and again."""

    def __init__(self) -> None:
        self.folders: dict[str, Folder] = {}

    def read(self, root: Path) -> dict[str, Folder]:
        """Return what is known."""
        return self.folders

    def write(self, root: Path, folders: Mapping[str, Folder]) -> None:
        """Keep what is known."""
        self.folders = dict(folders)


def _default_folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME", "")
    try:
        parent = Path(caches) if Path(caches).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # a user without a home: a folder that cannot be written
        parent = Path(os.devnull)
    return parent / "checkpoints_index"


def _version() -> list[Any]:
    """Version of the file, and the formats that were looked for."""
    return [FORMAT, *(reader.format for reader in READERS)]


# From what is known to JSON.


def _written(folder: Folder, groups: dict[Any, int]) -> list[Any]:
    found = [
        [
            f.candidate.path.name if f.is_file else None,
            f.candidate.format,
            f.candidate.files,
            f.stamps,
            f.details.method,
            f.details.base,
            groups.setdefault(f.details.matrices, len(groups)),
        ]
        for f in folder.found
        if f.details is not None
    ]
    # Where something could not be read, the folder is to be looked at again.
    mtime_ns = folder.mtime_ns if len(found) == len(folder.found) else 0
    return [mtime_ns, folder.folders, folder.notes, folder.state, folder.step, found]


def _row(matrix: Matrix) -> list[Any]:
    shape = list(matrix.shape)
    return [matrix.name, matrix.layer, matrix.module, shape, matrix.dtype, matrix.rank]


# From JSON, of which nothing is believed: a name leads nowhere but into the folder it stands in.


def _folder(root: Path, relative: str, content: list[Any], groups: list[Any]) -> Folder:
    path = root / relative if relative else root
    mtime_ns, folders, notes, state, step, found = content
    return Folder(
        _is(int, mtime_ns),
        tuple(map(_plain, folders)),
        tuple(_is(str, note) for note in notes),
        _stamp(state),
        None if step is None else _is(int, step),
        tuple(_found(path, f, groups) for f in found),
    )


def _found(path: Path, content: list[Any], groups: list[Any]) -> Found:
    name, form, files, stamps, method, base, group = content
    candidate = Candidate(
        path if name is None else path / _plain(name),
        _is(str, form),
        tuple(name if name == SNAPSHOTS_RUN else _plain(name) for name in files),
    )
    if len(stamps) != len(files):
        raise ValueError("a file without a stamp")
    named = None if base is None else _is(str, base)
    details = Details(_is(str, method), named, groups[_is(int, group)])
    return Found(candidate, tuple(map(_stamp, stamps)), name is not None, details)


def _matrix(row: list[Any]) -> Matrix:
    name, layer, module, (m, n), dtype, rank = row
    return Matrix(
        _is(str, name),
        _is(int, layer),
        _is(str, module),
        (_is(int, m), _is(int, n)),
        _is(str, dtype),
        None if rank is None else _is(int, rank),
    )


def _stamp(content: list[Any]) -> Stamp:
    size, mtime_ns = content
    return _is(int, size), _is(int, mtime_ns)


def _relative(path: str) -> str:
    return "/".join(map(_plain, path.split("/"))) if path else ""


def _plain(name: Any) -> str:
    if _is(str, name) in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file")
    return name


def _is(kind: type[T], value: Any) -> T:
    if type(value) is not kind:  # a bool is no number here
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
