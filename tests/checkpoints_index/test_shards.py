"""Sharded checkpoints: the index is believed only where the shards agree and lie beside it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from checkpoints_index import CheckpointError, open_model
from checkpoints_index.model_readers import find_models
from tests.checkpoints_index.model_formats import MODEL_FORMATS

INDEX = {
    "sharded safetensors": "model.safetensors.index.json",
    "sharded .bin": "pytorch_model.bin.index.json",
}


@pytest.fixture(params=INDEX)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    MODEL_FORMATS[request.param](tmp_path / "model")
    return tmp_path / "model" / INDEX[request.param]


def change(index: Path, tensor: str, shard: object) -> None:
    content = json.loads(index.read_text())
    content["weight_map"][tensor] = shard
    index.write_text(json.dumps(content))


def shards(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))


def test_an_index_that_contradicts_its_shards_is_an_error(index: Path) -> None:
    change(index, "model.layers.7.self_attn.q_proj.weight", shards(index)[0])
    with pytest.raises(CheckpointError, match=r"layers\.7.* which has no such tensor"):
        open_model(index.parent)


@pytest.mark.parametrize(
    "name", ["../out.bin", "/etc/passwd", "a/b.bin", "..\\out.bin", "..", "", "a\0b", 7, None]
)
def test_an_index_may_name_files_beside_it_only(index: Path, name: object) -> None:
    shutil.copy(index.parent / shards(index)[0], index.parents[1] / "out.bin")
    change(index, "lm_head.weight", name)
    with pytest.raises(CheckpointError, match=re.escape(str(index.parent))):
        open_model(index.parent)
    # Looking at names alone leaves a broken index to the opening.
    assert len(find_models(index.parent)) == 1


def test_a_key_that_stands_twice_in_an_index_is_an_error(index: Path) -> None:
    first = shards(index)[0]
    index.write_text(f'{{"weight_map": {{"lm_head.weight": "x", "lm_head.weight": "{first}"}}}}')
    with pytest.raises(CheckpointError, match="'lm_head.weight' stands twice"):
        open_model(index.parent)


def test_links_out_of_the_folder_are_reported(index: Path) -> None:
    shard = index.parent / shards(index)[0]
    outside = index.parents[1] / "secret"
    shard.rename(outside)
    shard.symlink_to(outside)
    with pytest.raises(CheckpointError, match=rf"{shard} is a symbolic link out .*{outside}"):
        open_model(index.parent)


def test_links_in_circles_are_an_error(index: Path) -> None:
    shard = index.parent / shards(index)[0]
    shard.unlink()
    shard.symlink_to(shard.name)
    with pytest.raises(CheckpointError, match=re.escape(str(shard))):
        open_model(index.parent)


def test_links_within_the_folder_are_followed(index: Path) -> None:
    expected = open_model(index.parent).matrices
    shard = index.parent / shards(index)[0]
    (index.parent / "kept").mkdir()
    shard.rename(index.parent / "kept" / "renamed")
    shard.symlink_to(Path("kept") / "renamed")
    assert open_model(index.parent).matrices == expected


def test_a_folder_given_by_a_link_is_followed(index: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(index.parent)
    assert open_model(tmp_path / "link").matrices == open_model(index.parent).matrices


@pytest.mark.parametrize("name", MODEL_FORMATS)
def test_the_hubs_cache_is_read_though_it_consists_of_links(name: str, tmp_path: Path) -> None:
    expected = MODEL_FORMATS[name](tmp_path / "plain")
    cache = tmp_path / "hub" / "models--org--name"
    revision = cache / "snapshots" / "0123abcd"
    revision.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        file.rename(cache / "blobs" / f"hash{number}")
        (revision / file.name).symlink_to(Path("..") / ".." / "blobs" / f"hash{number}")
    model = open_model(revision)
    matrices = {m.name: m for m in model.matrices}
    for layer, w in expected.items():
        dense = model.read(matrices[layer]).dense
        assert dense is not None
        assert torch.equal(dense, w)


@pytest.mark.parametrize("name", MODEL_FORMATS)
def test_no_format_follows_links_out_of_its_folder(name: str, tmp_path: Path) -> None:
    MODEL_FORMATS[name](tmp_path / "model")
    for file in sorted((tmp_path / "model").iterdir()):
        if file.name in ("optimizer.pt", "generation_config.json"):
            continue
        file.rename(tmp_path / "secret")
        file.symlink_to(tmp_path / "secret")
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(file))} is a symbolic link"):
            open_model(tmp_path / "model")
        file.unlink()
        (tmp_path / "secret").rename(file)
