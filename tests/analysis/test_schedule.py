"""Who computes what: division of the cores, lost workers, and what is not computed twice."""

from __future__ import annotations

import os
import signal
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from distributed import LocalCluster
from threadpoolctl import threadpool_info
from torch import Tensor

import spectra
from checkpoints_index import Checkpoint, CheckpointError, Matrix, Weight
from spectra.analysis import BaseCache, analyze, estimate
from spectra.analysis import rows as rows_module
from spectra.analysis import schedule as schedule_module
from spectra.analysis.cost import estimate_cost
from spectra.analysis.plan import StaleStep, Task
from spectra.analysis.rows import Quantities
from spectra.analysis.schedule import choose_workers, compute
from spectra.linalg import Decomposition
from spectra.store import Run
from tests.helpers import gaussian, low_rank_factors, plain, shake, tiny_llama, tiny_model_folder


@dataclass
class Memory:
    """A checkpoint that is made up when it is read; may kill its reader, or be broken."""

    step: int = 1
    rank: int | None = None
    kills: int = 0
    broken: bool = False
    marks: Path = Path()
    path: Path = field(default_factory=lambda: Path("memory"))
    method: str = "test"
    base: str | None = None
    matrices: tuple[Matrix, ...] = ()

    @property
    def fingerprint(self) -> str:
        return f"memory-{self.step}-{self.rank}"

    def bind(self, base: Checkpoint) -> Checkpoint:
        return self

    def read(self, matrix: Matrix) -> Weight:
        if self.broken:
            raise CheckpointError(f"memory-{self.step} is broken.")
        seen = len(list(self.marks.glob("kill-*"))) if self.kills else 0
        if seen < self.kills:
            (self.marks / f"kill-{seen}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        w_0 = base_weight(matrix)
        if self.step == 0:
            return Weight(dense=w_0)
        if self.rank:
            b, a = low_rank_factors(*matrix.shape, self.rank, self.step)
            return Weight(update=(0.1 * b, a))
        return Weight(dense=w_0 + 1e-3 * gaussian(*matrix.shape, seed=self.step))


def base_weight(matrix: Matrix) -> Tensor:
    return gaussian(*matrix.shape, seed=matrix.layer)


def tasks_for(
    layers: int, steps: int, shape: tuple[int, int] = (24, 32), rank: int | None = None
) -> list[Task]:
    made = []
    for layer in range(layers):
        matrix = Matrix(f"layers.{layer}.q_proj", layer, "q_proj", shape, "float64", rank)
        stale = tuple(StaleStep(Memory(s, rank), matrix, f"s{s}") for s in range(1, steps + 1))
        made.append(Task(Memory(0), matrix, stale))
    return made


def with_killer(tasks: list[Task], marks: Path, kills: int) -> list[Task]:
    """The last task's only step kills its reader so many times."""
    victim = tasks[-1]
    stale = victim.steps[0]
    checkpoint = Memory(stale.checkpoint.step, kills=kills, marks=marks)
    killer = StaleStep(checkpoint, stale.matrix, "killer")
    return [*tasks[:-1], Task(victim.base, victim.matrix, (killer,))]


def test_a_lost_worker_costs_its_matrix_a_retry(tmp_path: Path, caplog) -> None:
    tasks = with_killer(tasks_for(4, 1), tmp_path, kills=1)
    found = list(compute(tasks, Quantities(), BaseCache(tmp_path / "cache"), workers=2))
    assert sorted(drift["layer"] for drift, _ in found) == [0, 1, 2, 3]
    assert all(drift["solver"] == "gram" for drift, _ in found)
    assert "A worker was lost" in caplog.text


def test_a_lost_dask_worker_costs_its_matrix_a_retry(tmp_path: Path) -> None:
    tasks = with_killer(tasks_for(4, 1), tmp_path, kills=1)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        # The scheduler reports the lost worker; that is what is wanted here.
        warnings.catch_warnings(action="ignore"),
    ):
        address = cluster.scheduler_address
        cache = BaseCache(tmp_path / "cache")
        found = list(compute(tasks, Quantities(), cache, scheduler=address))
    assert len(list(tmp_path.glob("kill-*"))) == 1
    assert sorted(drift["layer"] for drift, _ in found) == [0, 1, 2, 3]
    assert all(drift["solver"] == "gram" for drift, _ in found)


