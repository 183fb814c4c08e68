"""A training under whose hook the disk fails, and what came of it.

As a program, for what needs a process of its own: `python -m tests.recording.trouble FOLDER` fills
a disk and makes a folder read-only, and prints what came of each as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints_index import find_checkpoints
from spectra.recording import Recorder
from spectra.store import Run

LAST = 8
BEGINS, ENDS = 3, 6
"""The steps before which the trouble begins and ends."""
_WIDTH = 128
_DISK_BYTES = 8 * 1024**2


class Net(nn.Module):
    """Two layers of a q_proj and a v_proj, with dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({n: nn.Linear(_WIDTH, _WIDTH, bias=False) for n in ("q_proj", "v_proj")})
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            x = x + layer["v_proj"](nn.functional.dropout(layer["q_proj"](x), 0.3))
        return x


@dataclass
class Outcome:
    """What came of a training.

    Attributes
    ----------
    weights : dict of int to dict
        The matrices after each step.
    state : Tensor
        Of torch's random numbers, at the end.
    warnings : list of str
        What our loggers warned of.
    recorder : Recorder, optional
        Its hook.
    """

    weights: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    state: Tensor = field(default_factory=lambda: torch.empty(0))
    warnings: list[str] = field(default_factory=list)
    recorder: Recorder | None = None

    def same_training(self, other: Outcome) -> bool:
        """Whether both went through the same weights, to the bit, and the same randomness."""
        return torch.equal(self.state, other.state) and all(
            torch.equal(tensor, other.weights[step][name])
            for step, tensors in self.weights.items()
            for name, tensor in tensors.items()
        )

    def whole_snapshots(self, run: Path) -> list[int]:
        """Return the steps of which the run has a snapshot, all of them with the right numbers."""
        steps = []
        for checkpoint in find_checkpoints(run):
            assert checkpoint.step is not None
            assert len(checkpoint.matrices) == 4
            for matrix in checkpoint.matrices:
                weight = checkpoint.read(matrix).dense
                expected = self.weights[checkpoint.step][f"{matrix.name}.weight"]
                assert weight is not None and torch.equal(weight, expected), matrix.name
            steps.append(checkpoint.step)
        return steps


def train(
    run: Path | None = None,
    before: Mapping[int, Callable[[], object]] | None = None,
    settle: bool = True,
    **options: Any,
) -> Outcome:
    """Train for `LAST` steps, recorded if `run` is given, and do things before some of them.

    Parameters
    ----------
    run : Path, optional
        Where to record.
    before : mapping of int to callable, optional
        What happens before a step.
    settle : bool
        Whether to wait after each step until it is written, as far as that is possible.
    **options
        Of `Recorder`.
    """
    outcome = Outcome()
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: outcome.warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("spectra").addHandler(listener)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _train(outcome, run, before or {}, settle, options)
            outcome.state = torch.get_rng_state()
    finally:
        logging.getLogger("spectra").removeHandler(listener)
    return outcome


def _train(
    outcome: Outcome,
    run: Path | None,
    before: Mapping[int, Callable[[], object]],
    settle: bool,
    options: dict[str, Any],
) -> None:
    model = Net().train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    recorder = None if run is None else Recorder(run, **({"every": 1} | options))
    outcome.recorder = recorder
    if recorder:
        recorder.begin(model)
    for step in range(1, LAST + 1):
        before.get(step, lambda: None)()
        loss = model(torch.randn(4, _WIDTH)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if recorder:
            recorder.step(step, loss=loss)
            if settle:
                recorder.flush()
        outcome.weights[step] = {n: p.detach().clone() for n, p in model.named_parameters()}
    if recorder:
        recorder.end()


def main(folder: Path) -> None:
    """Train on a disk that is full for a while, on one that stays full, and in a closed folder."""
    bare = train()
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode == 0:
        kind, fill, free = "disk", partial(_fill, disk / "filler"), (disk / "filler").unlink
    else:  # no right to do so: files that come to be too large must do
        kind, fill, free = "limit", partial(_limit, 1024), partial(_limit, resource.RLIM_INFINITY)
    run = folder / "closed"
    cases: dict[str, tuple[Path, dict[int, Callable[[], object]]]] = {
        f"full {kind}": (disk / "a", {BEGINS: fill, ENDS: free}),
        "read-only folder": (
            run,
            {BEGINS: partial(_set_mode, run, 0o555), ENDS: partial(_set_mode, run, 0o755)},
        ),
        f"{kind} full to the end": (disk / "b", {BEGINS: fill}),
    }
    outcomes = {}
    for name, (path, before) in cases.items():
        outcome = train(path, before)
        assert outcome.recorder is not None
        outcomes[name] = {
            "same training": outcome.same_training(bare),
            "warnings": outcome.warnings,
            "snapshots": outcome.whole_snapshots(path),
            "missing": outcome.recorder.missing,
            "settings": Run(path).read_settings(),
            "state": Run(path).state,
            "rows": Run(path).read_training()["step"].tolist(),
            "files": sorted(p.name for p in (path / "snapshots").iterdir()),
        }
    print(json.dumps(outcomes))


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def _limit(size: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def _set_mode(run: Path, mode: int) -> None:
    for folder in (run, run / "snapshots"):
        os.chmod(folder, mode)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
