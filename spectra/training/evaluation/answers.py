"""Which number a response to a GSM8K problem gives as its answer."""

from __future__ import annotations

import re
from fractions import Fraction

# The form of GSM8K's own solutions, and that of MetaMathQA's.
_MARKER = re.compile(r"####|the answer is:?", re.IGNORECASE)
# A model that does not stop goes on with another problem, whose answer is not asked for.
_NEXT_PROBLEM = re.compile(r"### ?Instruction|Below is an instruction", re.IGNORECASE)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    # A minus behind a digit, a letter or a bracket is a subtraction or a range.
    r"(?P<minus>(?<![\w)\]}])[-−–])?"
    r"(?:\\?[$€£]\s?)?"
    r"(?P<minus2>(?<=[$€£])[-−–])?"
    r"(?:"
    r"\\[dt]?frac\{(?P<top>\d+)\}\{(?P<bottom>\d+)\}"
    rf"|(?:(?P<whole>\d+)\s+)?(?P<over>{_DIGITS})\s?/\s?(?P<under>{_DIGITS})(?![\d/.])"
    rf"|(?P<plain>{_DIGITS}(?:\.\d+)?|\.\d+)"
    r")"
)


def read_answer(response: str) -> Fraction | None:
    r"""Return the number that a response gives as its answer, or ``None`` where it has none.

    The rules, the first that finds a number counting:

    1. What follows a second prompt (``### Instruction``) is left out: the model went on.
    2. The first number behind the last ``####`` or ``The answer is`` that has one behind it in
       the same line, or at the beginning of the next.
    3. The last number of the response.

    A number may have a sign, a currency before it, commas between thousands, a decimal part, and
    be a fraction (``3/4``, ``1 1/2``, ``\frac{3}{4}``). Units, per cent signs and a full stop
    behind it are not looked at: ``50%`` is 50.

    Examples
    --------
    >>> read_answer("16 - 3 = 13 eggs. #### 13")
    Fraction(13, 1)
    """
    response = _NEXT_PROBLEM.split(response, maxsplit=1)[0]
    for marker in reversed(list(_MARKER.finditer(response))):
        said = response[marker.end() :].lstrip().split("\n", maxsplit=1)[0]
        found = _first(said)
        if found is not None:
            return found
    numbers = [
        value for match in _NUMBER.finditer(response) if (value := _value(match)) is not None
    ]
    return numbers[-1] if numbers else None


def read_gold(answer: str) -> Fraction:
    """Return the answer that a solution of GSM8K ends with: the number behind its ``####``.

    Raises
    ------
    ValueError
        If it has none.
    """
    _, marker, said = answer.rpartition("####")
    value = _first(said) if marker else None
    if value is None:
        raise ValueError(
            f"A GSM8K answer must end in '#### N', got {answer[-60:]!r}. Give --data the "
            "original file, with the columns question and answer."
        )
    return value


def _first(text: str) -> Fraction | None:
    return next((v for m in _NUMBER.finditer(text) if (v := _value(m)) is not None), None)


def _value(match: re.Match[str]) -> Fraction | None:
    parts = {name: text.replace(",", "") for name, text in match.groupdict("").items()}
    if parts["plain"]:
        value = Fraction(parts["plain"])
    else:
        below = int(parts["bottom"] or parts["under"])
        if below == 0:
            return None
        value = int(parts["whole"] or 0) + Fraction(int(parts["top"] or parts["over"]), below)
    return -value if parts["minus"] or parts["minus2"] else value
