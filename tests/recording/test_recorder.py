"""The hook in a plain loop: what it records, and that it changes nothing."""

from __future__ import annotations

import copy
import errno
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spectra.recording.session
import spectra.recording.writer
from checkpoints_index import CheckpointError, find_checkpoints, open_model
from checkpoints_index.snapshots import BASE_FILE
from spectra.recording import Recorder
from spectra.store import Run
from spectra.store.files import TEMPORARY_PREFIX
from tests.helpers import (
    attention_weights,
    lora,
    plain,
    seeded,
    shake,
    sorsa,
    tiny_llama,
    token_rows,
    train_steps,
)

ADAPTS = {"dense": plain, "lora": lora, "sorsa": sorsa}
EVERY = 3
LAST = 7
# Of LAST steps, recorded every EVERY; a dense model's step 0 is the run's base.
DUE = {"dense": [3, 6, 7], "lora": [0, 3, 6, 7], "sorsa": [0, 3, 6, 7]}


@pytest.fixture(params=ADAPTS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def fresh(kind: str, seed: int = 0) -> nn.Module:
    return ADAPTS[kind](tiny_llama(seed)).train()


def record(model: nn.Module, run: Path, first: int = 1, last: int = LAST, **options: Any) -> None:
    """Train steps `first` to `last` with the hook."""
    recorder = Recorder(run, every=EVERY, **options)
    with recorder.attach(model, start_step=first - 1):
        for step, loss in train_steps(model, first, last):
            recorder.step(step, loss=loss, lr=0.05)


def merged(model: nn.Module) -> dict[str, Tensor]:
    """W_t as PEFT merges it, of a copy."""
    model = copy.deepcopy(model)
    merge = getattr(model, "merge_and_unload", None)
    return attention_weights(model if merge is None else merge())


def series(run: Path) -> dict[int, dict[str, Tensor]]:
    """W_t of every snapshot, read back by the index on the run's own base."""
    base = open_model(run / "snapshots" / BASE_FILE)
    w_0 = {m.name: base.read(m).dense for m in base.matrices}
    return {
        checkpoint.step: {
            m.name: checkpoint.read(m).on(w_0[m.name])  # type: ignore[arg-type]
            for m in checkpoint.matrices
        }
        for checkpoint in find_checkpoints(run)
    }


def assert_equal_series(
    found: dict[int, dict[str, Tensor]], expected: dict[int, dict[str, Tensor]]
) -> None:
    assert found.keys() == expected.keys()
    for step, matrices in expected.items():
        assert found[step].keys() == matrices.keys()
        for name, weight in matrices.items():
            assert torch.equal(found[step][name], weight), (step, name)


def rows(run: Path) -> list[tuple[int, float]]:
    frame = Run(run).read_training()
    return list(frame[["step", "loss"]].itertuples(index=False, name=None))


# What is recorded.


def test_recorded_are_step_zero_every_n_th_and_the_last(kind: str, tmp_path: Path) -> None:
    record(fresh(kind), tmp_path)
    assert list(series(tmp_path)) == DUE[kind]


def test_a_last_step_that_was_due_is_recorded_once(kind: str, tmp_path: Path) -> None:
    model = fresh(kind)
    with Recorder(tmp_path, every=EVERY).attach(model) as recorder:
        for step, loss in train_steps(model, 1, 2 * EVERY):
            recorder.step(step, loss=loss)
        recorder.flush()
        written = [c.fingerprint for c in find_checkpoints(tmp_path)]
    assert list(series(tmp_path)) == DUE[kind][:-1]
    assert [c.fingerprint for c in find_checkpoints(tmp_path)] == written


def test_snapshots_hold_the_weights_of_their_steps(kind: str, tmp_path: Path) -> None:
    model = fresh(kind)
    weights = {0: merged(model)}
    with Recorder(tmp_path, every=EVERY).attach(model) as recorder:
        for step, loss in train_steps(model, 1, LAST):
            recorder.step(step, loss=loss)
            weights[step] = merged(model)
    for step, matrices in series(tmp_path).items():
        for name, weight in matrices.items():
            expected = weights[step][name].double()
            # The merge rounds to float32 some r + 2 times.
            tolerance = 8 * torch.finfo(torch.float32).eps * expected.abs().max().item()
            torch.testing.assert_close(weight, expected, rtol=0, atol=tolerance)


def test_the_base_is_the_weight_before_training(kind: str, tmp_path: Path) -> None:
    before = attention_weights(tiny_llama())
    record(fresh(kind), tmp_path)
    base = open_model(tmp_path / "snapshots" / BASE_FILE)
    for matrix in base.matrices:
        assert torch.equal(base.read(matrix).dense, before[matrix.name])  # type: ignore[arg-type]


@pytest.mark.parametrize("adapt", [lora, sorsa])
def test_adapters_are_recorded_as_factors_only(adapt, tmp_path: Path) -> None:
    model = adapt(tiny_llama())
    record(model, tmp_path)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    for path in (tmp_path / "snapshots").glob("step-*"):
        # The header has some 400 bytes for each of the four matrices.
        assert trained <= path.stat().st_size <= trained + 4 * 400 + 400


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_are_stored_in_the_models_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = plain(tiny_llama(dtype=dtype))
    with Recorder(tmp_path, every=1).attach(model) as recorder:
        shake(model)
        recorder.step(1)
    expected = attention_weights(model)
    (checkpoint,) = find_checkpoints(tmp_path)
    for matrix in checkpoint.matrices:
        weight = checkpoint.read(matrix).dense
        assert weight is not None
        assert weight.dtype == dtype
        assert torch.equal(weight, expected[matrix.name])


def test_training_rows_are_what_was_told(kind: str, tmp_path: Path) -> None:
    model, losses = fresh(kind), []
    with Recorder(tmp_path, every=EVERY).attach(model) as recorder:
        for step, loss in train_steps(model, 1, LAST):
            losses.append(loss.item())
            recorder.step(step, loss=loss, lr=step / 100, grad_norm=None)
            recorder.log(step, ortho_loss=step / 10)
    frame = Run(tmp_path).read_training()
    assert frame["step"].tolist() == list(range(1, LAST + 1))
    assert frame["loss"].tolist() == losses
    assert frame["lr"].tolist() == [step / 100 for step in range(1, LAST + 1)]
    assert frame["ortho_loss"].tolist() == [step / 10 for step in range(1, LAST + 1)]
    assert frame["grad_norm"].isna().all()
    assert frame["seconds"].is_monotonic_increasing
    assert (frame["seconds"] >= 0).all()


def test_what_is_measured_in_between_takes_none_of_the_trainings_time(
    kind: str, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path, every=2)
    with recorder.attach(fresh(kind)):
        assert recorder.last_snapshot in (0, None)
        recorder.step(2, loss=1.0)
        assert recorder.last_snapshot == 2
        with recorder.paused():
            time.sleep(0.5)
        recorder.note(evaluation={"perplexity": {"tokens": 3}})
        recorder.step(3, loss=1.0, perplexity=9.0)
        assert recorder.last_snapshot == 2
    run = Run(tmp_path)
    first, second = run.read_training()["seconds"]
    assert first <= second < first + 0.5
    assert run.read_training()["perplexity"].tolist()[1] == 9.0
    assert run.read_settings()["evaluation"] == {"perplexity": {"tokens": 3}}


def test_the_run_says_what_it_is(kind: str, tmp_path: Path) -> None:
    record(fresh(kind), tmp_path, base="tiny", settings={"lr": 0.05})
    settings = Run(tmp_path).read_settings()
    assert settings["method"] == ("full-ft" if kind == "dense" else kind)
    assert settings["modules"] == ["q_proj", "v_proj"]
    assert settings["every"] == EVERY
    assert settings["settings"] == {"lr": 0.05}
    assert settings["base"] == {
        "name": "tiny",
        "dtype": "float32",
        "weights": f"snapshots/{BASE_FILE}",
    }
    assert settings["last_step"] == LAST
    assert Run(tmp_path).state == "finished"


def test_a_run_is_growing_until_it_ends(tmp_path: Path) -> None:
    model = fresh("lora")
    with Recorder(tmp_path).attach(model) as recorder:
        assert Run(tmp_path).state == "growing"
        recorder.step(1)
        assert Run(tmp_path).state == "growing"
    assert Run(tmp_path).state == "finished"


def test_no_step_at_all_is_a_run_of_its_start(kind: str, tmp_path: Path) -> None:
    with Recorder(tmp_path).attach(fresh(kind)):
        pass
    assert list(series(tmp_path)) == DUE[kind][: len(DUE[kind]) - 3]
    assert Run(tmp_path).state == "finished"


def test_wrapped_models_are_recorded_under_clean_names(kind: str, tmp_path: Path) -> None:
    class Compiled(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self._orig_mod = model

        def forward(self, **inputs: Any) -> Any:
            return self._orig_mod(**inputs)

    record(fresh(kind), tmp_path / "plain")
    model = Compiled(fresh(kind))
    recorder = Recorder(tmp_path / "wrapped", every=EVERY)
    with recorder.attach(model):
        for step, loss in train_steps(model, 1, LAST):
            recorder.step(step, loss=loss)
    assert_equal_series(series(tmp_path / "wrapped"), series(tmp_path / "plain"))


@pytest.mark.parametrize("step", [0, 1, -3])
def test_steps_count_upwards_from_one(step: int, tmp_path: Path) -> None:
    with Recorder(tmp_path, every=1).attach(fresh("lora")) as recorder:
        recorder.step(1)
        with pytest.raises(ValueError, match=f"upwards from 1; the last was 1, got {step}"):
            recorder.step(step)
    assert list(series(tmp_path)) == [0, 1]


def test_an_interrupted_loop_can_be_run_again_in_the_same_process(tmp_path: Path) -> None:
    first = Recorder(tmp_path, every=1)
    first.begin(fresh("lora"))  # never ended, as in a notebook's interrupted cell
    first.step(1)
    with Recorder(tmp_path, every=1).attach(fresh("lora")) as second:
        second.step(1)
    assert list(series(tmp_path)) == [0, 1]


def test_a_finished_recorder_can_be_attached_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, every=1, overwrite=True)
    for _ in range(2):
        model = fresh("lora")
        with recorder.attach(model):
            for step, _ in train_steps(model, 1, 2):
                recorder.step(step)
    assert list(series(tmp_path)) == [0, 1, 2]


# It only reads.


@pytest.mark.parametrize("kind", ["dense", "lora", "sorsa"])
def test_a_recorded_run_trains_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    def trained(run: Path | None) -> tuple[dict[str, Tensor], Tensor, Any, Any]:
        model = tiny_llama()
        model.config.attention_dropout = 0.1
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        adapted = (
            plain(model) if kind == "dense" else ADAPTS[kind](model, **{f"{kind}_dropout": 0.3})
        )
        adapted.train()
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 0.01)
        recorder = None if run is None else Recorder(run, every=2)
        with seeded(5):
            random.seed(5)
            np.random.seed(5)  # noqa: NPY002 (the state that must not move)
            if recorder:
                recorder.begin(adapted)
            for step in range(1, 6):
                tokens = token_rows(step)
                loss = adapted(input_ids=tokens, labels=tokens).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if recorder:
                    recorder.step(step, loss=loss)
            if recorder:
                recorder.end()
            states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        return adapted.state_dict(), *states

    bare, recorded = trained(None), trained(tmp_path)
    assert bare[0].keys() == recorded[0].keys()
    for name, tensor in bare[0].items():
        assert torch.equal(tensor, recorded[0][name]), name
    assert torch.equal(bare[1], recorded[1])
    assert bare[2] == recorded[2]
    assert np.array_equal(bare[3][1], recorded[3][1])


