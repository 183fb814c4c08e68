"""Tables of parts: what was appended is what is read, whatever happened in between."""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spectra.store import DRIFT, KEYS, SPECTRUM, TRAINING, PartTable, Run, compaction, parts
from spectra.store.files import TEMPORARY_PREFIX
from spectra.store.tables import read_training, write_training


def row(step: int, layer: int = 0, module: str = "q_proj", **values: Any) -> dict[str, Any]:
    return {"step": step, "layer": layer, "module": module} | values


def random_drift_row(step: int, layer: int, rng: random.Random) -> dict[str, Any]:
    """With every kind of cell that occurs: numbers, NaN, infinity, null, text."""
    return row(
        step,
        layer,
        rng.choice(["q_proj", "v_proj"]),
        rows=rng.choice([None, 4096]),
        delta_sigma=rng.random(),
        kappa=rng.choice([math.inf, math.nan, None, 1e300]),
        solver=rng.choice(["gram", None]),
        source=f"{rng.random():.6f}",
    )


def random_spectrum_row(step: int, layer: int, rng: random.Random) -> dict[str, Any]:
    # Multiples of 1/8 are exact in the column's float32.
    sigma = [rng.randrange(100) / 8 for _ in range(rng.randrange(6))]
    overlap = rng.choice([None, [], [0.5, math.nan]])
    return row(step, layer, sigma=sigma, overlap_u=overlap, source=f"{rng.random():.6f}")


MAKERS = {"drift": (DRIFT, random_drift_row), "spectrum": (SPECTRUM, random_spectrum_row)}


def grown(folder: Path, kind: str = "drift", seed: int = 0, parts: int = 6) -> PartTable:
    """A table of several parts that write many keys more than once."""
    schema, make = MAKERS[kind]
    rng = random.Random(seed)
    table = PartTable(folder, schema)
    for _ in range(parts):
        keys = [(rng.randrange(5), rng.randrange(4)) for _ in range(rng.randrange(1, 12))]
        table.append([make(step, layer, rng) for step, layer in keys])
    return table


# Written is read.


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    frame = PartTable(tmp_path / "none", DRIFT).read()
    assert list(frame.columns) == DRIFT.names
    assert len(frame) == 0
    assert frame["step"].dtype == "int64"
    assert frame["kappa"].dtype == "float64"


def test_nothing_appended_writes_no_part(tmp_path: Path) -> None:
    PartTable(tmp_path / "drift", DRIFT).append([])
    assert not (tmp_path / "drift").exists()


def test_written_is_read(tmp_path: Path) -> None:
    table = PartTable(tmp_path, SPECTRUM)
    table.append([row(3, 1, sigma=[2.0, 0.5], overlap_u=[1.0, 0.25], source="a", method="lora")])
    (read,) = table.read().to_dict("records")
    assert {k: read[k] for k in ("step", "layer", "module", "source", "method")} == {
        "step": 3,
        "layer": 1,
        "module": "q_proj",
        "source": "a",
        "method": "lora",
    }
    assert read["sigma"].dtype == "float32"
    assert read["sigma"].tolist() == [2.0, 0.5]
    assert read["overlap_u"].tolist() == [1.0, 0.25]
    assert read["overlap_v"] is None


def test_rows_come_by_step_then_layer_then_module(tmp_path: Path) -> None:
    table = grown(tmp_path)
    frame = table.read()
    keys = list(frame[list(KEYS)].itertuples(index=False, name=None))
    assert keys == sorted(set(keys))
    assert frame.index.tolist() == list(range(len(frame)))


def test_the_later_part_wins(tmp_path: Path) -> None:
    table = PartTable(tmp_path, DRIFT)
    table.append([row(1, delta_d=0.1), row(2, delta_d=0.2)])
    table.append([row(2, delta_d=0.3), row(3, delta_d=0.4)])
    table.append([row(1, delta_d=0.5)])
    assert table.read()["delta_d"].tolist() == [0.5, 0.3, 0.4]


def test_within_a_part_the_later_row_wins(tmp_path: Path) -> None:
    table = PartTable(tmp_path, DRIFT)
    table.append([row(1, delta_d=0.1), row(1, delta_d=0.2)])
    assert table.read()["delta_d"].tolist() == [0.2]


