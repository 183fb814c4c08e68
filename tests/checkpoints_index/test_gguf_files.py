"""GGUF files: the gguf package's numbers, in Transformers' order and under its names."""

from __future__ import annotations

import math
import re
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from checkpoints_index import CheckpointError, open_model
from checkpoints_index.gguf_files import GgufModel
from checkpoints_index.model_folders import ModelCheckpoint
from checkpoints_index.model_readers import find_models
from tests.checkpoints_index.model_formats import (
    converter_order,
    gguf_name,
    trained_llama,
    write_gguf,
)
from tests.helpers import gaussian

KINDS = [
    kind
    for kind in GGMLQuantizationType
    if kind.name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0")
]
# The package reads these and cannot make them: random blocks stand for any.
READ_ONLY = [
    kind
    for kind in GGMLQuantizationType
    if kind.name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ1_M")
]


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Any]], name: str = "qwen2") -> Path:
    writer = GGUFWriter(path, name)
    writer.add_block_count(1)
    for tensor, (blocks, kind) in tensors.items():
        writer.add_tensor(tensor, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS + READ_ONLY, ids=lambda kind: kind.name)
def test_every_quantisation_gives_the_packages_own_numbers(
    kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    if kind in KINDS:
        blocks = gguf.quantize(gaussian(6, 512).float().numpy(), kind)
    else:
        length, size = gguf.GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(0)
        # Small bytes, so that no block's scale is infinite.
        blocks = rng.integers(0, 60, (6, 512 // length * size)).astype(np.uint8)
    path = write(tmp_path / "x.gguf", {"blk.0.attn_q.weight": (blocks, kind)})
    model = GgufModel([path])
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = torch.from_numpy(
        gguf.dequantize(GGUFReader(path).tensors[0].data, kind).astype(np.float32)
    )
    assert expected.isfinite().all()
    plain = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    assert model.tensors[name].dtype == plain.get(kind.name, kind.name.lower())
    assert model.tensors[name].shape == (6, 512)
    assert torch.equal(model.read(name).float(), expected)
    assert torch.equal(model.read(name, slice(2, 5)).float(), expected[2:5])


@pytest.mark.parametrize("shape", [(1,), (32,), (3, 32), (2, 3, 64)], ids=str)
def test_every_shape_is_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    w = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    path = write(tmp_path / "x.gguf", {"w": (w, None)})
    model = GgufModel([path])
    assert torch.equal(model.read("w"), torch.from_numpy(w))
    assert torch.equal(model.read("w", slice(1, 2)), torch.from_numpy(w[1:2]))


def test_a_llama_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    write_gguf(trained_llama(), tmp_path / "model.gguf", GGMLQuantizationType.Q8_0)
    theirs = LlamaForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    ).state_dict()
    model = GgufModel([tmp_path / "model.gguf"])
    assert model.tensors.keys() == theirs.keys()
    for name, w in theirs.items():
        assert torch.equal(model.read(name), w), name
        assert torch.equal(model.read(name, slice(3, 9)), w[3:9]), name


def test_q_and_k_of_other_models_keep_their_order(tmp_path: Path) -> None:
    w = gaussian(8, 4).float()
    path = write(tmp_path / "x.gguf", {"blk.0.attn_q.weight": (w.numpy(), None)}, "qwen2")
    assert torch.equal(GgufModel([path]).read("model.layers.0.self_attn.q_proj.weight"), w)


@pytest.mark.parametrize("architecture", ["llama", "granite", "olmo", "smollm3"])
@pytest.mark.parametrize("told", ["heads", "size", "by layer"])
def test_q_and_k_of_llamas_relatives_are_put_back(
    tmp_path: Path, architecture: str, told: str
) -> None:
    q, k = gaussian(16, 4).float().numpy(), gaussian(8, 4, 1).float().numpy()
    writer = GGUFWriter(tmp_path / "model.gguf", architecture)
    writer.add_block_count(1)
    writer.add_head_count(4)
    if told == "heads":
        writer.add_head_count_kv(2)
    else:
        writer.add_rope_dimension_count(4)
        if told == "by layer":
            writer.add_head_count_kv([2])
    writer.add_tensor("blk.0.attn_q.weight", converter_order(q, 4))
    writer.add_tensor("blk.0.attn_k.weight", converter_order(k, 2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = GgufModel([tmp_path / "model.gguf"])
    for part, w in (("q_proj", q), ("k_proj", k)):
        read = model.read(f"model.layers.0.self_attn.{part}.weight")
        assert torch.equal(read, torch.from_numpy(w)), part


def test_names_become_those_of_hugging_face(tmp_path: Path) -> None:
    names = list(trained_llama().state_dict())
    w = np.zeros((2, 2), np.float32)
    path = write(tmp_path / "x.gguf", {gguf_name(name): (w, None) for name in names})
    assert list(GgufModel([path]).tensors) == names


def test_fused_layers_of_phi_3_are_taken_apart(tmp_path: Path) -> None:
    q, k, v = gaussian(8, 8).float(), gaussian(4, 8, 1).float(), gaussian(4, 8, 2).float()
    gate, up = gaussian(6, 8, 3).float(), gaussian(6, 8, 4).float()
    writer = GGUFWriter(tmp_path / "model.gguf", "phi3")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tensor("blk.0.attn_qkv.weight", torch.cat([q, k, v]).numpy())
    writer.add_tensor("blk.0.ffn_up.weight", torch.cat([gate, up]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = open_model(tmp_path)
    read = {matrix.module: model.read(matrix).dense for matrix in model.matrices}
    expected = {"q_proj": q, "k_proj": k, "v_proj": v, "gate_proj": gate, "up_proj": up}
    assert read.keys() == expected.keys()
    for module, w in expected.items():
        dense = read[module]
        assert dense is not None
        assert torch.equal(dense, w), module


def test_the_configuration_is_told_by_the_metadata(tmp_path: Path) -> None:
    write_gguf(trained_llama(), tmp_path / "model.gguf")
    model = open_model(tmp_path)
    assert isinstance(model, ModelCheckpoint)
    assert dict(model.config) == {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "rotary_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


def test_a_file_split_in_parts_is_one_model(tmp_path: Path) -> None:
    write_gguf(trained_llama(), tmp_path / "model.gguf", parts_of=5)
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert len(parts) > 2
    (candidate,) = find_models(tmp_path)
    assert candidate.files == tuple(parts)
    model = open_model(tmp_path)
    assert isinstance(model, ModelCheckpoint)
    state = trained_llama().state_dict()
    assert model.store.tensors.keys() == state.keys()
    for name, w in state.items():
        assert torch.equal(model.store.read(name), w), name
    (tmp_path / parts[3]).unlink()
    (candidate,) = find_models(tmp_path)
    assert candidate.missing == (parts[3],)


def test_several_quantisations_in_one_folder_are_several_models(tmp_path: Path) -> None:
    for kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16):
        write_gguf(trained_llama(), tmp_path / f"model-{kind.name}.gguf", kind)
    assert len(find_models(tmp_path)) == 2
    with pytest.raises(CheckpointError, match="holds 2 models"):
        open_model(tmp_path)


def test_quantised_matrices_are_matrices(tmp_path: Path) -> None:
    write_gguf(trained_llama(), tmp_path / "model.gguf", GGMLQuantizationType.Q4_0)
    model = open_model(tmp_path)
    dtypes = {matrix.module: matrix.dtype for matrix in model.matrices}
    assert dtypes["q_proj"] == dtypes["v_proj"] == "q4_0"
    assert dtypes["down_proj"] == "float32"
    for matrix in model.matrices:
        dense = model.read(matrix).dense
        assert dense is not None
        assert tuple(dense.shape) == matrix.shape


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(trained_llama(), tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    with pytest.raises(CheckpointError, match=r'pip install "\.\[gguf\]"'):
        open_model(tmp_path)


# What is refused.


def header(tensors: int = 0, entries: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


# Two entries that every model has.
ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")
ARCHITECTURE += text("llama.block_count") + struct.pack("<II", 4, 1)


def info(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


WRONG: dict[str, bytes] = {
    "nothing": b"",
    "another magic": b"GGML" + header()[4:],
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "version 1": header(version=1),
    "no architecture": header(),
    "another architecture than it tells of": header(
        entries=2, rest=ARCHITECTURE.replace(text("llama"), text("lhama"))
    ),
    "bytes left over": header(1, 2, rest=ARCHITECTURE + info("w", (32,)) + bytes(999)),
    "a gap": header(1, 2, rest=ARCHITECTURE + info("w", (8,), 0, 32) + bytes(99)),
    "endless entries": header(entries=2**60, rest=ARCHITECTURE),
    "endless tensors": header(2**60, 2, rest=ARCHITECTURE),
    "more entries than there are": header(entries=3, rest=ARCHITECTURE),
    "an endless text": header(entries=1, rest=struct.pack("<Q", 2**63)),
    "an endless array": header(
        entries=1, rest=text("a") + struct.pack("<IIQ", 9, 8, 2**62) + text("x")
    ),
    "an endless array of numbers": header(
        entries=1, rest=text("a") + struct.pack("<IIQ", 9, 12, 2**61)
    ),
    "nested arrays": header(
        entries=1, rest=text("a") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 99
    ),
    "a value of no type": header(entries=1, rest=text("a") + struct.pack("<I", 99)),
    "no text": header(entries=1, rest=struct.pack("<Q", 2) + b"\xff\xfe" + bytes(99)),
    "a tensor of no type": header(1, 2, rest=ARCHITECTURE + info("w", (32,), 99) + bytes(999)),
    "a tensor beyond the end": header(1, 2, rest=ARCHITECTURE + info("w", (32,)) + bytes(99)),
    "a tensor that overflows": header(
        1, 2, rest=ARCHITECTURE + info("w", (2**62, 2**62)) + bytes(999)
    ),
    "a shape that is no shape": header(
        1, 2, rest=ARCHITECTURE + info("w", (0, 2**64 - 1)) + bytes(999)
    ),
    "a tensor with many dimensions": header(
        1, 2, rest=ARCHITECTURE + info("w", (1,) * 99) + bytes(999)
    ),
    "half a block": header(1, 2, rest=ARCHITECTURE + info("w", (33,), 2) + bytes(999)),
    "tensors that overlap": header(
        2, 2, rest=ARCHITECTURE + info("a", (32,)) + info("b", (32,), 0, 64) + bytes(999)
    ),
    "a tensor twice": header(
        2, 2, rest=ARCHITECTURE + info("a", (32,)) + info("a", (32,), 0, 128) + bytes(999)
    ),
    "an alignment of zero": header(
        entries=3,
        rest=ARCHITECTURE + text("general.alignment") + struct.pack("<II", 4, 0) + bytes(99),
    ),
    "q_proj without heads": header(
        1, 2, rest=ARCHITECTURE + info("blk.0.attn_q.weight", (4, 4)) + bytes(999)
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_whole_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(WRONG[name])
    with pytest.raises(
        CheckpointError,
        match=rf"{re.escape(str(path))} is (not a whole GGUF file|shorter than it says)",
    ):
        GgufModel([path])
