"""Text from runs on a page: names are data, not mark-up."""

from __future__ import annotations

import re


def escape(text: object) -> str:
    """Return text that Markdown shows as it stands, in one line."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:&\"'=/^@])", r"\\\1", one_line(text))


def one_line(text: object) -> str:
    """Return text without line breaks, for elements that read no mark-up."""
    return " ".join(str(text).split())
