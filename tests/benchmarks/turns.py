"""Cases timed in turns, so that what else the machine does meets all of them; and their ratios."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""``"cpu"`` is the processor time of this process: on one thread what others do hardly moves it."""

Case = Callable[[], Sequence[float]]
"""Does its work once and returns the seconds of each part of it."""


def in_turns(cases: Mapping[str, Case], rounds: int) -> dict[str, list[list[float]]]:
    """Time every case once a round, in one order in odd rounds and backwards in even ones.

    Returns
    -------
    dict of str to list of list of float
        For each case and round the seconds of its parts. A round before the first is not kept.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name in list(cases) if turn % 2 else reversed(list(cases)):
            parts = list(cases[name]())
            if turn:
                times[name].append(parts)
    return times


def medians(times: Sequence[Sequence[float]]) -> list[float]:
    """Median of each part over the rounds."""
    return [statistics.median(part) for part in zip(*times, strict=True)]


def ratio(times: Sequence[Sequence[float]], to: Sequence[Sequence[float]]) -> str:
    """Ratio of the medians of whole cases, and the quartiles of the ratios within a round."""
    ours, theirs = [sum(parts) for parts in times], [sum(parts) for parts in to]
    paired = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(paired, n=4) if len(paired) > 1 else 3 * paired
    middle = statistics.median(ours) / statistics.median(theirs)
    return f"**{middle:.3f}** [{low:.3f}, {high:.3f}]"


def machine() -> str:
    """What timings depend on, in a line."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, load average {load}"
    )
