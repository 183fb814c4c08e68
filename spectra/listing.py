"""What `spectra index` prints: a table for people, objects for machines."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoints_index import Entry, Index, Matrix, Series, is_remote, printable

_MODULES_SHOWN = 12
# In a label: that of an expert.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_HEAD = ("step", "format", "layers", "size", "state", "path")


def as_objects(index: Index) -> list[dict[str, Any]]:
    """Return one object a checkpoint, in the order of the table.

    Returns
    -------
    list of dict
        ``path``, ``step`` (null where nothing says it), ``method``, ``base``, ``matrices`` (each
        with ``name``, ``layer``, ``module``, ``shape``, ``dtype``, ``rank``; null in a shape is
        what an adapter's headers do not tell), ``format``,
        ``series``, ``revisions``, ``size`` in bytes, ``state`` (``"complete"``, ``"incomplete"``
        or ``"broken"``) and ``problem``: what is missing or wrong, or why the series cannot be put
        in order; null where nothing is.
    """
    # One list for all checkpoints that share it: as text it is the same.
    described: dict[tuple[Matrix, ...], list[dict[str, Any]]] = {}
    objects = []
    for series in index.series:
        for entry in series.entries:
            if entry.matrices not in described:
                described[entry.matrices] = [_as_object(m) for m in entry.matrices]
            objects.append(
                {
                    "path": str(entry.path),
                    "step": entry.step,
                    "method": entry.method,
                    "base": entry.base,
                    "matrices": described[entry.matrices],
                    "format": entry.format,
                    "series": entry.series,
                    "revisions": list(entry.revisions),
                    "size": entry.size,
                    "state": entry.state,
                    "problem": entry.problem or series.problem or None,
                }
            )
    return objects


def _as_object(matrix: Matrix) -> dict[str, Any]:
    return dataclasses.asdict(matrix) | {"shape": [size or None for size in matrix.shape]}


def as_table(index: Index) -> Iterator[str]:
    """Yield the lines of the table, series by series; nothing in them moves the cursor."""
    for i, series in enumerate(index.series):
        if i:
            yield ""
        yield from map(printable, _about(series))
        yield from map(printable, _rows(series, index.root))
    if index.notes:
        yield ""
        yield from map(printable, index.notes)


def _about(series: Series) -> Iterator[str]:
    count = len(series.entries)
    base = f", base {series.base}" if series.base else ""
    noun = "checkpoint" if count == 1 else "checkpoints"
    yield f"{series.name}: {count} {noun}, method {series.method or 'unknown'}{base}"
    described = {_modules(entry) for entry in series.entries if entry.matrices}
    if len(described) == 1:
        yield f"  {described.pop()}"
    if series.problem:
        yield f"  ambiguous: {series.problem}"


def _rows(series: Series, root: Path) -> Iterator[str]:
    differ = len({_modules(entry) for entry in series.entries if entry.matrices}) > 1
    table = [_HEAD, *(_cells(entry, root) for entry in series.entries)]
    widths = [max(len(printable(row[i])) for row in table) for i in range(len(_HEAD) - 1)]
    for row, entry in zip(table, (None, *series.entries), strict=True):
        step, form, layers, size, state = (printable(cell) for cell in row[:-1])
        yield (
            f"  {step:>{widths[0]}}  {form:<{widths[1]}}  {layers:>{widths[2]}}  "
            f"{size:>{widths[3]}}  {state:<{widths[4]}}  {row[-1]}"
        )
        if entry is not None and differ and entry.matrices:
            yield f"  {'':>{widths[0]}}  {_modules(entry)}"
        if entry is not None and entry.problem:
            yield f"  {'':>{widths[0]}}  {entry.problem}"


def _cells(entry: Entry, root: Path) -> tuple[str, ...]:
    layers = len({m.layer for m in entry.matrices})
    path = _relative(entry.path, root)
    revisions = f" ({', '.join(entry.revisions)})" if entry.revisions else ""
    return (
        "-" if entry.step is None else str(entry.step),
        entry.format,
        str(layers) if entry.matrices else "-",
        in_units(entry.size),
        entry.state,
        (str(entry.path) if path == "." else path) + revisions,
    )


def _relative(path: Path, root: Path) -> str:
    if is_remote(path):
        return str(path).removeprefix(str(root)).strip("/") or "."
    return os.path.relpath(path, root)


def _modules(entry: Entry) -> str:
    """Modules with their shapes and dtypes: ``2 layers × q_proj 32×32, v_proj 16×32 float32``.

    An adapter's files do not always tell a shape, of which 0 then takes the place. Experts are
    listed together, with their number in a layer: ``experts.*.w1 48×32 (8)``.
    """
    layers = len({m.layer for m in entry.matrices})
    kinds: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for matrix in entry.matrices:
        label = _NUMBER.sub("*", matrix.module)
        kinds[label, matrix.shape, matrix.dtype, matrix.rank].add(matrix.module)
    dtypes = {dtype for _, _, dtype, _ in kinds}
    listed = []
    for (label, (m, n), dtype, rank), modules in kinds.items():
        factors = f" of rank {rank}" if rank is not None else ""
        shape = f" {m or '?'}×{n or '?'}" if m or n else ""
        count = f" ({len(modules)})" if len(modules) > 1 else ""
        kept = f" {dtype}" if len(dtypes) > 1 else ""
        listed.append(f"{label}{shape}{factors}{count}{kept}")
    more = len(listed) - _MODULES_SHOWN
    text = ", ".join(listed[:_MODULES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    common = f"; {dtypes.pop()}" if len(dtypes) == 1 else ""
    return f"{layers} {'layer' if layers == 1 else 'layers'} × {text}{common}"


def in_units(size: int) -> str:
    """Return a number of bytes for people, such as ``"1.5 MiB"``."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
