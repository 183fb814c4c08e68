"""One name for a stack of layers that differ in nothing but their numbers.

``layers.{0-3,7}.q_proj`` stands for ``layers.0.q_proj``, …, ``layers.3.q_proj``,
``layers.7.q_proj``, in this order; with several such numbers, the last one runs fastest.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Sequence

from checkpoints_index.matrices import is_number

_RUNS = re.compile(r"\{[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*\}")


def stack(names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return names for as few stacks as hold all of `names`.

    Parameters
    ----------
    names : sequence of str
        Paths of layers, each once.

    Returns
    -------
    list of tuple of str and list of int
        The stack's name (of a layer that stands alone, its own), and which of `names` it holds, in
        the order in which `expand` gives them; stacks in the order of their first layers.

    Examples
    --------
    >>> stack(["layers.0.q", "head", "layers.1.q"])
    [('layers.{0-1}.q', [0, 2]), ('head', [1])]
    """
    alike: dict[tuple[str, ...], dict[tuple[int, ...], int]] = defaultdict(dict)
    for index, name in enumerate(names):
        parts = name.split(".")
        numbers = tuple(int(part) for part in parts if is_number(part))
        alike[tuple("#" if is_number(part) else part for part in parts)][numbers] = index
    return [
        stacked for skeleton, members in alike.items() for stacked in _stacked(skeleton, members)
    ]


def _stacked(
    skeleton: tuple[str, ...], members: dict[tuple[int, ...], int]
) -> list[tuple[str, list[int]]]:
    columns = [sorted(set(column)) for column in zip(*members, strict=True)]
    if math.prod(map(len, columns)) == len(members):
        texts = iter(_runs(column) for column in columns)
        name = ".".join(next(texts) if part == "#" else part for part in skeleton)
        return [(name, [members[numbers] for numbers in itertools.product(*columns)])]
    # Not every number of the one with every number of the other: each of the first by itself.
    first = next(i for i, column in enumerate(columns) if len(column) > 1)
    return [
        stacked
        for number in columns[first]
        for stacked in _stacked(skeleton, {n: i for n, i in members.items() if n[first] == number})
    ]


def _runs(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs) + "}"


def expand(name: str, most: int) -> list[str]:
    """Return the names that a stack's name stands for; of another name, itself.

    Parameters
    ----------
    name : str
        The stack's.
    most : int
        How many are allowed.

    Raises
    ------
    ValueError
        If they are more, or its numbers are not in ascending order.

    Examples
    --------
    >>> expand("layers.{0-1,4}.q", most=100)
    ['layers.0.q', 'layers.1.q', 'layers.4.q']
    """
    if "{" not in name:
        return [name]
    columns: list[Sequence[int | str]] = []
    count = 1
    for part in name.split("."):
        column = _numbers(part, most) if _RUNS.fullmatch(part) else [part]
        count *= len(column)
        if count > most:
            raise ValueError(f"{name[:200]!r} stands for more than {most} names")
        columns.append(column)
    return [".".join(map(str, parts)) for parts in itertools.product(*columns)]


def _numbers(runs: str, most: int) -> list[int]:
    numbers: list[int] = []
    for run in runs[1:-1].split(","):
        first, _, last = run.partition("-")
        start, stop = int(first), int(last or first) + 1
        if stop <= start or (numbers and start <= numbers[-1]):
            raise ValueError(f"{runs[:200]!r} must be ascending numbers")
        if len(numbers) + stop - start > most:
            raise ValueError(f"{runs[:200]!r} stands for more than {most} numbers")
        numbers.extend(range(start, stop))
    return numbers


# Labels of layers in one stack


_PLACE = re.compile(r"\*([0-9])")


def shared_label(label: str, path: str) -> str:
    """Return a label with the path's numbers in it replaced by their places: one for a stack.

    Examples
    --------
    >>> shared_label("experts.5.up_proj", "layers.5.mlp.experts.5.up_proj")
    'experts.*1.up_proj'
    """
    parts = path.split(".")
    places = [i for i, part in enumerate(parts) if is_number(part)]
    shared: list[str] = []
    for i, part in enumerate(own := label.split(".")):
        alike = (k for k, p in enumerate(places) if parts[p - 1 : p + 1] == own[i - 1 : i + 1])
        place = next(alike, None) if i and is_number(part) else None
        shared.append(part if place is None or place > 9 else f"*{place}")
    return ".".join(shared)


def own_label(label: str, path: str) -> str:
    """Return the label of the layer at a path, given one with places in it.

    Raises
    ------
    ValueError
        If the path has fewer numbers.

    Examples
    --------
    >>> own_label("experts.*1.up_proj", "layers.5.mlp.experts.7.up_proj")
    'experts.7.up_proj'
    """
    numbers = [part for part in path.split(".") if is_number(part)]
    try:
        return _PLACE.sub(lambda found: numbers[int(found[1])], label)
    except IndexError as error:
        raise ValueError(f"{path!r:.200} has too few numbers for {label!r:.200}") from error