@pytest.mark.parametrize("key", KEYS)
def test_rows_that_differ_in_any_key_stay_apart(tmp_path: Path, key: str) -> None:
    table = PartTable(tmp_path, DRIFT)
    table.append([row(1, 1, "q_proj")])
    table.append([row(1, 1, "q_proj") | {key: "v_proj" if key == "module" else 2}])
    assert len(table.read()) == 2


def test_chosen_columns_come_with_the_keys(tmp_path: Path) -> None:
    table = grown(tmp_path)
    frame = table.read(["kappa"])
    assert set(frame.columns) == {"kappa", *KEYS}
    pd.testing.assert_frame_equal(frame, table.read()[list(frame.columns)])


def test_rows_are_chosen_by_their_keys(tmp_path: Path) -> None:
    table = grown(tmp_path, "spectrum")
    everything = table.read()
    for step in range(6):
        expected = everything[everything["step"] == step].reset_index(drop=True)
        pd.testing.assert_frame_equal(table.read(where={"step": [step]}), expected)


# Other versions' columns.


def test_columns_that_a_part_lacks_are_null(tmp_path: Path) -> None:
    old = pa.schema([DRIFT.field(name) for name in (*KEYS, "delta_d")])
    PartTable(tmp_path, old).append([row(1, delta_d=0.1)])
    table = PartTable(tmp_path, DRIFT)
    table.append([row(2, delta_d=0.2, kappa=5.0, solver="gram")])
    frame = table.read()
    assert list(frame.columns) == DRIFT.names
    assert frame["delta_d"].tolist() == [0.1, 0.2]
    assert frame["kappa"].isna().tolist() == [True, False]
    assert frame["solver"].isna().tolist() == [True, False]


def test_columns_that_the_schema_lacks_are_left_out(tmp_path: Path) -> None:
    newer = pa.schema([*DRIFT, pa.field("invented_later", pa.float64())])
    PartTable(tmp_path, newer).append([row(1, delta_d=0.1, invented_later=1.0)])
    frame = PartTable(tmp_path, DRIFT).read()
    assert list(frame.columns) == DRIFT.names
    assert frame["delta_d"].tolist() == [0.1]


# Compaction.


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("seed", range(5))
def test_compaction_changes_no_row(tmp_path: Path, kind: str, seed: int) -> None:
    table = grown(tmp_path, kind, seed)
    before = table.read()
    table.compact(range(5))
    assert len(table.parts()) == 1
    pd.testing.assert_frame_equal(table.read(), before)
    (part,) = table.parts()
    table.compact(range(5))
    assert table.parts() == [part], "a compact table is left alone"


def test_compaction_keeps_the_columns_types(tmp_path: Path) -> None:
    table = grown(tmp_path)
    table.compact(range(5))
    assert pq.read_schema(table.parts()[0]).remove_metadata().equals(DRIFT)


def test_later_parts_win_over_a_compacted_one(tmp_path: Path) -> None:
    table = PartTable(tmp_path, DRIFT)
    for value in (0.1, 0.2):
        table.append([row(1, delta_d=value)])
    table.compact([1])
    table.append([row(1, delta_d=0.3)])
    assert table.read()["delta_d"].tolist() == [0.3]


@pytest.mark.parametrize("parts", [1, 4])
def test_rows_of_vanished_steps_are_dropped(tmp_path: Path, parts: int) -> None:
    table = grown(tmp_path, parts=parts)
    before = table.read()
    gone = int(before["step"].iloc[-1])
    table.compact([step for step in range(5) if step != gone])
    expected = before[before["step"] != gone].reset_index(drop=True)
    pd.testing.assert_frame_equal(table.read(), expected)


def test_an_empty_table_is_compact(tmp_path: Path) -> None:
    table = PartTable(tmp_path / "none", DRIFT)
    table.compact([1])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("deleted", [0, 1, 3])
def test_a_kill_while_old_parts_are_deleted_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: int
) -> None:
    table = grown(tmp_path)
    before = table.read()
    unlink = Path.unlink
    calls = 0

    def killed(path: Path, missing_ok: bool = False) -> None:
        nonlocal calls
        if calls == deleted:
            raise KeyboardInterrupt
        calls += 1
        unlink(path, missing_ok)

    old = table.parts()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            table.compact(range(5))
    assert len(table.parts()) == len(old) - deleted + 1
    pd.testing.assert_frame_equal(PartTable(tmp_path, DRIFT).read(), before)
    table.compact(range(5))
    assert len(table.parts()) == 1
    pd.testing.assert_frame_equal(table.read(), before)


