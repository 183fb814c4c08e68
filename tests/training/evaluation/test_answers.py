"""The number that a response gives as its answer: a table made by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from spectra.training.evaluation.answers import read_answer, read_gold

RESPONSES = {
    # Behind a marker.
    "She has 3 + 4 = 7 left.\n#### 42": "42",
    "####42": "42",
    "####\n42": "42",
    "The answer is: 42": "42",
    "the answer is 42.": "42",
    "So THE ANSWER IS: **42**, not 43": "42",
    "The answer is: \\boxed{42}": "42",
    "#### 42 dollars of 50": "42",
    # The last marker that has a number.
    "#### 1\nWait.\n#### 2": "2",
    "#### 2\nThe answer is: 3": "3",
    "#### 2\nThe answer is: left to the reader": "2",
    "We need 12 eggs.\n####": "12",
    # A second problem was not asked for.
    "#### 5\n\n### Instruction:\nWhat is 2 + 2?\n\n### Response: #### 4": "5",
    "It is 5. Below is an instruction that describes a task. 9": "5",
    # Otherwise the last number.
    "First 10, then 20, so 30.": "30",
    "There are 7": "7",
    "16-3=13": "13",
    "Nothing of the kind": None,
    "": None,
    # Forms of numbers.
    "$1,234.00": "1234",
    "It costs \\$1,234.50.": "1234.5",
    "1,234,567 apples": "1234567",
    "#### 1,234.": "1234",
    "12,34": "34",
    "-5": "-5",
    "−5 degrees": "-5",
    "#### -$3.50": "-3.5",
    "#### $-3": "-3",
    "a debt of (-8)": "-8",
    "16-3": "3",
    "16 - 3": "3",
    "pages 10-15": "15",
    "#### 3/4": "3/4",
    "half of it, 1/2 cup": "1/2",
    "1 1/2 cups": "3/2",
    "\\frac{3}{4}": "3/4",
    "-\\dfrac{1}{2}": "-1/2",
    "0.25": "1/4",
    ".5": "1/2",
    "42.0": "42",
    "50%": "50",
    "18 dollars": "18",
    "18$": "18",
    "€18": "18",
    "3 km/h": "3",
    "7.": "7",
    "1/0": None,
}


@pytest.mark.parametrize("response", RESPONSES, ids=repr)
def test_the_answer_is_read_as_the_rules_say(response: str) -> None:
    expected = RESPONSES[response]
    assert read_answer(response) == (None if expected is None else Fraction(expected))


def test_numbers_compare_by_value_and_not_by_spelling() -> None:
    assert read_answer("#### 1,000.00") == read_gold("So #### 1000") == Fraction(1000)
    assert read_answer("#### 0.75") == read_answer("#### 3/4")


def test_the_gold_answer_is_behind_the_last_mark() -> None:
    assert read_gold("9 * 2 = $<<9*2=18>>18.\n#### 18") == 18
    assert read_gold("#### -1,200") == -1200


@pytest.mark.parametrize("answer", ["The answer is: 18", "####", "#### none", ""])
def test_a_solution_without_the_mark_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match="must end in '#### N'"):
        read_gold(answer)
