"""Remote files by byte ranges, through fsspec: ``s3://``, ``gs://``, ``hf://``, ``http://``."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from checkpoints_index.byte_files import too_short
from checkpoints_index.errors import CheckpointError

_LOG = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a reading is tried before it counts as failed."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""
# A connection over which nothing comes for this long counts as dropped.
_SILENCE = 30.0
# HTTP answers after which another attempt may help, beside all from 500.
_TRANSIENT = {408, 425, 429}
_NOT_THERE = {404, 410}
# What a store that can say says of a file's content, in the order of its worth.
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "blob_id", "Content-MD5"),
    *("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created"),
)

_Result = TypeVar("_Result")
_counted: Counter[str] = Counter()
_counting = threading.Lock()
_listening: ContextVar[Counter[str] | None] = ContextVar("_listening", default=None)


def open_path(address: str | Path) -> Path:
    """Return where files lie: a `Path` of this machine, or a remote `UPath` that walks alike.

    Parameters
    ----------
    address : str or Path
        A path, or an address with a scheme, such as ``s3://bucket/run``.

    Raises
    ------
    CheckpointError
        If the library for this kind of address is not installed.
    """
    if not isinstance(address, str) or "://" not in address:
        return Path(address) if isinstance(address, str) else address
    scheme = address.split("://", 1)[0]
    try:
        from upath import UPath

        path = UPath(address, **_options(scheme))
        _ = path.fs
    except (ImportError, ValueError) as error:
        raise CheckpointError(
            f"{address} cannot be opened ({error}). Remote addresses need "
            '`pip install ".[remote]"` and fsspec\'s library for the scheme: s3fs, '
            "gcsfs, adlfs or huggingface_hub."
        ) from error
    return path


def _options(scheme: str) -> dict[str, Any]:
    if scheme not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    return {"client_kwargs": {"timeout": timeout}}


def bytes_read(address: Path | str = "") -> int:
    """Return how many bytes came from remote files whose address begins with `address`."""
    beginning = str(address)
    with _counting:
        return sum(n for file, n in _counted.items() if file.startswith(beginning))


def add_bytes_read(counts: Mapping[str, int]) -> None:
    """Count bytes of remote files by their addresses, such as another process has read."""
    heard = _listening.get()
    with _counting:
        for counter in (_counted, *([] if heard is None else [heard])):
            counter.update(counts)


@contextmanager
def counting_bytes() -> Iterator[Counter[str]]:
    """Count what this thread reads of remote files within a block, by their addresses."""
    heard: Counter[str] = Counter()
    token = _listening.set(heard)
    try:
        yield heard
    finally:
        _listening.reset(token)


@dataclass(frozen=True)
class RemoteFolder:
    """What a remote folder holds.

    Attributes
    ----------
    path : UPath
        Where it is.
    files : dict of str to str
        Names of its files, each with its size and whatever else tells that it has changed.
    folders : tuple of str
        Names of the folders in it.
    """

    path: Any
    files: dict[str, str]
    folders: tuple[str, ...]


def list_folder(folder: Any) -> RemoteFolder:
    """List a remote folder as it is now; raises `CheckpointError` where that is impossible."""

    def listed() -> list[dict[str, Any]]:
        # What was listed before may have grown.
        folder.fs.invalidate_cache(folder.path)
        return folder.fs.ls(folder.path, detail=True)

    files: dict[str, str] = {}
    folders = []
    for entry in retried(listed, folder):
        address = str(entry["name"]).rstrip("/")
        # Some stores list the folder itself, as a file without content.
        if address == str(folder.path).rstrip("/"):
            continue
        name = address.rsplit("/", 1)[-1]
        if entry.get("type") == "directory":
            folders.append(name)
        else:
            files[name] = f"{entry.get('size')}:{_version(entry)}"
    return RemoteFolder(folder, files, tuple(sorted(folders)))


def _version(status: Mapping[str, Any]) -> str:
    return next((str(status[key]) for key in _VERSIONS if status.get(key)), "")


class RemoteFile:
    """A remote file, read by byte ranges and nothing beside them.

    Parameters
    ----------
    path : UPath
        Its address.

    Raises
    ------
    CheckpointError
        If it does not exist, or the store does not tell its size.
    """

    def __init__(self, path: Any) -> None:
        self.path = path
        status = retried(lambda: path.fs.info(path.path), path)
        if status.get("type") == "directory" or not isinstance(status.get("size"), int):
            raise CheckpointError(f"{path} must be a file of known size, got {status!r:.300}.")
        if status.get("partial") is False:
            raise _without_ranges(path)
        self.size: int = status["size"]
        self.fingerprint = f"{path.name}:{self.size}:{_version(status)}"

    def read(self, offset: int, length: int) -> bytearray:
        """Read exactly `length` bytes."""
        if offset + length > self.size:
            raise too_short(self.path)
        if not length:
            return bytearray()
        return bytearray(retried(lambda: self._range(offset, length), self.path))

    def map(self, offset: int, length: int) -> memoryview:
        """Read `length` bytes into a buffer of their own."""
        return memoryview(self.read(offset, length))

    def _range(self, offset: int, length: int) -> bytes:
        store = self.path.fs
        # Stores that work with blocking files would read megabytes ahead.
        options = {} if getattr(store, "async_impl", False) else {"cache_type": "none"}
        content = store.cat_file(self.path.path, start=offset, end=offset + length, **options)
        add_bytes_read({str(self.path): len(content)})
        if length < len(content) == self.size:
            raise _without_ranges(self.path)
        if len(content) != length:
            raise OSError(f"asked for {length} bytes at {offset}, got {len(content)}")
        return content


def _without_ranges(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is on a server that gives no byte ranges. Download the checkpoint first."
    )


def retried(call: Callable[[], _Result], path: Path) -> _Result:
    """Return what `call` gives, tried again with growing pauses where a connection fails.

    Raises
    ------
    CheckpointError
        If it does not exist, may not be read, or every attempt failed; the message names `path`.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except CheckpointError:
            raise
        # Every store's library has exceptions of its own, often below none of Python's.
        except Exception as error:
            # fsspec says of a server that fails, too, that the file is not there.
            status = getattr(error.__cause__ or error, "status", None)
            if isinstance(error, FileNotFoundError) and (
                error.__cause__ is None or status in _NOT_THERE
            ):
                raise CheckpointError(f"{path} does not exist.") from error
            final = isinstance(error, PermissionError | ImportError | TypeError) or (
                isinstance(status, int) and 400 <= status < 500 and status not in _TRANSIENT
            )
            if final or attempt == ATTEMPTS - 1:
                tries = "" if final else f" in {ATTEMPTS} attempts"
                raise CheckpointError(
                    f"{path} cannot be read{tries} ({type(error).__name__}: {error!s:.300}). "
                    "Check the address, the network and your access, then start again."
                ) from error
            pause = FIRST_PAUSE * 2**attempt
            _LOG.warning("%s: %s; trying again in %.1f s", path, error, pause)
            time.sleep(pause)
    raise AssertionError("the loop returns or raises")
