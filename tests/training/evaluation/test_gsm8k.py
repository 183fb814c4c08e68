"""GSM8K: what is generated, how it is scored, and how an interrupted evaluation goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from spectra.training.data import prompt_tokens
from spectra.training.evaluation import gsm8k as module
from spectra.training.evaluation.gsm8k import Score, gsm8k, respond
from tests.helpers import tiny_llama, tiny_tokenizer, token_rows

PROBLEMS = [(f"the old river {i}", f"So it is.\n#### {i}") for i in range(5)]


def model_and_tokenizer(seed: int = 0) -> tuple[Any, Any]:
    return tiny_llama(seed), tiny_tokenizer()


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, prompt: list[int], max_length: int) -> str:
    """Greedy without batch, padding or cache."""
    model.eval()
    tokens = list(prompt)
    while len(tokens) < max_length:
        best = int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        tokens.append(best)
    return tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)


def prompts() -> list[list[int]]:
    """Of different lengths, so that all but one are padded."""
    return [token_rows(i, rows=1, length=n)[0].tolist() for i, n in enumerate((4, 11, 7, 20))]


def test_responses_are_greedy_whatever_shares_the_batch() -> None:
    ended = 0
    for seed in range(6):
        model, tokenizer = model_and_tokenizer(seed)
        expected = [by_hand(model, tokenizer, prompt, 20) for prompt in prompts()]
        assert respond(model, tokenizer, prompts(), 20) == expected
        lengths = [len(text.split()) for text in expected]
        ended += sum(n < 20 - len(p) for n, p in zip(lengths, prompts(), strict=True))
        assert lengths[3] == 0
    assert ended > 0, "no response reached its end of text"


def test_a_models_own_generation_settings_are_not_used_and_stay() -> None:
    model, tokenizer = model_and_tokenizer()
    expected = respond(model, tokenizer, prompts(), 30)
    own = model.generation_config
    own.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, top_k=2, max_length=5)
    assert respond(model, tokenizer, prompts(), 30) == expected
    assert model.generation_config is own and own.repetition_penalty == 9.0


def test_every_end_of_text_that_the_model_names_ends_a_response() -> None:
    model, tokenizer = model_and_tokenizer()
    prompt = prompts()[:1]
    (whole,) = respond(model, tokenizer, prompt, 30)
    second = whole.split()[1]
    model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids(second)]
    (cut,) = respond(model, tokenizer, prompt, 30)
    assert cut.split() == whole.split()[: whole.split().index(second)]


def test_generating_leaves_the_model_and_random_state_alone() -> None:
    model, tokenizer = model_and_tokenizer()
    model.train()
    state = torch.get_rng_state()
    respond(model, tokenizer, prompts(), 30)
    assert model.training and torch.equal(torch.get_rng_state(), state)


class Scripted:
    """Stands in for generating: knows the problem by its number and notes what it was asked."""

    def __init__(self, right: set[int]) -> None:
        self.right = right
        self.asked: list[int] = []
        self.fail_after = math.inf

    def __call__(
        self, model: Any, tokenizer: Any, asked: list[list[int]], max_length: int
    ) -> list[str]:
        known = {tuple(prompt_tokens(q, tokenizer)): i for i, (q, _) in enumerate(PROBLEMS)}
        numbers = [known[tuple(prompt)] for prompt in asked]
        if len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += numbers
        return [f"#### {i if i in self.right else 99}" for i in numbers]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    made = Scripted({0, 3, 4})
    monkeypatch.setattr(module, "respond", made)
    # The tiny vocabulary has no numbers, so every problem would have the same prompt.
    monkeypatch.setattr(module, "prompt_tokens", prompt_tokens_with_number)
    monkeypatch.setitem(globals(), "prompt_tokens", prompt_tokens_with_number)
    return made


def prompt_tokens_with_number(question: str, tokenizer: Any) -> list[int]:
    return [3, int(question.split()[-1])]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def solve(out: Path | None, source: str = "a", problems: Any = None, **options: Any) -> Score:
    return gsm8k(
        tiny_llama,
        tiny_tokenizer(),
        PROBLEMS if problems is None else problems,
        out,
        source=source,
        batch_size=2,
        **options,
    )


def test_the_score_counts_exact_matches_and_outputs_are_kept(
    scripted: Scripted, tmp_path: Path
) -> None:
    told: list[int] = []
    score = solve(tmp_path / "out" / "a.jsonl", on_batch=told.append)
    assert score == Score(3, 5) and sum(told) == 5
    lines = read(tmp_path / "out" / "a.jsonl")
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["correct"] for line in lines] == [True, False, False, True, True]
    assert lines[1]["response"] == "#### 99" and lines[1]["gold"] == "1"
    assert solve(None) == Score(3, 5)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    scripted: Scripted, tmp_path: Path
) -> None:
    out = tmp_path / "a.jsonl"
    scripted.fail_after = 2
    with pytest.raises(KeyboardInterrupt):
        solve(out)
    assert scripted.asked == [0, 1]
    with out.open("a") as file:  # as a kill leaves it
        file.write('{"index": 2, "resp')
    scripted.fail_after = math.inf
    assert solve(out) == Score(3, 5)
    assert scripted.asked == [0, 1, 2, 3, 4]
    assert solve(out) == Score(3, 5) and scripted.asked == [0, 1, 2, 3, 4]
    assert [line["index"] for line in read(out)] == [0, 1, 2, 3, 4]


def test_fewer_problems_are_taken_from_what_is_there_and_more_are_added(
    scripted: Scripted, tmp_path: Path
) -> None:
    out = tmp_path / "a.jsonl"
    assert solve(out, problems=PROBLEMS[:4]) == Score(2, 4)
    assert solve(out, problems=PROBLEMS[:1]) == Score(1, 1)
    assert solve(out) == Score(3, 5) and scripted.asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("change", ["weights", "length", "question", "gold"])
def test_outputs_of_something_else_are_replaced(
    change: str, scripted: Scripted, tmp_path: Path
) -> None:
    out = tmp_path / "a.jsonl"
    solve(out)
    problems = list(PROBLEMS)
    if change == "question":
        problems[4] = ("a small bird 4", problems[4][1])
    if change == "gold":
        problems[4] = (problems[4][0], "#### 7")
    options: dict[str, Any] = {"max_length": 99} if change == "length" else {}
    solve(out, "b" if change == "weights" else "a", problems, **options)
    assert scripted.asked == [0, 1, 2, 3, 4] * 2
    assert len(out.read_text().splitlines()) == 5


def test_a_damaged_file_is_one_clear_error(scripted: Scripted, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("not json\n")
    with pytest.raises(ValueError, match="a.jsonl is damaged .* Delete it"):
        solve(tmp_path / "a.jsonl")
    problems = '{"question": "the old river 0", "answer": "#### 0"}\n'
    (tmp_path / "a.jsonl").write_text(problems)
    with pytest.raises(ValueError, match="a.jsonl holds something else than outputs"):
        solve(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == problems


def test_problems_without_an_answer_are_refused_before_anything_is_generated(
    scripted: Scripted,
) -> None:
    with pytest.raises(ValueError, match="must end in '#### N'"):
        solve(None, problems=[*PROBLEMS, ("the old river 9", "nine")])
    with pytest.raises(ValueError, match="no problems"):
        solve(None, problems=[])
    assert scripted.asked == []


def test_nothing_is_loaded_when_nothing_is_left(scripted: Scripted, tmp_path: Path) -> None:
    solve(tmp_path / "a.jsonl")

    def load() -> Any:
        raise AssertionError("loaded for nothing")

    score = gsm8k(load, tiny_tokenizer(), PROBLEMS, tmp_path / "a.jsonl", source="a")
    assert score == Score(3, 5)


def test_the_standard_error_is_the_binomial_one() -> None:
    assert Score(30, 120).standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 120))
    assert str(Score(30, 120)) == "30 of 120 = 25.0% ± 4.0% (binomial standard error)"
    assert Score(0, 4).standard_error == 0