def test_a_full_disk_during_compaction_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = grown(tmp_path)
    before, files = table.read(), sorted(tmp_path.iterdir())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        table.compact(range(5))
    with pytest.raises(OSError, match="No space left"):
        table.append([row(9)])
    assert sorted(tmp_path.iterdir()) == files
    pd.testing.assert_frame_equal(table.read(), before)


def test_reading_during_a_compaction_sees_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = grown(tmp_path)
    before = table.read()
    real = PartTable.read_part
    compacted = False

    def compact_first(reader: PartTable, *arguments: Any) -> pa.Table:
        nonlocal compacted
        if not compacted:
            compacted = True
            table.compact(range(5))
        return real(reader, *arguments)

    monkeypatch.setattr(PartTable, "read_part", compact_first)
    pd.testing.assert_frame_equal(PartTable(tmp_path, DRIFT).read(), before)
    assert compacted


# How parts are laid out.


def test_of_the_arrays_only_row_groups_of_the_chosen_steps_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "GROUP_BYTES", 4096)
    table = PartTable(tmp_path, SPECTRUM)
    # As the analysis writes: matrix by matrix, each with all its steps.
    for layer in range(4):
        table.append([row(s, layer, sigma=[s + layer / 8] * 200) for s in range(30)])
    table.compact()
    (part,) = table.parts()
    groups = pq.ParquetFile(part).metadata
    assert groups.num_row_groups > 10
    steps = [groups.row_group(g).column(3).statistics for g in range(groups.num_row_groups)]
    assert all(before.max < after.min for before, after in itertools.pairwise(steps))
    read: list[int] = []
    real = pq.ParquetFile.read_row_groups

    def counted(file: pq.ParquetFile, chosen: list[int], *arguments: Any) -> pa.Table:
        read.extend(chosen)
        return real(file, chosen, *arguments)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    found = table.read(["sigma"], {"step": [7], "layer": [2]})
    assert [sigma.tolist() for sigma in found["sigma"]] == [[7.25] * 200]
    assert len(read) == 1


@pytest.mark.parametrize("group_rows", [7, 10**6])
def test_compaction_in_windows_changes_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    """Whatever parts there are, those of earlier versions included: Arrow's own row groups."""
    monkeypatch.setattr(compaction, "_WINDOW_BYTES", 3000)
    monkeypatch.setattr(compaction, "_BATCH_BYTES", 500)
    table = grown(tmp_path, "spectrum", parts=8)
    for part in table.parts():
        whole = pq.read_table(part)
        shuffled = whole.take(np.random.default_rng(1).permutation(len(whole)))
        pq.write_table(shuffled.drop_columns(["leading_u"]), part, row_group_size=group_rows)
    before = table.read()
    table.compact()
    assert len(table.parts()) == 1
    pd.testing.assert_frame_equal(table.read(), before)


