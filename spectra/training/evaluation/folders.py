"""Evaluates models and adapters that are in no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectra.training.data import read_pairs
from spectra.training.evaluation import gsm8k as problems_solved
from spectra.training.evaluation import perplexity as likelihood
from spectra.training.evaluation.lm_eval import lm_eval
from spectra.training.evaluation.models import (
    dtype_for_text,
    dtype_named,
    fingerprint,
    load_model,
    load_tokenizer,
)
from spectra.training.evaluation.texts import DEFAULT_LENGTH, READERS


def model_perplexity(
    path: Path | str,
    *,
    held_out: Path | str | None = None,
    other_text: Path | str | None = None,
    base: Path | str | None = None,
    max_length: int = DEFAULT_LENGTH,
    batch_size: int = likelihood.DEFAULT_BATCH_SIZE,
    dtype: str | None = None,
) -> dict[str, float]:
    """Return the perplexities of a model or adapter, by the columns that a run would have.

    Parameters
    ----------
    path : Path or str
        Folder or hub id of a model, or folder of an adapter.
    held_out, other_text, max_length, batch_size
        As of `evaluate_perplexity`.
    base : Path or str, optional
        An adapter's base, by default the one that it names.
    dtype : str, optional
        float32 by default.

    Raises
    ------
    ValueError
        If there is nothing to measure on, or something cannot be loaded.
    """
    files = {"perplexity": held_out, "perplexity_other": other_text}
    if not any(files.values()):
        raise ValueError("The task perplexity needs --held-out FILE, --other-text FILE, or both.")
    tokenizer = load_tokenizer(path, base)
    examples = {c: READERS[c](f, tokenizer, max_length) for c, f in files.items() if f}
    model = load_model(path, dtype_named(dtype or "float32"), base)
    return {
        c: likelihood.perplexity(model, of_column, batch_size=batch_size)
        for c, of_column in examples.items()
    }


def model_gsm8k(
    path: Path | str,
    data: Path | str,
    *,
    limit: int | None = None,
    base: Path | str | None = None,
    max_length: int = problems_solved.DEFAULT_MAX_LENGTH,
    batch_size: int = problems_solved.DEFAULT_BATCH_SIZE,
    dtype: str | None = None,
    out: Path | str | None = None,
) -> problems_solved.Score:
    """Solve GSM8K's problems with a model or adapter; parameters as of `evaluate_gsm8k`.

    With `out`, a JSONL file, an interrupted evaluation goes on where it stopped.
    """
    problems = read_pairs(data, limit)
    tokenizer = load_tokenizer(path, base)
    chosen = dtype_named(dtype) if dtype else dtype_for_text()
    loaded: list[Any] = []

    def model() -> Any:
        loaded[:] = loaded or [load_model(path, chosen, base)]
        return loaded[0]

    return problems_solved.gsm8k(
        model,
        tokenizer,
        problems,
        None if out is None else Path(out),
        source=f"{fingerprint(path, base)}, {chosen}",
        batch_size=batch_size,
        max_length=max_length,
    )


def model_lm_eval(
    path: Path | str,
    task: str,
    *,
    base: Path | str | None = None,
    dtype: str | None = None,
    out: Path | str | None = None,
    **options: Any,
) -> dict[str, dict[str, float | str]]:
    """Evaluate a model or adapter on a task of lm-eval's; options as of `lm_eval`."""
    model = load_model(path, dtype_named(dtype) if dtype else dtype_for_text(), base)
    tokenizer = load_tokenizer(path, base)
    return lm_eval(model, tokenizer, task, out=None if out is None else Path(out), **options)
