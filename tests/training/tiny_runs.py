"""Runs of the bundled trainer that take a second: `tests.helpers.tiny_llama` on a few words."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from spectra.training import METHODS, TrainSettings, table_2

WORDS = ("the", "old", "river", "sings", "of", "a", "small", "bird")
PAIRS = [
    (" ".join(WORDS[i % 8 :] + WORDS[: i % 8]), " ".join(WORDS[: 3 + i % 4])) for i in range(48)
]
STEPS, SAVE_EVERY = 12, 4


def settings(method: str, **changes: Any) -> TrainSettings:
    """Return settings under which `tiny_llama` learns the answers of `PAIRS`."""
    options: dict[str, Any] = {
        "rank": 3,
        "learning_rate": 1e-2,
        "batch_size": 4,
        "micro_batch_size": 2,
        "max_length": 64,
        "max_steps": STEPS,
        "every": SAVE_EVERY,
        "save_every": SAVE_EVERY,
    }
    return table_2(method, **(options | changes))


def trained_parameters(method: str, shapes: list[tuple[int, int]], given: TrainSettings) -> int:
    """What `Method.trains` promises, of matrices of these shapes; not of those that train all."""
    formula = METHODS[method].trains.split(",")[0].replace("·", "*").replace("²", "**2")
    options = given.options
    numbers = {"r": given.rank, "R": options.get("init_rank"), "d": options.get("off_diagonals")}
    return sum(eval(formula, numbers | {"m": m, "n": n, "k": min(m, n)}) for m, n in shapes)


def train_and_die(model: Path, out: Path, chosen: TrainSettings) -> None:
    """Train, and be killed while the second checkpoint is being written."""
    from spectra.training.trainer import train

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and f"checkpoint-{2 * SAVE_EVERY}/trainer_state" in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    train(model, PAIRS, out, chosen, progress=False)
    raise AssertionError("it should not have come to an end")


def kill_each(model: Path, runs: list[tuple[Path, TrainSettings]]) -> None:
    """Have `train_and_die` begin each run in a process of its own; all in one is faster."""
    import torch  # noqa: F401  once, for all

    import spectra.training.trainer  # noqa: F401

    for out, chosen in runs:
        child = os.fork()
        if child == 0:
            try:
                train_and_die(model, out, chosen)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"The run {out.name} ended by itself.")
