"""The hook inside Transformers' Trainer."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

import spectra
from checkpoints_index import find_checkpoints, open_model
from checkpoints_index.snapshots import BASE_FILE
from spectra.recording.callback import SpectraCallback
from spectra.store import Run
from tests.helpers import attention_weights, lora, plain, sorsa, tiny_llama, token_rows
from tests.ranks import Ranks
from tests.recording.analysing import (
    AnalyseBetweenSteps,
    drift_after,
    look_before_taking,
    patient_staging,  # noqa: F401
    prompt_feed,  # noqa: F401
    tensorboard_scalars,
)

pytestmark = pytest.mark.usefixtures("patient_staging")

ADAPTS = {"dense": plain, "lora": lora, "sorsa": sorsa}
STEPS = 5
EVERY = 2


class CountSteps(TrainerCallback):
    """How often the optimizer and the model really ran."""

    def __init__(self) -> None:
        self.optimizer_steps = 0
        self.micro_steps = 0

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.optimizer_steps += 1

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self.micro_steps += 1


def trainer(folder: Path, model: nn.Module, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    rows = token_rows(seed=9, rows=40)
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "dataloader_pin_memory": False,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(**(defaults | options)),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        eval_dataset=[{"input_ids": row, "labels": row} for row in rows[:4]],
        callbacks=list(callbacks),
    )


def series(run: Path) -> dict[int, dict[str, Tensor]]:
    base = open_model(run / "snapshots" / BASE_FILE)
    w_0 = {m.name: base.read(m).dense for m in base.matrices}
    return {
        c.step: {m.name: c.read(m).on(w_0[m.name]) for m in c.matrices}  # type: ignore[arg-type]
        for c in find_checkpoints(run)
    }


def assert_equal_series(
    found: dict[int, dict[str, Tensor]], expected: dict[int, dict[str, Tensor]]
) -> None:
    assert found.keys() == expected.keys()
    for step, matrices in expected.items():
        for name, weight in matrices.items():
            assert torch.equal(found[step][name], weight), (step, name)


def test_steps_are_the_optimizers_under_gradient_accumulation(tmp_path: Path) -> None:
    count = CountSteps()
    callback = SpectraCallback(tmp_path / "run", every=EVERY)
    trainer(tmp_path / "out", lora(tiny_llama()), callback, count).train()
    assert count.optimizer_steps == STEPS
    assert count.micro_steps == 2 * STEPS  # of three micro-batches, the last ends the step
    assert list(series(tmp_path / "run")) == [0, 2, 4, 5]
    assert Run(tmp_path / "run").read_training()["step"].tolist() == [1, 2, 3, 4, 5]


def test_the_curve_is_the_trainers_log(tmp_path: Path) -> None:
    trained = trainer(tmp_path / "out", sorsa(tiny_llama()), SpectraCallback(tmp_path / "run"))
    trained.train()
    frame = Run(tmp_path / "run").read_training()
    logged = [entry for entry in trained.state.log_history if "loss" in entry]
    assert frame["step"].tolist() == [entry["step"] for entry in logged]
    assert frame["loss"].tolist() == [entry["loss"] for entry in logged]
    assert frame["lr"].tolist() == [entry["learning_rate"] for entry in logged]
    assert frame["grad_norm"].tolist() == [float(entry["grad_norm"]) for entry in logged]
    assert frame["seconds"].is_monotonic_increasing


def test_a_sparse_log_leaves_gaps_and_no_rows_out(tmp_path: Path) -> None:
    model = lora(tiny_llama())
    trainer(tmp_path / "out", model, SpectraCallback(tmp_path / "run"), logging_steps=2).train()
    frame = Run(tmp_path / "run").read_training()
    assert frame["step"].tolist() == [1, 2, 3, 4, 5]
    assert frame["loss"].notna().tolist() == [False, True, False, True, False]


def masked(rows: Tensor) -> list[dict[str, Tensor]]:
    """Return examples of which the n-th has n tokens that are not padding."""
    length = rows.shape[1]
    mask = [(torch.arange(length) < 1 + n % length).long() for n in range(len(rows))]
    return [
        {"input_ids": row, "labels": row, "attention_mask": m}
        for row, m in zip(rows, mask, strict=True)
    ]


class CountTokens(TrainerCallback):
    """How many unmasked tokens the model was given up to each step."""

    def __init__(self, model: nn.Module) -> None:
        self.seen = 0
        self.after: list[int] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: nn.Module, given: Any, named: dict[str, Any]) -> None:
        self.seen += int(named["attention_mask"].sum()) if model.training else 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.after.append(self.seen)


def test_tokens_are_counted_where_the_trainer_leaves_padding_out(tmp_path: Path) -> None:
    model = lora(tiny_llama())
    count = CountTokens(model)
    trained = trainer(
        tmp_path / "out",
        model,
        SpectraCallback(tmp_path / "run"),
        count,
        include_num_input_tokens_seen="non_padding",
    )
    trained.train_dataset = masked(token_rows(seed=9, rows=40))
    trained.train()
    frame = Run(tmp_path / "run").read_training()
    assert frame["step"].tolist() == [1, 2, 3, 4, 5]
    assert frame["tokens"].tolist() == count.after


@pytest.mark.parametrize("option", ["all", "no"])
def test_padding_is_not_taken_for_tokens(option: str, tmp_path: Path) -> None:
    trainer(
        tmp_path / "out",
        lora(tiny_llama()),
        SpectraCallback(tmp_path / "run"),
        include_num_input_tokens_seen=option,
    ).train()
    frame = Run(tmp_path / "run").read_training()
    assert frame["loss"].notna().tolist() == [True] * STEPS
    assert frame["tokens"].isna().all()


def test_tokens_go_on_from_a_checkpoint_that_counted_them_and_only_from_such(
    tmp_path: Path,
) -> None:
    rows = masked(token_rows(seed=9, rows=40))
    found = {}
    for first in ("non_padding", "no"):
        folder, run = tmp_path / f"out-{first}", tmp_path / f"run-{first}"
        for option, steps, checkpoint in ((first, 3, None), ("non_padding", STEPS, True)):
            trained = trainer(
                folder,
                lora(tiny_llama()),
                SpectraCallback(run, overwrite=True),
                include_num_input_tokens_seen=option,
                max_steps=steps,
                save_strategy="steps",
                save_steps=3,
            )
            trained.train_dataset = rows
            trained.train(resume_from_checkpoint=checkpoint)
        found[first] = Run(run).read_training()["tokens"]
        assert len(found[first]) == STEPS
    assert found["non_padding"].is_monotonic_increasing
    # The second trainer of "no" saw the same batches, and counted those after step 3 alone.
    assert (
        found["non_padding"].iloc[-1]
        == trained.state.num_input_tokens_seen + (found["non_padding"].iloc[2])
    )
    assert found["no"].isna().all()


@pytest.mark.parametrize("kind", ADAPTS)
def test_the_last_snapshot_is_the_trained_model(kind: str, tmp_path: Path) -> None:
    model = ADAPTS[kind](tiny_llama())
    trainer(tmp_path / "out", model, SpectraCallback(tmp_path / "run")).train()
    merged = attention_weights(model if kind == "dense" else model.merge_and_unload())
    last = series(tmp_path / "run")[STEPS]
    assert last.keys() == merged.keys()
    for name, weight in merged.items():
        # The merge rounds to float32 some r + 2 times.
        tolerance = 8 * torch.finfo(torch.float32).eps * weight.abs().max().item()
        torch.testing.assert_close(last[name], weight.double(), rtol=0, atol=tolerance)
    assert Run(tmp_path / "run").state == "finished"
    assert Run(tmp_path / "run").read_settings()["last_step"] == STEPS


@pytest.mark.parametrize("kind", ADAPTS)
def test_a_recorded_training_ends_in_the_same_bits(kind: str, tmp_path: Path) -> None:
    dropout = {"lora": {"lora_dropout": 0.3}}.get(kind, {})
    bare, recorded = (ADAPTS[kind](tiny_llama(dropout=0.2), **dropout) for _ in range(2))
    callback = SpectraCallback(tmp_path / "run", every=1, alerts={"column": "kappa", "above": 1})
    trainer(tmp_path / "a", bare).train()
    trainer(tmp_path / "b", recorded, callback, report_to="tensorboard").train()
    for name, tensor in bare.state_dict().items():
        assert torch.equal(tensor, recorded.state_dict()[name]), name


@pytest.mark.parametrize("kind", ADAPTS)
def test_a_resumed_training_equals_an_undisturbed_one(kind: str, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        """Ends the process in the middle of step 5, after step 4's snapshot."""

        def on_substep_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 4:
                raise InterruptedError

    def make(run: str, *more: TrainerCallback) -> Trainer:
        options = {"save_strategy": "steps", "save_steps": 3}
        callback = SpectraCallback(tmp_path / run, every=EVERY)
        return trainer(
            tmp_path / f"{run}-out", ADAPTS[kind](tiny_llama()), callback, *more, **options
        )

    make("undisturbed").train()
    interrupted: Any = make("resumed", Stop())
    with pytest.raises(InterruptedError):
        interrupted.train()
    interrupted.pop_callback(SpectraCallback).recorder.flush()  # as at the process's end
    assert 4 in series(tmp_path / "resumed")
    assert Run(tmp_path / "resumed").read_training()["step"].tolist()[:3] == [1, 2, 3]
    make("resumed").train(resume_from_checkpoint=True)

    assert_equal_series(series(tmp_path / "resumed"), series(tmp_path / "undisturbed"))
    columns = ["step", "loss", "lr", "grad_norm"]
    resumed, undisturbed = (
        Run(tmp_path / run).read_training()[columns] for run in ("resumed", "undisturbed")
    )
    assert resumed.to_dict("list") == undisturbed.to_dict("list")


