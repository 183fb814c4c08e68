"""Kills recording processes at random moments, and checks what they leave and that it goes on.

A process records a short run and its second half again and again, until SIGKILL ends it up to a
quarter of a second after its first file. Then every file must open and be whole, and the run,
resumed from the trainer's last checkpoint, must hold the series and the curve of one that nobody
disturbed. The plain tests do the same fewer times, and kill before every single change of a file.

    python -m tests.benchmarks.hook_kills              # 200 kills: 1 minute on 2 cores
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from spectra.store import Run
from spectra.store.files import TEMPORARY_PREFIX
from tests.killing import kill_at_random_moments
from tests.recording.test_kill import check, record_forever


def main() -> None:
    """Kill, check, and print where the processes were."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root, str(i)) for i in range(options.kills)]
        kill_at_random_moments(record_forever, folders, options.seed)
        stages = Counter(stage for folder in folders for stage in found(folder))
        left = [check(folder) for folder in folders]
    print(f"{options.kills} kills, {sum(left)} snapshots left, all whole; all runs went on")
    for stage, count in stages.most_common():
        print(f"  {count:4} {stage}")
    print(f"{time.perf_counter() - start:.0f} s")


def found(folder: Path) -> list[str]:
    """Say in what state the killed process left its run."""
    run = Run(folder / "run")
    if not run.exists():
        stages = ["in the first begin"]
    elif not (folder / "checkpoint").exists():
        stages = ["in the first recording, before the trainer's checkpoint"]
    elif not list(run.path.glob("earlier/*")):
        stages = ["in the first recording, behind the checkpoint"]
    else:
        stages = ["in a resumed recording"]
    if run.exists() and run.state == "finished":
        stages.append("(at the end of one, or between two)")
    if list(run.path.rglob(f"{TEMPORARY_PREFIX}*")):
        stages.append("(within the writing of a file)")
    return stages


if __name__ == "__main__":
    main()
