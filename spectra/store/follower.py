"""A table of a run that grows, kept in memory: of what is new only the new parts are read."""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import union_categoricals

from spectra.store.parts import Where
from spectra.store.run import Run
from spectra.store.schema import KEYS, SPECTRUM_ARRAYS
from spectra.store.tables import PartTable

TABLES = ("drift", "spectrum", "training")
"""What a `Follower` follows."""

_READ_ATTEMPTS = 5
_TEXT = frozenset({"run", "method", "module", "dtype", "solver", "source"})

Column = np.ndarray | pd.Categorical


@dataclass(frozen=True)
class _Held:
    """The parts that were read, and the current rows' columns, sorted by the keys.

    `places` says where each current row is, counted through all parts.
    """

    parts: tuple[Path, ...] = ()
    ends: tuple[int, ...] = ()
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    columns: dict[str, Column] = field(default_factory=dict)


class Follower:
    """The current rows of one table of a run, of which each part is read once.

    Columns that were asked for stay in memory: 8 bytes a row for numbers, 4 for counts, 1 or 2
    for text; all columns of 10 runs × 44,800 drift rows take some 110 MB. The arrays of spectrum
    do not stay: they are read for the rows that are asked for, from the parts that have them.
    One follower may be shared by threads.

    Parameters
    ----------
    run : Run
        It may grow, be compacted or vanish meanwhile.
    table : {"drift", "spectrum", "training"}
        Which table.

    Raises
    ------
    ValueError
        If there is no such table.
    """

    def __init__(self, run: Run, table: str) -> None:
        if table not in TABLES:
            raise ValueError(f"table must be one of {', '.join(TABLES)}, got {table!r}.")
        self.run = run
        self.table = table
        self._lock = RLock()
        self._held = _Held()
        self._training: tuple[Hashable, pd.DataFrame] | None = None

    def state(self) -> Hashable:
        """Return what stays the same as long as the files do; costs a look at the folder."""
        if self.table != "training":
            return tuple(path.name for path in self._part_table().parts())
        try:
            facts = self.run.training_path.stat()
        except FileNotFoundError:
            return ()
        return facts.st_ino, facts.st_mtime_ns, facts.st_size

    def read(
        self,
        columns: Collection[str] | None = None,
        *,
        steps: Collection[int] | None = None,
        modules: Collection[str] | None = None,
        layers: Collection[int] | None = None,
    ) -> pd.DataFrame:
        """Return the current rows, as `Run` reads them; of parts read before nothing is read.

        Parameters
        ----------
        columns : collection of str, optional
            Only these, beside `run` and the keys; all by default.
        steps, modules, layers : collection, optional
            Only rows of these; all by default.

        Returns
        -------
        DataFrame
            Sorted by step, layer and module. Text is categorical, whole numbers are int32 where
            they fit and none is missing. To change it changes nothing that is kept.

        Raises
        ------
        FileNotFoundError
            If the run is not there, or the folder is not a run.
        OSError, ValueError
            If a file is damaged; the message names it. After any error the rows that were read
            before are still held.
        """
        chosen = {"step": steps, "module": modules, "layer": layers}
        where = {name: values for name, values in chosen.items() if values is not None}
        self.run.read_settings()
        with self._lock:
            if self.table == "training":
                frame = self._read_training(columns)
            else:
                frame = self._read_parts(columns, where)
        if self.table == "spectrum":
            return frame
        return _matching(frame, {n: v for n, v in where.items() if n in frame})

    def _part_table(self) -> PartTable:
        return self.run.drift if self.table == "drift" else self.run.spectrum

    def _read_training(self, columns: Collection[str] | None) -> pd.DataFrame:
        state = self.state()
        if self._training is None or self._training[0] != state:
            frame = self.run.read_training()
            frame["step"] = _counts(frame["step"].to_numpy())
            self._training = state, frame.astype({"run": "category", "method": "category"})
        frame = self._training[1]
        names = [n for n in frame if columns is None or n in {"run", "step", *columns}]
        return frame[names].copy()

    def _read_parts(self, columns: Collection[str] | None, where: Where) -> pd.DataFrame:
        table = self._part_table()
        names = [n for n in table.schema.names if n != "run"]
        names = [n for n in names if columns is None or n in {*columns, *KEYS}]
        arrays = any(n in SPECTRUM_ARRAYS for n in names)
        for attempt in range(_READ_ATTEMPTS):
            try:
                self._held = _followed(self._held, table, KEYS if arrays else names)
                if arrays:
                    return self._named(_read_arrays(self._held, table, names, where))
                break
            except FileNotFoundError:
                # A compaction replaced the parts that were just listed, or the run is gone.
                self.run.read_settings()
                if attempt == _READ_ATTEMPTS - 1:
                    raise
                time.sleep(0.05)
        held = self._held.columns
        # Copies: what a caller writes into must not be what the next one gets.
        frame = pd.DataFrame({n: held[n] for n in names}, copy=True)
        if self.table == "spectrum":
            frame = _matching(frame, where)
        return self._named(frame)

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        codes = np.zeros(len(frame), np.int8)
        name = pd.Categorical.from_codes(codes, pd.Index([self.run.name]))
        frame.insert(0, "run", pd.Series(name, frame.index))
        return frame


