"""Runs of two gloo processes record what one process alone records."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from checkpoints_index import find_checkpoints, open_model
from checkpoints_index.snapshots import BASE_FILE
from spectra.recording import Recorder
from spectra.recording.callback import SpectraCallback
from spectra.recording.snapshot_files import write_snapshot
from spectra.store import Run
from tests.helpers import attention_weights, lora, plain, sorsa, tiny_llama, token_rows
from tests.ranks import Ranks

ADAPTS = {"dense": plain, "lora": lora, "sorsa": sorsa}
EVERY = 2
LAST = 5
_Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
DUE = {"dense": [2, 4, 5], "lora": [0, 2, 4, 5], "sorsa": [0, 2, 4, 5]}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(__name__) as launcher:
        yield launcher


@pytest.fixture(params=ADAPTS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same trainings in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in ADAPTS:
        record(name, "alone", folder / name)
    return {name: folder / name for name in ADAPTS}


def _wrapped(model: nn.Module, wrap: str, **options: Any) -> nn.Module:
    if "ddp" in wrap:
        model = DistributedDataParallel(model)
    if "compiled" in wrap:
        model.compile(backend="eager")
    if wrap == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.modules():
            if isinstance(layer, LlamaDecoderLayer):
                fully_shard(layer, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)
    return model


def _train(model: nn.Module, first: int = 1, last: int = LAST) -> Iterator[tuple[int, Tensor]]:
    """Plain SGD on this rank's part of each step's rows; yields step and this rank's loss."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(first, last + 1):
        rows = token_rows(seed=step)[rank::size]
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step, loss.detach()


def record(
    kind: str, wrap: str, run: Path | str, first: int = 1, last: int = LAST, **options: Any
) -> None:
    model = _wrapped(ADAPTS[kind](tiny_llama()).train(), wrap)
    with Recorder(run, **({"every": EVERY} | options)).attach(model, first - 1) as recorder:
        for step, loss in _train(model, first, last):
            recorder.step(step, loss=loss)


def series(run: Path) -> dict[int, dict[str, Tensor]]:
    """W_t of every snapshot, read back by the index on the run's own base."""
    base = open_model(run / "snapshots" / BASE_FILE)
    w_0 = {m.name: base.read(m).dense for m in base.matrices}
    return {
        c.step: {m.name: c.read(m).on(w_0[m.name]) for m in c.matrices}  # type: ignore[arg-type]
        for c in find_checkpoints(run)
    }


def same_to_rounding(run: Path, other: Path) -> None:
    base, other_base = (open_model(r / "snapshots" / BASE_FILE) for r in (run, other))
    w_0 = {m.name: base.read(m).dense for m in base.matrices}
    assert w_0.keys() == {m.name for m in other_base.matrices}
    for matrix in other_base.matrices:
        assert torch.equal(w_0[matrix.name], other_base.read(matrix).dense)  # type: ignore[arg-type]
    found, expected = series(run), series(other)
    assert found.keys() == expected.keys()
    for step, matrices in expected.items():
        assert found[step].keys() == matrices.keys()
        for name, weight in matrices.items():
            # Two processes add gradients in another order; each step adds to the difference.
            tolerance = 32 * torch.finfo(torch.float32).eps * weight.abs().max().item()
            torch.testing.assert_close(found[step][name], weight, rtol=0, atol=tolerance)
            # One step moves every matrix by far more.
            if step:
                moved = (weight - w_0[name]).abs().max().item()  # type: ignore[operator]
                assert moved > 100 * tolerance, (step, name)


# Each wrapping and kind of layer.


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_two_processes_record_what_one_records(
    wrap: str, kind: str, ranks: Ranks, alone: dict[str, Path], tmp_path: Path
) -> None:
    ranks(record, kind, wrap, tmp_path / "run")
    assert list(series(tmp_path / "run")) == DUE[kind]
    same_to_rounding(tmp_path / "run", alone[kind])
    assert Run(tmp_path / "run").state == "finished"
    assert Run(tmp_path / "run").read_training()["step"].tolist() == list(range(1, LAST + 1))


