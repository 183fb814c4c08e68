"""What perplexity is measured on: held-out questions with answers, and other text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from spectra.training.data import read_pairs, tokenize

TEXT_COLUMN = "text"
DEFAULT_LENGTH = 512
"""Tokens of an example where nothing says how many the training's had: Table 2's."""


def read_held_out(
    source: Path | str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[dict[str, Any]]:
    """Read held-out data of the fine-tuning's kind, with labels on the response only.

    Parameters
    ----------
    source : Path or str
        As `spectra.training.data.read_pairs` takes it.
    tokenizer : PreTrainedTokenizerBase
        The model's.
    max_length : int
        Tokens of prompt and response that are kept.

    Raises
    ------
    FileNotFoundError, ValueError
        As of `read_pairs` and `tokenize`.
    """
    return list(tokenize(read_pairs(source), tokenizer, max_length))


def read_other_text(
    source: Path | str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[dict[str, Any]]:
    """Read text of the pre-training's kind, cut into windows.

    Parameters
    ----------
    source : Path or str
        A ``.txt`` file, which is one text; or ``.jsonl``, whose rows have one each under
        ``text``.
    tokenizer : PreTrainedTokenizerBase
        The model's.
    max_length : int
        Tokens of a window.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is of another kind, broken, or has no text of two tokens.
    """
    path = Path(source)
    texts = _read_texts(path)
    examples = [
        window
        for text in texts
        for window in windows(list(tokenizer(text, verbose=False).input_ids), max_length)
    ]
    if not examples:
        raise ValueError(f"{path} has no text of two tokens or more, so there is nothing to count.")
    return examples


READERS = {"perplexity": read_held_out, "perplexity_other": read_other_text}
"""What reads the files of each column of a run."""


def windows(tokens: list[int], max_length: int) -> list[dict[str, Any]]:
    """Cut a text into windows in which each token but the text's first is counted once.

    A window begins with the last token of the one before it, which is not counted there again: it
    is only what the next token follows.

    Parameters
    ----------
    tokens : list of int
        Of one text.
    max_length : int
        Tokens of a window, at least 2.

    Returns
    -------
    list of dict
        ``input_ids`` and ``labels``; empty for a text of one token.

    Raises
    ------
    ValueError
        If `max_length` is below 2.

    Examples
    --------
    >>> [w["input_ids"] for w in windows([1, 2, 3, 4], 3)]
    [[1, 2, 3], [3, 4]]
    """
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2 to cut text by it, got {max_length}.")
    starts = range(0, len(tokens) - 1, max_length - 1)
    cut = [tokens[start : start + max_length] for start in starts]
    return [{"input_ids": window, "labels": list(window)} for window in cut]


def _read_texts(path: Path) -> list[str]:
    if path.suffix not in {".txt", ".jsonl"}:
        raise ValueError(
            f"Other text must be a .txt file or a .jsonl file with a column {TEXT_COLUMN!r}, got "
            f"{path}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Give --other-text a .txt or .jsonl file.")
    try:
        if path.suffix == ".txt":
            return [path.read_text(encoding="utf-8")]
        frame = pd.read_json(path, lines=True, dtype=False)
    except ValueError as error:  # also of bytes that are no UTF-8
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]} ({error}).") from error
    if TEXT_COLUMN not in frame:
        raise ValueError(
            f"{path} must have the column {TEXT_COLUMN!r}; it has {', '.join(frame.columns)}."
        )
    return [str(text) for text in frame[TEXT_COLUMN]]