def test_gradients_and_flags_are_left_alone(kind: str, tmp_path: Path) -> None:
    model = fresh(kind)
    tokens = token_rows()
    model(input_ids=tokens, labels=tokens).loss.backward()

    def state() -> dict[str, Any]:
        return {
            name: (p.requires_grad, p.data_ptr(), p._version, p.grad is None or p.grad.clone())
            for name, p in model.named_parameters()
        }

    def flags() -> list[tuple[bool, int]]:
        return [
            (m.training, len(m._forward_hooks) + len(m._backward_hooks)) for m in model.modules()
        ]

    before, flags_before = state(), flags()
    with Recorder(tmp_path, every=1).attach(model) as recorder:
        recorder.step(1, loss=torch.tensor(1.0, requires_grad=True))
    after = state()
    assert flags() == flags_before
    assert after.keys() == before.keys()
    for name in before:
        assert after[name][:3] == before[name][:3]
        kept, now = before[name][3], after[name][3]
        assert torch.equal(kept, now) if isinstance(kept, Tensor) else kept is now


def test_a_snapshot_is_what_the_weights_were_not_what_they_become(tmp_path: Path) -> None:
    model = fresh("dense")
    with Recorder(tmp_path, every=1).attach(model) as recorder:
        shake(model, seed=1)
        then = merged(model)
        recorder.step(1)
        shake(model, seed=2)
        recorder.step(2)
    assert_equal_series(
        {1: series(tmp_path)[1]}, {1: {name: w.double() for name, w in then.items()}}
    )


