"""From a folder to an ordered list of checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_index import CheckpointError, find_checkpoints, open_model
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


@pytest.mark.parametrize(
    "name", ["checkpoint-12", "step-12", "step_12", "step12", "global_step12", "iter-0000012"]
)
def test_steps_come_from_names(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    assert steps_by_name(tmp_path) == [(12, name)]


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


# Runs.


@pytest.mark.parametrize("inside", ["", "snapshots"])
def test_a_run_gives_its_snapshots_in_order(tmp_path: Path, inside: str) -> None:
    FORMATS["snapshots of LoRA"](tmp_path)
    put(tmp_path / "checkpoints" / "checkpoint-7")
    found = find_checkpoints(tmp_path / inside)
    assert [c.step for c in found] == [0, STEP]
    assert all(c.path.parent == tmp_path / "snapshots" for c in found)


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
