"""The index on disk: read again only what changed, and believe nothing of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import checkpoints_index.index
from checkpoints_index import Index, IndexStore, build_index
from tests.checkpoints_index.formats import FORMATS, STEP

AN_HOUR_AGO = time.time() - 3600


def put(folder: Path, columns: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"layers.0.q_proj.weight": torch.zeros(2, columns)}, folder / "model.safetensors")
    return folder


def age(root: Path) -> None:
    """As if nothing had been written for an hour, so that times of change can be relied on."""
    for path in [root, *root.rglob("*")]:
        os.utime(path, (AN_HOUR_AGO, AN_HOUR_AGO), follow_symlinks=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for step in (1, 2, 3):
        put(root / f"checkpoint-{step}")
    age(root)
    return root


@pytest.fixture
def store(tmp_path: Path) -> IndexStore:
    return IndexStore(tmp_path / "kept")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is opened, in order."""
    names: list[str] = []
    real = checkpoints_index.index.open_candidate

    def noting(candidate: Any, step: int) -> Any:
        names.append(candidate.path.name)
        return real(candidate, step)

    monkeypatch.setattr(checkpoints_index.index, "open_candidate", noting)
    return names


def steps(index: Index) -> list[int | None]:
    return [entry.step for entry in index.entries]


@pytest.mark.parametrize("name", FORMATS)
def test_a_kept_index_says_the_same(
    name: str, tmp_path: Path, store: IndexStore, opened: list[str]
) -> None:
    root = tmp_path / "root"
    FORMATS[name](root)
    age(root)
    first = build_index(root, store)
    assert opened
    opened.clear()
    assert build_index(root, store) == first
    assert not opened


def test_only_what_is_new_is_opened(root: Path, store: IndexStore, opened: list[str]) -> None:
    build_index(root, store)
    put(root / "checkpoint-4")
    opened.clear()
    assert steps(build_index(root, store)) == [1, 2, 3, 4]
    assert opened == ["checkpoint-4"]


def test_what_was_written_again_within_a_tick_of_the_clock_is_opened_again(
    root: Path, store: IndexStore, opened: list[str]
) -> None:
    file = root / "checkpoint-2" / "model.safetensors"
    state = root / "checkpoint-2" / "trainer_state.json"
    state.write_text('{"global_step": 7}')
    age(root)
    now = time.time_ns()
    for path in (file, state):
        os.utime(path, ns=(now, now))
    assert steps(build_index(root, store)) == [1, 3, 7]
    for path, old, new in ((file, b"q_proj", b"k_proj"), (state, b"7", b"8")):
        content = path.read_bytes()
        with path.open("r+b") as writing:  # in place: the folder does not change
            writing.write(content.replace(old, new))
        os.utime(path, ns=(now, now))
    opened.clear()
    changed = build_index(root, store).entries[-1]
    assert (changed.step, changed.matrices[0].module) == (8, "k_proj")
    assert opened == ["checkpoint-2"]
    age(root)
    build_index(root, store)
    opened.clear()
    build_index(root, store)
    assert not opened


def test_what_was_written_again_is_opened_again(
    root: Path, store: IndexStore, opened: list[str]
) -> None:
    build_index(root, store)
    (root / "checkpoint-2" / "model.safetensors").unlink()
    put(root / "checkpoint-2", columns=5)
    # The folder's own time may be put back by a copy; the file's size is another.
    age(root)
    opened.clear()
    index = build_index(root, store)
    assert opened == ["checkpoint-2"]
    assert [e.matrices[0].shape for e in index.entries] == [(2, 3), (2, 5), (2, 3)]


def test_what_is_gone_is_gone(root: Path, store: IndexStore) -> None:
    build_index(root, store)
    shutil.rmtree(root / "checkpoint-1")
    (root / "checkpoint-3" / "model.safetensors").unlink()
    assert steps(build_index(root, store)) == [2]


def test_a_trainers_state_that_changed_is_read_again(root: Path, store: IndexStore) -> None:
    state = root / "checkpoint-1" / "trainer_state.json"
    state.write_text('{"global_step": 70}')
    age(root)
    assert steps(build_index(root, store)) == [2, 3, 70]
    state.write_text('{"global_step": 8000}')
    age(root)
    assert steps(build_index(root, store)) == [2, 3, 8000]


def test_growing_checkpoints_are_looked_at_again(
    root: Path, store: IndexStore, opened: list[str]
) -> None:
    file = root / "checkpoint-2" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    age(root)
    assert [e.state for e in build_index(root, store).entries][1] == "incomplete"
    opened.clear()
    assert [e.state for e in build_index(root, store).entries][1] == "incomplete"
    assert opened == ["checkpoint-2"]
    file.write_bytes(content)
    age(root)
    assert {e.state for e in build_index(root, store).entries} == {"complete"}


def test_folders_that_changed_just_now_are_listed_again(root: Path, store: IndexStore) -> None:
    build_index(root, store)
    put(root / "checkpoint-4")
    # In one tick of a coarse clock, a change after the listing leaves the folder's time as it is.
    build_index(root, store)
    before = root.stat()
    put(root / "checkpoint-5")
    os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert steps(build_index(root, store)) == [1, 2, 3, 4, 5]


def test_a_moved_folder_has_an_index_of_its_own(
    root: Path, store: IndexStore, tmp_path: Path
) -> None:
    build_index(root, store)
    put(tmp_path / "other" / "checkpoint-9")
    assert steps(build_index(tmp_path / "other", store)) == [9]
    assert store.file(root) != store.file(tmp_path / "other")
    shutil.copy(store.file(root), store.file(tmp_path / "other"))
    assert steps(build_index(tmp_path / "other", store)) == [9]


