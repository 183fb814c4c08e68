"""AdaLoRA's callback: when ranks are taken away, how many, and what a resumed run remembers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints_index import find_snapshots
from spectra.store import Run
from spectra.training import TrainSettings
from spectra.training.cost import CostCallback
from spectra.training.trainer import FINAL, train
from tests.training.tiny_runs import PAIRS, SAVE_EVERY, settings

ADAPTER = "adapter_model.safetensors"
# 12 steps: step 1 has all ranks, 2 to 6 lose some, 7 to 12 keep what is left.
PHASES = {"initial_share": 0.1, "final_share": 0.5, "init_rank": 5}


def chosen(**changes: object) -> TrainSettings:
    return settings("adalora", learning_rate=0.1, options=PHASES | changes, every=1)


def ranks(snapshot: Path) -> int:
    """Ranks that are not zero, in all four matrices."""
    stored = load_file(snapshot)
    return sum(int((t != 0).sum()) for name, t in stored.items() if name.endswith("lora_e"))


@pytest.fixture(scope="module")
def run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("adalora") / "run"
    return train(model_folder, PAIRS, out, chosen(), progress=False)


def test_ranks_fall_from_the_initial_to_the_final_budget(run: Run) -> None:
    """The cubic schedule of the paper's Eq. 12: b(t) = b_T + (b_0 − b_T) (1 − t')³."""
    found = [ranks(Path(s.path)) for s in find_snapshots(run.snapshots_path)]
    start, end = 4 * 5, 4 * 3
    falling = [int(end + (start - end) * (1 - (step - 1) / 5) ** 3) for step in range(2, 7)]
    # Step 0 has zeros everywhere, as LoRA's B; the first learning rate of the warm-up is 0.
    assert found[2:] == [*falling, *[end] * 6]


def test_the_scaling_is_alpha_over_rank_whatever_the_initial_rank(run: Run) -> None:
    config = json.loads((run.path / FINAL / "adapter_config.json").read_text())
    assert config["lora_alpha"] / config["init_r"] == pytest.approx(1.0)
    assert (config["total_step"], config["tinit"], config["tfinal"]) == (12, 1, 6)
    assert config["orth_reg_weight"] == 0.5 and config["target_r"] == 3


def test_the_regularizer_acts(run: Run, model_folder: Path, tmp_path: Path) -> None:
    free = train(model_folder, PAIRS, tmp_path / "run", chosen(orthogonal=0), progress=False)
    held, unheld = (r.read_training()["ortho_loss"] for r in (run, free))
    assert held.iloc[0] == unheld.iloc[0]
    assert held.iloc[-1] < 0.8 * unheld.iloc[-1]


def test_a_run_that_is_stopped_after_its_last_allocation_keeps_the_ranks(
    run: Run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while ranks are taken away, it is in `test_methods`."""
    steps = itertools.count()

    def stop(*_: object, **__: object) -> None:
        if next(steps) == 2 * SAVE_EVERY + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CostCallback, "on_step_begin", stop)
        train(model_folder, PAIRS, tmp_path / "run", chosen(), progress=False)
    resumed = train(model_folder, PAIRS, tmp_path / "run", chosen(), progress=False)
    assert resumed.read_training()["loss"].equals(run.read_training()["loss"])
    expected, found = (load_file(r.path / FINAL / ADAPTER) for r in (run, resumed))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_too_few_steps_for_its_phases_are_refused(model_folder: Path, tmp_path: Path) -> None:
    few = settings("adalora", max_steps=3, options={"initial_share": 0.4, "final_share": 0.4})
    with pytest.raises(ValueError, match="of 3 steps they take 1 and 1. Give more steps"):
        train(model_folder, PAIRS, tmp_path / "run", few, progress=False)


def test_an_initial_rank_that_is_not_above_the_final_one_is_refused() -> None:
    with pytest.raises(ValueError, match="init_rank must be above the final mean rank 3, got 3"):
        settings("adalora", options={"init_rank": 3})
