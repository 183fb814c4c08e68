"""What is known of architectures whose stored tensors are not simply one matrix each.

A new architecture is a line in one of the tables. What is not listed is taken as it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from checkpoints_index.errors import CheckpointError
from checkpoints_index.layouts import (
    Layout,
    alternating,
    by_groups,
    by_head,
    by_heads,
    chatglm,
    equal,
    falcon,
    four_equal,
    gpt_bigcode,
    linear_attention,
    linear_attention_by_groups,
)


@dataclass(frozen=True)
class Fusion:
    """What a fused layer consists of.

    Attributes
    ----------
    parts : tuple of str
        Names of the matrices, in the order in which they are stored.
    layout : callable
        How the output is divided among them.
    """

    parts: tuple[str, ...]
    layout: Layout


_QKV = ("q_proj", "k_proj", "v_proj")
_STACKED = Fusion(_QKV, partial(equal, 3))
_HEADS = Fusion(_QKV, by_heads)
_GROUPS = Fusion(_QKV, by_groups)
_HEAD = Fusion(_QKV, by_head)
# The gate is the half that goes through the activation.
_GATE_UP = Fusion(("gate_proj", "up_proj"), partial(equal, 2))
_UP_GATE = Fusion(("up_proj", "gate_proj"), partial(equal, 2))
_KEY_VALUE = Fusion(("k_proj", "v_proj"), partial(equal, 2))
_QUERY = Fusion(("q_proj",), partial(equal, 1))

# Model types, their layers and what these hold. A layer is named by the end of its path.
_FUSED: tuple[tuple[str, dict[str, Fusion]], ...] = (
    (
        "gpt2 imagegpt decision_transformer openai-gpt",
        {"c_attn": _STACKED, "crossattention.c_attn": _KEY_VALUE, "q_attn": _QUERY},
    ),
    ("qwen", {"c_attn": _STACKED}),
    ("codeshell", {"c_attn": _HEADS}),
    (
        "gpt_bigcode",
        {
            "c_attn": Fusion(_QKV, gpt_bigcode),
            "crossattention.c_attn": _KEY_VALUE,
            "q_attn": _QUERY,
        },
    ),
    ("gpt_neox gpt_neox_japanese bloom persimmon", {"query_key_value": _HEAD}),
    ("falcon RefinedWeb RefinedWebModel", {"query_key_value": Fusion(_QKV, falcon)}),
    ("chatglm", {"query_key_value": Fusion(_QKV, chatglm), "dense_h_to_4h": _GATE_UP}),
    ("phi3 phi3_v phi4_multimodal phi4mm", {"qkv_proj": _HEADS}),
    ("phi4_multimodal_audio", {"gate_up_proj": _UP_GATE}),
    ("minimax", {"qkv_proj": _HEAD}),
    ("codegen", {"qkv_proj": Fusion(("q_proj", "v_proj", "k_proj"), four_equal)}),
    ("mpt dbrx", {"Wqkv": _HEADS}),
    ("mixformer-sequential nomic_bert xlm-roberta-flash jina_embeddings_v3", {"Wqkv": _STACKED}),
    ("modernbert modernbert-decoder", {"Wqkv": _STACKED, "Wi": _GATE_UP}),
    ("internlm2", {"wqkv": _GROUPS}),
    ("baichuan", {"W_pack": _STACKED}),
    ("molmo2", {"att_proj": _HEADS, "ff_proj": _UP_GATE}),
    ("gte new", {"qkv_proj": _STACKED, "up_gate_proj": _UP_GATE}),
    ("bark semantic coarse_acoustics fine_acoustics", {"att_proj": _STACKED}),
    ("deberta", {"in_proj": _HEAD}),
    ("layoutlmv2", {"qkv_linear": _STACKED}),
    ("jetmoe", {"kv_proj": _KEY_VALUE, "mlp.input_linear": _GATE_UP}),
    (
        "granitemoe granitemoeshared granitemoehybrid granitemoe_swa",
        {"input_linear": _GATE_UP},
    ),
    ("dinov2 dinov2_with_registers", {"weights_in": _GATE_UP}),
    ("sapiens2", {"w12": _GATE_UP}),
    ("tipsv2_vision_model", {"w12": _GATE_UP, "qkv": _STACKED}),
    ("hrm_text", {"gqkv_proj": Fusion(("gate_proj", *_QKV), partial(equal, 4))}),
    ("exaone4_5", {"qkv": _HEADS}),
    ("qwen3_5 qwen3_5_moe qwen4_exp", {"in_proj_qkv": Fusion(_QKV, linear_attention)}),
    (
        "qwen3_next",
        {"in_proj_qkvz": Fusion((*_QKV, "z_proj"), linear_attention_by_groups)},
    ),
    (
        "blip blip_2 instructblip instructblipvideo cohere_compass deepseek_ocr2 dots3_note "
        "ernie4_5_vl_moe florence2 glm4v glm4v_moe glm5_next glm_image glm_ocr got_ocr2 hiera "
        "mgp-str pp_formulanet qwen2_vl qwen2_5_vl qwen2_5_omni qwen3_5 qwen3_5_moe qwen3_omni_moe "
        "qwen3_vl qwen3_vl_moe qwen4_exp radio sam sam2 sam2_hiera_det_model sam_hq seggpt "
        "timesformer unlimited_ocr vitdet intern_vit_6b internvl_chat",
        {"qkv": _STACKED},
    ),
)

# What every architecture in Transformers means by the name, but for those listed above and the
# interleaved ones.
_BY_NAME = {"gate_up_proj": _GATE_UP}

# What `torch.nn.MultiheadAttention` calls its three weights, stacked, whatever the model.
_TORCH_ATTENTION = "in_proj_weight"


_INTERLEAVED = frozenset({"gpt_oss"})
"""Model types whose `gate_up_proj` alternates between gate and up, row by row."""

_LAYERS = {
    (model_type, layer): fusion
    for types, layers in _FUSED
    for model_type in types.split()
    for layer, fusion in layers.items()
}

_CONV1D = {
    **dict.fromkeys(
        ("gpt2", "imagegpt", "decision_transformer", "openai-gpt"),
        frozenset({"c_attn", "c_proj", "c_fc", "q_attn"}),
    ),
    "clvp_decoder": frozenset({"c_fc", "c_proj"}),
}

# Model types with expert tensors of shape (experts, in, out). Qwen3-VL's are so on disk only: where
# the sizes say otherwise, they are believed.
_TRANSPOSED_EXPERTS = frozenset(
    {"gpt_oss", "openai_privacy_filter", "llama4", "aria", "qwen3_vl_moe"}
)

EXPERT_TENSORS = frozenset({"input_linear", "output_linear"})
"""Layers with a tensor of three dimensions, one matrix an expert, that no path calls experts."""

# Parts that follow a sub-configuration's name in paths, where it is not the name itself.
_TOWERS = {
    "vision": ("vis", "vit", "image", "img"),
    "audio": ("audio", "speech"),
    "text": ("text", "language", "llm"),
    "llm": ("text", "language", "llm"),
    "language": ("text", "language", "llm"),
}
# DBRX's and MPT's settings of parts of a layer.
_NO_TOWERS = frozenset({"attn_config", "ffn_config"})
_MAIN = ("text", "llm", "language")
_SUFFIXES = ("_text_model", "_vision_model", "_vision_encoder", "_text", "_vision", "_encoder")
_DEEPEST = 4


def scopes(config: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
    """Return the configurations that apply to a layer, its own tower's first.

    Examples
    --------
    >>> config = {"model_type": "llava", "vision_config": {"model_type": "clip"}}
    >>> [c["model_type"] for c in scopes(config, "vision_tower.layers.0.fc1")]
    ['clip', 'llava']
    """
    found = [config]
    parts = path.split(".")
    while len(found) < _DEEPEST and (inner := _tower(found[-1], parts)) is not None:
        found.append(inner)
    return found[::-1]


def _tower(config: Mapping[str, Any], parts: list[str]) -> Mapping[str, Any] | None:
    towers = {
        key.removesuffix("_config"): value
        for key, value in config.items()
        if isinstance(value, Mapping)
        and (key.endswith("_config") or key in ("encoder", "decoder"))
        and key not in _NO_TOWERS
    }
    for part in parts:
        for name, tower in towers.items():
            if part.startswith(_TOWERS.get(name, (name,))):
                return tower
    return next((towers[name] for name in _MAIN if name in towers), None)


def model_types(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the model type that a configuration names, and the one that it is a tower of."""
    name = config.get("model_type")
    if name is None:
        return
    if not isinstance(name, str):
        raise CheckpointError(
            f"The model's configuration must give model_type as a text, it gives {str(name)[:40]}. "
            "Repair config.json."
        )
    yield name
    yield from (name.removesuffix(s) for s in _SUFFIXES if name.endswith(s))


