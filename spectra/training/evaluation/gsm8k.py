"""GSM8K by greedy generation: the share of problems whose number is right."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from spectra.store import whole_file
from spectra.training.data import prompt_tokens
from spectra.training.evaluation.answers import read_answer, read_gold
from spectra.training.evaluation.perplexity import in_evaluation

DEFAULT_MAX_LENGTH = 1024
"""Tokens of prompt and response together, as in the paper's §6."""
DEFAULT_BATCH_SIZE = 8
# What is read again of a line of outputs.
_KEYS = {"index", "question", "response", "gold", "source"}


@dataclass(frozen=True)
class Score:
    """How many of so many problems were solved.

    Examples
    --------
    >>> print(Score(30, 120))
    30 of 120 = 25.0% ± 4.0% (binomial standard error)
    """

    solved: int
    problems: int

    @property
    def share(self) -> float:
        """The solved ones' share."""
        return self.solved / self.problems

    @property
    def standard_error(self) -> float:
        """√(p(1 − p)/n): of the share, were the problems drawn at random."""
        return math.sqrt(self.share * (1 - self.share) / self.problems)

    def __str__(self) -> str:
        return (
            f"{self.solved} of {self.problems} = {self.share:.1%} ± {self.standard_error:.1%} "
            "(binomial standard error)"
        )


def gsm8k(
    model: Callable[[], nn.Module],
    tokenizer: Any,
    problems: Sequence[tuple[str, str]],
    out: Path | None = None,
    *,
    source: str = "",
    batch_size: int = DEFAULT_BATCH_SIZE,
    max_length: int = DEFAULT_MAX_LENGTH,
    on_batch: Callable[[int], None] | None = None,
) -> Score:
    """Exact match on GSM8K, with the paper's prompt and greedy decoding.

    Every problem stands in the prompt that training uses (Listing 1); the response ends at the
    end of text, or where it has `max_length` tokens with its prompt. Its number is read by
    `read_answer` and compared with that behind ``####``, as exact fractions. Problems of one
    batch are padded on the left; in 16 bits, which ones share a batch may turn a close decision
    of the model, so compare runs at the same batch size.

    Parameters
    ----------
    model : callable
        Returns a causal language model of Transformers; called if something is left to generate.
    tokenizer : PreTrainedTokenizerBase
        The model's.
    problems : sequence of (question, answer)
        Answers end in ``#### N``.
    out : Path, optional
        A JSONL file with one line a problem: index, question, response, answer, gold, correct.
        What it holds of the same `source` already is not generated again.
    source : str
        Names the weights and their dtype: lines of others are replaced.
    batch_size : int
        Problems that are generated at once.
    max_length : int
        Tokens of prompt and response.
    on_batch : callable of int, optional
        Told how many problems were done, those that were there already first.

    Raises
    ------
    ValueError
        If there is no problem, or one has no ``####``.
    OSError
        If `out` cannot be written.
    """
    if not problems:
        raise ValueError("There are no problems to solve.")
    golds = [read_gold(answer) for _, answer in problems]
    done = _Outputs(out, f"{source}, max_length {max_length}", problems, golds)
    left = [i for i in range(len(problems)) if i not in done.correct]
    if on_batch is not None:
        on_batch(len(problems) - len(left))
    for start in range(0, len(left), batch_size):
        batch = left[start : start + batch_size]
        prompts = [prompt_tokens(problems[i][0], tokenizer) for i in batch]
        responses = respond(model(), tokenizer, prompts, max_length)
        lines = []
        for i, response in zip(batch, responses, strict=True):
            answer = read_answer(response)
            lines.append(
                {
                    "index": i,
                    "question": problems[i][0],
                    "response": response,
                    "answer": None if answer is None else str(answer),
                    "gold": str(golds[i]),
                    "correct": answer == golds[i],
                }
            )
        done.add(lines)
        if on_batch is not None:
            on_batch(len(batch))
    return Score(sum(done.correct[i] for i in range(len(problems))), len(problems))


def respond(model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_length: int) -> list[str]:
    """Return the greedy responses to tokenized prompts, each without its prompt.

    Each ends at the end of text, or at `max_length` tokens with its own prompt, whatever the
    others of the batch need. A prompt that is as long as that already gets an empty response.
    """
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    if shortest >= max_length:
        return [""] * len(prompts)
    device = next(model.parameters()).device
    inputs = torch.full((len(prompts), longest), int(tokenizer.pad_token_id))
    mask = torch.zeros_like(inputs)
    for row, prompt in enumerate(prompts):
        inputs[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ends = _ends_of_text(model, tokenizer)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_length - shortest,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
    )
    with in_evaluation(model), torch.no_grad(), _no_settings_of_its_own(model):
        out: Tensor = model.generate(
            input_ids=inputs.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
        )
    responses = []
    for prompt, row in zip(prompts, out[:, longest:].tolist(), strict=True):
        tokens = row[: max(max_length - len(prompt), 0)]
        end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        responses.append(tokenizer.decode(tokens[:end], skip_special_tokens=True))
    return responses


def _ends_of_text(model: Any, tokenizer: Any) -> list[int]:
    # Chat models name several ends in their generation settings.
    named = model.generation_config.eos_token_id
    named = [] if named is None else [named] if isinstance(named, int) else list(named)
    return sorted({int(tokenizer.eos_token_id), *named})


@contextmanager
def _no_settings_of_its_own(model: Any) -> Iterator[None]:
    """Keep away a model's own temperature, penalties and the like: greedy is greedy."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Outputs:
    """The file of outputs: what it holds of the same weights and problems, and what is added."""

    def __init__(
        self,
        path: Path | None,
        source: str,
        problems: Sequence[tuple[str, str]],
        golds: Sequence[Any],
    ) -> None:
        self._path = path
        self._source = source
        self.correct: dict[int, bool] = {}
        if path is None:
            return
        lines = _whole_lines(path)
        for line in lines:
            i = line["index"]
            same = line["source"] == source
            if i < len(problems):
                same = same and (line["question"], line["gold"]) == (problems[i][0], str(golds[i]))
                # Read anew from the response, in case the rules have changed since.
                self.correct[i] = read_answer(line["response"]) == golds[i]
            if not same:
                lines, self.correct = [], {}
                break
        with whole_file(path) as temporary:
            temporary.write_text("".join(map(_as_line, lines)), encoding="utf-8")

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append lines, whole and on disk when this returns."""
        text = "".join(_as_line({**line, "source": self._source}) for line in lines)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        self.correct |= {line["index"]: line["correct"] for line in lines}


def _as_line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file, without one that a kill has cut off."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = text.split("\n")[:-1]
    try:
        found = [dict(json.loads(line)) for line in lines]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it to begin anew.") from error
    if any(not _KEYS <= line.keys() for line in found):
        raise ValueError(f"{path} holds something else than outputs. Choose another file.")
    return found
