"""Whole weights: from layers to stored tensors and back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from checkpoints_index import CheckpointError, open_model
from checkpoints_index.model_folders import ModelCheckpoint
from tests.checkpoints_index.model_formats import MODEL_FORMATS, trained_llama
from tests.helpers import gaussian


@pytest.fixture
def model(tmp_path: Path) -> ModelCheckpoint:
    MODEL_FORMATS["safetensors"](tmp_path)
    opened = open_model(tmp_path)
    assert isinstance(opened, ModelCheckpoint)
    return opened


def test_a_layers_path_leads_to_its_matrices_and_its_tensor(model: ModelCheckpoint) -> None:
    path = "model.layers.1.self_attn.q_proj"
    (part,) = model.parts_of(path)
    assert part.matrix.name == path
    assert part.tensor == f"{path}.weight"
    assert torch.equal(model.read_layer(path), trained_llama().state_dict()[part.tensor])


def test_an_unknown_layer_has_no_parts_and_cannot_be_read(model: ModelCheckpoint) -> None:
    assert model.parts_of("model.layers.9.self_attn.q_proj") == []
    with pytest.raises(CheckpointError, match=r"must hold 'layers\.9' in one tensor, but has 0"):
        model.read_layer("layers.9")


def test_the_configuration_is_at_hand_and_names_no_base(model: ModelCheckpoint) -> None:
    assert model.config["num_key_value_heads"] == 2
    assert model.base is None
    assert model.bind(model) is model


@pytest.mark.parametrize(
    ("whole", "bare"), [("GPT2LMHeadModel", "GPT2Model"), ("BertForMaskedLM", "BertModel")]
)
def test_weights_are_bound_under_the_names_of_their_base(
    whole: str, bare: str, tmp_path: Path
) -> None:
    kind = getattr(transformers, whole)
    sizes = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "num_attention_heads": 2}
    config = kind.config_class(hidden_size=8, num_hidden_layers=2, intermediate_size=8, **sizes)
    trained = kind(config)
    trained.save_pretrained(tmp_path / "trained")
    getattr(transformers, bare)(config).save_pretrained(tmp_path / "base")
    opened, base = open_model(tmp_path / "trained"), open_model(tmp_path / "base")
    bound = opened.bind(base)
    assert {m.name for m in base.matrices} <= {m.name for m in bound.matrices}
    assert len(bound.matrices) == len(opened.matrices)
    for mine, theirs in zip(opened.matrices, bound.matrices, strict=True):
        assert mine.name.endswith(theirs.name)
        assert opened.read(mine).same_as(bound.read(theirs))


def test_a_tower_that_the_base_has_not_is_not_taken_for_another(tmp_path: Path) -> None:
    names = {"both": ("vision.encoder.layers", "model.layers"), "text": ("model.layers",)}
    for place, stacks in names.items():
        (tmp_path / place).mkdir()
        tensors = {f"{stack}.0.q_proj.weight": gaussian(2, 2) for stack in stacks}
        save_file(tensors, tmp_path / place / "model.safetensors")
    both, text = open_model(tmp_path / "both"), open_model(tmp_path / "text")
    assert both.bind(text) is both


def test_without_a_configuration_it_is_empty(tmp_path: Path) -> None:
    save_file({"layers.0.q_proj.weight": gaussian(2, 3)}, tmp_path / "model.safetensors")
    opened = open_model(tmp_path)
    assert isinstance(opened, ModelCheckpoint)
    assert opened.config == {}


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1, "a": 2}', "[" * 100_000, "\xff"])
def test_a_broken_configuration_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    MODEL_FORMATS["safetensors"](tmp_path)
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "config.json"))):
        open_model(tmp_path)


def test_enormous_configurations_are_refused_unread(tmp_path: Path) -> None:
    MODEL_FORMATS["safetensors"](tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**33)  # a hole
    with pytest.raises(CheckpointError, match="must be JSON of at most"):
        open_model(tmp_path)


def test_a_matrix_stored_under_two_names_is_ambiguous(tmp_path: Path) -> None:
    tensors = {f"{p}layers.0.q_proj.weight": gaussian(2, 3) for p in ("", "module.")}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(tmp_path))}.*'layers\.0\.q_proj'"):
        open_model(tmp_path)


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    name = "layers.0.{0.__class__}<script>$(touch x)%s\n.weight"
    w = gaussian(2, 3)
    save_file({name: w}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "{0}%s"}))
    opened = open_model(tmp_path)
    (matrix,) = opened.matrices
    assert matrix.name == name.removesuffix(".weight")
    dense = opened.read(matrix).dense
    assert dense is not None
    assert torch.equal(dense, w)
