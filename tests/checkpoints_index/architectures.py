"""Tiny models of many architectures, from Transformers' own configurations: a line each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from checkpoints_index.logical import LogicalMatrix, logical_matrices
from checkpoints_index.matrices import torch_dtype_name
from checkpoints_index.tensors import StoredTensor

QKV = ("q_proj", "k_proj", "v_proj")

_SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_GPT: dict[str, Any] = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {
    **_GROUPED,
    "num_experts": 3,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
_T5: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
}
_SEQ2SEQ: dict[str, Any] = {
    **_SMALL,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
}
_IMAGE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 8,
    "patch_size": 4,
}


def _one_token(model: nn.Module) -> None:
    """At the first position, where rotary embeddings turn nothing."""
    model(input_ids=torch.tensor([[3]]))


def _one_of_each(model: nn.Module) -> None:
    model(input_ids=torch.tensor([[3]]), encoder_hidden_states=torch.randn(1, 1, 32))


def _one_image(model: nn.Module) -> None:
    model(pixel_values=torch.randn(1, 3, 8, 8))


def _qwen_patches(model: nn.Module) -> None:
    visual = model.get_submodule("visual")
    visual(torch.randn(4, 3 * 2 * 4 * 4), grid_thw=torch.tensor([[1, 2, 2]]))
    _one_token(model.get_submodule("language_model"))


@dataclass(frozen=True)
class Architecture:
    """One line.

    Attributes
    ----------
    config : str
        Name of Transformers' class.
    settings : dict
        What makes it tiny.
    modules : tuple of str
        Labels that the model must have, among others.
    run : callable
        Runs the model once; a token, or what else it takes.
    model : str
        The class of the model.
    """

    config: str
    settings: dict[str, Any]
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    run: Callable[[nn.Module], None] = _one_token
    model: str = "AutoModel"


_LINEAR_ATTENTION = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "layer_types": ["linear_attention", "full_attention"],
}
_CROSS = ("attn.q_proj", "attn.v_proj", "crossattention.q_proj", "crossattention.v_proj")
_QWEN_VL = {
    "text_config": {
        **_GROUPED,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    },
    "image_token_id": 60,
    "video_token_id": 61,
    "vision_start_token_id": 58,
    "vision_end_token_id": 59,
}

ARCHITECTURES = {
    # Fused attention.
    "GPT-2": Architecture("GPT2Config", _GPT, ("q_proj", "k_proj", "v_proj", "mlp.c_proj")),
    "GPT-2 with cross attention": Architecture(
        "GPT2Config", {**_GPT, "add_cross_attention": True}, _CROSS, _one_of_each
    ),
    "OpenAI GPT": Architecture("OpenAIGPTConfig", _GPT),
    "ImageGPT": Architecture("ImageGPTConfig", _GPT),
    "GPT-BigCode": Architecture("GPTBigCodeConfig", {**_GPT, "pad_token_id": 0}),
    "GPT-BigCode with all heads": Architecture(
        "GPTBigCodeConfig", {**_GPT, "pad_token_id": 0, "multi_query": False}
    ),
    "CodeGen": Architecture("CodeGenConfig", {**_GPT, "rotary_dim": 4}),
    "GPT-NeoX": Architecture("GPTNeoXConfig", _SMALL),
    "BLOOM": Architecture("BloomConfig", {**_SMALL, "n_layer": 2, "n_head": 4}),
    "Falcon": Architecture("FalconConfig", _SMALL),
    "Falcon, new": Architecture(
        "FalconConfig", {**_SMALL, "new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "Falcon, head by head": Architecture("FalconConfig", {**_SMALL, "multi_query": False}),
    "Persimmon": Architecture("PersimmonConfig", {**_SMALL, "qk_layernorm": False}),
    "Phi-3": Architecture("Phi3Config", _GROUPED, ("q_proj", "v_proj", "gate_proj", "up_proj")),
    "MPT": Architecture(
        "MptConfig", {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4}
    ),
    "ModernBERT": Architecture(
        "ModernBertConfig",
        {**_SMALL, "cls_token_id": 1, "sep_token_id": 2},
        ("q_proj", "v_proj", "gate_proj", "up_proj", "attn.Wo", "mlp.Wo"),
    ),
    "DeBERTa": Architecture("DebertaConfig", _SMALL, ("q_proj", "v_proj", "attention.dense")),
    "MiniMax": Architecture(
        "MiniMaxConfig",
        {**_EXPERTS, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
        ("q_proj", "v_proj", "experts.2.gate_proj"),
    ),
    "Qwen3-Next": Architecture(
        "Qwen3NextConfig",
        {**_EXPERTS, **_LINEAR_ATTENTION},
        ("q_proj", "v_proj", "z_proj", "in_proj_ba", "shared_expert.gate_proj"),
    ),
    "Qwen3.5": Architecture("Qwen3_5TextConfig", {**_GROUPED, **_LINEAR_ATTENTION}),
    "Qwen2-VL": Architecture(
        "Qwen2VLConfig",
        {
            **_QWEN_VL,
            "vision_config": {
                "depth": 2,
                "embed_dim": 48,
                "num_heads": 4,
                "patch_size": 4,
                "hidden_size": 32,
                "spatial_merge_size": 2,
            },
        },
        ("visual.q_proj", "visual.v_proj", "language_model.q_proj", "language_model.v_proj"),
        _qwen_patches,
    ),
    "BLIP's vision": Architecture(
        "BlipVisionConfig", _IMAGE, run=_one_image, model="BlipVisionModel"
    ),
    # Mixtures of experts.
    "Mixtral": Architecture("MixtralConfig", _EXPERTS, ("q_proj", "experts.0.up_proj", "gate")),
    "Qwen2-MoE": Architecture(
        "Qwen2MoeConfig", _EXPERTS, ("q_proj", "experts.1.gate_proj", "shared_expert.gate_proj")
    ),
    "gpt-oss": Architecture(
        "GptOssConfig",
        {**_EXPERTS, "head_dim": 8, "intermediate_size": 32},
        ("experts.2.up_proj",),
    ),
    "Llama 4": Architecture(
        "Llama4TextConfig",
        # Square, so that no size tells which way they lie.
        {**_EXPERTS, "head_dim": 8, "intermediate_size": 16, "intermediate_size_mlp": 40},
        ("q_proj", "experts.0.down_proj", "shared_expert.down_proj"),
    ),
    "DeepSeek-V3": Architecture(
        "DeepseekV3Config",
        {
            **_EXPERTS,
            "num_key_value_heads": 4,
            "n_routed_experts": 3,
            "n_group": 1,
            "topk_group": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 12,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
        ("kv_b_proj", "gate_proj", "experts.2.gate_proj", "shared_experts.gate_proj"),
    ),
    "DBRX": Architecture(
        "DbrxConfig",
        {
            "vocab_size": 64,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
            "ffn_config": {"moe_num_experts": 3, "ffn_hidden_size": 24, "moe_top_k": 2},
        },
        ("q_proj", "v_proj", "experts.2.w1", "experts.0.v1"),
    ),
    "Granite-MoE": Architecture(
        "GraniteMoeSharedConfig",
        {**_EXPERTS, "shared_intermediate_size": 40},
        ("q_proj", "experts.0.down_proj", "shared_mlp.gate_proj"),
    ),
    "JetMoE": Architecture(
        "JetMoeConfig",
        {**_GROUPED, "kv_channels": 8, "num_local_experts": 3},
        ("k_proj", "v_proj", "experts.1.gate_proj"),
    ),
    "Jamba": Architecture(
        "JambaConfig",
        {
            **_EXPERTS,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "use_mamba_kernels": False,
        },
        ("q_proj", "in_proj", "gate_proj", "experts.1.gate_proj"),
    ),
    "Switch": Architecture(
        "SwitchTransformersConfig",
        {**_T5, "num_experts": 3, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        ("encoder.q", "decoder.EncDecAttention.q"),
    ),
    # What is stored as it is computed, under names of its own.
    "Llama": Architecture("LlamaConfig", _GROUPED),
    "BERT": Architecture("BertConfig", _SMALL, ("query", "value", "attention.dense")),
    "RoBERTa": Architecture("RobertaConfig", _SMALL, ("query", "key", "value")),
    "DeBERTa-v2": Architecture("DebertaV2Config", _SMALL, ("query_proj", "value_proj")),
    "ALBERT": Architecture("AlbertConfig", {**_SMALL, "embedding_size": 16}, ("query", "ffn")),
    "ViT": Architecture("ViTConfig", _IMAGE),
    "Swin": Architecture(
        "SwinConfig",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [2, 3],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        ("q_proj", "reduction"),
    ),
    "Hiera": Architecture(
        "HieraConfig",
        {
            "image_size": [32, 32],
            "embed_dim": 16,
            "depths": [1, 2],
            "num_heads": [1, 2],
            "masked_unit_size": [4, 4],
            "query_stride": [2, 2],
            "num_query_pool": 1,
        },
    ),
    "T5": Architecture(
        "T5Config",
        _T5,
        ("encoder.q", "decoder.SelfAttention.q", "decoder.EncDecAttention.q", "encoder.wi"),
    ),
    "BART": Architecture(
        "BartConfig",
        _SEQ2SEQ,
        ("encoder.q_proj", "decoder.self_attn.q_proj", "decoder.encoder_attn.q_proj"),
    ),
    "Whisper": Architecture(
        "WhisperConfig", _SEQ2SEQ, ("encoder.v_proj", "decoder.encoder_attn.v_proj")
    ),
    "CLIP": Architecture(
        "CLIPConfig",
        {"text_config": _SMALL, "vision_config": _IMAGE},
        ("text_model.q_proj", "vision_model.q_proj"),
    ),
    "LLaVA": Architecture(
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **_GROUPED},
            "vision_config": {"model_type": "siglip_vision_model", **_IMAGE},
        },
        ("vision_tower.q_proj", "language_model.q_proj"),
    ),
    "RWKV": Architecture(
        "RwkvConfig", _SMALL, ("attention.receptance", "attention.key", "feed_forward.key")
    ),
    "Mamba": Architecture("MambaConfig", {**_SMALL, "state_size": 4}, ("in_proj", "out_proj")),
}


@cache
def tiny(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model of a line, without biases, and its ``config.json``; for reading only."""
    line = ARCHITECTURES[name]
    config = getattr(transformers, line.config)(**line.settings)
    torch.manual_seed(0)
    kind = getattr(transformers, line.model)
    model = kind.from_config(config) if line.model == "AutoModel" else kind(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "bias" in path.rsplit(".", 1)[-1]:
                parameter.zero_()
            elif parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model.eval(), config.to_dict()


def described(tensors: dict[str, Tensor]) -> dict[str, StoredTensor]:
    """What headers say of tensors."""
    return {
        name: StoredTensor(tuple(t.shape), torch_dtype_name(t.dtype)) for name, t in tensors.items()
    }


def logical(name: str) -> list[LogicalMatrix]:
    """The logical matrices of a line's model."""
    model, config = tiny(name)
    return logical_matrices(described(model.state_dict()), config)


def by_tensor(name: str) -> dict[str, dict[str, LogicalMatrix]]:
    """The matrices of each stored tensor, by the last part of their names."""
    found: dict[str, dict[str, LogicalMatrix]] = defaultdict(dict)
    for matrix in logical(name):
        found[matrix.tensor][matrix.matrix.name.rsplit(".", 1)[-1]] = matrix
    return found
