"""What the hook costs: seconds of a training with and without it, and bytes of a snapshot.

Two copies of one model train on the same batches in one process, one with the hook. They take
turns in blocks of ten steps, hook off first in one block and on first in the next, so that what
else the machine does meets both; while one trains, the other waits and its hook is idle: the
writing that is still to be done at a block's end counts as the hook's, and the process of
``analyze="live"`` is stopped while the other side trains. Snapshots of every tenth step fall into
the middle of a block. The first steps are not timed. Step i with the hook is compared with step i
without, and block with block; a row "none" has no hook on either side, which shows what noise does.
Beside that stands what noise cannot disturb much: the milliseconds that ``step()`` takes, and the
processor time a step of the hook's threads, which training lacks at most. At the end both copies
must have the same weights, to the bit.

    python -m tests.benchmarks.hook SMOLLM2            # LoRA, both loops: 10 minutes, 2 cores
    python -m tests.benchmarks.hook SMOLLM2 --loops plain --live
    python -m tests.benchmarks.hook SMOLLM2 --loops plain --dense --dtype bfloat16
    python -m tests.benchmarks.hook SMOLLM2 --loops --bytes
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints_index.snapshots import snapshot_file
from spectra.recording import Recorder
from spectra.recording.callback import SpectraCallback
from spectra.store import Run
from tests.helpers import (
    MODULES,
    attention_weights,
    lora,
    lora_xs,
    milora,
    plain,
    sorsa,
    svf,
    svft,
)

BLOCK = 10
WARM_UP = 5
"""Half a block, so that a snapshot of every tenth step has its writing in the same block."""
RANK = 16


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", help="folder of a Hugging Face model with q_proj and v_proj")
    parser.add_argument("--loops", nargs="*", default=list(LOOPS), choices=LOOPS)
    parser.add_argument("--every", type=int, nargs="+", default=[0, 10, 1], help="0: no hook")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each side, at least")
    parser.add_argument("--batch", type=int, nargs=2, default=[1, 64], help="rows and tokens")
    parser.add_argument("--dense", action="store_true", help="train q_proj and v_proj themselves")
    parser.add_argument("--dtype", help="Recorder's dtype=")
    parser.add_argument("--live", action="store_true", help='with analyze="live"')
    parser.add_argument("--bytes", action="store_true", help="the sizes of snapshots too")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {platform.machine()}")
    if options.loops:
        print(f"{'dense' if options.dense else f'LoRA r={RANK}'}, batch {options.batch}\n")
        print(
            "| loop | every | step s | step on/off | off first | on first | block on/off "
            "| step() ms: median | p99 | max | threads ms | both of a step | snapshots |"
        )
        print("| --- |" + " --- |" * 12)
    for loop in options.loops:
        for every in options.every:
            compare(loop, every, options)
    if options.bytes:
        sizes(options.model)


def compare(loop: str, every: int, options: argparse.Namespace) -> None:
    """Train both copies in turns, and print one row of the table."""
    blocks = 2 * -(-options.steps // (2 * BLOCK))  # as many in either order
    total = WARM_UP + blocks * BLOCK + 1  # the last one ends the recording, and is not timed
    adapt = plain if options.dense else partial(lora, r=RANK, lora_alpha=RANK)
    with tempfile.TemporaryDirectory() as folder:
        recorder = None
        if every:
            chosen = {"dtype": options.dtype, "analyze": "live" if options.live else None}
            chosen = {name: value for name, value in chosen.items() if value is not None}
            recorder = Recorder(Path(folder, "run"), MODULES, every, **chosen)
        spent = _timed_steps(recorder)
        os.environ["SPECTRA_CACHE"] = str(Path(folder, "cache"))  # the live analysis starts cold
        run = LOOPS[loop]
        batches = token_batches(total, *options.batch)
        off, on = (
            Side(adapt(load(options.model)), partial(run, batches=batches, recorder=r), r)
            for r in (None, recorder)
        )
        for side in (off, on):
            side.go_on(WARM_UP)
        before = _thread_seconds()
        spent.clear()
        for block in range(blocks):
            for side in (off, on) if block % 2 == 0 else (on, off):
                side.go_on(BLOCK)
        after = _thread_seconds()
        threads = sum(s - before.get(t, 0.0) for t, s in after.items()) / (blocks * BLOCK)
        milliseconds = sorted(1e3 * s for s in spent) or [0.0]
        for side in (off, on):
            side.end()
        on.signal(signal.SIGKILL)
        for bare, hooked in zip(off.model.parameters(), on.model.parameters(), strict=True):
            assert torch.equal(bare, hooked), "the hook changed the training"
        written, due = 0, 0
        if every:
            written = len(list(Run(Path(folder, "run")).snapshots_path.glob("step-*")))
            due = len({*range(0, total + 1, every), total}) - options.dense
        name = f"{every}{', live' if options.live else ''}" if every else "none"
        seconds = [side.seconds[WARM_UP:-1] for side in (off, on)]
        ratios = [b / a for a, b in zip(*seconds, strict=True)]
        by_block = [ratios[i : i + BLOCK] for i in range(0, len(ratios), BLOCK)]
        sums = [
            sum(seconds[1][i : i + BLOCK]) / sum(seconds[0][i : i + BLOCK])
            for i in range(0, len(ratios), BLOCK)
        ]
        # McGill's notch: medians that differ by more differ, at about the 5% level.
        low, _, high = statistics.quantiles(ratios, n=4)
        notch = 1.57 * (high - low) / len(ratios) ** 0.5
        bare_step = statistics.median(seconds[0])
        share = (statistics.mean(milliseconds) / 1e3 + threads) / bare_step
        print(
            f"| {loop} | {name} | {bare_step:.3f} | {_more(ratios)} ± {notch:.2%} "
            f"| {_more(sum(by_block[::2], []))} | {_more(sum(by_block[1::2], []))} "
            f"| {_more(sums)} | {statistics.median(milliseconds):.2f} "
            f"| {milliseconds[int(0.99 * (len(milliseconds) - 1))]:.1f} | {milliseconds[-1]:.1f} "
            f"| {1e3 * threads:.2f} | {share:.2%} | {written} of {due} |",
            flush=True,
        )


class Side:
    """One training in a thread of its own, which runs only while it is told to go on.

    Parameters
    ----------
    model : nn.Module
        What is trained.
    train : callable
        ``train(model, turn)`` trains; it calls `turn` before each step and after the last.
    recorder : Recorder or None
        Its hook, which shall have nothing left to do when the other side's turn comes.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Callable[[nn.Module, Callable[[], None]], None],
        recorder: Recorder | None,
    ) -> None:
        self.model = model
        self.seconds: list[float] = []
        self._recorder = recorder
        self._began: float | None = None
        self._until = 0
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(train,), daemon=True)
        self._thread.start()
        self._theirs.acquire()

    def go_on(self, steps: int) -> None:
        """Let it train for so many steps, and wait for that."""
        self._until += steps
        self.signal(signal.SIGCONT)
        self._mine.release()
        self._theirs.acquire()
        self.signal(signal.SIGSTOP)
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let it finish, and wait for that."""
        self.signal(signal.SIGCONT)
        self._mine.release()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, train: Callable[[nn.Module, Callable[[], None]], None]) -> None:
        try:
            train(self.model, self._turn)
        except BaseException as error:
            self._error = error
        self._theirs.release()

    def _turn(self) -> None:
        if len(self.seconds) + (self._began is not None) == self._until:
            if self._recorder is not None and self._began is not None:
                self._recorder.flush()
            self._note()
            self._began = None
            self._theirs.release()
            self._mine.acquire()
        else:
            self._note()
        self._began = time.perf_counter()

    def _note(self) -> None:
        if self._began is not None:
            self.seconds.append(time.perf_counter() - self._began)

    def signal(self, kind: signal.Signals) -> None:
        """Stop the live analysis, let it go on, or end it."""
        if self._recorder is not None and Path("/proc/self").exists():
            for process in _watchers(self._recorder.run.path):
                os.kill(process, kind)


def _watchers(run: Path) -> list[int]:
    """Process ids of the live analyses of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"watch" in words and os.fsencode(run) in words:
            found.append(int(path.parent.name))
    return found


