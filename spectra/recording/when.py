"""When a snapshot is due: every N steps, at listed steps, log-spaced, or as a callable says."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

_PER_DECADE = 10

Every = int | str | Iterable[int] | Callable[[int], bool]


class Schedule:
    """Which steps are recorded, apart from the first and the last, which always are.

    Parameters
    ----------
    every : int, str, iterable of int or callable
        Steps between snapshots; ``"log"`` or ``"log:N"``, N steps of every power of ten (10 where
        it is not said); the steps themselves; a function of the step, or where to find one as
        ``"module:function"``.

    Raises
    ------
    ValueError
        If it is none of these, or the function cannot be found.

    Attributes
    ----------
    fixed : bool
        Whether a step is due or not without asking a function of the user's.
    description : int, str or list of int
        What ``run.json`` says.
    """

    def __init__(self, every: Every) -> None:
        self.fixed = True
        self.description: int | str | list[int]
        if isinstance(every, bool) or every is None:
            raise ValueError(_what_every_is(every))
        if isinstance(every, int):
            if every < 1:
                raise ValueError(f"every must be at least 1, got {every}.")
            self.description, self._due = every, lambda step: step % every == 0
        elif isinstance(every, str) and every.partition(":")[0] == "log":
            self.description, self._due = every, _log_spaced(_per_decade(every))
        elif isinstance(every, str):
            self._ask(load_named(every, "every"), every)
        elif callable(every):
            self._ask(every, _name_of(every))
        else:
            self._list(every)

    def due(self, step: int) -> bool:
        """Whether `step` is to be recorded; raises what a function of the user's raises."""
        return bool(self._due(step))

    def count(self, start: int, stop: int) -> int | None:
        """Return how many steps in (start, stop] are due; None where a function decides."""
        if not self.fixed:
            return None
        if isinstance(self.description, int):
            return stop // self.description - start // self.description
        steps = self.description
        if isinstance(steps, str):
            steps = sorted(_log_steps(_per_decade(steps), stop))
        return sum(start < step <= stop for step in steps)

    def _ask(self, function: Callable[[int], bool], name: str) -> None:
        self.fixed = False
        self.description, self._due = name, function

    def _list(self, every: Iterable[Any]) -> None:
        try:
            given = list(every)
        except TypeError:
            raise ValueError(_what_every_is(every)) from None
        if not given or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in given):
            raise ValueError(_what_every_is(every))
        steps = frozenset(given)
        self.description, self._due = sorted(steps), steps.__contains__


def load_named(name: str, argument: str) -> Callable[..., Any]:
    """Return the function or class that ``"module:name"`` names.

    Parameters
    ----------
    name : str
        Where it is.
    argument : str
        What the user gave it as, for the message.

    Raises
    ------
    ValueError
        If it cannot be found, or is nothing that can be called.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f'{argument} must name a function as "module:function", got {name!r}.')
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{argument}={name!r} cannot be found: {error}.") from error
    if not callable(found):
        raise ValueError(f"{argument}={name!r} must be a function, it is {type(found).__name__}.")
    return found


def _per_decade(every: str) -> int:
    _, colon, count = every.partition(":")
    if colon and not (count.isdecimal() and int(count) > 0):
        raise ValueError(f'every must be "log" or "log:N" with N of at least 1, got {every!r}.')
    return int(count) if colon else _PER_DECADE


def _log_steps(per_decade: int, stop: int) -> set[int]:
    """Return the steps 10^(k/N), rounded, up to `stop` and a little beyond."""
    last = math.ceil(per_decade * math.log10(max(stop, 1))) + 1
    return {round(10 ** (k / per_decade)) for k in range(last + 1)}


def _log_spaced(per_decade: int) -> Callable[[int], bool]:
    def due(step: int) -> bool:
        if step < 1:
            return False
        # Of all k, only these can be rounded to this step.
        k = math.ceil(per_decade * math.log10(step - 0.5))
        return any(round(10 ** (j / per_decade)) == step for j in (k - 1, k, k + 1))

    return due


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"


def _what_every_is(every: object) -> str:
    return (
        'every must be a number of steps, a list of steps, "log" or "log:N", a function of the '
        f'step, or "module:function"; got {every!r}.'
    )
