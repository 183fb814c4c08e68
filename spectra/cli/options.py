"""What the sub-commands share: how one is added, and the types of options."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from typing import Any, TextIO


class LateParser(argparse.ArgumentParser):
    """A parser that gets its arguments when it is used: some have to load libraries for them.

    Attributes
    ----------
    fill : callable, optional
        Adds the arguments to the parser that it is given.
    """

    fill: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Add the arguments, the first time, and parse."""
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        return super().parse_known_args(args, namespace)


def add_command(commands: Any, name: str, run: Any, text: str, example: str) -> LateParser:
    """Add a sub-command and return it, for its options."""
    command: LateParser = commands.add_parser(
        name, help=text, description=text, epilog=f"Example: {example}"
    )
    command.set_defaults(run=run)
    return command


def add_modules(command: argparse.ArgumentParser) -> None:
    """Add ``--modules``."""
    command.add_argument(
        "--modules",
        help="comma-separated: names (q_proj), globs (*_proj), paths (model.layers.*.q_proj), "
        "labels (decoder.EncDecAttention.q), all-linear for every linear layer, regular "
        "expressions without commas for the whole path (re:.*[.](q|v)_proj)",
    )


def positive(text: str) -> int:
    """Read a count of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def workers(text: str) -> int:
    """Read a number of processes, -1 for all cores."""
    number = int(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be at least 1, or -1 for all cores, got 0")
    return number


def duration(text: str) -> float:
    """Read a finite time above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def port(text: str) -> int:
    """Read a TCP port."""
    number = int(text)
    if not 0 < number < 2**16:
        raise argparse.ArgumentTypeError(f"must be between 1 and 65535, got {number}")
    return number


def names(text: str | None) -> tuple[str, ...] | None:
    """Return the names of a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else None


def numbers(text: str | None) -> list[int] | None:
    """Return the numbers of a text such as ``0-11`` or ``3,5,7``."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            found += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError as error:
            raise ValueError(f"A range is written 0-11 or 3,5,7, got {text!r}.") from error
    return found


def quiet_transformers() -> None:
    """Keep Transformers' and the hub's bars and chatter away."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def tell_bytes_read(options: argparse.Namespace, where: TextIO) -> None:
    """Say how many bytes of remote files the command has read."""
    from checkpoints_index import bytes_read
    from spectra.listing import in_units

    if read := bytes_read() - options.bytes_before:
        print(f"Read {read:,} bytes of remote files ({in_units(read)}).", file=where)
