"""Following a table: what is read is what a fresh reader reads, and nothing is read twice."""

from __future__ import annotations

import random
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from spectra.store import DRIFT, DRIFT_QUANTITIES, KEYS, SPECTRUM, Follower, PartTable, Run
from tests.store.test_tables import MAKERS, row

Reads = list[tuple[str, tuple[str, ...]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.update_settings(method="lora")
    return run


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """Names of the files that are read from now on, with the columns."""
    found: Reads = []
    real = PartTable.read_part

    def counted(table: PartTable, path: Path, names: Any, *more: Any) -> pa.Table:
        found.append((path.name, tuple(names)))
        return real(table, path, names, *more)

    monkeypatch.setattr(PartTable, "read_part", counted)
    yield found


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with the plainest types, for comparing values."""
    kinds: dict[str, Any] = {}
    for name, kind in frame.dtypes.items():
        if isinstance(kind, pd.CategoricalDtype) or kind == "str":
            kinds[str(name)] = "object"
        elif kind.kind in "if":
            kinds[str(name)] = "float64"
    frame = frame.astype(kinds)
    return frame.where(frame.notna(), None) if len(frame) else frame


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(plain(found), plain(expected), check_dtype=False)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["drift", "spectrum"])
def test_whatever_happens_it_reads_what_a_fresh_reader_reads(
    run: Run, kind: str, seed: int
) -> None:
    make = MAKERS[kind][1]
    rng = random.Random(seed)
    follower = Follower(run, kind)
    table = run.drift if kind == "drift" else run.spectrum
    fresh: Callable[..., pd.DataFrame] = run.read_drift if kind == "drift" else run.read_spectrum
    names = table.schema.names
    for _ in range(15):
        happens = rng.choice(["append", "append", "append", "compact", "drop", "nothing"])
        if happens == "append":
            keys = [(rng.randrange(6), rng.randrange(4)) for _ in range(rng.randrange(1, 9))]
            table.append([make(step, layer, rng) for step, layer in keys])
        elif happens == "compact":
            table.compact()
        elif happens == "drop":
            table.compact(rng.sample(range(6), 4))
        columns = rng.choice([None, rng.sample(names, 3)])
        expected = fresh(columns=columns)
        assert_same(follower.read(columns), expected)
        steps, layers = rng.sample(range(6), 2), rng.sample(range(4), 2)
        chosen = expected["step"].isin(steps) & expected["layer"].isin(layers)
        found = follower.read(columns, steps=steps, layers=layers, modules=["q_proj", "v_proj"])
        assert_same(found, expected[chosen].reset_index(drop=True))


def test_only_new_parts_are_read(run: Run, reads: Reads) -> None:
    run.drift.append([row(1, delta_d=0.1), row(2, delta_d=0.2)])
    run.drift.append([row(2, delta_d=0.3)])
    follower = Follower(run, "drift")
    follower.read(["delta_d"])
    assert len(reads) == 2
    reads.clear()
    follower.read(["delta_d"])
    assert reads == []
    run.drift.append([row(3, delta_d=0.4)])
    assert follower.read(["delta_d"])["delta_d"].tolist() == [0.1, 0.3, 0.4]
    assert [name for name, _ in reads] == [run.drift.parts()[-1].name]


def test_of_a_new_column_only_that_is_read(run: Run, reads: Reads) -> None:
    run.drift.append([row(1, delta_d=0.1, kappa=2.0)])
    follower = Follower(run, "drift")
    follower.read(["delta_d"])
    reads.clear()
    assert follower.read(["kappa", "delta_d"])["kappa"].tolist() == [2.0]
    assert [columns for _, columns in reads] == [("kappa",)]


def test_a_compaction_is_read_once(run: Run, reads: Reads) -> None:
    for step in range(4):
        run.drift.append([row(step, delta_d=step / 8)])
    follower = Follower(run, "drift")
    before = follower.read(["delta_d"])
    run.drift.compact()
    reads.clear()
    pd.testing.assert_frame_equal(follower.read(["delta_d"]), before)
    assert len(reads) == 1
    follower.read(["delta_d"])
    assert len(reads) == 1


def test_a_compaction_while_it_reads_loses_no_row(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(4):
        run.drift.append([row(step)])
    real = PartTable.read_part
    pending = [run.drift]

    def compact_first(table: PartTable, *arguments: Any) -> pa.Table:
        if pending:
            pending.pop().compact()
        return real(table, *arguments)

    monkeypatch.setattr(PartTable, "read_part", compact_first)
    assert Follower(run, "drift").read([])["step"].tolist() == [0, 1, 2, 3]


def test_arrays_are_read_from_the_parts_that_have_them(run: Run, reads: Reads) -> None:
    for step in range(5):
        run.spectrum.append([row(step, sigma=[float(step)])])
    follower = Follower(run, "spectrum")
    follower.read([])
    reads.clear()
    found = follower.read(["sigma"], steps=[3])
    assert [sigma.tolist() for sigma in found["sigma"]] == [[3.0]]
    assert [name for name, _ in reads] == [run.spectrum.parts()[3].name]
    assert list(found.columns) == ["run", "module", "step", "layer", "sigma"]


# Trouble.


def test_a_run_that_vanished_is_named_and_its_rows_are_there_when_it_is(
    run: Run, reads: Reads
) -> None:
    run.drift.append([row(1)])
    follower = Follower(run, "drift")
    before = follower.read()
    away = run.path.with_name("away")
    run.path.rename(away)
    with pytest.raises(FileNotFoundError, match="is not a run: it has no run.json"):
        follower.read()
    away.rename(run.path)
    reads.clear()
    pd.testing.assert_frame_equal(follower.read(), before)
    assert reads == []


def test_a_damaged_part_is_named_until_it_is_gone(run: Run, reads: Reads) -> None:
    run.drift.append([row(1)])
    follower = Follower(run, "drift")
    before = follower.read()
    damaged = run.drift.folder / "part-9.parquet"
    damaged.write_bytes(b"not Parquet")
    for _ in range(2):
        with pytest.raises(OSError, match=r"part-9\.parquet is not a readable Parquet file"):
            follower.read()
    damaged.unlink()
    reads.clear()
    pd.testing.assert_frame_equal(follower.read(), before)
    assert reads == []


def test_an_unknown_table_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="must be one of drift, spectrum, training, got 'loss'"):
        Follower(run, "loss")


# What comes back.


def test_changing_the_rows_changes_nothing_that_is_kept(run: Run) -> None:
    run.drift.append([row(1, delta_d=0.1), row(2, delta_d=0.2)])
    follower = Follower(run, "drift")
    mine = follower.read(["delta_d"])
    mine.loc[0, "delta_d"] = 9.0
    mine["layer"] += 5
    assert follower.read(["delta_d"])["delta_d"].tolist() == [0.1, 0.2]
    assert follower.read(["delta_d"])["layer"].tolist() == [0, 0]


def test_text_is_categorical_and_counts_are_small(run: Run) -> None:
    run.drift.append([row(1, method="lora", solver="gram", rows=4096, kappa=2.0)])
    kinds = Follower(run, "drift").read().dtypes
    for name in ("run", "method", "module", "dtype", "solver", "source"):
        assert isinstance(kinds[name], pd.CategoricalDtype), name
    assert kinds["step"] == kinds["layer"] == kinds["rows"] == "int32"
    assert kinds["kappa"] == "float64"


def test_steps_beyond_four_bytes_are_kept(run: Run) -> None:
    run.drift.append([row(2**40), row(1)])
    assert Follower(run, "drift").read([])["step"].tolist() == [1, 2**40]


@pytest.mark.parametrize("kind", ["drift", "spectrum"])
def test_a_run_without_rows_has_the_columns(run: Run, kind: str) -> None:
    follower = Follower(run, kind)
    schema = DRIFT if kind == "drift" else SPECTRUM
    frame = follower.read()
    assert list(frame.columns) == schema.names and len(frame) == 0
    table = run.drift if kind == "drift" else run.spectrum
    table.append([row(4)])
    assert follower.read()["step"].tolist() == [4]


def test_training_is_read_again_only_when_it_changed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = Follower(run, "training")
    assert len(follower.read()) == 0
    run.write_training([{"step": 1, "loss": 2.0}])
    assert follower.read()["loss"].tolist() == [2.0]
    run.write_training([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}])
    state = follower.state()
    found = follower.read(["loss"])
    assert found["loss"].tolist() == [2.0, 1.5] and list(found) == ["run", "step", "loss"]
    monkeypatch.setattr(Run, "read_training", None)
    pd.testing.assert_frame_equal(follower.read(["loss"]), found)
    assert follower.state() == state


def test_the_state_changes_with_the_files_only(run: Run) -> None:
    follower = Follower(run, "drift")
    states = [follower.state()]
    run.drift.append([row(1)])
    states.append(follower.state())
    run.drift.append([row(2)])
    states.append(follower.state())
    run.drift.compact()
    states.append(follower.state())
    assert len(set(states)) == 4
    follower.read()
    assert follower.state() == states[-1]


def test_threads_share_one(run: Run, reads: Reads) -> None:
    for step in range(8):
        run.drift.append([row(step, layer, delta_d=step / 8) for layer in range(20)])
    follower = Follower(run, "drift")
    start = threading.Barrier(6)
    found: list[pd.DataFrame] = []

    def visit() -> None:
        start.wait()
        found.append(follower.read(["delta_d"]))

    threads = [threading.Thread(target=visit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len(reads) == 8
    for frame in found:
        assert_same(frame, run.read_drift(["delta_d"]))


def test_a_judged_runs_rows_take_less_than_fifteen_megabytes(run: Run) -> None:
    """44,800 rows with all columns: ten such runs stay below 150 MB."""
    count = 44_800
    numbers = np.random.default_rng(0)
    columns = {name: numbers.random(count) for name in DRIFT_QUANTITIES}
    index = np.arange(count)
    frame = pd.DataFrame(
        columns
        | {"run": "run", "method": "lora", "module": np.array([*"qkvogud"])[index % 7]}
        | {"step": index // 224, "layer": index % 224 // 7, "rows": 4096, "cols": 4096}
        | {"dtype": "F32", "solver": "low-rank", "source": [f"{i // 224:016x}" for i in index]}
    )
    run.drift._write([pa.Table.from_pandas(frame, schema=DRIFT, preserve_index=False)])
    follower = Follower(run, "drift")
    tracemalloc.start()
    assert len(follower.read()) == count
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 5e6 < held < 15e6


def test_a_folder_that_is_gone_for_good_is_an_error(run: Run) -> None:
    run.drift.append([row(1)])
    follower = Follower(run, "drift")
    follower.read()
    shutil.rmtree(run.path)
    with pytest.raises(FileNotFoundError, match="run.json"):
        follower.read()


def test_the_keys_are_always_there(run: Run) -> None:
    run.drift.append([row(1, delta_d=0.1)])
    found = Follower(run, "drift").read(["nonsense", "delta_d"])
    assert set(found.columns) == {"run", *KEYS, "delta_d"}
