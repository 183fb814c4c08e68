"""Many parts of a table into one, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from spectra.store.parts import naming_damage, read_part
from spectra.store.schema import KEYS

_WINDOW_BYTES = 2**25
_BATCH_BYTES = 2**22


@dataclass(frozen=True)
class _Part:
    """A part, and where in it its row groups begin."""

    path: Path
    metadata: pq.FileMetaData
    starts: np.ndarray
    row_bytes: int


def current_rows(parts: Sequence[Path], steps: Collection[int] | None = None) -> pd.DataFrame:
    """Return where the current row of every key is: columns part and row, sorted by the keys.

    Parameters
    ----------
    parts : sequence of Path
        Oldest first; of two rows with one key the later counts.
    steps : collection of int, optional
        Leave out the rows of others.

    Raises
    ------
    FileNotFoundError
        If a part is not there.
    OSError
        If a part cannot be read; the message names it.
    """
    found = []
    for number, path in enumerate(parts):
        keys = read_part(path, KEYS).to_pandas()
        found.append(keys.assign(part=number, row=np.arange(len(keys))))
    rows = pd.concat(found, ignore_index=True) if found else _no_rows()
    rows = rows.drop_duplicates(list(KEYS), keep="last")
    if steps is not None:
        rows = rows[rows["step"].isin(list(steps))]
    return rows.sort_values(list(KEYS), ignore_index=True)


def merged(parts: Sequence[Path], rows: pd.DataFrame, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the `current_rows` of the parts in their order, some thirty megabytes at a time.

    At most two such tables and a row group are in memory, however long the table is.

    Raises
    ------
    FileNotFoundError, OSError
        As `current_rows`.
    """
    opened = [_open(path) for path in parts]
    sizes = np.array([part.row_bytes for part in opened])[rows["part"]].cumsum()
    part_of, row_of = rows["part"].to_numpy(), rows["row"].to_numpy()
    first = 0
    while first < len(rows):
        before = sizes[first - 1] if first else 0
        last = max(int(np.searchsorted(sizes, before + _WINDOW_BYTES)), first + 1)
        window = np.arange(first, last)
        pieces, places = [], []
        for number in np.unique(part_of[window]):
            here = window[part_of[window] == number]
            here = here[np.argsort(row_of[here], kind="stable")]
            pieces.append(_take(opened[number], row_of[here], schema))
            places.append(here)
        order = np.argsort(np.concatenate(places), kind="stable")
        yield pa.concat_tables(pieces).take(pa.array(order))
        first = last


def _open(path: Path) -> _Part:
    with naming_damage(path), pq.ParquetFile(path) as file:
        metadata = file.metadata
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    starts = np.cumsum([0, *(group.num_rows for group in groups)])
    total = sum(group.total_byte_size for group in groups)
    return _Part(path, metadata, starts, max(1, total // max(metadata.num_rows, 1)))


def _take(part: _Part, rows: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Return some rows of a part, given in ascending order, with the columns of `schema`."""
    groups = np.unique(np.searchsorted(part.starts, rows, side="right") - 1)
    found = []
    with naming_damage(part.path), pq.ParquetFile(part.path, metadata=part.metadata) as file:
        names = [n for n in schema.names if n in file.schema_arrow.names]
        size = max(1, _BATCH_BYTES // part.row_bytes)
        for group in groups:
            # A row group of earlier versions may be a whole run's: it comes in batches.
            offset = part.starts[group]
            for batch in file.iter_batches(size, [int(group)], names):
                low, high = np.searchsorted(rows, [offset, offset + len(batch)])
                if high > low:
                    found.append(batch.take(pa.array(rows[low:high] - offset)))
                offset += len(batch)
        table = pa.Table.from_batches(found)
    columns = [
        table[field.name].cast(field.type)
        if field.name in names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _no_rows() -> pd.DataFrame:
    return pd.DataFrame(columns=[*KEYS, "part", "row"])