# Interruption and resumption.


def test_an_exception_in_the_loop_leaves_rows_and_snapshots(kind: str, tmp_path: Path) -> None:
    model = fresh(kind)
    recorder = Recorder(tmp_path, every=EVERY)
    with pytest.raises(KeyboardInterrupt), recorder.attach(model):
        for step, loss in train_steps(model, 1, LAST):
            recorder.step(step, loss=loss)
            if step == 5:
                raise KeyboardInterrupt
    assert [step for step, _ in rows(tmp_path)] == [1, 2, 3, 4, 5]
    assert list(series(tmp_path)) == [s for s in DUE[kind] if s <= 5]
    assert Run(tmp_path).state == "interrupted"
    with pytest.raises(RuntimeError, match="No model is attached"):
        recorder.step(6)


@pytest.mark.parametrize(("stopped", "resumed_from"), [(5, 3), (5, 5), (7, 4), (4, 0)])
def test_a_resumed_run_equals_an_undisturbed_one(
    kind: str, tmp_path: Path, stopped: int, resumed_from: int
) -> None:
    record(fresh(kind), tmp_path / "undisturbed")

    model = fresh(kind)
    states = {0: copy.deepcopy(model.state_dict())}
    recorder = Recorder(tmp_path / "resumed", every=EVERY)
    with pytest.raises(InterruptedError), recorder.attach(model):
        for step, loss in train_steps(model, 1, stopped):
            recorder.step(step, loss=loss, lr=0.05)
            states[step] = copy.deepcopy(model.state_dict())
        raise InterruptedError
    # The process that goes on has a model of its own, and the trainer's checkpoint.
    model = fresh(kind)
    model.load_state_dict(states[resumed_from])
    record(model, tmp_path / "resumed", first=resumed_from + 1)

    assert_equal_series(series(tmp_path / "resumed"), series(tmp_path / "undisturbed"))
    assert rows(tmp_path / "resumed") == rows(tmp_path / "undisturbed")
    assert Run(tmp_path / "resumed").read_training()["seconds"].is_monotonic_increasing