@pytest.mark.usefixtures("prompt_feed")
def test_tensorboard_shows_each_analysed_step_where_it_was(tmp_path: Path) -> None:
    callback = SpectraCallback(tmp_path / "run", every=EVERY)
    between = AnalyseBetweenSteps(callback.recorder)
    model = sorsa(tiny_llama())
    trainer(tmp_path / "out", model, callback, between, report_to="tensorboard").train()

    shown = tensorboard_scalars(tmp_path / "out")
    rows = drift_after(tmp_path / "run")
    assert shown["train/loss"].keys() == {1, 2, 3, 4, 5}
    steps = [0, 2, 4]  # the last one's analysis comes after the trackers are closed
    for step in steps:
        at = rows[rows["step"] == step]
        expected = {
            "delta_d": at["delta_d"].mean(),
            "kappa": at["kappa"].median(),
            "ortho": at[["ortho_u", "ortho_v"]].max().max(),
        }
        found = {name: shown[f"train/spectra/{name}"][step] for name in expected}
        assert found == pytest.approx(expected, rel=1e-6)  # event files hold float32
    assert shown["train/spectra/delta_d"].keys() == set(steps)
    ours = {tag for tag in shown if "spectra" in tag}
    assert len(ours) == 5  # a handful, whatever the number of layers


