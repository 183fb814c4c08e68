"""Layers and modules: unique in a checkpoint, one module name in all layers, no layer numbers."""

from __future__ import annotations

import random
import re
from collections import defaultdict

import pytest
from torch import nn

from checkpoints_index import locate, matches
from checkpoints_index.labels import label_paths
from tests.checkpoints_index.architectures import (
    ARCHITECTURES,
    logical,
    tiny,
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_labels_are_unique_and_the_expected_ones(name: str) -> None:
    matrices = [m.matrix for m in logical(name)]
    assert len({m.name for m in matrices}) == len(matrices)
    assert len({(m.layer, m.module) for m in matrices}) == len(matrices)
    assert set(ARCHITECTURES[name].modules) <= {m.module for m in matrices}
    assert all(matches(m.name, [m.module], m.module) for m in matrices)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_linear_is_every_matrix(name: str) -> None:
    model, _ = tiny(name)
    assert all(matches(m.matrix.name, ["all-linear"], m.matrix.module) for m in logical(name))
    embeddings = [n for n, m in model.named_modules() if isinstance(m, nn.Embedding)]
    assert not any(matches(n, ["all-linear"]) for n in embeddings)


def test_layers_of_stages_are_counted_through() -> None:
    matrices = [m.matrix for m in logical("Swin")]
    assert [m.layer for m in matrices if m.module == "q_proj"] == [0, 1, 2, 3, 4]
    # What stands between two stages belongs to the last layer before it.
    assert [m.layer for m in matrices if m.module == "reduction"] == [1]
    assert sorted(
        m.layer for m in (m.matrix for m in logical("Hiera")) if m.module == "q_proj"
    ) == [
        0,
        1,
        2,
    ]


def test_a_layer_is_the_transformers_not_the_experts_or_the_sublayers() -> None:
    for name in ("T5", "Mixtral", "Switch"):
        for matrix in logical(name):
            number = re.search(r"\d+", matrix.matrix.name)
            assert number and matrix.matrix.layer == int(number[0])
            assert matrix.matrix.layer in (0, 1)


def test_a_module_has_one_label_in_every_layer() -> None:
    for name in ("T5", "BART", "Mixtral", "CLIP", "RWKV"):
        layers: dict[str, set[int]] = defaultdict(set)
        for matrix in logical(name):
            layers[matrix.matrix.module].add(matrix.matrix.layer)
        assert all(found == {0, 1} for found in layers.values())


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["layers.0.attn.q", "layers.1.self_attn.q"], ["q", "q"]),
        (
            ["layers.0.mlp.up", "layers.1.mlp.experts.0.up", "layers.1.mlp.experts.1.up"],
            ["up", "experts.0.up", "experts.1.up"],
        ),
        (
            ["v.layers.0.attn.q", "t.model.layers.0.attn.q", "t.mtp.layers.0.attn.q"],
            ["v.q", "t.model.q", "t.mtp.q"],
        ),
        (["h.0.a.b.q", "h.0.b.a.q"], ["h.a.q", "h.b.q"]),
        (
            ["h.0.ffn.0.dense", "h.0.ffn.1.dense", "h.1.ffn.0.dense"],
            ["ffn.0.dense", "ffn.1.dense", "ffn.0.dense"],
        ),
        (["h.0.a.q", "h.0.q"], ["a.q", "q"]),
        (["blocks.0.mlp.0", "blocks.0.mlp.2"], ["mlp.0", "mlp.2"]),
    ],
)
def test_labels_are_the_fewest_parts_that_tell_apart(paths: list[str], labels: list[str]) -> None:
    found = label_paths(paths)
    assert [found[path][1] for path in paths] == labels
    # In whatever order a file lists them.
    assert label_paths(paths[::-1]) == found


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("encoder.layers.1.blocks.1.fc", 3),
        ("encoder.layers.0.downsample.fc", 1),
        ("encoder.layers.1.norm_proj", 4),
        ("decoder.layers.1.fc", 1),
        ("encoder.block.1.0.fc", 1),
    ],
)
def test_stages_are_counted_in_their_own_stack(path: str, layer: int) -> None:
    others = [f"encoder.layers.{s}.blocks.{b}.fc" for s, n in ((0, 2), (1, 3)) for b in range(n)]
    others += ["decoder.layers.0.fc", "encoder.block.0.0.fc", "encoder.block.1.1.fc"]
    assert label_paths([*others, path])[path][0] == layer


def test_any_names_have_unique_labels() -> None:
    generator = random.Random(0)
    parts = ["0", "1", "2", "00", "a", "b", "blocks", "layers", "stages", "experts", "", "ü", "*"]
    for _ in range(3000):
        paths = {
            ".".join(generator.choices(parts, k=generator.randint(1, 6)))
            for _ in range(generator.randint(1, 12))
        }
        found = label_paths(sorted(paths))
        assert set(found) == {path for path in paths if locate(path) is not None}
        assert len(set(found.values())) == len(found)
