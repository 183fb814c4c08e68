"""Names of stacks: what is stacked comes apart again, in the same order."""

from __future__ import annotations

import random

import pytest

from checkpoints_index.stacked_names import expand, own_label, shared_label, stack

NAMES = {
    "one stack": ([f"model.layers.{i}.q" for i in range(12)], ["model.layers.{0-11}.q"]),
    "gaps": ([f"h.{i}.q" for i in (9, 2, 0, 1, 5, 6)], ["h.{0-2,5-6,9}.q"]),
    "alone": (["h.3.q"], ["h.3.q"]),
    "no number": (["embed", "head"], ["embed", "head"]),
    "two names": (["h.0.q", "h.0.v", "h.1.v", "h.1.q"], ["h.{0-1}.q", "h.{0-1}.v"]),
    "experts": (
        [f"h.{i}.experts.{e}.up" for i in range(3) for e in range(4)],
        ["h.{0-2}.experts.{0-3}.up"],
    ),
    "one number the same": ([f"h.{i}.layer.0.q" for i in range(3)], ["h.{0-2}.layer.0.q"]),
    "not every expert in every layer": (
        ["h.0.experts.0", "h.0.experts.1", "h.1.experts.0"],
        ["h.0.experts.{0-1}", "h.1.experts.0"],
    ),
    "numbers as names": (["1.2.3", "1.3.3"], ["1.{2-3}.3"]),
    "no numbers of layers": (["h.007.q", "h.1234567.q"], ["h.007.q", "h.1234567.q"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_stacks(case: str) -> None:
    names, stacks = NAMES[case]
    assert [name for name, _ in stack(names)] == stacks


@pytest.mark.parametrize("case", NAMES)
def test_what_is_stacked_comes_apart_again(case: str) -> None:
    names, _ = NAMES[case]
    assert_come_apart(names)


def assert_come_apart(names: list[str]) -> None:
    seen = []
    for stacked, members in stack(names):
        assert expand(stacked, most=10**6) == [names[i] for i in members]
        seen += members
    assert sorted(seen) == list(range(len(names)))


def test_random_names_come_apart_again() -> None:
    rng = random.Random(0)
    for _ in range(200):
        sizes = [rng.randrange(1, 6) for _ in range(3)]
        names = {
            ".".join(["a", *(str(rng.randrange(size)) for size in sizes), rng.choice("qv")])
            for _ in range(rng.randrange(1, 60))
        }
        assert_come_apart(rng.sample(sorted(names), len(names)))


@pytest.mark.parametrize(
    "name", ["h.{1-0}.q", "h.{3,2}.q", "h.{1-2,2}.q", "h.{1,1}.q", "h.{0-9}.{0-9}.q", "h.{0-99}.q"]
)
def test_runs_that_are_none_or_too_many_are_errors(name: str) -> None:
    with pytest.raises(ValueError, match=r"h\.\{|ascending|stands for more"):
        expand(name, most=50)


@pytest.mark.parametrize(
    "name", ["h.{}.q", "h.{a}.q", "h.{1.q", "h.{1-}.q", "h.{1000000}.q", "{h}"]
)
def test_other_braces_are_names(name: str) -> None:
    assert expand(name, most=1) == [name]


LABELS = [
    ("q_proj", "model.layers.5.self_attn.q_proj", "q_proj"),
    ("experts.5.up_proj", "model.layers.5.mlp.experts.5.up_proj", "experts.*1.up_proj"),
    ("5.up_proj", "model.layers.5.mlp.experts.5.up_proj", "5.up_proj"),
    ("block.3.layer.1.q", "decoder.block.3.layer.1.q", "block.*0.layer.*1.q"),
    ("experts.7.up_proj", "model.layers.5.mlp.experts.6.up_proj", "experts.7.up_proj"),
]


@pytest.mark.parametrize(("label", "path", "shared"), LABELS)
def test_labels_of_a_stack(label: str, path: str, shared: str) -> None:
    assert shared_label(label, path) == shared
    assert own_label(shared, path) == label


def test_a_label_of_more_numbers_than_the_path_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="has too few numbers for"):
        own_label("experts.*1.up", "layers.0.up")