def test_old_indices_are_forgotten(root: Path, store: IndexStore, tmp_path: Path) -> None:
    build_index(root, store)
    half_a_year_ago = time.time() - 180 * 24 * 3600
    foreign = store.folder / "notes.txt"
    foreign.write_text("mine")
    for file in (store.file(root), foreign):
        os.utime(file, (half_a_year_ago, half_a_year_ago))
    build_index(put(tmp_path / "other"), store)
    assert not store.file(root).exists()
    assert foreign.exists() and store.file(tmp_path / "other").exists()


def test_matrices_that_checkpoints_share_are_written_once(root: Path, store: IndexStore) -> None:
    build_index(root, store)
    assert store.file(root).read_text().count("layers.0.q_proj") == 1


def test_where_nothing_can_be_kept_the_index_is_made_anew(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = IndexStore(tmp_path / "file" / "kept")
    for _ in range(2):
        assert steps(build_index(root, store)) == [1, 2, 3]


def test_a_failed_write_leaves_the_old_index(
    root: Path, store: IndexStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(root, store)
    before = store.file(root).read_bytes()
    put(root / "checkpoint-4")

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert steps(build_index(root, store)) == [1, 2, 3, 4]
    assert [p.read_bytes() for p in store.folder.iterdir()] == [before]


def test_the_folder_is_the_users_cache_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert IndexStore().folder == tmp_path / "checkpoints_index"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert IndexStore().folder == Path.home() / ".cache" / "checkpoints_index"


def test_nothing_is_written_to_the_folder_itself(root: Path, store: IndexStore) -> None:
    before = sorted(root.rglob("*"))
    build_index(root, store)
    assert sorted(root.rglob("*")) == before


# Damage.


def test_a_damaged_index_is_made_anew(root: Path, store: IndexStore) -> None:
    expected = build_index(root, store)
    file = store.file(root)
    content = file.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content[: rng.choice([len(content), rng.randrange(len(content))])])
        for _ in range(rng.randrange(3)):
            damaged[rng.randrange(len(damaged) or 1) :][:1] = b"\0"
        file.write_bytes(bytes(damaged))
        assert build_index(root, store) == expected


def change(file: Path, keys: list[Any], value: Any) -> None:
    content = json.loads(file.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(content))


FIRST = ["folders", "checkpoint-1"]


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["format"], 0),
        (["root"], "/"),
        (["folders"], []),
        (["folders"], {"../../etc": [0, [], [], [-1, -1], None, []]}),
        (["folders", ""], None),
        (["folders", "", 1], [".."]),
        (["folders", "", 1], ["/etc"]),
        (["folders", "", 1], ["a\0b"]),
        (["folders", "", 1], [7]),
        (["folders", "", 1], None),
        ([*FIRST, 0], "now"),
        ([*FIRST, 0], True),
        ([*FIRST, 3], [1]),
        ([*FIRST, 4], "1"),
        ([*FIRST, 5], 7),
        ([*FIRST, 5, 0], []),
        ([*FIRST, 5, 0, 0], "../checkpoint-2"),
        ([*FIRST, 5, 0, 2], ["../../secret"]),
        ([*FIRST, 5, 0, 2], []),
        ([*FIRST, 5, 0, 4], None),
        ([*FIRST, 5, 0, 5], 7),
        ([*FIRST, 5, 0, 6], 99),
        ([*FIRST, 5, 0, 6], "0"),
        (["matrices"], {}),
        (["matrices", 0, 0], ["q_proj"]),
        (["matrices", 0, 0, 3], [2]),
        (["matrices", 0, 0, 3], [2, 1e400]),
        (["matrices", 0, 0, 0], 7),
    ],
    ids=repr,
)
def test_a_hostile_index_is_made_anew(
    keys: list[Any], value: Any, root: Path, store: IndexStore, opened: list[str]
) -> None:
    expected = build_index(root, store)
    change(store.file(root), keys, value)
    opened.clear()
    assert build_index(root, store) == expected
    assert len(opened) == 3
    opened.clear()
    build_index(root, store)
    assert not opened  # and is kept again


def test_deeply_nested_json_is_no_index(root: Path, store: IndexStore) -> None:
    expected = build_index(root, store)
    store.file(root).write_text("[" * 100_000)
    assert build_index(root, store) == expected


def test_a_run_that_begins_is_a_run_from_then_on(tmp_path: Path, store: IndexStore) -> None:
    root = tmp_path / "root"
    FORMATS["snapshots of LoRA"](root)
    put(root / "checkpoints" / "checkpoint-7")
    snapshots = root / "snapshots"
    snapshots.rename(tmp_path / "later")
    snapshots.mkdir()
    age(root)
    assert steps(build_index(root, store)) == [7]
    for file in (tmp_path / "later").iterdir():
        file.rename(snapshots / file.name)
    assert steps(build_index(root, store)) == [0, STEP]


def test_snapshots_have_another_method_when_their_run_says_so(
    tmp_path: Path, store: IndexStore
) -> None:
    FORMATS["snapshots of LoRA"](tmp_path / "root")
    age(tmp_path / "root")
    assert {e.method for e in build_index(tmp_path / "root", store).entries} == {"lora"}
    settings = tmp_path / "root" / "run.json"
    settings.write_text(settings.read_text().replace('"lora"', '"another"'))
    index = build_index(tmp_path / "root", store)
    assert [(e.step, e.method) for e in index.entries] == [(0, "another"), (STEP, "another")]