def test_beginning_drops_what_comes_again(kind: str, tmp_path: Path) -> None:
    record(fresh(kind), tmp_path)
    before = rows(tmp_path)
    model = fresh(kind)
    for _ in train_steps(model, 1, 4):
        pass
    recorder = Recorder(tmp_path, every=EVERY, overwrite=True)
    recorder.begin(model, start_step=4)
    assert list(series(tmp_path)) == [s for s in DUE[kind] if s <= 4]
    assert Run(tmp_path).state == "growing"
    recorder.step(5, lr=0.5)
    recorder.end()
    assert rows(tmp_path)[:4] == before[:4]
    last = Run(tmp_path).read_training().iloc[4:].to_dict("records")
    assert [row["step"] for row in last] == [5]
    assert last[0]["lr"] == 0.5
    assert math.isnan(last[0]["loss"]), "the first attempt's loss is gone"


@pytest.mark.parametrize("start_step", [0, LAST - 1])
def test_a_finished_run_is_not_replaced_by_accident(
    kind: str, tmp_path: Path, start_step: int
) -> None:
    record(fresh(kind), tmp_path)
    before = series(tmp_path), rows(tmp_path)
    with pytest.raises(ValueError, match=f"is a finished run of {LAST} steps.* overwrite=True"):
        begin(tmp_path, fresh(kind), start_step)
    assert_equal_series(series(tmp_path), before[0])
    assert rows(tmp_path) == before[1]
    assert Run(tmp_path).state == "finished"


