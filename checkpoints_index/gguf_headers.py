"""The header of GGUF files: metadata and the tensors' names, under those of Hugging Face."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

from checkpoints_index.byte_files import ByteFile, too_short

# A vocabulary of 250,000 tokens with its merges takes 15 MiB.
_MAX_HEADER = 32 * 2**20
# Ten times as many as any model has.
_MAX_ENTRIES = 100_000
_WINDOW = 2**16
_LENGTH = struct.Struct("<Q")
# By the format's numbers: bool and numbers by their struct codes; text and arrays apart.
_SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
# llama.cpp's name of a block's part, and Hugging Face's in most decoders.
_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
# Where one of llama.cpp's names stands for something else.
_OTHER_PARTS = {("phi3", "ffn_up"): "mlp.gate_up_proj"}
_OUTER = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_CONFIG = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.dimension_count": "rotary_dim",
    "attention.key_length": "head_dim",
    "expert_count": "num_local_experts",
}
_KEPT = {"architecture", "alignment", *_CONFIG}


class GgufHeader:
    """A GGUF header, read from its beginning in windows."""

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._window = bytearray()
        self._start = 0
        self.at = 0

    def read(self) -> tuple[dict[str, Any], list[tuple[str, list[int], int, int]]]:
        """Return the metadata that matters, and name, dims, type and offset of the tensors."""
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; read are 2 and 3, little-endian")
        tensors, entries = self._number("Q"), self._number("Q")
        if max(tensors, entries) > _MAX_ENTRIES:
            raise ValueError(f"it would have {tensors} tensors and {entries} entries")
        metadata = {}
        for _ in range(entries):
            key = self._text()
            value = self._value(self._number("I"))
            if key.partition(".")[2] in _KEPT:
                metadata[key] = value
        described = []
        for _ in range(tensors):
            name = own_name(self._text(), metadata.get("general.architecture"))
            count = self._number("I")
            if count > 8:
                raise ValueError(f"{name!r:.200} has {count} dimensions")
            dims = [self._number("Q") for _ in range(count)]
            if any(n >= 2**63 for n in dims):
                raise ValueError(f"{name!r:.200} has an impossible shape")
            described.append((name, dims, self._number("I"), self._number("Q")))
        return metadata, described

    def _take(self, length: int) -> bytearray:
        self._move(length)
        begin = self.at - length - self._start
        if begin < 0 or begin + length > len(self._window):
            self._fill(self.at - length, length)
            begin = 0
        return self._window[begin : begin + length]

    def _move(self, length: int) -> None:
        self.at += length
        if self.at > _MAX_HEADER:
            raise ValueError(f"its header has more than {_MAX_HEADER} bytes")
        if self.at > self._file.size:
            raise too_short(self._file.path)

    def _fill(self, begin: int, length: int) -> None:
        # Few requests for long headers, and little too much for short ones.
        wanted = max(length, _WINDOW, begin // 16)
        self._window = self._file.read(begin, min(wanted, self._file.size - begin))
        self._start = begin

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _text(self) -> str:
        return self._take(self._number("Q")).decode("utf-8")

    def _value(self, kind: int) -> Any:
        """Read a value; arrays are passed over."""
        if kind == _TEXT:
            return self._text()
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        inner = self._number("I") if kind == _ARRAY else None
        if inner in _SCALARS:
            self._move(self._number("Q") * struct.calcsize(f"<{_SCALARS[inner]}"))
        elif inner == _TEXT:
            self._skip_texts(self._number("Q"))
        else:
            raise ValueError(f"its metadata has a value of unknown type {kind} of {inner}")
        return None

    def _skip_texts(self, count: int) -> None:
        # A loop of its own: a vocabulary has hundreds of thousands.
        for _ in range(count):
            self._move(_LENGTH.size)
            begin = self.at - _LENGTH.size - self._start
            if begin + _LENGTH.size > len(self._window):
                self._fill(self.at - _LENGTH.size, _LENGTH.size)
                begin = 0
            self._move(_LENGTH.unpack_from(self._window, begin)[0])


def config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the metadata says of a model, by the names of Hugging Face's configurations."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("it names no architecture")
    found: dict[str, Any] = {"model_type": architecture}
    for key, name in _CONFIG.items():
        value = metadata.get(f"{architecture}.{key}")
        if type(value) is int:
            found[name] = value
    # Every model has it: its name tells, too, whether the architecture's is right.
    if "num_hidden_layers" not in found:
        raise ValueError(f"it tells nothing of the architecture {architecture!r:.50}")
    return found


def own_name(name: str, architecture: object = None) -> str:
    """Return Hugging Face's name of a tensor; what has none there keeps its last part.

    Examples
    --------
    >>> own_name("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    match = re.fullmatch(r"blk\.(\d+)\.([^.]+)(\..+)?", name)
    if match:
        number, part, rest = match.groups()
        own = _OTHER_PARTS.get((str(architecture), part)) or _PARTS.get(part, part)
        return f"model.layers.{number}.{own}{rest or ''}"
    first, dot, rest = name.partition(".")
    return f"{_OUTER.get(first, first)}{dot}{rest}"