def train_plainly(
    model: nn.Module, turn: Callable[[], None], batches: Sequence[Tensor], recorder: Recorder | None
) -> None:
    """Train in a loop as anybody writes it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    model.train()
    if recorder is not None:
        recorder.begin(model)
    for step, rows in enumerate(batches, start=1):
        turn()
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if recorder is not None:
            recorder.step(step, loss=loss)
    turn()
    if recorder is not None:
        recorder.end()


def train_by_trainer(
    model: nn.Module, turn: Callable[[], None], batches: Sequence[Tensor], recorder: Recorder | None
) -> None:
    """Train by Transformers' Trainer, which logs every step."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Turns(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turn()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            turn()

    callbacks: list[TrainerCallback] = [Turns()]
    if recorder is not None:
        hook = SpectraCallback(recorder.run.path)
        hook.recorder = recorder
        callbacks.append(hook)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=len(batches),
            per_device_train_batch_size=len(batches[0]),
            learning_rate=1e-4,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            train_sampling_strategy="sequential",
        )
        examples = [{"input_ids": row, "labels": row} for rows in batches for row in rows]
        trainer = Trainer(model, arguments, train_dataset=examples, callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


LOOPS = {"plain": train_plainly, "trainer": train_by_trainer}


def sizes(folder: str) -> None:
    """Print what a snapshot takes beside the adapter's file and the merged matrices."""
    print(
        "\n| method | tensors | adapter_model.safetensors | snapshot | above the tensors "
        "| merged matrices, torch.save |"
    )
    print("| --- |" + " --- |" * 5)
    for name, adapt in (
        (f"LoRA r={RANK}", partial(lora, r=RANK)),
        (f"SORSA r={RANK}", partial(sorsa, r=RANK)),
        (f"MiLoRA r={RANK}", partial(milora, r=RANK)),
        (f"LoRA-XS r={RANK}", partial(lora_xs, r=RANK)),
        ("SVF", svf),
        ("SVFT, plain", partial(svft, pattern="plain", off_diagonals=0)),
        ("SVFT, 4 diagonals on each side", partial(svft, off_diagonals=4)),
    ):
        model = adapt(load(folder))
        tensors = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        with tempfile.TemporaryDirectory() as out:
            recorder = Recorder(Path(out, "run"), MODULES)
            with recorder.attach(model):
                pass
            snapshot = recorder.run.snapshots_path / snapshot_file(0)
            model.save_pretrained(Path(out, "adapter"))
            merged = attention_weights(copy.deepcopy(model).merge_and_unload(), MODULES)
            torch.save(merged, Path(out, "merged.pt"))
            files = [Path(out, "adapter", "adapter_model.safetensors"), snapshot]
            adapter, ours, theirs = (p.stat().st_size for p in (*files, Path(out, "merged.pt")))
        print(
            f"| {name} | {tensors:,} | {adapter:,} | {ours:,} | {ours - tensors:+,} "
            f"| {theirs:,} ({theirs / ours:.1f}×) |",
            flush=True,
        )


def load(folder: str) -> Any:
    """Return the model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def token_batches(count: int, rows: int, length: int) -> list[Tensor]:
    """Random tokens; what they say does not matter to the time that they take."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 1000, (rows, length), generator=generator) for _ in range(count)]


def _timed_steps(recorder: Recorder | None) -> list[float]:
    """Have the seconds of each of its steps noted in the list that is returned."""
    spent: list[float] = []
    if recorder is not None:
        step = recorder.step

        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            step(*args, **kwargs)
            spent.append(time.perf_counter() - start)

        recorder.step = timed  # type: ignore[method-assign]
    return spent


def _thread_seconds() -> dict[int, float]:
    """Processor time that each of the hook's own threads has taken."""
    return {
        thread.ident: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.name.startswith("spectra-") and thread.ident is not None
    }


def _more(ratios: Sequence[float]) -> str:
    """How much more, as the median says."""
    return f"{statistics.median(ratios) - 1:+.2%}"


if __name__ == "__main__":
    main()
