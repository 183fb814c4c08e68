"""Question–answer data in the paper's prompt, with the loss on the response only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from spectra.training.prompts import PROMPT

QUESTION_ANSWER_COLUMNS = (
    ("question", "answer"),  # GSM8K
    ("query", "response"),  # MetaMathQA
    ("instruction", "output"),  # Alpaca and its kin
)
"""The pairs of column names that are understood, looked for in this order."""

IGNORED = -100
"""Label of a token that the loss leaves out, as PyTorch's cross entropy has it."""


def read_pairs(source: Path | str, limit: int | None = None) -> list[tuple[str, str]]:
    """Read questions and answers from JSONL, JSON, Parquet or a ``datasets`` id.

    Parameters
    ----------
    source : Path or str
        A ``.jsonl``, ``.json`` or ``.parquet`` file, or the id of a data set on the hub (its
        ``train`` split is used).
    limit : int, optional
        Use the first `limit` rows only.

    Raises
    ------
    FileNotFoundError
        If `source` looks like a file and is none.
    ValueError
        If the file is broken or no pair of columns is known.
    """
    path = Path(source)
    if path.suffix in {".jsonl", ".json", ".parquet"}:
        frame = _read_file(path)
    else:
        frame = _read_hub(str(source))
    for question, answer in QUESTION_ANSWER_COLUMNS:
        if {question, answer} <= set(frame.columns):
            pairs = frame[[question, answer]].head(limit) if limit else frame[[question, answer]]
            if pairs.empty:
                raise ValueError(f"{source} has no rows.")
            return [(str(q), str(a)) for q, a in pairs.itertuples(index=False)]
    known = " or ".join(f"{q} and {a}" for q, a in QUESTION_ANSWER_COLUMNS)
    raise ValueError(f"{source} must have the columns {known}; it has {', '.join(frame.columns)}.")


def tokenize(
    pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[dict[str, list[int]]]:
    """Return one example a pair: prompt, response and end-of-text, the prompt without loss.

    Parameters
    ----------
    pairs : list of (question, answer)
        From `read_pairs`.
    tokenizer : PreTrainedTokenizerBase
        The model's; must have an end-of-text token.
    max_length : int
        Tokens that are kept; pairs whose prompt alone is longer are left out.

    Returns
    -------
    list of dict
        ``input_ids``, ``attention_mask`` and ``labels`` of equal length.

    Raises
    ------
    ValueError
        If nothing is left, or the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer must have an end-of-text token (eos_token).")
    examples = []
    for question, answer in pairs:
        prompt = prompt_tokens(question, tokenizer)
        response = list(tokenizer("\n" + answer, add_special_tokens=False).input_ids)
        tokens = (prompt + response + [tokenizer.eos_token_id])[:max_length]
        if len(prompt) < len(tokens):
            labels = [IGNORED] * len(prompt) + tokens[len(prompt) :]
            mask = [1] * len(tokens)
            examples.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    if not examples:
        raise ValueError(f"Every prompt is longer than max_length = {max_length} tokens; raise it.")
    return examples


def prompt_tokens(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a question in the paper's prompt, which a response follows."""
    prompt = list(tokenizer(PROMPT.format(question=question)).input_ids)
    # Some tokenizers close every text; the response must follow the prompt directly.
    if prompt and prompt[-1] == tokenizer.eos_token_id:
        prompt.pop()
    return prompt


def _read_file(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Give a JSONL or Parquet file.")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_json(path, lines=path.suffix == ".jsonl", dtype=False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]} ({error}).") from error


def _read_hub(name: str) -> pd.DataFrame:
    import datasets

    try:
        # GSM8K has two configurations; "main" is the one that everybody means.
        config: dict[str, Any] = {"name": "main"} if name.endswith("gsm8k") else {}
        return datasets.load_dataset(name, split="train", **config).to_pandas()
    except Exception as error:  # the hub's client raises many kinds
        raise ValueError(
            f"{name!r} is neither a .jsonl, .json or .parquet file nor a data set that could be "
            f"loaded ({type(error).__name__}: {error})."
        ) from error