def test_with_live_analysis_and_waiting_tensorboard_has_the_last_step_too(tmp_path: Path) -> None:
    callback = SpectraCallback(tmp_path / "run", every=EVERY, analyze="live", wait=True)
    trainer(tmp_path / "out", lora(tiny_llama()), callback, report_to="tensorboard").train()
    rows = Run(tmp_path / "run").read_drift()
    expected = rows.groupby("step")["delta_sigma"].mean().to_dict()
    assert list(expected) == [0, 2, 4, 5]
    shown = tensorboard_scalars(tmp_path / "out")["train/spectra/delta_sigma"]
    assert shown == pytest.approx(expected, rel=1e-6)


class Tracker(TensorBoardCallback):
    """Something that the trainer reports to, which notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.told.append((state.global_step, dict(logs)))
        control.should_training_stop = control.should_training_stop or "spectra/kappa" in logs


class Listener(TrainerCallback):
    """Any other callback."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.heard += logs


@pytest.mark.usefixtures("prompt_feed")
@pytest.mark.parametrize("first", [True, False])
def test_summaries_go_to_trackers_alone_and_change_no_flow(first: bool, tmp_path: Path) -> None:
    callback, tracker, listener = SpectraCallback(tmp_path / "run", every=2), Tracker(), Listener()
    between = AnalyseBetweenSteps(callback.recorder)
    both = (tracker, callback) if first else (callback, tracker)
    done = trainer(tmp_path / "out", lora(tiny_llama()), *both, listener, between)
    done.train()
    told = [(step, logs) for step, logs in tracker.told if "spectra/kappa" in logs]
    assert [step for step, _ in told] == [0, 2, 4]
    assert not any("spectra" in name for name in listener.heard)
    assert done.state.global_step == STEPS
    assert not any("spectra" in key for entry in done.state.log_history for key in entry)


