"""Weights quantised by bitsandbytes: its own numbers, from files that it and Transformers wrote."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from checkpoints_index import CheckpointError, find_checkpoints, open_model
from checkpoints_index.bitsandbytes_files import BitsAndBytesStore
from checkpoints_index.model_folders import ModelCheckpoint
from checkpoints_index.safetensors_files import TensorFile
from tests.checkpoints_index.test_bound_adapters import tiny_gpt2
from tests.checkpoints_index.test_mutations import mutants, unchecked_from
from tests.helpers import (
    attention_weights,
    gaussian,
    lora,
    quantised_folder,
    shake,
    tiny_llama,
    tiny_model_folder,
)

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
DOUBLE = {"bnb_4bit_use_double_quant": True}
KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    # Transformers' options; the quantisation; the matrices' dtype.
    "nf4": (NF4, "nf4", "nf4"),
    "nf4, scales quantised too": (NF4 | DOUBLE, "nf4", "nf4-double"),
    "nf4, stored as bfloat16": (NF4 | {"bnb_4bit_quant_storage": "bfloat16"}, "nf4", "nf4"),
    "fp4": (FP4, "fp4", "fp4"),
    "fp4, scales quantised too": (FP4 | DOUBLE, "fp4", "fp4-double"),
    "int8": ({"load_in_8bit": True}, "int8", "int8"),
}


def folder_of(name: str, tmp_path: Path, shard: str = "5GB") -> Path:
    base = tiny_model_folder(tmp_path / "base")
    return quantised_folder(base, tmp_path / "quantised", KINDS[name][0], shard)


def dequantised_by_the_library(folder: Path) -> dict[str, Tensor]:
    """The weights of all quantised layers, as `model.dequantize()` would make them."""
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    return {
        path: dequantize_bnb_weight(module.weight, getattr(module, "state", None))
        for path, module in model.named_modules()
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt")
    }


def read_all(folder: Path) -> dict[str, Tensor]:
    model = open_model(folder, dequantise=True)
    found = {matrix.name: model.read(matrix).dense for matrix in model.matrices}
    return {name: dense for name, dense in found.items() if dense is not None}


@pytest.mark.parametrize("name", KINDS)
def test_the_numbers_are_the_librarys_own(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    expected = dequantised_by_the_library(folder)
    assert len(expected) == 14
    model = open_model(folder, dequantise=True)
    assert isinstance(model, ModelCheckpoint)
    assert (model.dequantised, model.quantisation) == (KINDS[name][1], None)
    assert {m.name for m in model.matrices} == expected.keys()
    plain = open_model(tmp_path / "base")
    assert [(m.name, m.shape) for m in model.matrices] == [
        (m.name, m.shape) for m in plain.matrices
    ]
    assert {matrix.dtype for matrix in model.matrices} == {KINDS[name][2]}
    for matrix in model.matrices:
        dense, w = model.read(matrix).dense, expected[matrix.name]
        assert dense is not None
        assert dense.dtype == w.dtype and torch.equal(dense, w), matrix.name
        stored = model.store.read(f"{matrix.name}.weight", slice(3, 9))
        assert torch.equal(stored, w[3:9])
    assert torch.equal(
        model.store.read("lm_head.weight"),
        load_file(folder / "model.safetensors")["lm_head.weight"],
    )


def test_shards_are_read_as_one_file(tmp_path: Path) -> None:
    folder = folder_of("nf4, scales quantised too", tmp_path, shard="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    found = read_all(folder)
    for name, w in dequantised_by_the_library(folder).items():
        assert torch.equal(found[name], w), name


def test_a_quantised_conv1d_lies_as_a_linear_layer_does(tmp_path: Path) -> None:
    tiny_gpt2().save_pretrained(tmp_path / "base")
    folder = quantised_folder(tmp_path / "base", tmp_path / "quantised", NF4)
    expected = dequantised_by_the_library(folder)
    found = read_all(folder)
    plain = open_model(tmp_path / "base")
    assert {name: tuple(w.shape) for name, w in found.items()} == {
        matrix.name: matrix.shape for matrix in plain.matrices
    }
    attention = "transformer.h.0.attn"
    q, k, v = expected[f"{attention}.c_attn"].split(24)
    for part, w in {"q_proj": q, "k_proj": k, "v_proj": v}.items():
        (name,) = (n for n in found if n.endswith(f"attn.{part}"))
        assert torch.equal(found[name], w)
    (projection,) = (n for n in found if n.endswith("attn.c_proj"))
    assert torch.equal(found[projection], expected[f"{attention}.c_proj"])


def packed(w: Tensor, name: str = "layers.0.q_proj.weight", **options: Any) -> dict[str, Tensor]:
    """A weight and what bitsandbytes writes beside it."""
    codes, state = functional.quantize_4bit(w, **options)
    parts = state.as_dict(packed=True).items()
    return {name: codes} | {f"{name}.{part}": tensor for part, tensor in parts}


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("size", [32, 64, 128, 4096])
@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (3, 5), (7, 64), (300, 70)], ids=str)
def test_every_size_of_blocks_and_shape(
    shape: tuple[int, int], size: int, double: bool, tmp_path: Path
) -> None:
    for dtype in (torch.float32, torch.float16):
        options: dict[str, Any] = {"blocksize": size, "compress_statistics": double}
        w = gaussian(*shape).to(dtype)
        expected = functional.dequantize_4bit(*functional.quantize_4bit(w, **options))
        save_file(packed(w, **options), tmp_path / "model.safetensors")
        store = BitsAndBytesStore(TensorFile(tmp_path / "model.safetensors"))
        (name,) = store.tensors
        assert store.tensors[name].shape == shape
        read = store.read(name)
        # Its kernel turns what has one byte around.
        assert torch.equal(read, expected.reshape(shape)) and read.dtype == dtype
        wanted = "fp4" + "-double" * double + f"-{size}" * (size != 64)
        assert store.tensors[name].dtype == wanted


def test_an_adapter_that_needs_w_0_gets_these_numbers(tmp_path: Path) -> None:
    folder = folder_of("nf4, scales quantised too", tmp_path)
    model = lora(AutoModelForCausalLM.from_pretrained(folder, device_map="cpu"), use_dora=True)
    shake(model)
    model.save_pretrained(tmp_path / "run" / "checkpoint-5")
    base = open_model(folder, dequantise=True)
    (checkpoint,) = (c.bind(base) for c in find_checkpoints(tmp_path / "run"))
    # PEFT's merge, on a model that has these numbers from the start.
    numbers = dequantised_by_the_library(folder)
    plain = tiny_llama()
    plain.load_state_dict({f"{name}.weight": w for name, w in numbers.items()}, strict=False)
    merged = PeftModel.from_pretrained(plain.double(), tmp_path / "run" / "checkpoint-5")
    expected = attention_weights(merged.merge_and_unload())
    assert {matrix.name for matrix in checkpoint.matrices} == expected.keys()
    for matrix in checkpoint.matrices:
        w_t = checkpoint.read(matrix).on(numbers[matrix.name].detach())
        # The norms that PEFT saves are float32.
        assert torch.allclose(w_t, expected[matrix.name].double(), rtol=0, atol=1e-6)
        assert not torch.allclose(w_t, numbers[matrix.name].double(), atol=1e-2)


@pytest.mark.parametrize("double", [False, True])
def test_pytorch_files_are_read_also_where_they_hold_views(double: bool, tmp_path: Path) -> None:
    w = gaussian(6, 64).float()
    codes, state = functional.quantize_4bit(w, quant_type="nf4", compress_statistics=double)
    expected = functional.dequantize_4bit(codes, state)
    # With strides: the numbers do not lie one after the other.
    strided = {
        name: torch.stack([tensor, torch.zeros_like(tensor)], 1)[:, 0]
        for name, tensor in packed(w, quant_type="nf4", compress_statistics=double).items()
    }
    assert not any(tensor.is_contiguous() for tensor in strided.values() if tensor.numel() > 1)
    torch.save(strided, tmp_path / "pytorch_model.bin")
    settings = {"quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert torch.equal(read_all(tmp_path)["layers.0.q_proj"], expected)


def test_without_a_word_it_is_refused_with_both_choices(tmp_path: Path) -> None:
    folder = folder_of("nf4", tmp_path)
    both = r"quantised weights \(bitsandbytes\).* 16-bit weights .* or the numbers .*--dequantise"
    with pytest.raises(CheckpointError, match=both):
        open_model(folder)


def test_before_the_method_was_written_it_was_bitsandbytes(tmp_path: Path) -> None:
    folder = folder_of("int8", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["quant_method"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"\(bitsandbytes\).*--dequantise"):
        open_model(folder)
    assert len(read_all(folder)) == 14


def test_other_quantisations_are_refused_either_way(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    settings = {"quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(config | settings))
    for dequantise in (False, True):
        with pytest.raises(CheckpointError, match=r"\(gptq\).* model\.dequantize\(\)") as error:
            open_model(folder, dequantise=dequantise)
        assert "--dequantise" not in str(error.value)


def test_a_model_that_is_not_quantised_is_as_it_is(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "base")
    model = open_model(folder, dequantise=True)
    assert isinstance(model, ModelCheckpoint)
    assert model.dequantised is None
    assert {matrix.dtype for matrix in model.matrices} == {"float32"}


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of("nf4", tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(CheckpointError, match=r'pip install "\.\[bitsandbytes\]"'):
        open_model(folder, dequantise=True)


# What is refused.

WEIGHT = "layers.0.q_proj.weight"
DESCRIPTION = f"{WEIGHT}.quant_state.bitsandbytes__nf4"
Tensors = dict[str, Tensor]


def described(**changes: Any) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        says = json.loads(bytes(tensors[DESCRIPTION].tolist())) | changes
        tensors[DESCRIPTION] = as_bytes(json.dumps(says).encode())

    return change


def as_bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def put(name: str, tensor: Tensor) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: tensor})


def removed(*names: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


WRONG: dict[str, Callable[[Tensors], None]] = {
    "no description": removed(DESCRIPTION),
    "no weight": removed(WEIGHT),
    "no scales": removed(f"{WEIGHT}.absmax"),
    "no levels": removed(f"{WEIGHT}.quant_map"),
    "no scales of the scales": removed(f"{WEIGHT}.nested_absmax"),
    "no levels of the scales": removed(f"{WEIGHT}.nested_quant_map"),
    "two descriptions": put(DESCRIPTION.replace("nf4", "fp4"), as_bytes(b"{}")),
    "another kind of quantisation": put(DESCRIPTION.replace("nf4", "nf3"), as_bytes(b"{}")),
    "scales of nothing": put("layers.1.q_proj.weight.absmax", torch.zeros(4)),
    "eight bits without scales": put("layers.1.q_proj.weight", torch.zeros(4, 4).char()),
    "codes without scales": put("layers.1.q_proj.weight", torch.zeros(8, 1).byte()),
    "scales of rows that are not there": put("layers.1.q_proj.SCB", torch.zeros(4)),
    "no JSON": put(DESCRIPTION, as_bytes(b"nothing")),
    "no object": put(DESCRIPTION, as_bytes(b"[1]")),
    "no text": put(DESCRIPTION, as_bytes(b"\xff\xfe")),
    "nothing": put(DESCRIPTION, torch.zeros(0).byte()),
    "a description without end": put(DESCRIPTION, as_bytes(b"[" * 2**20)),
    "nested": put(DESCRIPTION, as_bytes(b"[" * 4000)),
    "a key twice": put(DESCRIPTION, as_bytes(b'{"shape": 1, "shape": 2}')),
    "a number without end": put(DESCRIPTION, as_bytes(b'{"shape": ' + b"9" * 4000 + b"}")),
    "a description of floats": put(DESCRIPTION, torch.zeros(80)),
    "a description with two dimensions": put(DESCRIPTION, torch.zeros(8, 8).byte()),
    "no shape": described(shape=None),
    "a shape of text": described(shape=["6", "64"]),
    "a shape of floats": described(shape=[6.0, 64.0]),
    "negative": described(shape=[-6, -64]),
    "empty": described(shape=[0, 64]),
    "no dimensions": described(shape=[]),
    "more numbers than codes": described(shape=[7, 64]),
    "fewer numbers than codes": described(shape=[5, 64]),
    "an endless shape": described(shape=[2**40, 2**40]),
    "a longer one": described(shape=[10**30, 1]),
    "larger blocks": described(blocksize=128),
    "smaller blocks": described(blocksize=32),
    "no blocks": described(blocksize=0),
    "negative blocks": described(blocksize=-64),
    "blocks of text": described(blocksize="64"),
    "blocks of truth": described(blocksize=True),
    "odd blocks": described(blocksize=65),
    "smaller blocks of scales": described(nested_blocksize=0),
    "another quantisation": described(quant_type="fp4"),
    "no quantisation": described(quant_type=["nf4"]),
    "integers": described(dtype="int64"),
    "a function": described(dtype="load"),
    "a list of them": described(dtype=["float32"]),
    "scales of another dtype": described(nested_dtype="float16"),
    "an offset of text": described(nested_offset="1"),
    "no offset": described(nested_offset=float("nan")),
    "an infinite offset": described(nested_offset=float("inf")),
    "short scales": put(f"{WEIGHT}.absmax", torch.zeros(5).byte()),
    "long scales": put(f"{WEIGHT}.absmax", torch.zeros(7).byte()),
    "plain scales": put(f"{WEIGHT}.absmax", torch.zeros(6)),
    "short levels": put(f"{WEIGHT}.nested_quant_map", torch.zeros(255)),
    "levels of another dtype": put(f"{WEIGHT}.quant_map", torch.zeros(16).half()),
    "short codes": put(WEIGHT, torch.zeros(191, 1).byte()),
    "codes in integers": put(WEIGHT, torch.zeros(48, 1).int()),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    tensors = packed(gaussian(6, 64).float(), WEIGHT, quant_type="nf4", compress_statistics=True)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    assert BitsAndBytesStore(TensorFile(path)).read(WEIGHT).shape == (6, 64)
    WRONG[name](tensors)
    save_file(tensors, path)
    file = TensorFile(path)
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))}: 'layers\.[01]\.q_proj"):
        BitsAndBytesStore(file)


WRONG_INT8: dict[str, Callable[[Tensors], None]] = {
    "no scales": removed("q_proj.SCB"),
    "short scales": put("q_proj.SCB", torch.zeros(5)),
    "scales of another dtype": put("q_proj.SCB", torch.zeros(6).half()),
    "no matrix": put("q_proj.weight", torch.zeros(6).char()),
    "codes in another order": put("q_proj.weight_format", torch.tensor(1).byte()),
    "two orders": put("q_proj.weight_format", torch.zeros(2).byte()),
}


@pytest.mark.parametrize("name", WRONG_INT8)
def test_what_does_not_fit_eight_bits_is_refused(name: str, tmp_path: Path) -> None:
    codes, scales, _ = functional.int8_vectorwise_quant(gaussian(6, 64).half())
    tensors = {"q_proj.weight": codes, "q_proj.SCB": scales}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    # Older files do not tell the order of the codes.
    read = BitsAndBytesStore(TensorFile(path)).read("q_proj.weight")
    assert torch.equal(read, functional.int8_vectorwise_dequant(codes, scales))
    WRONG_INT8[name](tensors)
    save_file(tensors, path)
    file = TensorFile(path)
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))}: 'q_proj"):
        BitsAndBytesStore(file)


def test_a_configuration_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"layers.0.q_proj.weight": gaussian(4, 4)}, tmp_path / "model.safetensors")
    settings = {"quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="must hold weights quantised by bitsandbytes"):
        open_model(tmp_path, dequantise=True)


@pytest.mark.parametrize("name", ["nf4, scales quantised too", "int8"])
def test_mutated_headers_give_an_error_or_the_right_numbers(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    expected = read_all(folder)
    path = folder / "model.safetensors"
    content, end = path.read_bytes(), unchecked_from(path)
    errors = 0
    for mutated in mutants(content[:end], content[:end], random.Random(name), 300):
        path.write_bytes(mutated + content[end:])
        try:
            found = read_all(folder)
        except CheckpointError as error:
            assert str(folder) in str(error)
            errors += 1
        else:
            for key in found.keys() & expected.keys():
                assert torch.equal(found[key], expected[key]), key
    assert errors > 200


@pytest.mark.parametrize("double", [False, True])
def test_mutated_descriptions_give_an_error_or_what_they_say(double: bool, tmp_path: Path) -> None:
    w = gaussian(6, 64).float()
    tensors = packed(w, WEIGHT, quant_type="nf4", compress_statistics=double)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    expected = BitsAndBytesStore(TensorFile(path)).read(WEIGHT)
    content = bytes(tensors[DESCRIPTION].tolist())
    splices = b'[]{}"":,-0123456789.e, null true' * 20
    errors = 0
    for mutated in mutants(content, splices, random.Random(double), 400):
        save_file(tensors | {DESCRIPTION: as_bytes(mutated or b" ")}, path)
        try:
            found = BitsAndBytesStore(TensorFile(path)).read(WEIGHT)
        except CheckpointError as error:
            assert f"{path}: {WEIGHT!r:.22}" in str(error)
            errors += 1
        else:
            assert found.numel() == w.numel()
            if json.loads(mutated) == json.loads(content):
                assert torch.equal(found, expected)
    assert errors > 200
