"""Whole weights of every format: found by names, described by headers, read as they were saved."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from checkpoints_index import CheckpointError, open_model
from checkpoints_index.model_folders import ModelCheckpoint
from checkpoints_index.model_readers import MODEL_READERS, find_models, open_whole_model
from tests.checkpoints_index.model_formats import MODEL_FORMATS, trained_llama


@pytest.fixture(params=MODEL_FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_format_gives_the_weights_that_were_saved(name: str, tmp_path: Path) -> None:
    expected = MODEL_FORMATS[name](tmp_path)
    model = open_model(tmp_path)
    matrices = {m.name: m for m in model.matrices}
    assert matrices.keys() >= expected.keys()
    for layer, w in expected.items():
        assert matrices[layer].shape == tuple(w.shape)
        assert matrices[layer].dtype == "float32"
        dense = model.read(matrices[layer]).dense
        assert dense is not None
        assert torch.equal(dense, w)


def test_every_format_reads_runs_of_rows(name: str, tmp_path: Path) -> None:
    MODEL_FORMATS[name](tmp_path)
    model = open_model(tmp_path)
    assert isinstance(model, ModelCheckpoint)
    stem = "model.layers.1.self_attn.v_proj.weight"
    whole = model.store.read(stem)
    for rows in (slice(0, 3), slice(5, None), slice(None), slice(7, 7), slice(-2, 99)):
        assert torch.equal(model.store.read(stem, rows), whole[rows]), rows
    with pytest.raises(ValueError, match="rows must be a run"):
        model.store.read(stem, slice(0, 4, 2))


def test_every_format_gives_all_tensors(name: str, tmp_path: Path) -> None:
    MODEL_FORMATS[name](tmp_path)
    model = open_model(tmp_path)
    assert isinstance(model, ModelCheckpoint)
    state = trained_llama().state_dict()
    assert model.store.tensors.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(model.store.read(key), tensor), key
    with pytest.raises(CheckpointError, match="has no tensor 'nothing'"):
        model.store.read("nothing")


def test_what_is_read_may_be_written_to_without_changing_the_file(
    name: str, tmp_path: Path
) -> None:
    expected = MODEL_FORMATS[name](tmp_path)
    model = open_model(tmp_path)
    matrix = next(m for m in model.matrices if m.name in expected)
    dense = model.read(matrix).dense
    assert dense is not None
    dense.zero_()
    for again in (model, open_model(tmp_path)):
        read = again.read(matrix).dense
        assert read is not None
        assert torch.equal(read, expected[matrix.name])


def test_what_is_opened_can_be_sent_to_another_process(name: str, tmp_path: Path) -> None:
    expected = MODEL_FORMATS[name](tmp_path)
    sent = pickle.dumps(open_model(tmp_path))
    # Descriptions, and no numbers.
    assert len(sent) < 20_000 < sum(p.stat().st_size for p in tmp_path.iterdir())
    model = pickle.loads(sent)
    for matrix in model.matrices:
        if matrix.name in expected:
            assert torch.equal(model.read(matrix).dense, expected[matrix.name])


def test_one_reader_finds_a_model_and_says_what_it_consists_of(name: str, tmp_path: Path) -> None:
    MODEL_FORMATS[name](tmp_path)
    (candidate,) = find_models(tmp_path)
    assert candidate.missing == ()
    assert all((tmp_path / file).is_file() for file in candidate.files)
    assert {r.format for r in MODEL_READERS} >= {candidate.format}


def test_the_fingerprint_changes_with_every_file(name: str, tmp_path: Path) -> None:
    MODEL_FORMATS[name](tmp_path)
    (candidate,) = find_models(tmp_path)
    before = open_whole_model(tmp_path, 0).fingerprint
    assert open_whole_model(tmp_path, 0).fingerprint == before
    for file in candidate.files:
        if file == "config.json":
            continue
        status = (tmp_path / file).stat()
        os.utime(tmp_path / file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
        after = open_whole_model(tmp_path, 0).fingerprint
        assert after != before
        before = after


def test_the_fingerprint_changes_with_what_the_configuration_says(tmp_path: Path) -> None:
    MODEL_FORMATS["safetensors"](tmp_path)
    before = open_whole_model(tmp_path, 0).fingerprint
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=1))
    assert open_whole_model(tmp_path, 0).fingerprint == before
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 1}))
    assert open_whole_model(tmp_path, 0).fingerprint != before


def test_a_folder_moved_keeps_its_fingerprint(name: str, tmp_path: Path) -> None:
    MODEL_FORMATS[name](tmp_path / "a")
    before = open_whole_model(tmp_path / "a", 0).fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_whole_model(tmp_path / "b", 0).fingerprint == before


@pytest.mark.parametrize("name", ["sharded safetensors", "sharded .bin"], indirect=True)
def test_a_shard_that_is_not_there_is_named_as_missing(name: str, tmp_path: Path) -> None:
    MODEL_FORMATS[name](tmp_path)
    (candidate,) = find_models(tmp_path)
    shard = next(file for file in reversed(candidate.files) if "-of-" in file)
    (tmp_path / shard).unlink()
    (candidate,) = find_models(tmp_path)
    assert candidate.missing == (shard,)
    with pytest.raises(CheckpointError, match=f"{shard} does not exist"):
        open_model(tmp_path)


def test_a_distributed_checkpoint_without_its_description_is_incomplete(tmp_path: Path) -> None:
    MODEL_FORMATS["distributed"](tmp_path)
    (tmp_path / ".metadata").unlink()
    (candidate,) = find_models(tmp_path)
    assert candidate.missing == (".metadata",)


def test_weights_kept_in_two_forms_count_once_as_safetensors(tmp_path: Path) -> None:
    MODEL_FORMATS["safetensors"](tmp_path)
    MODEL_FORMATS["pytorch_model.bin"](tmp_path)
    (candidate,) = find_models(tmp_path)
    assert candidate.format == "safetensors"


def test_several_models_in_one_folder_are_an_error_that_shows_them(tmp_path: Path) -> None:
    for name in ("a trainer's .pt", "merged weights .pth", "gguf"):
        MODEL_FORMATS[name](tmp_path)
    with pytest.raises(CheckpointError, match=r"holds 3 models: .*last\.pt, .*merged\.pth, .*gguf"):
        open_model(tmp_path)
    assert open_model(tmp_path / "last.pt").path == tmp_path / "last.pt"
    assert open_model(tmp_path / "model.gguf").path == tmp_path / "model.gguf"


def test_what_trainers_leave_beside_weights_is_no_model(tmp_path: Path) -> None:
    beside = ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "scaler.pt"]
    beside += ["zero_pp_rank_0_mp_rank_00_optim_states.pt", "mmproj-model.gguf", "notes.txt"]
    for name in beside:
        (tmp_path / name).write_bytes(b"")
    assert find_models(tmp_path) == []
    with pytest.raises(CheckpointError, match="holds no base model"):
        open_model(tmp_path)