def test_a_matrix_that_takes_every_worker_down_ends_with_advice(tmp_path: Path) -> None:
    tasks = with_killer(tasks_for(3, 1), tmp_path, kills=99)
    found = []
    with pytest.raises(RuntimeError, match=r"1 groups of matrices took down .*--workers 1"):
        for drift, _ in compute(tasks, Quantities(), BaseCache(tmp_path / "c"), workers=2):
            found.append(drift["layer"])
    assert sorted(found) == [0, 1]  # the others' rows are there


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_matrix_costs_its_own_rows_only(tmp_path: Path, workers: int) -> None:
    first, second, third = tasks_for(3, 3)
    broken = StaleStep(Memory(2, broken=True), first.matrix, "broken")
    tasks = [
        Task(first.base, first.matrix, (first.steps[0], broken, first.steps[2])),
        Task(Memory(0, broken=True), second.matrix, second.steps),
        third,
    ]
    found = []
    with pytest.raises(
        CheckpointError, match="^2 matrices .* all others .*memory-2 is broken"
    ) as e:
        for drift, _ in compute(tasks, Quantities(), BaseCache(tmp_path / "c"), workers):
            found.append((drift["layer"], drift["step"]))
    assert "memory-0 is broken" in str(e.value)
    assert sorted(found) == [(0, 1), (0, 3), (2, 1), (2, 2), (2, 3)]


def test_long_tasks_are_split_and_every_base_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "step_cost", lambda *_: ("dense", 4.0))
    task = tasks_for(1, 7)[0]
    parts = schedule_module._chunks(task, Quantities())
    assert [len(part.steps) for part in parts] == [3, 3, 1]
    assert [s for part in parts for s in part.steps] == list(task.steps)


def test_split_tasks_give_the_same_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tasks = tasks_for(2, 3)
    cache = BaseCache(tmp_path / "cache")

    def rows(workers: int) -> list[tuple[int, int, float]]:
        found = compute(tasks, Quantities(), cache, workers)
        return sorted((d["layer"], d["step"], round(d["delta_d"], 12)) for d, _ in found)

    serial = rows(1)
    monkeypatch.setattr(schedule_module, "_CHUNK_SECONDS", 0.0)
    assert rows(2) == serial and len(serial) == 6


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "available_cores", lambda: 8)
    tasks = tasks_for(20, 1)
    for workers, threads in ((1, 8), (2, 4), (3, 2), (8, 1)):
        chosen = choose_workers(tasks, Quantities(), workers)
        assert (chosen.processes, chosen.threads) == (workers, threads)
    assert choose_workers(tasks[:2], Quantities(), 8).processes == 2  # not more than tasks


@pytest.mark.parametrize(
    ("seconds_of", "expected"),
    [
        ({1: 4.0, 2: 3.0, 4: 2.8}, 4),  # threads hardly help: many processes
        ({1: 4.0, 2: 2.0, 4: 1.0}, 1),  # threads help fully: no need for processes
    ],
)
def test_the_division_with_more_throughput_is_chosen(
    monkeypatch: pytest.MonkeyPatch, seconds_of: dict[int, float], expected: int
) -> None:
    monkeypatch.setattr(schedule_module, "available_cores", lambda: 4)
    monkeypatch.setattr(schedule_module, "_sample_seconds", lambda _, t: seconds_of[t])
    tasks = tasks_for(40, 20, (1024, 4096))
    assert choose_workers(tasks, Quantities()).processes == expected
    monkeypatch.setattr(schedule_module, "_free_memory", lambda: 2**30)  # room for one alone
    assert choose_workers(tasks, Quantities()).processes == 1


def test_short_work_starts_no_processes() -> None:
    assert choose_workers(tasks_for(4, 2), Quantities()).processes == 1


def test_the_estimate_counts_what_is_then_computed(tmp_path: Path) -> None:
    cache = BaseCache(tmp_path / "cache")
    tasks = tasks_for(2, 3) + tasks_for(2, 3, (1024, 2048), rank=4)
    before = estimate_cost(tasks, Quantities(), cache)
    counted = {(w.what, w.solver, w.shape): w.count for w in before.work}
    assert counted == {
        ("base", "dense", (24, 32)): 2,
        ("step", "dense", (24, 32)): 6,
        ("base", "dense", (1024, 2048)): 2,
        ("step", "low-rank", (1024, 2048)): 6,
    }
    assert before.seconds > 0 and before.worker_bytes > 8 * 5 * 1024 * 2048
    found = [d["solver"] for d, _ in compute(tasks, Quantities(), cache, workers=1)]
    assert found.count("gram") == 6 and found.count("low-rank") == 6
    after = estimate_cost(tasks, Quantities(), cache)
    assert {w.what for w in after.work} == {"step"}


