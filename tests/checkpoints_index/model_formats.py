"""One tiny model in each format of whole weights, written by the library that owns the format."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from tests.helpers import attention_weights, shake, tiny_llama


def trained_llama() -> Any:
    model = tiny_llama()
    shake(model)
    return model


def _safetensors(model: Any, folder: Path, **options: str) -> None:
    model.save_pretrained(folder, **options)


def _bin(model: Any, folder: Path, shard: str = "5GB") -> None:
    model.config.save_pretrained(folder)
    save_torch_state_dict(
        model.state_dict(), folder, max_shard_size=shard, safe_serialization=False
    )


def _trainer_file(model: Any, folder: Path) -> None:
    """What a hand-written loop saves: the model beside its optimizer."""
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 30}
    torch.save(state, folder / "last.pt")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def _merged_dictionary(model: Any, folder: Path) -> None:
    """What the SORSA authors' code saves: merged weights alone, by name."""
    torch.save(dict(model.state_dict()), folder / "merged.pth")


def _legacy(model: Any, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)


def save_distributed(state: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder, no_dist=True)


def _distributed(model: Any, folder: Path) -> None:
    optimizer = torch.optim.SGD(model.parameters())
    save_distributed({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Llama's parameter."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{GGUF_NAMES[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def converter_order(w: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q_proj and k_proj as llama.cpp's converter puts them: by pairs that rotate."""
    halves = w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:])
    return halves.swapaxes(1, 2).reshape(w.shape)


def write_gguf(
    model: Any,
    path: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    parts_of: int = 0,
) -> None:
    """Write a Llama as llama.cpp's converter does: matrices in one type, perhaps in parts."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=parts_of)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_token_list([f"token {i}" for i in range(config.vocab_size)])
    for name, parameter in model.state_dict().items():
        w = parameter.numpy()
        if "q_proj" in name:
            w = converter_order(w, config.num_attention_heads)
        if "k_proj" in name:
            w = converter_order(w, config.num_key_value_heads)
        # Blocks of 32 numbers: what does not consist of them stays as it is, as there.
        fits = w.ndim == 2 and w.shape[1] % 32 == 0
        used = kind if fits else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quantize(w, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf(model: Any, folder: Path) -> None:
    write_gguf(model, folder / "model.gguf")


_WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "safetensors": _safetensors,
    "sharded safetensors": lambda m, f: _safetensors(m, f, max_shard_size="20KB"),
    "pytorch_model.bin": _bin,
    "sharded .bin": lambda m, f: _bin(m, f, "20KB"),
    "a trainer's .pt": _trainer_file,
    "merged weights .pth": _merged_dictionary,
    "legacy .pt": _legacy,
    "distributed": _distributed,
    "gguf": _gguf,
}


def _write(name: str) -> Callable[[Path], dict[str, Tensor]]:
    def write(folder: Path) -> dict[str, Tensor]:
        folder.mkdir(parents=True, exist_ok=True)
        model = trained_llama()
        _WRITERS[name](model, folder)
        return attention_weights(model)

    return write


MODEL_FORMATS: dict[str, Callable[[Path], dict[str, Tensor]]] = {n: _write(n) for n in _WRITERS}
"""Writes a trained `tiny_llama` into a folder; gives its W_t by layer."""