def _record_apart(wrap: str, folder: str) -> None:
    record("lora", wrap, Path(folder) / str(dist.get_rank()))


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_only_the_first_rank_writes(wrap: str, ranks: Ranks, tmp_path: Path) -> None:
    ranks(_record_apart, wrap, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert list(series(tmp_path / "0")) == DUE["lora"]


def _train_evaluating(folder: str) -> None:
    """Each step is recorded after an evaluation, which leaves FSDP2's modules whole."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    options = {"mp_policy": policy, "reshard_after_forward": False}
    model = _wrapped(plain(tiny_llama()), "fsdp", **options)
    with torch.no_grad():
        model(input_ids=token_rows())
    # Without this the test would show nothing: whole, but rounded.
    assert model.get_parameter(_Q_PROJ).dtype == torch.bfloat16
    expected = {}
    with Recorder(f"{folder}/run", every=1).attach(model) as recorder:
        for step, loss in _train(model):
            parameters: list[tuple[str, Any]] = list(model.named_parameters())
            expected = {name: p.full_tensor().detach() for name, p in parameters}
            with torch.no_grad():
                model(input_ids=token_rows())
            recorder.step(step, loss=loss)
    if dist.get_rank() == 0:
        torch.save(expected, f"{folder}/expected.pt")


def test_what_an_evaluation_rounded_is_not_recorded(ranks: Ranks, tmp_path: Path) -> None:
    ranks(_train_evaluating, tmp_path)
    base = open_model(tmp_path / "run" / "snapshots" / BASE_FILE)
    before = attention_weights(tiny_llama())
    for matrix in base.matrices:
        assert torch.equal(base.read(matrix).dense, before[matrix.name])  # type: ignore[arg-type]
    expected = torch.load(tmp_path / "expected.pt")
    for name, weight in series(tmp_path / "run")[LAST].items():
        assert torch.equal(weight, expected[f"{name}.weight"].double())


def _compare_with_bare(wrap: str, kind: str, folder: str) -> None:
    adapt: Any = {**ADAPTS, "lora": partial(lora, lora_dropout=0.3)}[kind]
    models = []
    for recorded in (False, True):
        torch.manual_seed(dist.get_rank())
        model = _wrapped(adapt(tiny_llama()).train(), wrap)
        recorder = Recorder(folder, every=1)
        block: Any = recorder.attach(model) if recorded else nullcontext()
        with block:
            for step, loss in _train(model):
                if recorded:
                    recorder.step(step, loss=loss)
        models.append((model, torch.get_rng_state()))
    (bare, random), (model, random_after) = models
    assert torch.equal(random, random_after)
    pairs = zip(bare.named_parameters(), model.named_parameters(), strict=True)
    for (name, expected), (_, found) in pairs:
        assert torch.equal(_local(expected), _local(found)), name
        assert expected.requires_grad == found.requires_grad
        assert found.grad is None


def _local(parameter: Any) -> Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_every_rank_ends_in_the_same_bits_as_without_the_hook(
    wrap: str, kind: str, ranks: Ranks, tmp_path: Path
) -> None:
    ranks(_compare_with_bare, wrap, kind, tmp_path)


def test_a_compiled_model_in_ddp_ends_in_the_same_bits(ranks: Ranks, tmp_path: Path) -> None:
    ranks(_compare_with_bare, "compiled ddp", "lora", tmp_path)


# What one rank alone meets must not leave the others waiting.


def _interrupted_and_resumed(kind: str, folder: str) -> None:
    model = _wrapped(ADAPTS[kind](tiny_llama()).train(), "fsdp")
    with suppress(InterruptedError), Recorder(folder, every=EVERY).attach(model) as recorder:
        for step, loss in _train(model, 1, 3):
            recorder.step(step, loss=loss)
        raise InterruptedError
    with Recorder(folder, every=EVERY).attach(model, 3) as recorder:
        for step, loss in _train(model, 4, LAST):
            recorder.step(step, loss=loss)


def test_a_sharded_run_is_resumed(
    kind: str, ranks: Ranks, alone: dict[str, Path], tmp_path: Path
) -> None:
    ranks(_interrupted_and_resumed, kind, tmp_path)
    same_to_rounding(tmp_path, alone[kind])


def _refused(wrap: str, folder: str) -> None:
    record("lora", wrap, folder)
    with pytest.raises(ValueError, match="finished run of 5 steps"):
        record("lora", wrap, folder)
    with pytest.raises(ValueError, match="other matrices"):
        record("lora", wrap, folder, modules=["q_proj"], overwrite=True)


def test_what_is_refused_is_refused_on_every_rank(ranks: Ranks, tmp_path: Path) -> None:
    ranks(_refused, "fsdp", tmp_path)


def _record_pieces(folder: str) -> None:
    model = _wrapped(plain(tiny_llama()), "fsdp")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with Recorder(folder, every=1).attach(model) as recorder:
        for step in (1, 2):
            mine = torch.tensor(float(step + 10 * dist.get_rank()))
            recorder.step(step, grad_norm=DTensor.from_local(mine, mesh, [Partial()]))


def test_a_number_in_pieces_is_recorded_whole(ranks: Ranks, tmp_path: Path) -> None:
    ranks(_record_pieces, tmp_path)
    assert Run(tmp_path).read_training()["grad_norm"].tolist() == [12.0, 14.0]


def _ranks_differ_in_when(folder: str) -> None:
    rank = dist.get_rank()
    record("lora", "fsdp", folder, every=lambda step: step % (2 + rank) == 0)


def test_rank_zero_says_when(ranks: Ranks, alone: dict[str, Path], tmp_path: Path) -> None:
    ranks(_ranks_differ_in_when, tmp_path)
    same_to_rounding(tmp_path, alone["lora"])


def _rank_zero_is_busy(folder: str) -> None:
    def slowly(*arguments: Any) -> None:
        time.sleep(0.3)
        write_snapshot(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectra.recording.session.write_snapshot", slowly)
        patch.setattr("spectra.recording.staging._MOST_BYTES", 0)
        record("lora", "fsdp", folder, every=1)


def test_rank_zero_decides_what_is_skipped(
    ranks: Ranks, alone: dict[str, Path], tmp_path: Path
) -> None:
    ranks(_rank_zero_is_busy, tmp_path)
    found = series(tmp_path)
    missing = {entry["step"] for entry in Run(tmp_path).read_settings()["missing"]}
    assert missing and not missing & found.keys()
    assert missing | found.keys() == set(range(LAST + 1))
    assert {0, LAST} <= found.keys()
    for step, weight in found[LAST].items():
        assert torch.allclose(weight, series(alone["lora"])[LAST][step])


def _disk_of_rank_zero(full: bool) -> None:
    """Let no file of rank 0 take a byte more, as on a full disk, or let it again."""
    if dist.get_rank() == 0:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else hard, hard))


def _disk_fills(folder: str) -> None:
    model = _wrapped(lora(tiny_llama()).train(), "fsdp")
    with Recorder(folder, every=1).attach(model) as recorder:
        for step, loss in _train(model):
            _disk_of_rank_zero(full=step in (2, 3))
            recorder.step(step, loss=loss)
            # Each snapshot is written before the disk is another.
            recorder.flush()


def test_a_full_disk_of_rank_zero_stops_no_rank(ranks: Ranks, tmp_path: Path) -> None:
    ranks(_disk_fills, tmp_path)
    assert list(series(tmp_path)) == [0, 1, 4, 5]
    missing = Run(tmp_path).read_settings()["missing"]
    assert [entry["step"] for entry in missing] == [2, 3]


def find_in(folder: str) -> list[Path]:
    return list(Path(folder).rglob("*.safetensors"))


def _disk_is_full(folder: str) -> None:
    _disk_of_rank_zero(full=True)
    record("lora", "fsdp", folder)
    assert not find_in(folder)
    _disk_of_rank_zero(full=False)
    dist.barrier()
    # All ranks are still in step with each other.
    record("lora", "fsdp", folder)


class _Unpicklable(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__("a lock that cannot travel")


def _fails_unpicklably(folder: str) -> None:
    def fail(*_: object) -> None:
        raise _Unpicklable(1, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectra.recording.opening.Base.stored", fail)
        with pytest.raises(RuntimeError, match="_Unpicklable: a lock that cannot travel"):
            record("lora", "fsdp", folder)
    dist.barrier()


def test_an_error_that_cannot_travel_is_told_on_every_rank(ranks: Ranks, tmp_path: Path) -> None:
    ranks(_fails_unpicklably, tmp_path)


def test_a_run_that_cannot_begin_begins_on_no_rank(ranks: Ranks, tmp_path: Path) -> None:
    ranks(_disk_is_full, tmp_path)
    assert list(series(tmp_path)) == DUE["lora"]


# Inside Transformers' Trainer.


def _fully_sharded_by_accelerate(trainer: Trainer) -> None:
    """Let Accelerate shard on the CPU, where of itself it falls back to DDP."""
    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    shared = {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
    AcceleratorState._shared_state |= shared
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True
    assert trainer.accelerator.is_fsdp2


def trainer_of(kind: str, folder: str, **options: Any) -> Trainer:
    """A Trainer without momentum and clipping, with the hook."""
    rows = token_rows(seed=9, rows=2 * LAST)
    defaults: dict[str, Any] = {
        "output_dir": f"{folder}/out",
        "max_steps": LAST,
        "per_device_train_batch_size": 1,
        "optim": "sgd",
        "learning_rate": 0.05,
        "max_grad_norm": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": False,
    }
    return Trainer(
        model=ADAPTS[kind](tiny_llama()),
        args=TrainingArguments(**(defaults | options)),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[SpectraCallback(f"{folder}/run", every=EVERY)],
    )


def _train_by_trainer(kind: str, wrap: str, folder: str) -> None:
    options: dict[str, Any] = {}
    if wrap == "fsdp":
        layers = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
        options = {"fsdp": True, "fsdp_config": layers}
    trainer = trainer_of(kind, folder, **options)
    if wrap == "fsdp":
        _fully_sharded_by_accelerate(trainer)
    trainer.train()


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_a_trainer_of_two_processes_records_what_one_records(
    wrap: str, kind: str, ranks: Ranks, tmp_path: Path
) -> None:
    trainer_of(kind, str(tmp_path / "alone"), per_device_train_batch_size=2).train()
    ranks(_train_by_trainer, kind, wrap, tmp_path / "two")
    same_to_rounding(tmp_path / "two" / "run", tmp_path / "alone" / "run")
    one, two = (Run(tmp_path / name / "run").read_training() for name in ("alone", "two"))
    assert two["step"].tolist() == list(range(1, LAST + 1))
    # What the trainer logs is the loss of all ranks' rows.
    assert two["loss"].tolist() == pytest.approx(one["loss"].tolist(), rel=1e-5)
