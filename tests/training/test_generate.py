"""The generated text, and the model that was pre-trained on it."""

import hashlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import spectra.training
from spectra.training.problems import word_problems
from spectra.training.prose import pretraining_text
from spectra.training.vocabulary import in_words

BUNDLED = Path(spectra.training.__file__).parent / "bundled"
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
HELD_OUT_SEED = 77_777_777  # neither a training seed of the bundled model nor its held-out one


@pytest.fixture(scope="module")
def problems() -> list[dict[str, str]]:
    return list(word_problems(3, 2000))


@pytest.fixture(scope="module")
def prose() -> list[str]:
    return list(pretraining_text(3, 2000))


@pytest.mark.parametrize("generate", [pretraining_text, word_problems])
def test_seed_decides_the_items(generate):
    first = list(generate(5, 50))
    assert len(first) == 50
    assert list(generate(5, 50)) == first
    assert list(generate(5, 80))[:50] == first
    assert list(generate(6, 50)) != first


@pytest.mark.parametrize(
    ("generate", "digest"),
    # SHA-256 of the items as JSON, from CPython 3.11.7 on Linux: the same everywhere.
    [(pretraining_text, "d6774b9fa37fedb0"), (word_problems, "60d4c24cdc050d81")],
)
def test_items_are_the_same_on_every_platform(generate, digest):
    items = json.dumps(list(generate(0, 500)), sort_keys=True)
    assert hashlib.sha256(items.encode()).hexdigest().startswith(digest)


def test_text_varies(prose, problems):
    assert len(set(prose)) > 0.95 * len(prose)
    assert len({problem["question"] for problem in problems}) > 0.98 * len(problems)


def test_prose_is_not_in_the_format_of_instructions(prose):
    assert not any("###" in text or "\n" in text for text in prose)


@pytest.mark.parametrize(
    ("pattern", "holds"),
    [
        (r"([a-z-]+) and ([a-z-]+) make ([a-z-]+)\.", lambda a, b, c: a + b == c),
        (r"([a-z-]+) take away ([a-z-]+) leaves ([a-z-]+)\.", lambda a, b, c: a - b == c),
        (r"([a-z-]+) times ([a-z-]+) is ([a-z-]+)\.", lambda a, b, c: a * b == c),
    ],
)
def test_sums_in_prose_are_right(prose, pattern, holds):
    value = {in_words(number): number for number in range(100)}
    found = re.findall(pattern, "\n".join(prose).lower())
    assert len(found) > 50
    for words in found:
        assert holds(*(value[word] for word in words)), words


def test_numbers_are_spelled_in_words():
    assert [in_words(n) for n in (0, 13, 20, 42, 99)] == [
        "zero",
        "thirteen",
        "twenty",
        "forty-two",
        "ninety-nine",
    ]
    with pytest.raises(ValueError, match="between 0 and 99, got 100"):
        in_words(100)


def test_solutions_are_right(problems):
    for problem in problems:
        assert set(problem) == {"question", "answer"}
        *lines, last = problem["answer"].split("\n")
        assert 2 <= len(lines) <= 3
        result = None
        for line in lines:
            (step,) = STEP.findall(line)
            a, b, result = int(step[0]), int(step[2]), int(step[3])
            match step[1]:
                case "+":
                    assert a + b == result, line
                case "-":
                    assert a - b == result, line
                case "*":
                    assert a * b == result, line
                case "/":
                    assert b * result == a, line
        assert last == f"#### {result}"


def test_solutions_use_only_known_numbers(problems):
    implied = {"2", "4"}  # legs
    for problem in problems:
        known = set(re.findall(r"\d+", problem["question"])) | implied
        for a, _, b, c in STEP.findall(problem["answer"]):
            assert {a, b} <= known, problem
            known.add(c)


# The bundled model.


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    """Eight rows of 128 tokens of prose that the model has not seen."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    tokens: list[int] = []
    for text in pretraining_text(HELD_OUT_SEED, 40):
        tokens += [*tokenizer.encode(text), tokenizer.eos_token_id]
    return torch.tensor(tokens[: 8 * 128]).view(8, 128)


@torch.no_grad()
def loss_of(model: LlamaForCausalLM, rows: Tensor) -> float:
    return model(input_ids=rows, labels=rows).loss.item()


def test_bundled_folder_is_small():
    sizes = {path.name: path.stat().st_size for path in BUNDLED.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    } <= set(sizes)
    assert sum(sizes.values()) <= 6 * 2**20
    assert max(sizes.values()) < 3 * 2**20


def test_bundled_model_has_grouped_queries(model):
    assert len(model.model.layers) == 12
    for layer in model.model.layers:
        assert layer.self_attn.q_proj.weight.shape == (96, 96)
        assert layer.self_attn.v_proj.weight.shape == (48, 96)


def test_bundled_model_is_stored_in_bfloat16():
    stored = AutoModelForCausalLM.from_pretrained(BUNDLED)
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}


def test_bundled_model_has_learned_the_prose(model, held_out):
    vocabulary = model.config.vocab_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = LlamaForCausalLM(model.config).float().eval()
    trained = loss_of(model, held_out)
    # A quarter of the nats that a model without knowledge needs is about 1.6.
    assert trained < math.log(vocabulary) / 4
    assert trained < loss_of(fresh, held_out) / 4


def test_bundled_attention_is_trained(model, held_out):
    trained = loss_of(model, held_out)
    for name in ("q_proj", "v_proj"):
        weights = [getattr(layer.self_attn, name).weight for layer in model.model.layers]
        kept = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight in weights:  # the same numbers in another order: only the training is lost
                order = torch.randperm(
                    weight.numel(), generator=torch.Generator().manual_seed(weight.numel())
                )
                weight.copy_(weight.flatten()[order].view_as(weight))
        assert loss_of(model, held_out) > trained + 1
        with torch.no_grad():
            for weight, old in zip(weights, kept, strict=True):
                weight.copy_(old)


def test_bundled_tokenizer_keeps_text_and_single_digits(prose, problems):
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    assert tokenizer.encode("1234", add_special_tokens=False) == tokenizer.convert_tokens_to_ids(
        list("1234")
    )
    for text in [*prose[:100], *(problem["answer"] for problem in problems[:100]), "Ünïcode →"]:
        ids = tokenizer.encode(text)
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
