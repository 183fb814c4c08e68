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
