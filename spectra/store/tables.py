"""The one writer and the one reader of a run's Parquet tables."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from spectra.store.compaction import current_rows, merged
from spectra.store.files import TEMPORARY_PREFIX, whole_file
from spectra.store.parts import DAMAGE, Where, read_part, write_part
from spectra.store.schema import KEYS

_READ_ATTEMPTS = 5


class PartTable:
    """A Parquet table in a folder, that grows by whole parts and survives a kill at any moment.

    Every append is a file of its own, complete when its name appears. When two parts hold the
    same key, the later one counts. `compact` turns many parts into one; a kill half-way leaves
    duplicates, which reading resolves, and never a gap.

    Parameters
    ----------
    folder : Path
        Where the parts lie; created by the first append.
    schema : pyarrow.Schema
        The columns; columns a part lacks read as null.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder = Path(folder)
        self.schema = schema

    def append(self, rows: Sequence[Mapping[str, Any]] | pa.Table) -> None:
        """Write `rows` as one new part; columns that a row lacks become null, a table has all.

        Raises
        ------
        OSError
            If the folder cannot be written or the disk is full; earlier parts stay whole.
        """
        if not len(rows):
            return
        if isinstance(rows, pa.Table):
            table = rows.select(self.schema.names).cast(self.schema)
        else:
            table = pa.Table.from_pylist([dict(row) for row in rows], schema=self.schema)
        # Stable: of two rows with one key the later one stays the later.
        order = np.argsort(table["step"].to_numpy(), kind="stable")
        self._write([table.take(pa.array(order))])

    def read(
        self, columns: Iterable[str] | None = None, where: Where | None = None
    ) -> pd.DataFrame:
        """Return the current rows, sorted by step, layer and module.

        Parameters
        ----------
        columns : iterable of str, optional
            Read only these, and the keys; all by default.
        where : mapping, optional
            Only rows whose keys have such values, for example ``{"step": [40]}``; what cannot
            match is not read.

        Raises
        ------
        OSError
            If a part cannot be read; the message names it.
        """
        names = [n for n in self.schema.names if columns is None or n in {*columns, *KEYS}]
        tables = []
        for attempt in range(_READ_ATTEMPTS):
            try:
                tables = [self.read_part(p, names, where) for p in self.parts()]
                break
            except FileNotFoundError:
                # A concurrent compaction replaced the parts that were just listed.
                if attempt == _READ_ATTEMPTS - 1:
                    raise
                time.sleep(0.05)
        empty = pa.schema([self.schema.field(n) for n in names]).empty_table()
        frame = pa.concat_tables([empty, *tables], promote_options="permissive").to_pandas()
        frame = frame.drop_duplicates(list(KEYS), keep="last")
        return frame.sort_values(list(KEYS), ignore_index=True)

    def compact(self, steps: Collection[int] | None = None) -> None:
        """Merge all parts into one; readers and a kill see whole rows throughout.

        Parameters
        ----------
        steps : collection of int, optional
            Steps that still exist; rows of others, from an attempt that was trained again
            otherwise, are dropped. By default all stay.
        """
        parts = self.parts()
        if not parts or (len(parts) == 1 and steps is None):
            return
        rows = current_rows(parts, steps)
        if len(parts) == 1 and len(rows) == len(current_rows(parts)):
            return
        self._write(merged(parts, rows, self.schema))
        for part in parts:
            part.unlink(missing_ok=True)

    def parts(self) -> list[Path]:
        """Return the parts' files, oldest first."""
        return sorted(
            p for p in self.folder.glob("*.parquet") if not p.name.startswith(TEMPORARY_PREFIX)
        )

    def read_part(self, path: Path, names: Sequence[str], where: Where | None = None) -> pa.Table:
        """Return the rows of one of the `parts` as they were written, of the named columns.

        Parameters and errors as of `spectra.store.parts.read_part`; a part that a compaction has
        replaced meanwhile raises FileNotFoundError.
        """
        return read_part(path, names, where)

    def _write(self, tables: Iterable[pa.Table]) -> None:
        # Names sort by time of writing, so "later" needs no clock inside the files.
        name = f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        with whole_file(self.folder / name) as temporary:
            write_part(temporary, tables, self.schema)


def write_training(
    path: Path, rows: Sequence[Mapping[str, Any]] | Mapping[str, Any], schema: pa.Schema
) -> None:
    """Replace the training table by `rows`, or by columns of them, whole or not at all."""
    if isinstance(rows, Mapping):
        # NaN, which is what a column has where nothing was told, becomes null.
        columns = {n: pa.array(rows[n], schema.field(n).type, from_pandas=True) for n in rows}
        table = pa.Table.from_pydict(columns, schema=schema)
    else:
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_training(path: Path, schema: pa.Schema) -> pd.DataFrame:
    """Return the training table, one row a step in ascending order; empty if there is none.

    Columns that the schema had not when it was written are null.
    """
    if not path.exists():
        return schema.empty_table().to_pandas()
    try:
        table = pq.read_table(path)
        for field in schema:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return table.to_pandas()
    except DAMAGE as error:
        raise OSError(f"{path} is not a readable Parquet file ({error}).") from error