def test_a_finished_run_goes_on_behind_its_end(kind: str, tmp_path: Path) -> None:
    model = fresh(kind)
    record(model, tmp_path, last=EVERY)
    record(model, tmp_path, first=EVERY + 1)
    record(fresh(kind), tmp_path / "undisturbed")
    assert_equal_series(series(tmp_path), series(tmp_path / "undisturbed"))
    assert rows(tmp_path) == rows(tmp_path / "undisturbed")


def test_a_run_that_is_being_recorded_is_left_alone(kind: str, tmp_path: Path) -> None:
    with Run(tmp_path).lock("recording"):
        with pytest.raises(RuntimeError, match="The recording of .* is under way in another"):
            begin(tmp_path, fresh(kind))
        assert [p.name for p in tmp_path.iterdir()] == [".recording.lock"]


def test_a_refused_model_is_not_attached(kind: str, tmp_path: Path) -> None:
    record(fresh(kind), tmp_path)
    recorder = Recorder(tmp_path, every=1)
    with pytest.raises(ValueError, match="another base"):
        recorder.begin(fresh(kind, seed=1))
    with pytest.raises(RuntimeError, match="No model is attached"):
        recorder.step(1)
    assert Run(tmp_path).state == "finished"


def test_an_analysis_at_work_keeps_its_unfinished_files(tmp_path: Path) -> None:
    record(fresh("lora"), tmp_path, last=2)
    part = tmp_path / "drift" / f"{TEMPORARY_PREFIX}x.parquet"
    part.parent.mkdir()
    part.write_bytes(b"half")
    record(fresh("lora"), tmp_path, overwrite=True)
    assert part.exists()


def test_a_killed_writers_leftovers_are_removed(kind: str, tmp_path: Path) -> None:
    record(fresh(kind), tmp_path)
    leftover = tmp_path / "snapshots" / f"{TEMPORARY_PREFIX}x.safetensors"
    leftover.write_bytes(b"half")
    Run(tmp_path).update_settings(state="running")  # killed before its end
    record(fresh(kind), tmp_path)
    assert not leftover.exists()
    assert list(series(tmp_path)) == DUE[kind]


def test_starting_late_without_a_base_is_refused_for_plain_layers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no base and the model is at step 5 already"):
        Recorder(tmp_path).begin(fresh("dense"), start_step=5)
    # Adapters have W_0 in the model at any step.
    Recorder(tmp_path).begin(fresh("lora"), start_step=5)


def begin(run: Path, model: nn.Module, start_step: int = 0, **options: Any) -> None:
    Recorder(run, **options).begin(model, start_step)


def test_other_matrices_are_refused(kind: str, tmp_path: Path) -> None:
    record(fresh(kind), tmp_path)
    before = series(tmp_path), rows(tmp_path)
    with pytest.raises(ValueError, match="begun with other matrices .*v_proj.* into a new run"):
        begin(tmp_path, fresh(kind), modules=["q_proj"])
    with pytest.raises(ValueError, match=r"begun with other matrices .*layers\.2\."):
        begin(tmp_path, ADAPTS[kind](tiny_llama(layers=3)))
    assert_equal_series(series(tmp_path), before[0])
    assert rows(tmp_path) == before[1]


