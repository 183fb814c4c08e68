"""What a caption says of singular values: how far apart they are, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spectra.figures.arrays import Group, Stack, reference
from spectra.figures.chart import Floats
from spectra.figures.selection import clean
from spectra.figures.style import tick

PARTS = (0.5, 0.9, 0.99)
"""Of the energy Σσ²: the directions that hold so much are counted."""
_RANKS = (16, 128)
"""Usual ranks of adapters: what PiSSA would train of a spectrum."""
DASHED = "reference"
"""Key of the legend entry of what the last step is compared with."""
# The last few values of a nearly singular matrix fall to 0: a wide gap that divides nothing.
_INNER = 0.95
_MOST_MODULES = 4


def energy(sigma: Floats) -> Floats:
    """Return Σ_{j≤i} σ_j² / Σσ² for every i: the share of ‖W‖_F² in the i largest."""
    total = np.cumsum(np.square(sigma))
    return total / total[-1]


def directions(sigma: Floats, part: float) -> int:
    """Return how many of the largest singular values hold `part` of the energy."""
    # As far as rounding of the sum lets it be told.
    return int(np.searchsorted(energy(sigma), part - 1e-12)) + 1


def widest_gap(sigma: Floats) -> tuple[float, int]:
    """Return the largest σ_i/σ_{i+1} among the first 95% of the indices, and its i from 1."""
    last = max(2, int(_INNER * len(sigma)))
    above, under = sigma[: last - 1], sigma[1:last]
    if not len(under):
        return 1.0, 1
    ratio = np.divide(above, under, out=np.full(len(under), np.inf), where=under > 0)
    i = int(np.argmax(ratio))
    return float(ratio[i]), i + 1


def size_sentence(groups: Sequence[Group]) -> str:
    """Answer with numbers whether values come as "large" and "small"."""
    sentences = []
    for name, group in _by_module(groups):
        sigmas = [s.sigma for g in group for s in g.spectra]
        layers = [s.layer for g in group for s in g.spectra]
        k = min(map(len, sigmas))
        largest = max(map(len, sigmas))
        ratios = [float(s[0] / s[-1]) if s[-1] > 0 else np.inf for s in sigmas]
        energies = [energy(s) for s in sigmas]
        held = [
            f"the {r} largest hold {_span([float(e[r - 1]) for e in energies], percent=True)}"
            for r in ([r for r in _RANKS if r < k] or [max(1, k // 4)])
        ]
        gaps = [widest_gap(s) for s in sigmas]
        widest = max(range(len(gaps)), key=lambda i: gaps[i][0])
        count = f"k = {k}" if k == largest else f"k = {k}–{largest}"
        sentences.append(
            f"{name} ({count}): σ₁/σₖ {_span(ratios)}; of Σσ² {', '.join(held)}; widest gap "
            f"σᵢ/σᵢ₊₁ {_span([g for g, _ in gaps])}, at most at i = {gaps[widest][1]} of layer "
            f"{layers[widest]}."
        )
    return (
        "As for “large” and “small” values (PiSSA, MiLoRA), medians over matrices and ranges, gaps "
        f"among the first {_INNER:.0%} of the indices: " + " ".join(sentences)
    )


def directions_sentence(groups: Sequence[Group]) -> str:
    """Tell how many directions hold 50, 90 and 99% of the energy."""
    parts = "/".join(f"{part:.0%}".rstrip("%") for part in PARTS)
    found = []
    for name, group in _by_module(groups):
        sigmas = [s.sigma for g in group for s in g.spectra]
        counts = (f"{np.median([directions(s, p) for s in sigmas]):.0f}" for p in PARTS)
        sizes = sorted({len(s) for s in sigmas})
        k = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]}–{sizes[-1]}"
        found.append(f"{'/'.join(counts)} of {k} directions in {name}")
    return f"{parts}% of the energy take, in the median over matrices, {', '.join(found)}."


def within_sentence(groups: Sequence[Group], within: tuple[float, float] | None) -> str:
    """Tell what share of all singular values lies within a range."""
    if within is None:
        return ""
    found = []
    for name, group in _by_module(groups):
        sigma = np.concatenate([s.sigma for g in group for s in g.spectra])
        share = share_within(sigma, within)
        found.append(f"{_percent(share)} of {name}'s {sigma.size:,}")
    words = range_words(within)
    return f"{words[0].upper()}{words[1:]} lie {', '.join(found)} singular values."


def share_within(sigma: Floats, within: tuple[float, float]) -> float:
    """Return the share of singular values in a range, both ends included."""
    # As the values are stored: 1.1 is no float32, and an end beyond them all is infinite.
    with np.errstate(over="ignore"):
        low, high = np.asarray(within, dtype=np.float32).astype(np.float64)
    return float(np.mean((sigma >= low) & (sigma <= high)))


def range_words(within: tuple[float, float]) -> str:
    """Return a range in words."""
    low, high = within
    if low > 0:
        return f"from {low:g} up" if np.isinf(high) else f"from {low:g} to {high:g}"
    return f"up to {high:g}"


def reference_name(stack: Stack) -> str:
    """Return what the dashed lines of a panel are."""
    return f"step {stack[0].step}" if len(stack) > 1 else "base W_0"


def dashed_sentence(stacks: Sequence[Stack]) -> str:
    """Tell what the dashed lines are, or what would add them."""
    names = list(dict.fromkeys(reference_name(s) for s in stacks if reference(s)))
    if not names:
        return "The base's are not stored with these: spectra analyze RUN writes them."
    return f"Dashed: {', '.join(names)}."


def _by_module(groups: Sequence[Group]) -> Iterator[tuple[str, list[Group]]]:
    modules = list(dict.fromkeys(group.module for group in groups))
    if len(modules) > _MOST_MODULES:
        yield f"all {len(modules)} modules", list(groups)
        return
    for module in modules:
        yield clean(module), [group for group in groups if group.module == module]


def _span(values: Sequence[float], percent: bool = False) -> str:
    write = _percent if percent else _number
    low, middle, high = (write(float(f(values))) for f in (np.min, np.median, np.max))
    return middle if low == high else f"{middle} ({low}–{high})"


def _number(value: float) -> str:
    if np.isinf(value):
        return "∞"
    rounded = float(f"{value:.3g}")
    return f"{rounded:.0f}" if 100 <= rounded < 1e5 else tick(rounded, powers=rounded >= 1e5)


def _percent(share: float) -> str:
    # 99.96% is not all of them.
    text = f"{100 * share:.3g}"
    if text == "100" and share < 1:
        text = "more than 99.9"
    return f"{text}%"
