"""Perplexity is what a plain loop gives, and measuring it changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectra.training.data import IGNORED
from spectra.training.evaluation.perplexity import identity, perplexity
from spectra.training.evaluation.texts import read_held_out, read_other_text, windows
from tests.helpers import lora, shake, tiny_llama, tiny_tokenizer, token_rows

LENGTHS = (9, 3, 12, 2, 7)


def examples() -> list[dict[str, Any]]:
    """Of different lengths; of each, the first third is a prompt."""
    made = []
    for seed, length in enumerate(LENGTHS):
        tokens = token_rows(seed, rows=1, length=length)[0].tolist()
        labels = [IGNORED] * (length // 3) + tokens[length // 3 :]
        made.append({"input_ids": tokens, "attention_mask": [1] * length, "labels": labels})
    return made


@torch.no_grad()
def by_hand(model: Any, measured: list[dict[str, Any]]) -> float:
    """One example at a time, no padding, float64 from the logits on."""
    model.eval()
    losses = []
    for example in measured:
        logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].double()
        chances = torch.log_softmax(logits, dim=-1)
        for place in range(1, len(example["labels"])):
            if (token := example["labels"][place]) != IGNORED:
                losses.append(-chances[place - 1, token].item())
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_it_is_what_a_plain_loop_gives_at_any_batch_size(batch_size: int) -> None:
    model = lora(tiny_llama(dropout=0.5), lora_dropout=0.5)
    shake(model)
    expected = by_hand(model, examples())
    # A forward pass in float32 sums 32 products in another order for another batch.
    assert perplexity(model, examples(), batch_size=batch_size) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabularys_size() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert perplexity(model, examples()) == pytest.approx(model.config.vocab_size, rel=1e-6)


def test_tokens_weigh_alike_and_prompts_nothing() -> None:
    model = tiny_llama()
    parts = [perplexity(model, [example]) for example in examples()]
    counts = [sum(label != IGNORED for label in example["labels"][1:]) for example in examples()]
    mean = sum(n * math.log(p) for n, p in zip(counts, parts, strict=True)) / sum(counts)
    assert perplexity(model, examples()) == pytest.approx(math.exp(mean), rel=1e-6)
    assert identity(examples(), torch.float32)["tokens"] == sum(counts)


def test_nothing_is_left_changed() -> None:
    model = lora(tiny_llama(dropout=0.5), lora_dropout=0.5)
    model.train()
    model.base_model.model.model.layers[0].eval()
    flags = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, cache = torch.get_rng_state(), model.config.use_cache
    perplexity(model, examples())
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state) and model.config.use_cache == cache
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_the_training_mode_comes_back_also_from_an_error() -> None:
    model = tiny_llama().train()
    with pytest.raises(IndexError):
        perplexity(model, [{"input_ids": [3, 99], "labels": [3, 99]}])
    assert model.training


def test_progress_is_told_in_examples() -> None:
    told: list[int] = []
    perplexity(tiny_llama(), examples(), batch_size=2, on_batch=told.append)
    assert told == [2, 2, 1]


@pytest.mark.parametrize(
    ("measured", "batch_size", "message"),
    [
        ([], 1, "No token to count"),
        ([{"input_ids": [3], "labels": [3]}], 1, "No token to count"),
        ([{"input_ids": [3, 4], "labels": [3, IGNORED]}], 1, "No token to count"),
        ([{"input_ids": [3, 4], "labels": [3, 4]}], 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_nothing_to_count_is_refused(
    measured: list[dict[str, Any]], batch_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        perplexity(tiny_llama(), measured, batch_size=batch_size)


def test_an_impossible_token_makes_it_infinite() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    assert perplexity(model, examples()) == math.inf


@given(st.lists(st.integers(0, 99), max_size=40), st.integers(2, 9))
def test_windows_count_every_token_but_the_first_once(tokens: list[int], length: int) -> None:
    made = windows(tokens, length)
    counted = [label for window in made for label in window["labels"][1:]]
    assert counted == tokens[1:]
    assert all(2 <= len(window["input_ids"]) <= length for window in made)
    assert all(window["labels"] == window["input_ids"] for window in made)
    for earlier, later in zip(made, made[1:], strict=False):
        assert later["input_ids"][0] == earlier["input_ids"][-1]


def test_windows_of_one_token_are_refused() -> None:
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        windows([1, 2, 3], 1)


def test_a_text_file_is_one_text_and_a_jsonl_file_one_a_row(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    (tmp_path / "a.txt").write_text("the old river\nsings a song")
    (tmp_path / "b.jsonl").write_text('{"text": "the old river"}\n{"text": "sings a song"}\n')
    whole = tokenizer("the old river sings a song").input_ids
    one = read_other_text(tmp_path / "a.txt", tokenizer, 64)
    assert [window["input_ids"] for window in one] == [whole]
    two = read_other_text(tmp_path / "b.jsonl", tokenizer, 64)
    assert [window["input_ids"] for window in two] == [whole[:3], whole[3:]]


def test_held_out_data_is_counted_on_the_response_only(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    (tmp_path / "a.jsonl").write_text('{"question": "the old river", "answer": "sings a song"}\n')
    (example,) = read_held_out(tmp_path / "a.jsonl", tokenizer, 64)
    counted = [label for label in example["labels"] if label != IGNORED]
    assert counted == [*tokenizer("sings a song").input_ids, tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x", "must be a .txt file or a .jsonl file"),
        ("a.jsonl", '{"words": "x"}', "must have the column 'text'; it has words"),
        ("a.jsonl", "not json", "cannot be read as jsonl"),
        ("a.txt", "the", "no text of two tokens"),
    ],
)
def test_other_text_that_cannot_be_read_is_one_clear_error(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_other_text(tmp_path / name, tiny_tokenizer(), 8)


def test_text_in_another_encoding_and_no_text_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="a.txt cannot be read as txt"):
        read_other_text(tmp_path / "a.txt", tiny_tokenizer(), 8)
    with pytest.raises(FileNotFoundError, match="b.txt does not exist"):
        read_other_text(tmp_path / "b.txt", tiny_tokenizer(), 8)


def test_the_identity_follows_what_is_measured_and_not_where_it_lies() -> None:
    first, second = examples(), examples()
    assert identity(first, torch.float32) == identity(second, torch.float32)
    second[1]["labels"][-1] = IGNORED
    assert identity(first, torch.float32)["digest"] != identity(second, torch.float32)["digest"]
    assert identity(first, torch.bfloat16) != identity(first, torch.float32)
