"""When, in which dtype and within how many bytes the recorder records."""

from __future__ import annotations

import logging
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpoints_index import find_checkpoints, open_model
from checkpoints_index.snapshots import BASE_FILE
from spectra.recording import Recorder
from spectra.store import Run
from tests.helpers import attention_weights, lora, plain, tiny_llama, train_steps

Disk = namedtuple("Disk", "total used free")


def record(model: nn.Module, run: Path, last: int, **options: Any) -> dict[int, dict[str, Tensor]]:
    """Train `last` steps with the hook; returns the plain weights of each step."""
    weights = {}
    with Recorder(run, **options).attach(model) as recorder:
        for step, loss in train_steps(model, 1, last):
            recorder.step(step, loss=loss)
            weights[step] = attention_weights(model)
    return weights


def steps(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in find_checkpoints(run)]


def size(run: Path) -> int:
    return sum(path.stat().st_size for path in (run / "snapshots").iterdir())


def third(step: int) -> bool:
    """Named by a test as ``tests.recording.test_limits:third``."""
    return step % 3 == 0


@pytest.mark.parametrize(
    ("every", "due"),
    [
        (4, [0, 4, 8, 11]),
        ([2, 3, 50], [0, 2, 3, 11]),
        ("log:3", [0, 1, 2, 5, 10, 11]),
        (third, [0, 3, 6, 9, 11]),
        ("tests.recording.test_limits:third", [0, 3, 6, 9, 11]),
    ],
)
def test_the_first_and_the_last_step_are_recorded_beside_those_due(
    every: Any, due: list[int], tmp_path: Path
) -> None:
    record(lora(tiny_llama()), tmp_path, 11, every=every)
    assert steps(tmp_path) == due
    said = Run(tmp_path).read_settings()["every"]
    assert said == ("tests.recording.test_limits:third" if every is third else every)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_full_weights_as_differences_lose_what_their_dtype_loses(
    dtype: str, tmp_path: Path
) -> None:
    weights = record(plain(tiny_llama()), tmp_path, 3, every=1, dtype=dtype)
    base = open_model(tmp_path / "snapshots" / BASE_FILE)
    w_0 = {m.name: base.read(m).dense for m in base.matrices}
    for checkpoint in find_checkpoints(tmp_path):
        for matrix in checkpoint.matrices:
            start = w_0[matrix.name]
            assert start is not None
            found = checkpoint.read(matrix).on(start)
            expected = weights[checkpoint.step][matrix.name].double()
            moved = (expected - start.double()).abs().max()
            assert moved > 0
            limits = torch.finfo(getattr(torch, dtype))
            # Rounding is relative, but for the smallest numbers of float16.
            tolerance = limits.eps * moved + limits.smallest_normal
            assert (found - expected).abs().max() <= tolerance


def test_adapters_are_exact_whatever_the_dtype(tmp_path: Path) -> None:
    for name, options in (("exact", {}), ("rounded", {"dtype": "bfloat16"})):
        record(lora(tiny_llama()), tmp_path / name, 2, every=1, **options)
    pairs = zip(
        find_checkpoints(tmp_path / "exact"), find_checkpoints(tmp_path / "rounded"), strict=True
    )
    for exact, rounded in pairs:
        for matrix in exact.matrices:
            a, b = exact.read(matrix).update, rounded.read(matrix).update
            assert a is not None and b is not None
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Bytes.


@pytest.mark.parametrize("adapt", [plain, lora])
@pytest.mark.parametrize("every", [1, 2, [1, 4]])
def test_what_is_allowed_is_used_to_the_last_byte_and_no_further(
    adapt: Callable[..., nn.Module], every: Any, tmp_path: Path
) -> None:
    record(adapt(tiny_llama()), tmp_path / "free", 5, every=every)
    needed = size(tmp_path / "free")
    with Recorder(tmp_path / "enough", every=every, max_bytes=needed + 64).attach(
        adapt(tiny_llama()), total_steps=5
    ) as recorder:
        for step in range(1, 6):
            recorder.step(step)
    assert steps(tmp_path / "enough") == steps(tmp_path / "free")
    assert not recorder.missing
    tight = Recorder(tmp_path / "tight", every=every, max_bytes=needed - 64)
    with pytest.raises(ValueError, match=r"The recording takes .*max_bytes allows .*every="):
        tight.begin(adapt(tiny_llama()), total_steps=5)
    assert not Run(tmp_path / "tight").exists()
    with pytest.raises(RuntimeError, match="No model is attached"):
        tight.step(1)


