"""From a folder to an ordered list of checkpoints."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import scan_cache_dir
from safetensors.torch import save_file

from checkpoints_index import (
    CheckpointError,
    IncompleteCheckpointError,
    build_index,
    find_checkpoints,
    find_series,
    open_model,
)
from checkpoints_index.byte_files import LocalFile
from checkpoints_index.safetensors_files import TensorFile
from checkpoints_index.snapshots import BASE_FILE
from tests.checkpoints_index.formats import FORMATS, STEP


def put(folder: Path, step: int | None = None) -> Path:
    """The least that is a model folder; with a trainer's state if `step` is given."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"layers.0.q_proj.weight": torch.zeros(2, 3)}
    save_file(tensors, folder / "model.safetensors")
    if step is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def steps_by_name(folder: Path) -> list[tuple[int, str]]:
    return [(c.step, c.path.name) for c in find_checkpoints(folder)]


# Steps.


@pytest.mark.parametrize("name", ["checkpoint-12", "step12-unsharded", "iter_0000012"])
def test_steps_come_from_names(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    assert steps_by_name(tmp_path) == [(12, name)]


def test_a_step_may_be_in_the_name_of_a_folder_above(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-12" / "model")
    assert steps_by_name(tmp_path) == [(12, "model")]
    assert steps_by_name(tmp_path / "checkpoint-12") == [(12, "model")]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (1000, 20, 3):
        put(tmp_path / f"checkpoint-{step}")
    assert [step for step, _ in steps_by_name(tmp_path)] == [3, 20, 1000]


def test_a_trainers_state_counts_more_than_a_name(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-1", step=70)
    put(tmp_path / "epoch-a", step=60)
    assert steps_by_name(tmp_path) == [(60, "epoch-a"), (70, "checkpoint-1")]


@pytest.mark.parametrize("state", ["", "{", "[]", "{}", '{"global_step": null}', "\x00"])
def test_a_broken_trainers_state_leaves_the_name(tmp_path: Path, state: str) -> None:
    (put(tmp_path / "checkpoint-5") / "trainer_state.json").write_text(state)
    assert steps_by_name(tmp_path) == [(5, "checkpoint-5")]


def test_a_lone_checkpoint_needs_no_step(tmp_path: Path) -> None:
    (checkpoint,) = find_checkpoints(put(tmp_path / "final"))
    assert checkpoint.step > 0


def test_checkpoints_are_found_at_any_depth(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b" / "checkpoint-2")
    put(tmp_path / "checkpoint-1")
    assert [step for step, _ in steps_by_name(tmp_path)] == [1, 2]


def test_the_last_weights_at_the_top_are_not_counted_again(tmp_path: Path) -> None:
    put(tmp_path)
    put(tmp_path / "checkpoint-1")
    put(tmp_path / "checkpoint-2")
    assert [step for step, _ in steps_by_name(tmp_path)] == [1, 2]


def test_missing_steps_are_an_error_that_names_a_candidate(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-1")
    nameless = put(tmp_path / "best")
    message = f"1 of 2 checkpoints have no step, e.g. {re.escape(str(nameless))}: .* Rename them"
    with pytest.raises(CheckpointError, match=message):
        find_checkpoints(tmp_path)


def test_ambiguous_steps_are_an_error_that_names_the_candidates(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a" / "checkpoint-4"), put(tmp_path / "b" / "checkpoint-4")
    put(tmp_path / "checkpoint-5")
    with pytest.raises(CheckpointError, match="Step 4 stands for 2 checkpoints") as raised:
        find_checkpoints(tmp_path)
    assert str(first) in str(raised.value)
    assert str(second) in str(raised.value)


def test_an_adapter_beside_a_model_is_ambiguous_only_by_its_step(tmp_path: Path) -> None:
    FORMATS["LoRA folder"](tmp_path)
    put(tmp_path / "checkpoint-31")
    assert [(c.step, c.method) for c in find_checkpoints(tmp_path)] == [
        (STEP, "lora"),
        (31, "full-ft"),
    ]


# What is in a checkpoint's folder.


def test_an_optimizers_copy_in_a_checkpoint_is_not_counted_again(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-7")
    put(tmp_path / "checkpoint-7" / "global_step7")
    put(tmp_path / "checkpoint-7" / "reference")
    assert steps_by_name(tmp_path) == [(7, "checkpoint-7")]


def test_weights_at_the_top_that_no_step_has_are_the_last_step(tmp_path: Path) -> None:
    put(tmp_path / "out", step=25)
    put(tmp_path / "out" / "checkpoint-10", step=10)
    put(tmp_path / "out" / "checkpoint-20", step=20)
    assert [step for step, _ in steps_by_name(tmp_path)] == [10, 20, 25]
    (series,) = build_index(tmp_path).series
    assert series.name == "out" and [e.step for e in series.entries] == [10, 20, 25]
    put(tmp_path / "out" / "checkpoint-25", step=25)
    assert steps_by_name(tmp_path)[-1] == (25, "checkpoint-25")
    assert len(find_checkpoints(tmp_path)) == 3


def test_a_base_at_the_top_of_its_adapters_is_no_step(tmp_path: Path) -> None:
    put(tmp_path)
    FORMATS["LoRA folder"](tmp_path)
    assert [(c.step, c.method) for c in find_checkpoints(tmp_path)] == [(STEP, "lora")]
    found = {s.is_adapter: [c.path for c in s.checkpoints] for s in find_series(tmp_path)}
    assert found == {False: [tmp_path], True: [tmp_path / f"checkpoint-{STEP}"]}


def test_several_adapters_of_one_step_are_ambiguous(tmp_path: Path) -> None:
    FORMATS["LoRA folder"](tmp_path)
    (adapter,) = find_checkpoints(tmp_path)
    shutil.copytree(adapter.path, adapter.path / "other")
    message = f"Step {STEP} stands for 2 checkpoints: .*, .*other"
    with pytest.raises(CheckpointError, match=message):
        find_checkpoints(tmp_path)
    series = find_series(tmp_path)
    assert [s.name for s in series] == ["other", tmp_path.name]
    assert all([c.step for c in s.checkpoints] == [STEP] for s in series)


def test_of_two_formats_in_a_folder_a_complete_one_is_read(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "adapter_config.json").write_text("{}")
    assert [c.method for c in find_checkpoints(tmp_path)] == ["full-ft"]
    FORMATS["LoRA folder"](tmp_path / "other")
    put(tmp_path / "other" / f"checkpoint-{STEP}")
    assert [c.method for c in find_checkpoints(tmp_path / "other")] == ["lora"]


@pytest.mark.parametrize(
    "names",
    [
        ("mp_rank_00/model.safetensors", "mp_rank_01/model.safetensors"),
        ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"),
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"),
    ],
)
def test_the_parts_of_several_ranks_are_no_models(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        file = tmp_path / "iter_0000500" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (entry,) = build_index(tmp_path).entries
    assert (entry.step, entry.state) == (500, "broken")
    with pytest.raises(CheckpointError, match="iter_0000500 holds a model in the parts of several"):
        find_checkpoints(tmp_path)


# The cache of the hub's client.


def put_revision(cache: Path, revision: str, commit: str) -> Path:
    """One revision of organisation/name, as the hub's client lays it out."""
    repository = cache / "models--organisation--name"
    ref = repository / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    snapshot = repository / "snapshots" / commit
    if not snapshot.exists():
        blob = repository / "blobs" / f"blob-{commit}"
        blob.parent.mkdir(exist_ok=True)
        (put(snapshot) / "model.safetensors").rename(blob)
        (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_revisions_of_a_hub_repository_are_steps(tmp_path: Path) -> None:
    put_revision(tmp_path, "step1000", "a" * 40)
    put_revision(tmp_path, "stage1-step500-tokens2B", "b" * 40)
    snapshot = put_revision(tmp_path, "step0", "c" * 40)
    repository = snapshot.parents[1]
    (known,) = scan_cache_dir(tmp_path).repos
    assert known.repo_id == "organisation/name"
    assert set(known.refs) == {"step0", "step1000", "stage1-step500-tokens2B"}
    for path in (tmp_path, repository, repository / "snapshots"):
        assert [step for step, _ in steps_by_name(path)] == [0, 500, 1000]
        (series,) = build_index(path).series
        assert series.name == "organisation/name" and not series.problem
        assert build_index(path).notes == ()
    assert series.entries[1].revisions == ("stage1-step500-tokens2B",)
    assert [c.step for c in find_checkpoints(snapshot)] == [0]


def test_a_commit_of_two_steps_has_none(tmp_path: Path) -> None:
    put_revision(tmp_path, "step1", "a" * 40)
    put_revision(tmp_path, "main", "a" * 40)
    assert [step for step, _ in steps_by_name(tmp_path)] == [1]
    put_revision(tmp_path, "step2", "a" * 40)
    put_revision(tmp_path, "step3", "b" * 40)
    with pytest.raises(CheckpointError, match="1 of 2 checkpoints have no step, e.g. .*aaaa"):
        find_checkpoints(tmp_path)


def test_a_repositorys_name_leads_nowhere_else(tmp_path: Path) -> None:
    put_revision(tmp_path, "step1", "a" * 40)
    (tmp_path / "models--organisation--name").rename(tmp_path / "models--..--..")
    assert [s.name for s in find_series(tmp_path)] == ["models--..--.."]


# Links.


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root / "checkpoint-1")
    (root / "latest").symlink_to("checkpoint-1")
    (root / "loop").symlink_to(".")
    elsewhere = put(tmp_path / "elsewhere" / "checkpoint-2")
    (root / "out").symlink_to(elsewhere.parent)
    index = build_index(root)
    assert [e.step for e in index.entries] == [1]
    assert index.notes == (
        f"{root / 'out'} is a link out of the folder, to {elsewhere.parent}, and was not followed. "
        "Give that folder by itself.",
    )
    # The user's own choice is followed.
    assert [e.step for e in build_index(root / "out").entries] == [2]


def test_links_of_files_out_of_the_folder_are_told(tmp_path: Path) -> None:
    root = tmp_path / "root"
    kept = put(root / "checkpoint-1") / "model.safetensors"
    kept.rename(tmp_path / "kept.safetensors")
    kept.symlink_to(tmp_path / "kept.safetensors")
    put(root / "checkpoint-2")
    (root / "checkpoint-2" / "vocab.json").symlink_to(tmp_path / "nowhere")
    index = build_index(root)
    assert [e.state for e in index.entries] == ["broken", "complete"]
    assert "model.safetensors is a symbolic link out of its folder" in index.entries[0].problem
    assert len(index.notes) == 2
    assert "kept.safetensors; no weights are read there" in index.notes[0]
    assert "nowhere, which does not exist" in index.notes[1]


def test_a_hubs_cache_may_not_link_out_of_its_repository(tmp_path: Path) -> None:
    link = put_revision(tmp_path / "hub", "step1", "a" * 40) / "model.safetensors"
    link.resolve().rename(tmp_path / "elsewhere")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    assert "is a link out of the folder" in build_index(tmp_path / "hub").notes[0]


# Growing folders.

LEFT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a missing shard": (
        "sharded model folder",
        lambda folder: (folder / "model-00002-of-00004.safetensors").unlink(),
    ),
    "shards without their index": (
        "sharded model folder",
        lambda folder: (folder / "model.safetensors.index.json").unlink(),
    ),
    "a short shard": (
        "sharded model folder",
        lambda folder: cut(folder / "model-00003-of-00004.safetensors", 0.7),
    ),
    "a short file": ("model folder", lambda folder: cut(folder / "model.safetensors", 0.99)),
    "a short header": ("model folder", lambda folder: cut(folder / "model.safetensors", 0.001)),
    "an empty file": ("model folder", lambda folder: cut(folder / "model.safetensors", 0)),
    "an adapter's settings": (
        "LoRA folder",
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
    ),
    "an adapter's weights": (
        "LoRA folder",
        lambda folder: (folder / "adapter_config.json").unlink(),
    ),
    "a short adapter": (
        "LoRA folder",
        lambda folder: cut(folder / "adapter_model.safetensors", 0.5),
    ),
    "a trainer's temporary folder": (
        "model folder",
        lambda folder: folder.rename(folder.with_name(f"tmp-checkpoint-{STEP}")),
    ),
}


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.parametrize("left", LEFT)
def test_what_is_still_being_written_is_left_for_the_next_time(
    left: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, damage = LEFT[left]
    FORMATS[name](tmp_path)
    with caplog.at_level(logging.WARNING):
        (whole,) = find_checkpoints(tmp_path)
    assert not caplog.text
    shutil.copytree(whole.path, tmp_path / "checkpoint-1")
    damage(whole.path)
    with caplog.at_level(logging.WARNING):
        assert [c.step for c in find_checkpoints(tmp_path)] == [1]
    assert "Left for the next time: " in caplog.text and str(tmp_path) in caplog.text
    (series,) = build_index(tmp_path).series
    assert [(e.step, e.state) for e in series.entries] == [(1, "complete"), (STEP, "incomplete")]
    assert series.entries[1].problem and series.method == whole.method
    assert not series.problem
    shutil.rmtree(tmp_path / "checkpoint-1")
    with pytest.raises(IncompleteCheckpointError, match=re.escape(str(tmp_path))):
        find_checkpoints(tmp_path)


def test_what_is_still_being_written_makes_nothing_ambiguous(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-5")
    put(tmp_path / "tmp-checkpoint-5")
    (put(tmp_path / "step-5") / "model.safetensors").rename(
        tmp_path / "step-5" / "model-00001-of-00002.safetensors"
    )
    assert [c.path.name for c in find_checkpoints(tmp_path)] == ["checkpoint-5"]
    (series,) = build_index(tmp_path).series
    assert not series.problem
    assert [e.state for e in series.entries].count("incomplete") == 2


def test_damage_is_not_taken_for_growth(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-1")
    file = put(tmp_path / "checkpoint-2") / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8] = 0  # no JSON any more, but as long as it says
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="checkpoint-2") as raised:
        find_checkpoints(tmp_path)
    assert not isinstance(raised.value, IncompleteCheckpointError)
    assert [e.state for e in build_index(tmp_path).entries] == ["complete", "broken"]


# Several trainings in one folder.


def test_trainings_side_by_side_are_series(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for step in (20, 3):
            put(tmp_path / name / f"checkpoint-{step}")
        put(tmp_path / name)
    put(tmp_path / "base")
    found = find_series(tmp_path)
    steps = [(s.name, [c.step for c in s.checkpoints], s.has_steps) for s in found]
    assert steps == [("a", [3, 20], True), ("b", [3, 20], True), ("base", [1], False)]
    assert not any(series.is_adapter for series in found)


@pytest.mark.parametrize("step", [10, 12])
def test_the_ends_of_trainings_side_by_side_are_series(tmp_path: Path, step: int) -> None:
    put(tmp_path / "rank-8", step=10)
    put(tmp_path / "rank-16", step=step)
    assert [s.name for s in find_series(tmp_path)] == [
        f"{tmp_path.name}/rank-16",
        f"{tmp_path.name}/rank-8",
    ]


def test_renamed_checkpoints_beside_others_are_of_their_training(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-5", step=5)
    for name, step in (("best", 7), ("last", 9)):
        put(tmp_path / name, step=step)
    (series,) = find_series(tmp_path)
    assert [c.step for c in series.checkpoints] == [5, 7, 9]


def test_methods_in_one_folder_are_series(tmp_path: Path) -> None:
    FORMATS["LoRA folder"](tmp_path)
    (tmp_path / f"checkpoint-{STEP}").rename(tmp_path / "lora-step-5")
    FORMATS["SORSA folder"](tmp_path)
    (tmp_path / f"checkpoint-{STEP}").rename(tmp_path / "sorsa-step-5")
    assert [s.name for s in find_series(tmp_path)] == [
        f"{tmp_path.name}-lora",
        f"{tmp_path.name}-sorsa",
    ]


def test_an_ambiguous_series_is_marked_and_shows_its_candidates(tmp_path: Path) -> None:
    first, second = put(tmp_path / "checkpoint-4"), put(tmp_path / "step-4")
    put(tmp_path / "other" / "checkpoint-4")
    problems = {series.name: series.problem for series in build_index(tmp_path).series}
    ambiguous = problems.pop(tmp_path.name)
    assert str(first) in ambiguous and str(second) in ambiguous
    assert problems == {"other": ""}
    with pytest.raises(CheckpointError, match="Step 4 stands for 2 checkpoints"):
        find_series(tmp_path)


def test_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-1")
    put(tmp_path / ".cache" / "checkpoint-2")
    assert [e.step for e in build_index(tmp_path).entries] == [1]


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path / "checkpoint-1")
    put(tmp_path / "secret")
    real = os.scandir

    def refusing(path: Path) -> Any:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    index = build_index(tmp_path)
    assert [e.step for e in index.entries] == [1]
    assert index.notes == (f"{tmp_path / 'secret'} cannot be searched (Permission denied).",)


# Runs.


@pytest.mark.parametrize("inside", ["", "snapshots"])
def test_a_run_gives_its_snapshots_in_order(tmp_path: Path, inside: str) -> None:
    FORMATS["snapshots of LoRA"](tmp_path)
    put(tmp_path / "checkpoints" / "checkpoint-7")
    found = find_checkpoints(tmp_path / inside)
    assert [c.step for c in found] == [0, STEP]
    assert all(c.path.parent == tmp_path / "snapshots" for c in found)
    index = build_index(tmp_path / inside)
    assert [e.size for e in index.entries] == [c.path.stat().st_size for c in found]
    assert [(e.path, e.step) for e in index.entries] == [(c.path, c.step) for c in found]
    (series,) = index.series
    assert series.method == "lora"
    assert series.name in (tmp_path.name, "snapshots")


@pytest.mark.parametrize("inside", ["", "snapshots"])
def test_snapshots_have_their_runs_method(tmp_path: Path, inside: str) -> None:
    FORMATS["snapshots of SORSA"](tmp_path)
    assert {c.method for c in find_checkpoints(tmp_path / inside)} == {"sorsa"}


@pytest.mark.parametrize("settings", [None, "", "{}", "[]", "\x00"])
def test_snapshots_without_a_readable_run_have_an_unknown_method(
    tmp_path: Path, settings: str | None
) -> None:
    FORMATS["snapshots of LoRA"](tmp_path)
    (tmp_path / "run.json").unlink()
    if settings is not None:
        (tmp_path / "run.json").write_text(settings)
    assert {c.method for c in find_checkpoints(tmp_path)} == {"unknown"}


def test_leftovers_of_a_killed_recorder_are_no_snapshots(tmp_path: Path) -> None:
    FORMATS["snapshots of LoRA"](tmp_path)
    (tmp_path / "snapshots" / ".spectra-tmp-x.safetensors").write_bytes(b"half")
    assert [c.step for c in find_checkpoints(tmp_path)] == [0, STEP]


def test_a_snapshot_under_another_steps_name_is_broken(tmp_path: Path) -> None:
    FORMATS["snapshots of LoRA"](tmp_path)
    snapshots = tmp_path / "snapshots"
    (snapshots / f"step-{STEP:08}.safetensors").rename(snapshots / "step-00000099.safetensors")
    *_, entry = build_index(tmp_path).entries
    assert entry.state == "broken"
    assert f"is step {STEP} by its header, 99 by its name" in entry.problem


def test_snapshots_without_their_base_are_incomplete(tmp_path: Path) -> None:
    FORMATS["snapshots of LoRA"](tmp_path)
    (tmp_path / "snapshots" / BASE_FILE).unlink()
    assert {e.state for e in build_index(tmp_path).entries} == {"incomplete"}


# Only headers are read.


@pytest.mark.parametrize("name", FORMATS)
def test_finding_reads_no_tensor(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FORMATS[name](tmp_path)
    touched: list[tuple[Path, int]] = []
    tensors: list[str] = []
    for reading in ("read", "map"):
        original = getattr(LocalFile, reading)

        def told(file: LocalFile, offset: int, length: int, original: Any = original) -> Any:
            touched.append((file.path, offset + length))
            return original(file, offset, length)

        monkeypatch.setattr(LocalFile, reading, told)
    read_tensor = TensorFile.read

    def told_tensor(file: TensorFile, tensor: str, rows: slice | None = None) -> Any:
        tensors.append(tensor)
        return read_tensor(file, tensor, rows)

    monkeypatch.setattr(TensorFile, "read", told_tensor)
    *_, checkpoint = find_checkpoints(tmp_path)
    _ = checkpoint.fingerprint, checkpoint.base, checkpoint.method
    for path, reached in touched:
        if path.suffix == ".safetensors":
            assert reached <= 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert tensors == []
    checkpoint.read(checkpoint.matrices[0])
    # One matrix and nothing else: a SORSA matrix has six tensors, three of them initial.
    assert 1 <= len(tensors) <= 6
    assert all(tensor.startswith(tensors[0].rsplit(".", 2)[0]) for tensor in tensors)


def test_weights_far_larger_than_memory_are_found(tmp_path: Path) -> None:
    shape = [1 << 18, 1 << 17]  # 128 GiB of float32; a hole in the file, not on the disk
    size = 4 * shape[0] * shape[1]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"layers.0.q_proj.weight": entry}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + size)
        except OSError:
            pytest.skip("this file system has no files with holes")
    (checkpoint,) = find_checkpoints(tmp_path)
    assert checkpoint.matrices[0].shape == tuple(shape)


# One file.


def test_a_file_that_is_a_checkpoint_is_found_alone(tmp_path: Path) -> None:
    FORMATS["snapshots of LoRA"](tmp_path)
    file = tmp_path / "snapshots" / f"step-{STEP:08}.safetensors"
    assert [(c.path, c.step) for c in find_checkpoints(file)] == [(file, STEP)]
    assert [(e.path, e.step) for e in build_index(file).entries] == [(file, STEP)]
    # A whole model is its folder.
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_checkpoints(put(tmp_path / "model") / "model.safetensors")


def put_file(file: Path) -> None:
    """The least that is a model in one PyTorch file."""
    torch.save({"layers.0.q_proj.weight": torch.zeros(2, 3)}, file)


def test_files_of_one_folder_are_a_series(tmp_path: Path) -> None:
    root = tmp_path / "out"
    root.mkdir()
    for name in ("epoch=0-step=5.ckpt", "model_step_10.pt", "step-0000020.pt", "optimizer.pt"):
        put_file(root / name)
    assert [c.step for c in find_checkpoints(root)] == [5, 10, 20]
    (series,) = find_series(root)
    assert series.name == "out" and len(series.checkpoints) == 3
    assert [c.step for c in find_checkpoints(root / "model_step_10.pt")] == [10]
    assert open_model(root / "model_step_10.pt").step == 0
    with pytest.raises(CheckpointError, match="holds 3 models: .*epoch=0-step=5.ckpt, .*model_s"):
        open_model(root)
    put_file(root / "last.pt")
    with pytest.raises(CheckpointError, match="1 of 4 checkpoints have no step, e.g. .*last.pt"):
        find_checkpoints(root)
    assert [s.name for s in find_series(root)] == ["last.pt", "out"]


def test_files_in_a_models_folder_are_of_that_model(tmp_path: Path) -> None:
    put_file(put(tmp_path / "checkpoint-5") / "scores.pt")
    (tmp_path / "global_step6").mkdir()
    put_file(tmp_path / "global_step6" / "mp_rank_00_model_states.pt")
    put_file(tmp_path / "global_step6" / "mp_rank_00_optim_states.pt")
    assert [c.step for c in find_checkpoints(tmp_path)] == [5, 6]


@pytest.mark.parametrize(
    "name",
    [
        *("optimizer.pt", "optimizer_0.pt", "scheduler.pt", "rng_state.pth", "rng_state_12.pth"),
        *("training_args.pt", "scaler.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    ],
)
def test_what_trainers_save_beside_weights_is_no_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    (tmp_path / "optimizer_0").mkdir()
    (tmp_path / "optimizer_0" / "step-1.pt").write_bytes(b"PK")
    assert build_index(tmp_path).series == ()
    # Megatron's has both in one.
    (tmp_path / "model_optim_rng.pt").write_bytes(b"PK")
    assert len(build_index(tmp_path).entries) == 1


@pytest.mark.parametrize(
    "name", ["optimizer" + "_a" * 100 + "!", "step-1" * 40, "mp_rank_" + "1" * 240, "-" * 255]
)
def test_no_name_takes_long(tmp_path: Path, name: str) -> None:
    put(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / name).write_bytes(b"")
    put(tmp_path / "x" / name)
    start = time.process_time()
    assert len(build_index(tmp_path).entries) == 2
    assert time.process_time() - start < 1


# What is not there.


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        find_checkpoints(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        open_model(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="file is not a folder"):
        find_checkpoints(tmp_path / "file")


def test_a_folder_without_checkpoints_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"looked for model\.safetensors.*adapter_config"):
        find_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no base model: looked for model\.safetens"):
        open_model(tmp_path)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    FORMATS["LoRA folder"](tmp_path)
    with pytest.raises(CheckpointError, match="holds no base model"):
        open_model(tmp_path / f"checkpoint-{STEP}")


def test_a_runs_base_is_opened_by_its_file(tmp_path: Path) -> None:
    FORMATS["snapshots of LoRA"](tmp_path)
    base = open_model(tmp_path / "snapshots" / BASE_FILE)
    assert base.step == 0
    assert {m.module for m in base.matrices} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("name", FORMATS)
def test_an_unknown_matrix_is_refused(name: str, tmp_path: Path) -> None:
    from dataclasses import replace

    FORMATS[name](tmp_path)
    *_, checkpoint = find_checkpoints(tmp_path)
    other = replace(checkpoint.matrices[0], name="layers.9.w")
    with pytest.raises(CheckpointError, match=r"has no matrix 'layers\.9\.w'"):
        checkpoint.read(other)
