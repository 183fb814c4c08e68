"""Files as runs of bytes, local or remote, of which only what is asked for is read."""

from __future__ import annotations

import io
import json
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Protocol

import torch
from torch import Tensor

from checkpoints_index.errors import CheckpointError, IncompleteCheckpointError

# Far above any configuration or index of shards (the largest known, of 163 shards, has 8 MiB).
_MAX_JSON = 64 * 2**20
_WEIGHT_SUFFIXES = {".bin", ".ckpt", ".gguf", ".pt", ".pth", ".safetensors"}


class ByteFile(Protocol):
    """One file whose size is known and whose bytes are read by position."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def size(self) -> int:
        """In bytes, when it was opened."""
        ...

    @property
    def fingerprint(self) -> str:
        """Name, size and time of change, or what a remote store has in its place."""
        ...

    def read(self, offset: int, length: int) -> bytearray:
        """Read exactly `length` bytes; raises `CheckpointError` where that is impossible."""
        ...

    def map(self, offset: int, length: int) -> memoryview:
        """Return a writable buffer of `length` > 0 bytes: a private map of a local file."""
        ...


def open_bytes(path: Path) -> ByteFile:
    """Open a file, local (`Path`) or remote (`UPath`).

    Raises
    ------
    CheckpointError
        If it does not exist or is no regular file.
    """
    if not is_remote(path):
        return LocalFile(path)
    # Imported here: what is local needs no fsspec.
    from checkpoints_index.remote import RemoteFile

    return RemoteFile(path)


def too_short(path: Path) -> IncompleteCheckpointError:
    """Return the error of a file that ends before what it says that it holds."""
    return IncompleteCheckpointError(
        f"{path} is shorter than it says itself: it is still being written, or was cut short."
    )


def is_file(path: Path) -> bool:
    """Whether a path is a file's, not a folder's.

    A remote store may take any address for a file's: what it is called decides.
    """
    return path.suffix in _WEIGHT_SUFFIXES if is_remote(path) else path.is_file()


def name_of(folder: Path) -> str:
    """Return what a folder is called; of a bare address, the host."""
    if not is_remote(folder):
        return folder.resolve().name
    return str(folder).rstrip("/").rpartition("/")[2]


def has_file(path: Path) -> bool:
    """Whether there is a file; raises `CheckpointError` where a remote store does not answer."""
    if not is_remote(path):
        return path.is_file()
    try:
        open_bytes(path)
    except CheckpointError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    return True


def names_in(folder: Path) -> set[str]:
    """Return the names of what a folder holds, local or remote.

    Raises
    ------
    CheckpointError
        If it cannot be listed.
    """
    if is_remote(folder):
        from checkpoints_index.remote import list_folder

        listed = list_folder(folder)
        return {*listed.files, *listed.folders}
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed ({error}).") from error


def is_remote(path: Any) -> bool:
    """Whether a path is a remote one: a `UPath`, which is no path of this machine's."""
    return not isinstance(path, PurePath)


class LocalFile:
    """A file of this machine.

    It is opened anew for each reading, so that thousands may be known at a time; one whose size
    has changed since is refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist.") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}).") from error
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} must be a file, but is something else.")
        self.size = status.st_size
        self.fingerprint = f"{path.name}:{status.st_size}:{status.st_mtime_ns}"

    def read(self, offset: int, length: int) -> bytearray:
        """Read exactly `length` bytes."""
        if offset + length > self.size:
            raise too_short(self.path)
        content = bytearray(length)
        with self._opened() as file:
            file.seek(offset)
            filled = 0
            while filled < length:
                taken = file.readinto(memoryview(content)[filled:])
                if not taken:
                    raise too_short(self.path)
                filled += taken
        return content

    def map(self, offset: int, length: int) -> memoryview:
        """Map `length` bytes, privately: what is written into the buffer never reaches the file.

        Only these bytes are mapped: the kernel refuses private maps larger than the machine's
        memory.
        """
        before = offset % mmap.ALLOCATIONGRANULARITY
        with self._opened() as file:
            mapped = mmap.mmap(
                file.fileno(), before + length, access=mmap.ACCESS_COPY, offset=offset - before
            )
        return memoryview(mapped)[before:]

    @contextmanager
    def _opened(self) -> Iterator[io.FileIO]:
        try:
            with io.FileIO(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                if size != self.size:
                    raise CheckpointError(
                        f"{self.path} had {self.size} bytes when it was found and has {size} now. "
                        "Wait until it is written, then start again."
                    )
                yield file
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} cannot be read ({error}).") from error


def read_tensor(file: ByteFile, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Read numbers that lie one after the other in a file.

    Returns
    -------
    Tensor
        On a private map of a local file: writing into it changes nothing on disk.
    """
    size = dtype.itemsize
    for length in shape:
        size *= length
    if not size:
        return torch.empty(shape, dtype=dtype)
    # Numbers at odd addresses are slow, and not allowed on every machine.
    aligned = offset % dtype.itemsize == 0
    buffer = file.map(offset, size) if aligned else file.read(offset, size)
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


def row_run(shape: tuple[int, ...], rows: slice | None) -> tuple[int, int]:
    """Return (start, stop) of a run of rows; all of them for ``None``.

    Raises
    ------
    ValueError
        If the tensor has no rows, or the slice has a step.
    """
    if rows is None:
        return (0, shape[0] if shape else 1)
    if not shape or rows.step not in (None, 1):
        raise ValueError(f"rows must be a run along the first dimension, got {rows} of {shape}.")
    start, stop, _ = rows.indices(shape[0])
    return start, max(start, stop)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, by a name that another file gives.

    Raises
    ------
    CheckpointError
        If the name is a path out of the folder, or a symbolic link leads out of it. Links within
        one model of the hub's cache (from ``snapshots`` to ``blobs``) are how that cache is built.
    """
    if name != PurePath(name).name or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise CheckpointError(
            f"{folder}: a weight file must lie in the folder itself, got the name {name[:200]!r}."
        )
    path = folder / name
    if not is_remote(path):
        try:
            if path.is_symlink():
                _refuse_stray_link(folder, path)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path!s:.500} cannot be read ({error}).") from error
    return path


def _refuse_stray_link(folder: Path, path: Path) -> None:
    target, home = path.resolve(), folder.resolve()
    cache = next((p for p in [home, *home.parents] if p.name.startswith("models--")), None)
    if not any(target.is_relative_to(root) for root in (home, cache) if root is not None):
        raise CheckpointError(
            f"{path} is a symbolic link out of its folder, to {target}. Copy the file, or give the "
            "folder that holds it."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    CheckpointError
        If the file is missing, unreasonably large, or holds no JSON object.
    """
    file = open_bytes(path)
    if file.size > _MAX_JSON:
        raise CheckpointError(f"{path} must be JSON of at most 64 MiB, but has {file.size} bytes.")
    return parse_json(file.read(0, file.size), path)


def parse_json(content: bytes | bytearray, path: Path) -> dict[str, Any]:
    """Parse a JSON object in which no key stands twice.

    Raises
    ------
    CheckpointError
        If it is none; the message names `path`.
    """
    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return parsed


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:200]!r} stands twice")
    return found
