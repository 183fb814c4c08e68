"""Decompositions of bases on disk, by content: one base is decomposed once on a machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from safetensors import SafetensorError
from torch import Tensor

from spectra.analysis.cache_entries import (
    DAMAGE,
    HEADER,
    fits,
    has_norm_of,
    is_descending,
    is_noise,
    noise_entry,
    raw_bytes,
    read_decomposition,
    read_noise,
    read_values,
    write_tensors,
)
from spectra.cache_folder import cache_folder
from spectra.linalg import SOLVER_VERSION, Decomposition
from spectra.store.files import remove_leftovers, whole_file

if sys.platform != "win32":  # there, two processes may compute the same thing
    import fcntl

logger = logging.getLogger(__name__)

DEFAULT_GIB = 32.0
"""Bound on the folder's size; a 4096×4096 base takes a quarter of a GiB."""

# Unfinished files this old belong to a process that was killed.
_LEFTOVER_SECONDS = 3600.0

_ENTRY = re.compile(r"([0-9a-f]{64})\.(\d+)x(\d+)\.(svd|values|noise-\w+)\.(safetensors|json)")
_LOCK = ".lock"

_told: set[str] = set()

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One file of the cache.

    Attributes
    ----------
    path : Path
        Where it is.
    key : str
        `BaseCache.key` of the base.
    kind : str
        ``"svd"``, ``"values"`` or ``"noise-<precision>"``.
    shape : tuple of int
        Of the base.
    size : int
        In bytes.
    used : float
        When it was last read or written, in seconds since the epoch.
    """

    path: Path
    key: str
    kind: str
    shape: tuple[int, int]
    size: int
    used: float


class BaseCache:
    """U_0, S_0, V_0ᵀ of bases, and the noise of rounding them, kept in a folder.

    A base is known by its bytes, wherever it came from. Nothing here can fail an analysis: what
    cannot be read is computed again, what cannot be written is not kept, and either is logged.
    Nothing in the folder is ever executed. Any number of processes may share it; an instance can
    be sent to another process.

    Parameters
    ----------
    folder : Path or str, optional
        ``$SPECTRA_CACHE``, else ``$XDG_CACHE_HOME/spectra``, else ``~/.cache/spectra``. Created
        when first written to.
    max_bytes : int, optional
        Bound on its size; what was not used for longest is deleted first. 0 switches the cache
        off. By default ``$SPECTRA_CACHE_GIB`` times 2³⁰, else `DEFAULT_GIB`.

    Raises
    ------
    ValueError
        If the bound is negative or ``SPECTRA_CACHE_GIB`` is no number.

    Notes
    -----
    A decomposition is read by mapping its file into memory, which costs processes that use the
    same base no memory of their own. It is used only if its bytes are those that were written
    (a checksum) and it is the decomposition of this W_0 (a random vector gives the same product
    with both, and comes back from U_0ᵀU_0 and V_0ᵀV_0). Measured at 4096×4096, bfloat16, one
    thread: 0.16 s, where computing takes 10 s or more.
    """

    def __init__(self, folder: Path | str | None = None, max_bytes: int | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder()
        self.max_bytes = max_bytes if max_bytes is not None else _default_bytes()
        if self.max_bytes < 0:
            raise ValueError(f"max_bytes must be at least 0, got {self.max_bytes}.")

    def key(self, w_0: Tensor) -> str:
        """Digest of the stored numbers of W_0, of their type and of this version's solvers.

        Parameters
        ----------
        w_0 : Tensor, any dtype, any device
            As it was stored: the same numbers in another dtype are another key.

        Returns
        -------
        str
            64 hexadecimal digits.
        """
        kind = f"{SOLVER_VERSION}|{str(w_0.dtype).removeprefix('torch.')}|{tuple(w_0.shape)}|"
        digest = hashlib.sha256(kind.encode())
        digest.update(raw_bytes(w_0.detach().cpu().contiguous()))
        return digest.hexdigest()

    def decomposition(self, w_0: Tensor, compute: Callable[[], Decomposition]) -> Decomposition:
        """U_0, S_0, V_0ᵀ of W_0: the kept ones, or else those that `compute` gives.

        While one process computes, others that ask for the same base wait for it.

        Parameters
        ----------
        w_0 : Tensor of shape (m, n)
            The base's weight as it was stored.
        compute : callable
            Decomposes it; called once or not at all. What it raises is passed on.

        Returns
        -------
        Decomposition
            With contiguous tensors, so that kept and fresh ones give the same sums. Changing
            them does not change the cache.
        """

        def settled() -> Decomposition:
            made = compute()
            u, s, vh = made.u.contiguous(), made.s.contiguous(), made.vh.contiguous()
            return Decomposition(u, s, vh, made.solver, made.residual)

        if not self._keeps(w_0):
            return settled()
        key = self.key(w_0)

        def write(path: Path, made: Decomposition) -> None:
            tensors = {"u": made.u, "s": made.s, "vh": made.vh}
            write_tensors(path, key, tensors, made.solver, made.residual)

        return self._kept_or_made(
            self._path(key, w_0, "svd"),
            read=lambda path: read_decomposition(path, key, w_0),
            compute=settled,
            write=write,
            size=lambda made: 8 * (made.u.numel() + made.s.numel() + made.vh.numel()),
            # What would not be believed when it is read need not be written.
            worthy=lambda made: is_descending(made.s) and fits(made, w_0),
        )

    def values(self, w_0: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """S_0 alone: from the kept decomposition, or the kept values, or else from `compute`.

        Parameters
        ----------
        w_0 : Tensor of shape (m, n)
            The base's weight as it was stored.
        compute : callable
            Gives the singular values, largest first; called once or not at all.

        Returns
        -------
        Tensor of shape (k,), float64
            Largest first.
        """
        if not self._keeps(w_0):
            return compute()
        key = self.key(w_0)
        whole = self._read(self._path(key, w_0, "svd"), lambda path: read_values(path, key, w_0))
        if whole is not None:
            return whole
        return self._kept_or_made(
            self._path(key, w_0, "values"),
            read=lambda path: read_values(path, key, w_0),
            compute=compute,
            write=lambda path, s: write_tensors(path, key, {"s": s.contiguous()}),
            size=lambda s: 8 * s.numel(),
            worthy=lambda s: is_descending(s) and has_norm_of(s, w_0),
        )

    def noise(
        self,
        w_0: Tensor,
        precision: str,
        compute: Callable[[], tuple[float, float | None]],
        vectors: bool = True,
    ) -> tuple[float, float | None]:
        """Noise floor of W_0 in a storage precision: the kept one, or else from `compute`.

        Parameters
        ----------
        w_0 : Tensor of shape (m, n)
            The base's weight as it was stored.
        precision : str
            A name that `spectra.linalg.rounding.rounded` knows.
        compute : callable
            Gives `sigma_noise` and `d_noise`, the latter None where it took values only. Called
            once or not at all; it may ask this cache for the decomposition.
        vectors : bool
            Whether `d_noise` is needed: noise that was kept without it is then made anew.

        Returns
        -------
        sigma_noise : float
            ΔΣ between W_0 and what rounding makes of it.
        d_noise : float or None
            ΔD between the same two. Where it is there, it is given without being asked for.

        Raises
        ------
        ValueError
            If `precision` cannot be part of a file's name.
        """
        if not re.fullmatch(r"\w+", precision):
            raise ValueError(f"precision must be a name such as bfloat16, got {precision!r}.")
        if not self._keeps(w_0):
            return compute()
        key = self.key(w_0)

        def read(path: Path) -> tuple[float, float | None] | None:
            kept = read_noise(path, key, precision)
            return None if vectors and kept[1] is None else kept

        def write(path: Path, noise: tuple[float, float | None]) -> None:
            content = noise_entry(key, precision, *noise)
            path.write_text(json.dumps(content) + "\n", encoding="utf-8")

        return self._kept_or_made(
            self._path(key, w_0, f"noise-{precision}", "json"),
            read=read,
            compute=compute,
            write=write,
            size=lambda _: 0,
            worthy=is_noise,
        )

    def holds(self, w_0: Tensor, vectors: bool = True) -> bool:
        """Whether W_0 need not be decomposed, for an estimate: only its entry's name is looked at.

        Parameters
        ----------
        w_0 : Tensor of shape (m, n)
            The base's weight as it was stored.
        vectors : bool
            Whether its values alone would not do.
        """
        if not self._keeps(w_0):
            return False
        key = self.key(w_0)
        kinds = ("svd",) if vectors else ("svd", "values")
        return any(self._path(key, w_0, kind).is_file() for kind in kinds)

    def holds_noise(self, w_0: Tensor, precision: str, vectors: bool = True) -> bool:
        """Whether the noise of W_0 need not be computed.

        Parameters
        ----------
        w_0, precision, vectors
            As in `noise`.
        """
        if not self._keeps(w_0):
            return False
        key = self.key(w_0)
        try:
            path = self._path(key, w_0, f"noise-{precision}", "json")
            kept = read_noise(path, key, precision)
        except (OSError, *DAMAGE):
            return False
        return kept[1] is not None or not vectors

    def entries(self) -> list[Entry]:
        """Return what the folder holds, last used first.

        Raises
        ------
        OSError
            If the folder cannot be read; a missing one holds nothing.
        """
        found = []
        for path in self._files():
            match = _ENTRY.fullmatch(path.name)
            if match is None:
                continue
            with suppress(FileNotFoundError):  # another process has just deleted it
                status = path.stat()
                shape = (int(match[2]), int(match[3]))
                entry = Entry(path, match[1], match[4], shape, status.st_size, status.st_mtime)
                found.append(entry)
        return sorted(found, key=lambda entry: (-entry.used, entry.path))

    def size(self) -> int:
        """Bytes of all entries together.

        Raises
        ------
        OSError
            As `entries`.
        """
        return sum(entry.size for entry in self.entries())

    def clear(self) -> tuple[int, int]:
        """Delete all entries, old leftovers of killed processes, and locks that nobody holds.

        Processes that use an entry keep it; what a process is writing now stays.

        Returns
        -------
        count : int
            Entries deleted.
        size : int
            Their bytes.

        Raises
        ------
        OSError
            If the folder cannot be read or a file cannot be deleted.
        """
        entries = self.entries()
        for entry in entries:
            entry.path.unlink(missing_ok=True)
        remove_leftovers(self.folder, time.time() - _LEFTOVER_SECONDS)
        if sys.platform != "win32":
            for path in self._files():
                if not _ENTRY.fullmatch(path.name.removesuffix(_LOCK)) or path.suffix != _LOCK:
                    continue
                lock = _take(path, wait=False)
                if lock is not None:
                    with lock:
                        path.unlink(missing_ok=True)
        return len(entries), sum(entry.size for entry in entries)

    def _keeps(self, w_0: Tensor) -> bool:
        # What is no matrix is left to the solver to refuse.
        return self.max_bytes > 0 and w_0.ndim == 2 and w_0.numel() > 0

    def _path(self, key: str, w_0: Tensor, kind: str, suffix: str = "safetensors") -> Path:
        m, n = w_0.shape
        return self.folder / f"{key}.{m}x{n}.{kind}.{suffix}"

    def _files(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _kept_or_made(
        self,
        path: Path,
        *,
        read: Callable[[Path], T | None],
        compute: Callable[[], T],
        write: Callable[[Path, T], None],
        size: Callable[[T], int],
        worthy: Callable[[T], bool],
    ) -> T:
        found = self._read(path, read)
        if found is not None:
            return found
        with self._alone(path):
            found = self._read(path, read)  # made by the process that was waited for
            if found is not None:
                return found
            made = compute()
            if worthy(made):
                self._store(path, size(made), lambda temporary: write(temporary, made))
            return made

    def _read(self, path: Path, read: Callable[[Path], T | None]) -> T | None:
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would have us wait
                return None
            found = read(path)
        except OSError:
            return None  # not there, or not for us
        except DAMAGE as error:
            _tell(str(path), "%s is damaged (%s); it is computed again.", path, error)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # in a folder that can only be read, age does not matter
            os.utime(path)
        return found

    def _store(self, path: Path, size: int, write: Callable[[Path], None]) -> None:
        if size + HEADER > self.max_bytes:
            _tell(
                "oversized",
                "A base of %.3g GiB is not kept: the cache is limited to %.3g GiB. Raise "
                "SPECTRA_CACHE_GIB to keep it.",
                size / 2**30,
                self.max_bytes / 2**30,
            )
            return
        try:
            with whole_file(path) as temporary:
                write(temporary)
            self._trim(path)
        # The second, if the disk is full; the third, if tensors share their memory.
        except (OSError, SafetensorError, RuntimeError) as error:
            self._tell_unusable(error)

    def _trim(self, written: Path) -> None:
        """Delete what was not used for longest until the rest is within the bound."""
        remove_leftovers(self.folder, time.time() - _LEFTOVER_SECONDS)
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in reversed(entries):
            if total <= self.max_bytes:
                break
            if entry.path != written:
                # Where files in use cannot be deleted, the next one may be free.
                with suppress(PermissionError):
                    entry.path.unlink(missing_ok=True)
                    total -= entry.size

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Be the only process that makes this entry; as far as the folder can be written."""
        lock = None
        if sys.platform != "win32":
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = _take(path.with_name(path.name + _LOCK), wait=True)
            except OSError as error:
                self._tell_unusable(error)
        try:
            yield
        finally:
            if lock is not None:
                lock.close()

    def _tell_unusable(self, error: Exception) -> None:
        _tell(
            "unusable",
            "Decompositions of bases are not kept: the cache in %s cannot be written (%s). Name "
            "another folder with SPECTRA_CACHE.",
            self.folder,
            error,
        )


def _default_bytes() -> int:
    text = os.environ.get("SPECTRA_CACHE_GIB") or str(DEFAULT_GIB)
    try:
        bound = int(float(text) * 2**30)
    except (ValueError, OverflowError):  # of a word, of "inf"
        bound = -1
    if bound < 0:
        raise ValueError(
            f"SPECTRA_CACHE_GIB must be a number of GiB, 0 for no cache, got {text!r}."
        )
    return bound


def _take(path: Path, wait: bool) -> IO[str] | None:
    """Lock a file until it is closed or the process ends; None if another one holds it."""
    assert sys.platform != "win32"
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()
        except FileNotFoundError:  # deleted by `clear` after we opened it
            file.close()
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise


def _tell(once: str, message: str, *arguments: object) -> None:
    """Warn, but of one and the same thing only once in a process."""
    if once not in _told:
        _told.add(once)
        logger.warning(message, *arguments)
