"""DeepSpeed ZeRO-3, the real one: two processes record what one process alone records.

Not part of the plain suite, because DeepSpeed is not among the project's dependencies; there,
`tests/recording/test_gathering.py` holds its documented interface. Needs no GPU:

    DS_BUILD_OPS=0 pip install deepspeed
    DS_ACCELERATOR=cpu python -m tests.benchmarks.zero3

Each kind of layer is trained twice, with every parameter partitioned at all times and with small
ones kept whole, as DeepSpeed does by default. Exits 1 where a matrix differs by more than
rounding, or the training with the hook ends in other bits than the one without.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from spectra.recording import Recorder
from spectra.recording.gathering import gathered
from tests.helpers import tiny_llama, token_rows
from tests.ranks import Ranks
from tests.recording.test_sharded import ADAPTS, EVERY, LAST, record, same_to_rounding, trainer_of

# Parameters below so many elements are never partitioned between steps; 100,000 by default,
# which is more than the tiny model's largest has.
THRESHOLDS = (0, 100_000)


def train_partitioned(kind: str, threshold: int, run: str) -> None:
    """Train with and without the hook, in one rank."""
    warnings.simplefilter("ignore")
    import deepspeed

    ends = []
    for recorded in (False, True):
        model = ADAPTS[kind](tiny_llama()).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.SGD(trained, lr=0.05),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_clipping": 0.0,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": threshold},
            },
        )
        recorder = Recorder(run, every=EVERY)
        block: Any = recorder.attach(engine) if recorded else nullcontext()
        with block:
            for step in range(1, LAST + 1):
                rows = token_rows(seed=step)[dist.get_rank() :: dist.get_world_size()]
                loss = engine(input_ids=rows, labels=rows).loss
                engine.backward(loss)
                engine.step()
                if recorded:
                    recorder.step(step, loss=loss)
        ends.append(_whole(engine.module))
    for name, expected in ends[0].items():
        assert torch.equal(ends[1][name], expected), name


def train_by_trainer(kind: str, threshold: int, folder: str) -> None:
    """Train by Transformers' Trainer, in one rank."""
    warnings.simplefilter("ignore")
    settings = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": threshold},
    }
    trainer_of(kind, folder, deepspeed=settings, use_cpu=False).train()


def _whole(model: torch.nn.Module) -> dict[str, Tensor]:
    weights = {}
    for name, parameter in model.named_parameters():
        with gathered(parameter) as whole:
            weights[name] = whole.clone()
    return weights


def main() -> int:
    """Run every case and print what differs."""
    failed = False
    with tempfile.TemporaryDirectory() as name, Ranks("tests.benchmarks.zero3") as ranks:
        folder = Path(name)
        for kind in ADAPTS:
            record(kind, "alone", folder / kind)
            # On a CPU, Accelerate does not tell DeepSpeed's processes apart: each has all rows.
            trainer_of(kind, str(folder / f"{kind}-trainer")).train()
            for threshold in THRESHOLDS:
                for function, alone in (
                    (train_partitioned, folder / kind),
                    (train_by_trainer, folder / f"{kind}-trainer" / "run"),
                ):
                    case = f"{function.__name__}, {kind}, threshold {threshold}"
                    given = folder / case
                    try:
                        ranks(function, kind, threshold, given)
                        run = given / "run" if function is train_by_trainer else given
                        same_to_rounding(run, alone)
                    except AssertionError as error:
                        failed = True
                        print(f"{case}: {error}")
                    else:
                        print(f"{case}: the same to rounding")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