def test_an_estimate_writes_nothing_and_is_empty_when_all_is_done(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    trained = tiny_model_folder(tmp_path / "trained" / "checkpoint-5", seed=1)
    said = estimate(trained, base=base, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "decompositions, about" in str(said) and said.free == 4
    analyze(trained, base=base, out=tmp_path / "run")
    assert estimate(trained, base=base, out=tmp_path / "run").work == ()


def test_a_second_run_on_the_same_base_decomposes_no_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    made = []
    real = rows_module.decompose

    def counting(w: Tensor) -> Decomposition:
        made.append(1)
        return real(w)

    monkeypatch.setattr(rows_module, "decompose", counting)
    for number in (1, 2):
        model = plain(tiny_llama())
        recorder = spectra.Recorder(tmp_path / f"run-{number}", every=1)
        with recorder.attach(model):
            shake(model, seed=number)
            recorder.step(1)
        analyze(tmp_path / f"run-{number}")
    assert len(made) == 4  # 2 layers × 2 modules, of the first run


def test_unchanged_steps_are_not_decomposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain(tiny_llama())
    recorder = spectra.Recorder(tmp_path / "run", every=1)
    with recorder.attach(model):
        recorder.step(1)  # as the base
        shake(model)
        recorder.step(2)
        recorder.step(3)  # as the step before
    made = []
    real = rows_module.follow

    def counting(*arguments, **options):
        made.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(rows_module, "follow", counting)
    monkeypatch.setattr(rows_module.BaseMatrix, "_noise_floor", lambda *_: {})
    drift = analyze(tmp_path / "run")
    assert len(made) == 4
    assert set(drift.loc[drift["step"] < 2, "solver"]) == {"unchanged"}
    second = drift[drift["step"] == 2].drop(columns=["step", "source"]).reset_index(drop=True)
    third = drift[drift["step"] == 3].drop(columns=["step", "source"]).reset_index(drop=True)
    assert second.equals(third)


def test_rows_of_every_forced_solver_agree(tmp_path: Path) -> None:
    tasks = tasks_for(1, 2, (40, 48), rank=2)
    cache = BaseCache(tmp_path / "cache")
    found = {
        solver: [d for d, _ in compute(tasks, Quantities(solver=solver), cache, workers=1)]
        for solver in ("low-rank", "gram", "svd")
    }
    for solver, drifts in found.items():
        assert {d["solver"] for d in drifts} == {solver}
        for drift, reference in zip(drifts, found["svd"], strict=True):
            numbers = {k: v for k, v in reference.items() if isinstance(v, float)}
            for name in numbers.keys() - {"residual"}:
                assert drift[name] == pytest.approx(numbers[name], abs=1e-8), (solver, name)


def test_an_interrupted_analysis_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model_folder(tmp_path / "base")
    trained = tiny_model_folder(tmp_path / "trained" / "checkpoint-5", seed=1)
    real = rows_module.BaseMatrix.drift
    done: list[int] = []

    def stopping(self, *arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rows_module.BaseMatrix, "drift", stopping)
        with pytest.raises(KeyboardInterrupt):
            analyze(trained, base=base, out=tmp_path / "run")
    assert len(Run(tmp_path / "run").drift.read()) == 3
    left = estimate(trained, base=base, out=tmp_path / "run")
    assert left.free + sum(w.count for w in left.work if w.what == "step") == 5
    assert len(analyze(trained, base=base, out=tmp_path / "run")) == 8


def test_thread_counts_are_kept_and_left_as_they_were() -> None:
    before = torch.get_num_threads(), blas_threads()
    with schedule_module._threads(1):
        assert torch.get_num_threads() == 1 and blas_threads() == {1}
    schedule_module._sample_seconds(64, 1)
    assert (torch.get_num_threads(), blas_threads()) == before


def blas_threads() -> set[int]:
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert pools
    return {pool["num_threads"] for pool in pools}