def _followed(held: _Held, table: PartTable, names: Sequence[str]) -> _Held:
    """Return what is held with the parts that are new, and the columns that were not read yet."""
    listed = table.parts()
    known = len(held.parts)
    if tuple(listed[:known]) != held.parts:
        # A compaction put other parts in their place: all is read again, once.
        held, known = _Held(), 0
    missing = [n for n in dict.fromkeys([*KEYS, *names]) if n not in held.columns]
    if not listed:
        empty = [pa.schema([table.schema.field(n) for n in missing]).empty_table()]
        return _Held(columns=held.columns | _columns(empty, missing))
    if missing and held.parts:
        read = _columns([table.read_part(p, missing) for p in held.parts], missing)
        more = {name: column[held.places] for name, column in read.items()}
        held = _Held(held.parts, held.ends, held.places, held.columns | more)
    if known == len(listed):
        return held
    wanted = [*dict.fromkeys([*held.columns, *missing])]
    tables = [table.read_part(p, wanted) for p in listed[known:]]
    new = _columns(tables, wanted)
    start = held.ends[-1] if held.ends else 0
    ends = (*held.ends, *(start + np.cumsum([len(t) for t in tables])).tolist())
    places = np.concatenate([held.places, np.arange(start, ends[-1])])
    columns = {n: _joined([held.columns[n], new[n]] if held.parts else [new[n]]) for n in wanted}
    # Later rows are behind earlier ones here; of a key the last is kept.
    current = _current(columns)
    return _Held(
        tuple(listed), ends, places[current], {n: column[current] for n, column in columns.items()}
    )


def _current(columns: dict[str, Column]) -> np.ndarray:
    """Return the last row of every key, in the order of the keys."""
    module = columns["module"]
    assert isinstance(module, pd.Categorical)
    rank = np.argsort(np.argsort(np.asarray(module.categories.astype(object))))
    # A module that is missing has the code −1: behind all, as pandas sorts it.
    ranks = np.append(rank, len(rank))[module.codes]
    keys = (columns["step"], columns["layer"], ranks)
    order = np.lexsort(keys[::-1])
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        ordered = np.asarray(key)[order]
        same &= ordered[1:] == ordered[:-1]
    return order[np.append(~same, True)] if len(order) else order


def _columns(tables: Sequence[pa.Table], names: Sequence[str]) -> dict[str, Column]:
    """Return columns of several parts one behind the other; those that one lacks are missing."""
    return {name: _joined([_column(table, name) for table in tables]) for name in names}


def _column(table: pa.Table, name: str) -> Column:
    if name in _TEXT:
        if name in table.column_names:
            values = table[name].combine_chunks().dictionary_encode()
            kind = pd.Index(values.dictionary.to_pylist(), dtype=str)
            codes = values.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            return pd.Categorical.from_codes(codes, kind)
        return pd.Categorical.from_codes(np.full(len(table), -1), pd.Index([], dtype=str))
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    values = table[name].to_numpy()
    return values if values.dtype.kind == "f" else _counts(values)


def _joined(columns: Sequence[Column]) -> Column:
    if len(columns) == 1:
        return columns[0]
    codes = [column for column in columns if isinstance(column, pd.Categorical)]
    if codes:
        return union_categoricals(codes)
    return np.concatenate([column for column in columns if isinstance(column, np.ndarray)])


def _counts(values: np.ndarray) -> np.ndarray:
    """Return whole numbers in four bytes where they fit."""
    limits = np.iinfo(np.int32)
    if values.dtype.kind != "i" or (
        len(values) and (values.min() < limits.min or values.max() > limits.max)
    ):
        return values
    return values.astype(np.int32)


def _read_arrays(held: _Held, table: PartTable, names: Sequence[str], where: Where) -> pd.DataFrame:
    """Return rows with their arrays, from the parts that hold a current row of those chosen."""
    keys = pd.DataFrame({n: held.columns[n] for n in KEYS} | {"place": held.places}, copy=False)
    places = _matching(keys, where)["place"].to_numpy()
    numbers = np.unique(np.searchsorted(held.ends, places, side="right"))
    tables = [table.read_part(held.parts[i], names, where or None) for i in numbers]
    empty = pa.schema([table.schema.field(n) for n in names]).empty_table()
    frame = pa.concat_tables([empty, *tables], promote_options="permissive").to_pandas()
    frame = frame.drop_duplicates(list(KEYS), keep="last")
    frame = frame.sort_values(list(KEYS), ignore_index=True)
    for name in names:
        if name in _TEXT:
            frame[name] = frame[name].astype("category")
        elif name not in SPECTRUM_ARRAYS:
            frame[name] = _counts(frame[name].to_numpy())
    return frame


def _matching(frame: pd.DataFrame, where: Where) -> pd.DataFrame:
    if not where:
        return frame
    chosen = np.ones(len(frame), bool)
    for name, values in where.items():
        chosen &= frame[name].isin(list(values)).to_numpy()
    return frame[chosen].reset_index(drop=True)