def test_beyond_the_budget_snapshots_are_skipped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record(lora(tiny_llama()), tmp_path / "free", 3, every=1)
    allowed = size(tmp_path / "free")  # the base and steps 0 to 3
    with caplog.at_level(logging.WARNING):
        record(lora(tiny_llama()), tmp_path / "run", 6, every=1, max_bytes=allowed + 64)
    assert steps(tmp_path / "run") == [0, 1, 2, 3]
    missing = Run(tmp_path / "run").read_settings()["missing"]
    assert [entry["step"] for entry in missing] == [4, 5, 6]
    assert all("max_bytes" in entry["reason"] for entry in missing)
    assert len(caplog.records) == 1
    assert Run(tmp_path / "run").read_training()["step"].tolist() == [1, 2, 3, 4, 5, 6]


def test_what_earlier_attempts_take_counts(tmp_path: Path) -> None:
    record(lora(tiny_llama()), tmp_path, 4, every=1)
    allowed = size(tmp_path) + 64
    recorder = Recorder(tmp_path, every=1, overwrite=True, max_bytes=allowed)
    with pytest.raises(ValueError, match="are taken"):
        recorder.begin(lora(tiny_llama()), start_step=2, total_steps=4)
    assert Run(tmp_path).earlier_attempts() == []


def test_a_disk_too_small_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(2**20, 2**20 - 2**15, 2**15))
    with pytest.raises(ValueError, match=r"1000 snapshots of .*the disk of .* has .* free"):
        Recorder(tmp_path / "run", every=1).begin(lora(tiny_llama()), total_steps=999)


def test_a_disk_that_fills_costs_the_snapshots_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = lora(tiny_llama())
    with caplog.at_level(logging.WARNING), Recorder(tmp_path, every=1).attach(model) as recorder:
        recorder.step(1)
        recorder.flush()
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: Disk(10**9, 10**9, 0))
            recorder.step(2)
            recorder.step(3)
            recorder.flush()
        recorder.step(4)
    assert steps(tmp_path) == [0, 1, 4]
    assert [entry["step"] for entry in recorder.missing] == [2, 3]
    assert len(caplog.records) == 1
    assert "the disk is full" in caplog.text


# A run that cannot be begun.


def test_a_folder_that_cannot_be_made_leaves_the_training_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    model, bare = lora(tiny_llama()), lora(tiny_llama())
    recorder = Recorder(tmp_path / "file" / "run", every=1, analyze="live")
    with caplog.at_level(logging.WARNING), recorder.attach(model):
        for step, loss in train_steps(model, 1, 3):
            recorder.step(step, loss=loss)
            recorder.log(step, lr=0.1)
        recorder.flush()
        assert recorder.news() == []
    (warning,) = caplog.records
    assert "training goes on and nothing is recorded" in warning.getMessage()
    assert [entry["step"] for entry in recorder.missing] == [0, 1, 2, 3]
    for _ in train_steps(bare, 1, 3):
        pass
    for a, b in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_begin_that_is_interrupted_leaves_the_run_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    recorder = Recorder(tmp_path, every=1)
    with monkeypatch.context() as patch:
        patch.setattr("spectra.recording.bases.write_snapshot", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recorder.begin(lora(tiny_llama()))
    with recorder.attach(lora(tiny_llama())):
        recorder.step(1)
    assert steps(tmp_path) == [0, 1]


def test_an_end_that_is_interrupted_is_done_by_the_next_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    recorder = Recorder(tmp_path, every=1)
    recorder.begin(lora(tiny_llama()))
    recorder.step(1, loss=1.0)
    with monkeypatch.context() as patch:
        patch.setattr("spectra.recording.session.WritingThread.stop", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recorder.end()
    assert Run(tmp_path).state == "growing"
    with Recorder(tmp_path, every=1, overwrite=True).attach(lora(tiny_llama()), start_step=1):
        assert Run(tmp_path).read_settings()["attempts"][0]["state"] == "finished"
    assert steps(tmp_path) == [0, 1]