def test_another_base_is_refused(kind: str, tmp_path: Path) -> None:
    record(fresh(kind), tmp_path)
    before = series(tmp_path), rows(tmp_path)
    with pytest.raises(ValueError, match="begun on another base.* Record into a new run"):
        begin(tmp_path, fresh(kind, seed=1))
    assert_equal_series(series(tmp_path), before[0])
    assert rows(tmp_path) == before[1]


def test_a_base_that_differs_in_one_matrix_is_refused(kind: str, tmp_path: Path) -> None:
    record(fresh(kind), tmp_path)
    base = tiny_llama()
    with torch.no_grad():
        base.model.layers[1].self_attn.v_proj.weight[3, 5] += 0.25
    with pytest.raises(ValueError, match=r"another base: model\.layers\.1\.self_attn\.v_proj"):
        begin(tmp_path, ADAPTS[kind](base))


def test_sorsa_of_another_rank_is_refused(tmp_path: Path) -> None:
    # Its snapshots would be read with the first one's initial factors.
    record(fresh("sorsa"), tmp_path)
    with pytest.raises(ValueError, match="initial factors.* Record into a new run"):
        begin(tmp_path, sorsa(tiny_llama(), r=5))


def test_sorsa_is_refused_where_lora_was_recorded(tmp_path: Path) -> None:
    record(fresh("lora"), tmp_path)
    with pytest.raises(ValueError, match="initial factors.* Record into a new run"):
        begin(tmp_path, fresh("sorsa"))


def test_a_broken_base_is_an_error(tmp_path: Path) -> None:
    record(fresh("lora"), tmp_path)
    path = tmp_path / "snapshots" / BASE_FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=BASE_FILE):
        begin(tmp_path, fresh("lora"))


# Wrong use.


def test_a_full_disk_leaves_what_was_recorded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = fresh(kind)
    recorder = Recorder(tmp_path, every=EVERY)
    recorder.begin(model)
    for step, loss in train_steps(model, 1, 5):
        recorder.step(step, loss=loss)
    recorder.flush()
    monkeypatch.setattr(spectra.recording.session, "write_snapshot", full)
    recorder.step(6)
    recorder.end()
    assert list(series(tmp_path)) == [s for s in DUE[kind] if s <= 5]
    assert not list((tmp_path / "snapshots").glob(f"{TEMPORARY_PREFIX}*"))
    (missing,) = Run(tmp_path).read_settings()["missing"]
    assert missing == {"step": 6, "reason": "[Errno 28] No space left on device"}
    assert recorder.missing == [missing]


def test_values_without_a_column_are_refused(tmp_path: Path) -> None:
    with Recorder(tmp_path).attach(fresh("lora")) as recorder:
        with pytest.raises(TypeError, match="no column for accuracy, bleu; it has loss, grad_norm"):
            recorder.step(1, loss=1.0, bleu=0.5, accuracy=1.0)


def test_steps_outside_the_block_are_refused(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with pytest.raises(RuntimeError, match="No model is attached"):
        recorder.step(1)
    with recorder.attach(fresh("lora")):
        recorder.step(1)
    with pytest.raises(RuntimeError, match="No model is attached"):
        recorder.step(2)


@pytest.mark.parametrize("every", [0, -1])
def test_every_must_be_at_least_one(every: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"every must be at least 1, got {every}"):
        Recorder(tmp_path, every=every)


def test_modules_must_not_be_one_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"modules must be a sequence of names, e\.g\. \('q_proj',"):
        Recorder(tmp_path, modules="q_proj")


def test_a_model_that_does_not_fit_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No trained layer matches"):
        Recorder(tmp_path / "a", modules=["query"]).begin(fresh("lora"))
    assert not (tmp_path / "a").exists()


def test_making_a_recorder_writes_nothing(tmp_path: Path) -> None:
    Recorder(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_rows_reach_the_disk_while_the_loop_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra.recording.writer, "_TIDY_SECONDS", 0.01)
    recorder = Recorder(tmp_path, every=1000)
    recorder.begin(fresh("lora"))
    for step in range(1, 20):
        recorder.step(step, loss=1.0)
    until = time.monotonic() + 20
    while len(rows(tmp_path)) < 19 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(rows(tmp_path)) == 19
    recorder.end()
