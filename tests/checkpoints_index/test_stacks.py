"""Layers that a file and a model class name differently are found, and never guessed."""

from __future__ import annotations

import pytest

from checkpoints_index import CheckpointError
from checkpoints_index.stacks import Stacks


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        ("h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
        ("model.layers.3.q", "layers.3.q"),
        ("layers.3.q", "model.layers.3.q"),
        ("encoder.layer.0.attention.self.query", "bert.encoder.layer.0.attention.self.query"),
        ("language_model.model.layers.1.q", "model.language_model.layers.1.q"),
        ("visual.blocks.1.qkv", "model.visual.blocks.1.qkv"),
        ("model.layers.1.q", "model.language_model.layers.1.q"),
    ],
)
def test_another_name_for_the_same_stack(base: str, adapter: str) -> None:
    assert Stacks([base, "embed"]).same_layer(adapter) == [base]
    # A stack beside it that ends alike is another one.
    assert Stacks([base, f"vision_tower.{base}"]).same_layer(adapter) == [base]


@pytest.mark.parametrize("adapter", ["decoder.block.0.q", "blocks.0.q", "lm_head", "0.q"])
def test_other_stacks_are_no_match(adapter: str) -> None:
    found = Stacks(["encoder.block.0.q", "embed"]).same_layer(adapter)
    assert found in ([], [adapter])


def test_an_exact_name_is_itself() -> None:
    names = ["encoder.block.0.q", "decoder.block.0.q"]
    assert Stacks(names).same_layer("decoder.block.7.k") == ["decoder.block.7.k"]


def test_two_stacks_that_may_be_meant_are_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"'decoder\.block', 'encoder\.block'"):
        Stacks(["encoder.block.0.q", "decoder.block.0.q"]).same_layer("block.0.q")
