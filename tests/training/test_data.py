"""Questions and answers from files, and the loss on the response only."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoTokenizer

from spectra.demo import BUNDLED_MODEL
from spectra.training import PROMPT
from spectra.training.data import IGNORED, read_pairs, tokenize

ROWS = {
    "gsm8k": {"question": "How many?", "answer": "Two.\n#### 2"},
    "metamathqa": {"query": "How many?", "response": "Two.\n#### 2", "type": "x"},
    "alpaca": {"instruction": "How many?", "output": "Two.\n#### 2"},
}


@pytest.mark.parametrize("columns", ROWS)
@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_known_columns_are_understood(columns: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"data.{form}"
    frame = pd.DataFrame([ROWS[columns]] * 3)
    if form == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=form == "jsonl")
    assert read_pairs(path) == [("How many?", "Two.\n#### 2")] * 3
    assert len(read_pairs(path, limit=2)) == 2


def test_numbers_stay_the_text_they_were(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"question": "007?", "answer": "1e3"}) + "\n")
    assert read_pairs(path) == [("007?", "1e3")]


def test_bad_files_are_refused(tmp_path: Path) -> None:
    # The same of --data and --held-out, so neither is named.
    with pytest.raises(FileNotFoundError, match=r"does not exist\. Give a JSONL or Parquet file"):
        read_pairs(tmp_path / "none.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "a", ')
    with pytest.raises(ValueError, match="cannot be read as jsonl"):
        read_pairs(broken)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "a"}) + "\n")
    with pytest.raises(
        ValueError, match="must have the columns question and answer or .* has text"
    ):
        read_pairs(other)


def test_the_prompt_is_listing_1() -> None:
    assert PROMPT.format(question="Q?") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nQ?\n\n### Response: Lets think step by step."
    )


def test_only_the_response_and_its_end_are_in_the_loss() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    (example,) = tokenize([("How many?", "Two.\n#### 2")], tokenizer, max_length=500)
    labels, tokens = example["labels"], example["input_ids"]
    start = next(i for i, label in enumerate(labels) if label != IGNORED)
    assert labels[start:] == tokens[start:]
    assert all(label == IGNORED for label in labels[:start])
    assert tokenizer.decode(tokens[:start], skip_special_tokens=True) == PROMPT.format(
        question="How many?"
    )
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[start:-1]) == "\nTwo.\n#### 2"


def test_long_examples_are_cut_and_prompts_without_room_left_out() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    whole = len(tokenize([("a", "b " * 50)], tokenizer, 500)[0]["input_ids"])
    (cut,) = tokenize([("a", "b " * 50)], tokenizer, whole - 10)
    assert len(cut["input_ids"]) == whole - 10
    both = tokenize([("a", "b"), ("long " * 200, "b")], tokenizer, 150)
    assert len(both) == 1
    with pytest.raises(ValueError, match="longer than max_length = 5"):
        tokenize([("a", "b")], tokenizer, 5)