def find_fusion(config: Mapping[str, Any], path: str) -> Fusion | None:
    """Return what the layer at a path consists of, by one configuration; ``None`` if not known."""
    if path.endswith(f".{_TORCH_ATTENTION}"):
        return _STACKED
    ends = (".".join(path.split(".")[-2:]), path.rsplit(".", 1)[-1])
    types = list(model_types(config))
    for model_type in types:
        for end in ends:
            if (model_type, end) in _LAYERS:
                return _LAYERS[model_type, end]
    common = _BY_NAME.get(ends[-1]) if types else None
    if common and _INTERLEAVED.intersection(types):
        return Fusion(common.parts, alternating)
    return common


def stores_transposed(config: Mapping[str, Any], path: str) -> bool:
    """Whether a layer is a Conv1D, whose weight lies as (in, out)."""
    last = path.rsplit(".", 1)[-1]
    return any(last in _CONV1D.get(model_type, ()) for model_type in model_types(config))


def stores_experts_transposed(
    config: Mapping[str, Any], width: int | None, last: str, shape: tuple[int, ...]
) -> bool:
    """Whether a tensor of shape (experts, …) holds matrices of shape (in, out).

    Parameters
    ----------
    config : mapping
        The configuration that applies.
    width : int, optional
        Its hidden size: what experts take in and give out, in most architectures.
    last : str
        Last part of the tensor's path.
    shape : tuple of int
        Of one expert's part.
    """
    usual = bool(_TRANSPOSED_EXPERTS.intersection(model_types(config)))
    inward = last.startswith(("down", "output", "w2"))
    # Where an expert's matrix, of shape (out, in), has the width.
    fits = [oriented[0 if inward else 1] == width for oriented in (shape, shape[::-1])]
    return not usual if fits[usual] < fits[not usual] else usual