@pytest.mark.slow
def test_compaction_holds_little_of_a_long_table(tmp_path: Path) -> None:
    """A gigabyte of arrays: 40 steps of 64 matrices with k = 4096 and six arrays."""
    script = f"""
import resource
import numpy as np, pyarrow as pa
from pathlib import Path
from spectra.store import SPECTRUM, SPECTRUM_ARRAYS, PartTable
table = PartTable(Path({str(tmp_path)!r}), SPECTRUM)
numbers = np.random.default_rng(0)
for step in range(40):
    arrays = {{name: numbers.random(4096, dtype=np.float32) for name in SPECTRUM_ARRAYS}}
    keys = [(layer, module) for layer in range(32) for module in ("q_proj", "v_proj")]
    table.append([{{"step": step, "layer": layer, "module": m}} | arrays for layer, m in keys])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table.compact()
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 300 * 1024
    assert len(PartTable(tmp_path, SPECTRUM).read([])) == 40 * 64


# Leftovers and damage.


def test_leftovers_are_never_read(tmp_path: Path) -> None:
    table = grown(tmp_path)
    before = table.read()
    whole = table.parts()[0].read_bytes()
    (tmp_path / f"{TEMPORARY_PREFIX}half.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / f"{TEMPORARY_PREFIX}empty.parquet").write_bytes(b"")
    pd.testing.assert_frame_equal(table.read(), before)
    table.compact(range(5))
    pd.testing.assert_frame_equal(table.read(), before)


DAMAGES = {
    "empty": lambda content: b"",
    "text": lambda content: b"not Parquet at all",
    "only the magic": lambda content: b"PAR1PAR1",
    "cut off": lambda content: content[:-20],
    "cut off early": lambda content: content[:10],
    "zeros in the values": lambda content: content[:4] + bytes(len(content) // 2) + content[-800:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_named(tmp_path: Path, damage: str) -> None:
    table = grown(tmp_path)
    part = table.parts()[2]
    part.write_bytes(DAMAGES[damage](part.read_bytes()))
    with pytest.raises(OSError, match=part.name):
        table.read()


def test_any_damage_is_an_error_that_names_the_part(tmp_path: Path) -> None:
    table = grown(tmp_path, parts=1)
    (part,) = table.parts()
    whole = part.read_bytes()
    rng = random.Random(0)
    named = 0
    for _ in range(300):
        content = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(1, 4)):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        part.write_bytes(content)
        # Parquet has no checksum over its values, so a flipped bit there may pass unseen.
        try:
            table.read()
        except OSError as error:
            assert part.name in str(error)
            named += 1
    assert named > 100


# The training curve.


def test_training_rows_are_read_as_written(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    run.update_settings(method="lora")
    run.write_training([{"step": 1, "loss": 2.5, "lr": 0.1}, {"step": 2, "loss": 1.5}])
    frame = run.read_training()
    assert frame["step"].tolist() == [1, 2]
    assert frame["loss"].tolist() == [2.5, 1.5]
    assert frame["lr"].isna().tolist() == [False, True]
    assert frame["grad_norm"].isna().all()
    assert set(frame["run"]) == {"a"}
    assert set(frame["method"]) == {"lora"}
    run.write_training([{"step": 7}])
    assert run.read_training()["step"].tolist() == [7]


def test_columns_that_a_training_table_lacks_are_null(tmp_path: Path) -> None:
    """It was written before the schema had them."""
    path = tmp_path / "training.parquet"
    older = pa.schema([pa.field("step", pa.int64()), pa.field("loss", pa.float64())])
    pq.write_table(pa.Table.from_pylist([{"step": 3, "loss": 0.5}], schema=older), path)
    frame = read_training(path, TRAINING)
    assert set(frame.columns) == set(TRAINING.names)
    assert frame["loss"].tolist() == [0.5] and frame["perplexity"].isna().all()
    assert frame["perplexity"].dtype == "float64"


def test_values_of_a_step_are_set_and_all_else_stays(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    run.update_settings(method="lora")
    run.update_training(4, perplexity=8.0)  # there is no table yet
    run.write_training([{"step": 2, "loss": 1.5, "lr": 0.1}, {"step": 3, "loss": 1.0}])
    run.update_training(3, perplexity=7.0, gsm8k=0.25)
    run.update_training(0, perplexity=9.0)
    run.update_training(3, perplexity=6.0)
    frame = run.read_training().set_index("step")
    assert frame.index.tolist() == [0, 2, 3]
    assert frame["perplexity"].dropna().to_dict() == {0: 9.0, 3: 6.0}
    assert frame["gsm8k"].dropna().to_dict() == {3: 0.25}
    assert frame["loss"].dropna().to_dict() == {2: 1.5, 3: 1.0}
    assert frame["lr"].dropna().to_dict() == {2: 0.1}
    assert pq.read_schema(run.training_path).equals(TRAINING)


def test_without_training_there_are_no_rows(tmp_path: Path) -> None:
    frame = read_training(tmp_path / "training.parquet", TRAINING)
    assert list(frame.columns) == TRAINING.names
    assert len(frame) == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_training_table_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "training.parquet"
    write_training(path, [{"step": s, "loss": s / 7} for s in range(500)], TRAINING)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(OSError, match=r"training\.parquet"):
        read_training(path, TRAINING)
