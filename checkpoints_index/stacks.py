"""One model, two names for its stack of layers: a file's, and that of the class that loaded it."""

from __future__ import annotations

from collections.abc import Iterable

from checkpoints_index.errors import CheckpointError

# What model classes put around a stack or leave out, without its being another stack: GPT-2's
# files say "h.0", its language model "transformer.h.0"; a vision-language model's text layers
# are "language_model.model.layers" in files and "model.language_model.layers" in memory.
_WRAPPING = {"base_model", "language_model", "model", "text_model", "transformer"}


class Stacks:
    """The stacks of layers of a model, by what comes before the layer's number.

    Parameters
    ----------
    names : iterable of str
        Paths of the model's layers.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._stacks = sorted({stack for stack in map(_stack, names) if stack})

    def same_layer(self, name: str) -> list[str]:
        """Return what the model may call a layer that has another name for its stack.

        Raises
        ------
        CheckpointError
            If several stacks may be meant.
        """
        own = _stack(name)
        if not own or own in self._stacks:
            return [name]
        core = _core(own)
        equal = [stack for stack in self._stacks if _core(stack) == core]
        close = equal or [stack for stack in self._stacks if _overlap(_core(stack), core)]
        if len(close) > 1:
            raise CheckpointError(
                f"{name!r} may belong to any of the base's {', '.join(map(repr, close))}."
            )
        return [stack + name[len(own) :] for stack in close]


def _stack(name: str) -> str:
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[:number])


def _core(stack: str) -> list[str]:
    return [part for part in stack.split(".") if part not in _WRAPPING]


def _overlap(first: list[str], second: list[str]) -> bool:
    """Whether one is the end of the other, as of "bert.encoder.layer" and "encoder.layer"."""
    size = min(len(first), len(second))
    return size > 0 and first[-size:] == second[-size:]
