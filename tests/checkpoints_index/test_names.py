"""Paths of parameters: wrappers never show; layer and module come from the path."""

from __future__ import annotations

import pytest

from checkpoints_index import clean_name, locate, matches

NAME = "model.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    "path",
    [
        f"{NAME}.weight",
        f"module.{NAME}.weight",
        f"_orig_mod.{NAME}.weight",
        f"module._orig_mod.{NAME}.weight",
        f"_orig_mod.module.{NAME}.weight",
        f"base_model.model.{NAME}.weight",
        f"base_model.model.{NAME}.base_layer.weight",
        f"_orig_mod.base_model.model.{NAME}.base_layer.weight",
        f"module.base_model.model.{NAME}",
        "_fsdp_wrapped_module.model.layers.3._fsdp_wrapped_module.self_attn.q_proj.weight",
        "model.layers.3._checkpoint_wrapped_module.self_attn.q_proj.weight",
        "base_model.model.model.layers.3._orig_mod.self_attn.q_proj.weight",
        f"base_model.model.{NAME}.modules_to_save.default.weight",
    ],
)
def test_wrappers_do_not_show(path: str) -> None:
    assert clean_name(path) == NAME
    assert clean_name(clean_name(path)) == NAME


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (NAME, (3, "q_proj")),
        ("transformer.h.11.attn.c_attn", (11, "c_attn")),
        ("layers.0.q_proj", (0, "q_proj")),
        ("0.q_proj", (0, "q_proj")),
        ("model.layers.120.mlp.experts.7.up_proj", (120, "up_proj")),
        ("blocks.3.mlp.0", (3, "mlp.0")),
        ("merger.mlp.2", (2, "mlp")),
        ("layers.007.q_proj", None),
        (f"layers.{'9' * 5000}.q_proj", None),
        ("model.embed_tokens", None),
        ("lm_head", None),
        ("model.layers2.q_proj", None),
    ],
)
def test_layer_and_module_come_from_the_path(name: str, place: tuple[int, str] | None) -> None:
    assert locate(name) == place


def test_modules_match_by_name_or_glob() -> None:
    assert matches("q_proj", ["q_proj"])
    assert matches("q_proj", ["*_proj"])
    assert matches("q_proj", ["k_proj", "[qv]_proj"])
    assert matches("q_proj", None)
    assert not matches("q_proj", ["Q_PROJ"])
    assert not matches("q_proj", ["proj"])
    assert not matches("q_proj", [])


def test_labels_match_too() -> None:
    name, label = "decoder.block.3.layer.1.EncDecAttention.q", "decoder.EncDecAttention.q"
    assert matches(name, ["q"], label)
    assert matches(name, [label], label)
    assert matches(name, ["decoder.*"], label)
    assert matches(name, ["*.EncDecAttention.*"], label)
    assert not matches(name, ["encoder.*"], label)
    assert not matches(name, ["decoder*"], label)
    assert matches("layers.0.mlp.experts.3.w1", ["experts.*.w1"], "experts.3.w1")
    assert not matches("layers.0.mlp.experts.3.w1", ["experts.*.w1"])


def test_regular_expressions_match_whole_paths() -> None:
    assert matches(NAME, [r"re:model\.layers\.[0-9]+\.self_attn\.(q|v)_proj"])
    assert matches(NAME, ["k_proj", "re:.*[.]3[.].*"])
    assert not matches(NAME, ["re:q_proj"])
    assert not matches(NAME, ["re:model"])
    assert not matches(NAME, ["re:"])
    # A label is none: it says what a path says already.
    assert not matches(NAME, ["re:vision.q_proj"], "vision.q_proj")


def test_what_is_no_regular_expression_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'re:\*a' is no regular expression \(nothing to repeat"):
        matches(NAME, ["re:*a"])


@pytest.mark.parametrize(
    "name",
    [NAME, "h.0.attn.c_attn", "layers.0.mlp.gate", "layers.0.mixer.in_proj", "blocks.3.mlp.0"],
)
def test_all_linear_matches_linear_layers(name: str) -> None:
    assert matches(name, ["all-linear"])
    assert matches(name, ["nothing", "all-linear"])


@pytest.mark.parametrize(
    "name",
    [
        "lm_head",
        "decoder.lm_heads.0",
        "layers.0.q_proj.weight_scale_inv",
        "layers.0.q_proj.scales",
        "model.embed_tokens",
        "transformer.wte",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "layers.0.input_layernorm",
        "h.0.ln_1",
        "layers.0.mixer.A_log",
        "0",
    ],
)
def test_all_linear_does_not_match_what_is_none(name: str) -> None:
    assert not matches(name, ["all-linear"])