@pytest.mark.usefixtures("prompt_feed")
def test_a_tracker_that_raises_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Offline(Tracker):
        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            if any("spectra" in name for name in logs):
                raise ConnectionError("no network")

    callback, working = SpectraCallback(tmp_path / "run", every=1), Tracker()
    between = AnalyseBetweenSteps(callback.recorder)
    done = trainer(tmp_path / "out", lora(tiny_llama()), Offline(), working, callback, between)
    done.train()
    assert done.state.global_step == STEPS
    assert len([1 for _, logs in working.told if "spectra/kappa" in logs]) == STEPS
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [message for message in warned if "no network" in message] == warned
    assert len(warned) == 1 and "Offline" in warned[0]


@pytest.mark.usefixtures("prompt_feed")
@pytest.mark.parametrize("stop", [True, False])
def test_an_alert_stops_the_training_at_the_next_steps_end(
    stop: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make(run: str, **options: Any) -> Trainer:
        callback = SpectraCallback(tmp_path / run, every=1, **options)
        between = AnalyseBetweenSteps(callback.recorder)
        return trainer(tmp_path / f"{run}-out", lora(tiny_llama()), callback, between)

    make("free").train()
    drift = drift_after(tmp_path / "free").groupby("step")["frobenius_drift"].max()
    assert drift.is_monotonic_increasing
    limit = float(drift[2] + drift[3]) / 2  # step 3 is the first beyond it

    watched = make("run", alerts=[{"column": "frobenius_drift", "above": limit, "stop": stop}])
    watched.train()
    # Step 3's rows are there before step 4 begins, which is the step that is under way.
    last = 4 if stop else STEPS
    assert watched.state.global_step == last
    settings = Run(tmp_path / "run").read_settings()
    assert (settings["state"], settings["last_step"]) == ("finished", last)
    assert max(series(tmp_path / "run")) == last
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "step 3: frobenius_drift of layer" in told[0] and f"above {limit:g}" in told[0]
    assert any("Training stops after step 4" in message for message in told) == stop


def test_an_error_of_ours_is_logged_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    class Break(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            for name in ("step", "log", "flush", "news", "end"):
                monkeypatch.setattr(callback.recorder, name, broken)

    callback = SpectraCallback(tmp_path / "run")
    bare, recorded = lora(tiny_llama()), lora(tiny_llama())
    trainer(tmp_path / "a", bare).train()
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path / "b", recorded, callback, Break(), **options).train()
    for name, tensor in bare.state_dict().items():
        assert torch.equal(tensor, recorded.state_dict()[name]), name
    told = [r for r in caplog.records if r.levelno >= logging.ERROR]
    hooks = ("on_step_end", "on_log", "on_save")
    assert sorted(r.getMessage().split()[3] for r in told) == sorted(f"{hook};" for hook in hooks)
    assert all(r.exc_info for r in told)
    monkeypatch.undo()
    callback.recorder.end()


def test_a_failure_to_begin_that_nobody_foresaw_breaks_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    callback = SpectraCallback(tmp_path / "run")
    monkeypatch.setattr(callback.recorder, "begin", broken)
    done = trainer(tmp_path / "out", lora(tiny_llama()), callback)
    done.train()
    assert done.state.global_step == STEPS
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert told == ["Spectra failed in on_train_begin; training goes on."]


def test_what_is_wrong_with_the_model_is_said_before_training(tmp_path: Path) -> None:
    count = CountSteps()
    callback = SpectraCallback(tmp_path / "run", modules=["no_such_proj"])
    with pytest.raises(ValueError, match="no_such_proj"):
        trainer(tmp_path / "out", lora(tiny_llama()), callback, count).train()
    assert count.optimizer_steps == 0


def test_the_last_snapshot_is_not_the_best_checkpoint(tmp_path: Path) -> None:
    def run(name: str, best: bool) -> Trainer:
        options: dict[str, Any] = {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": best,
            "metric_for_best_model": "loss",
            "greater_is_better": True,  # the loss falls, so the first step's is "best"
        }
        callback = SpectraCallback(tmp_path / name, every=100)
        made = trainer(tmp_path / f"{name}-out", plain(tiny_llama()), callback, **options)
        made.train()
        return made

    last, best = run("last", False), run("best", True)
    assert best.state.best_global_step == 1
    weights = (attention_weights(made.model) for made in (last, best))  # type: ignore[arg-type]
    assert not all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    assert_equal_series(series(tmp_path / "best"), series(tmp_path / "last"))


def test_a_start_anew_with_smaller_batches_is_recorded_as_the_only_one(tmp_path: Path) -> None:
    class OutOfMemory(TrainerCallback):
        """Fails as an accelerator does, at the third step with the first batch size."""

        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 2 and state.train_batch_size == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    callback = SpectraCallback(tmp_path / "run", every=1)
    model = lora(tiny_llama())
    options = {"auto_find_batch_size": True}
    done = trainer(tmp_path / "out", model, callback, OutOfMemory(), **options)
    done.train()
    assert done.state.train_batch_size == 1
    assert list(series(tmp_path / "run")) == [0, 1, 2, 3, 4, 5]
    frame = Run(tmp_path / "run").read_training()
    logged = [entry["loss"] for entry in done.state.log_history if "loss" in entry]
    assert frame["loss"].tolist() == logged


def test_the_callback_takes_the_recorders_options(tmp_path: Path) -> None:
    callback = SpectraCallback(
        tmp_path / "run",
        modules=["v_proj"],
        every=4,
        method="mine",
        base="tiny",
        settings={"rank": 3},
    )
    trainer(tmp_path / "out", lora(tiny_llama()), callback).train()
    settings = Run(tmp_path / "run").read_settings()
    assert settings["method"] == "mine"
    assert settings["base"]["name"] == "tiny"
    assert settings["settings"] == {"rank": 3}
    assert list(series(tmp_path / "run")) == [0, 4, 5]
    assert all(".v_proj" in name for name in series(tmp_path / "run")[4])


def test_the_callback_is_public() -> None:
    assert spectra.SpectraCallback is SpectraCallback


def _stop_together(folder: str) -> None:
    """One rank: step 1's drift is known to rank 0 before step 2 begins."""
    with pytest.MonkeyPatch.context() as patch:
        look_before_taking(patch)
        rank = int(os.environ["RANK"])
        alert = {"column": "frobenius_drift", "above": 0, "stop": True}
        callback = SpectraCallback(Path(folder) / "run", every=1, alerts=alert)
        between = [AnalyseBetweenSteps(callback.recorder)] if rank == 0 else []
        options = {"logging_steps": 3, "ddp_backend": "gloo"}
        out = Path(folder) / f"out-{rank}"
        done = trainer(out, plain(tiny_llama()), callback, *between, **options)
        done.train()
    assert done.state.global_step == 3


def test_several_processes_stop_together_where_they_log(tmp_path: Path) -> None:
    with Ranks(__name__) as ranks:
        ranks(_stop_together, tmp_path)
    settings = Run(tmp_path / "run").read_settings()
    assert (settings["state"], settings["last_step"]) == ("finished", 3)
