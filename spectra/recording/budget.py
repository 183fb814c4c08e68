"""What a recording may take on disk, asked before it begins and before each snapshot."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from spectra.store import Run

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{i}B": base**power
    for i, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
# Left free for run.json, the curve and the trainer's own last words; on a small disk less.
_RESERVE_BYTES = 64 * 1024**2
_RESERVE_SHARE = 0.01
# Where nobody says how many steps there will be, room for the base and so many snapshots must do.
_FEW = 3


class Budget:
    """The bytes of one run.

    Parameters
    ----------
    run : Run
        Where they go.
    max_bytes : int, float, str or None
        The most that snapshots, base and earlier attempts may take, such as ``"20 GiB"``.

    Raises
    ------
    ValueError
        If `max_bytes` is no amount.
    """

    def __init__(self, run: Run, max_bytes: float | str | None) -> None:
        self._run = run
        self.most = None if max_bytes is None else parse_bytes(max_bytes)
        self._used = 0

    def measure(self) -> None:
        """Count what is there already, that of earlier attempts too."""
        folders = (self._run.snapshots_path, self._run.earlier_path)
        self._used = sum(_size(p) for f in folders for p in f.rglob("*"))

    def add(self, path: Path) -> None:
        """Count a file that was written."""
        self._used += _size(path)

    def refuse_beyond(self, base: int, snapshot: int, count: int | None) -> None:
        """Refuse a recording that will not fit.

        Parameters
        ----------
        base, snapshot : int
            Bytes of the base, 0 where it is there already, and of each snapshot.
        count : int, optional
            How many snapshots there will be, where that is known.

        Raises
        ------
        ValueError
            If they exceed what is allowed, or what the disk has free.
        """
        planned = _FEW if count is None else count
        total = base + planned * snapshot
        free = self._free()
        limits = []
        if self.most is not None and self._used + total > self.most:
            taken = f", of which {shown(self._used)} are taken" if self._used else ""
            limits.append(f"max_bytes allows {shown(self.most)}{taken}")
        if total > free:
            limits.append(f"the disk of {self._run.path} has {shown(max(free, 0))} free")
        if limits:
            least = " at least" if count is None else ""
            raise ValueError(
                f"The recording takes{least} {shown(total)}: {shown(base)} for the base and "
                f"{planned} snapshots of {shown(snapshot)}; {' and '.join(limits)}. Record less "
                'often (every=), fewer modules, plain layers in dtype="bfloat16", or give it room.'
            )

    def problem(self, size: int) -> tuple[str, str] | None:
        """Return why a snapshot of so many bytes cannot be written now, if so: cause, reason."""
        if self.most is not None and self._used + size > self.most:
            return "max_bytes", f"max_bytes={shown(self.most)} is used up"
        if size > (free := self._free()):
            return "ENOSPC", f"the disk is full: {shown(max(free, 0))} free beside the reserve"
        return None

    def _free(self) -> int:
        folder = self._run.path
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        disk = shutil.disk_usage(folder)
        return disk.free - min(_RESERVE_BYTES, int(_RESERVE_SHARE * disk.total))


def parse_bytes(amount: float | str) -> int:
    """Return a number of bytes: itself, or as in ``"20 GiB"``, ``"500MB"``.

    Raises
    ------
    ValueError
        If it is no amount, or not positive.
    """
    if isinstance(amount, str):
        match = _AMOUNT.fullmatch(amount)
        unit = match and next((u for u in _UNITS if u.lower() == match[2].lower()), None)
        number = float(match[1]) * _UNITS[unit] if match and unit is not None else 0
    else:
        number = 0 if isinstance(amount, bool) else amount
    if not number >= 1:
        raise ValueError(
            f'max_bytes must be a number of bytes, or an amount such as "20 GiB"; got {amount!r}.'
        )
    return int(number)


def shown(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size if path.is_file() else 0
    except OSError:
        return 0
