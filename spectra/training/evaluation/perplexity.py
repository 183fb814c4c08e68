"""Perplexity of a language model on tokenized examples."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectra.training.data import IGNORED

Example = Mapping[str, list[int]]
"""``input_ids`` and ``labels`` of equal length; a label of `IGNORED` is not counted."""

DEFAULT_BATCH_SIZE = 4


def perplexity(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
) -> float:
    """Perplexity: exp of the mean negative log-likelihood of a token.

    exp(−(1/N) Σ log p(x_i | x_<i)) over the N tokens of all examples that have a label, each
    counted once and alike, so that a long example weighs more than a short one. The first token
    of an example has nothing before it and is not counted. A token's probability is computed in
    float32 from the model's logits, the sum in float64. Padding and order change nothing beyond
    the rounding of the model's own arithmetic.

    Nothing of the model is changed: no gradient, no random number, no cache, and every module is
    in training or evaluation mode again as it was.

    Parameters
    ----------
    model : nn.Module
        A causal language model, also one with adapters.
    examples : sequence of Example
        As `spectra.training.data.tokenize` or `windows` gives them.
    batch_size : int
        Examples a forward pass.
    on_batch : callable of int, optional
        Told after each pass how many examples it had; for a progress bar.

    Returns
    -------
    float
        Above or equal to 1; infinite where a token was given no probability.

    Raises
    ------
    ValueError
        If there is no token to count.

    Notes
    -----
    Comparable only between models with the same tokenizer, on the same examples.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    total, count = 0.0, 0
    device = next(model.parameters()).device
    # Alike in length, so that little is padded; longest first, so that memory runs out at once.
    ordered = sorted(examples, key=lambda e: len(e["input_ids"]), reverse=True)
    with in_evaluation(model), torch.no_grad():
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            inputs, mask, labels = (t.to(device) for t in _padded(batch))
            logits = model(input_ids=inputs, attention_mask=mask, use_cache=False).logits
            for row, wanted in zip(logits, labels, strict=True):
                targets = wanted[1:]
                counted = targets != IGNORED
                losses = nn.functional.cross_entropy(
                    row[:-1][counted].float(), targets[counted], reduction="none"
                )
                total += losses.double().sum().item()
                count += int(counted.sum())
            if on_batch is not None:
                on_batch(len(batch))
    if not count:
        raise ValueError("No token to count: every example must have a label behind its first.")
    mean = total / count
    return math.exp(mean) if mean < math.log(torch.finfo(torch.float64).max) else math.inf


def identity(examples: Sequence[Example], dtype: torch.dtype) -> dict[str, Any]:
    """Return what ``run.json`` says of a perplexity: with another identity, none compares.

    The digest follows from text, prompt, tokenizer and length, not from where the file lies.
    """
    hasher, tokens = hashlib.sha256(), 0
    for example in examples:
        hasher.update(json.dumps([example["input_ids"], example["labels"]]).encode())
        tokens += sum(label != IGNORED for label in example["labels"][1:])
    return {
        "digest": hasher.hexdigest()[:16],
        "examples": len(examples),
        "tokens": tokens,
        "dtype": str(dtype).removeprefix("torch."),
    }


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Have all modules in evaluation mode within a block, and each as it was behind it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _padded(batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, mask and labels of shape (examples, longest), padded on the right."""
    longest = max(len(example["input_ids"]) for example in batch)
    inputs = torch.zeros(len(batch), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(inputs), torch.full_like(inputs, IGNORED)
    for i, example in enumerate(batch):
        length = len(example["input_ids"])
        inputs[i, :length] = torch.tensor(example["input_ids"])
        labels[i, :length] = torch.tensor(example["labels"])
        mask[i, :length] = 1
    return inputs, mask, labels
