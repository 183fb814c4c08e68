"""Sentences of a caption."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMES = 6


def sentences(*parts: str) -> str:
    """Join what there is to say."""
    return " ".join(part for part in parts if part)


def listed(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """Return names for a sentence, of many the first few."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
