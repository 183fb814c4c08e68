"""Names from files, as they can be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return `text` with what does not print, such as the terminal's commands, escaped.

    Examples
    --------
    >>> printable("checkpoint-1\x1b[2J, 5 µs")
    'checkpoint-1\\x1b[2J, 5 µs'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
