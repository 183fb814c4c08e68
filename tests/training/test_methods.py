"""Every method of the trainer, held to the same: one line a method."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import spectra.methods  # noqa: F401  so that PEFT loads our adapters
from checkpoints_index import find_snapshots
from spectra.analysis import analyze
from spectra.store import Run
from spectra.training import METHODS, TrainSettings, trainer
from spectra.training.adaptation import adapt
from spectra.training.trainer import FINAL, train
from tests.helpers import token_rows
from tests.training.tiny_runs import PAIRS, SAVE_EVERY, STEPS, settings, trained_parameters

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """One method, and what is promised of it.

    Attributes
    ----------
    method : str
        Its name.
    rate : float
        Learning rate of the tests.
    fall : float
        What share of the loss of the first three steps is gone in the last three of `STEPS`.
    exact : bool
        Whether step 0 computes, to the bit, what the base does.
    changes : dict
        Other settings.
    """

    method: str
    rate: float
    fall: float
    exact: bool = True
    changes: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("full-ft", 3e-3, 0.3),
    Case("partial-ft", 1e-2, 0.1),
    Case("lora", 1e-2, 0.05),
    Case("rslora", 1e-2, 0.05),
    Case("dora", 1e-2, 0.05, exact=False),
    Case("olora", 1e-2, 0.05, exact=False),
    Case("pissa", 1e-2, 0.05, exact=False),
    Case("adalora", 1e-1, 0.05, changes={"options": {"final_share": 0.2}}),
    Case("sorsa", 1e-2, 0.05),
    Case("sorsa-noreg", 1e-2, 0.05),
    Case("milora", 1e-2, 0.05),
    Case("svf", 3e-2, 0.05),
    Case("svft", 3e-2, 0.05, changes={"options": {"pattern": "banded"}}),
    Case("lora-xs", 3e-2, 0.05),
    Case("galore", 3e-3, 0.05, changes={"options": {"update_proj_gap": 3}}),
    Case("lisa", 3e-3, 0.05, changes={"options": {"active_layers": 1, "interval": 3}}),
]


def chosen(case: Case) -> TrainSettings:
    return settings(case.method, learning_rate=case.rate, **case.changes)


@dataclass
class Trained:
    """A finished run of one method, and the model as it was trained."""

    case: Case
    run: Run
    model: Any


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.method)
def trained(
    request: pytest.FixtureRequest, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    models = []

    def noted(*arguments: Any) -> nn.Module:
        models.append(adapt(*arguments))
        return models[-1]

    folder = tmp_path_factory.mktemp(request.param.method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "adapt", noted)
        run = train(model_folder, PAIRS, folder / "run", chosen(request.param), progress=False)
    yield Trained(request.param, run, models[0])


@pytest.fixture(scope="module")
def killed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of every method that was killed while it saved a checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    runs = {case.method: folder / case.method for case in CASES}
    every = [(str(runs[case.method]), chosen(case).as_dict()) for case in CASES]
    code = (
        "import json, sys; from pathlib import Path\n"
        "from spectra.training import TrainSettings\n"
        "from tests.training.tiny_runs import kill_each\n"
        "runs = [(Path(out), TrainSettings(**given)) for out, given in json.load(sys.stdin)]\n"
        f"kill_each(Path({str(model_folder)!r}), runs)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(every),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {method: Run(path) for method, path in runs.items()}


@pytest.fixture(scope="module")
def first_loss(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The base's loss on the first batch."""
    out = tmp_path_factory.mktemp("first") / "run"
    run = train(model_folder, PAIRS, out, settings("partial-ft", max_steps=1), progress=False)
    return float(run.read_training()["loss"].iloc[0])


def base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def loaded(trained: Trained, folder: Path) -> Any:
    """What the run gave, on the original base."""
    final = trained.run.path / FINAL
    if not (final / "adapter_config.json").is_file():
        return base(final)
    return peft.PeftModel.from_pretrained(base(folder), final)


def merged_exactly(model: Any) -> Any:
    """A copy of the model, merged in float64."""
    model = copy.deepcopy(model).double()
    return model.merge_and_unload() if hasattr(model, "peft_config") else model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(token_rows()).logits


def close(found: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of a few float32 layers."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def tensors(folder: Path) -> dict[str, Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def test_every_method_has_a_line() -> None:
    assert [case.method for case in CASES] == list(METHODS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_step_0_computes_what_the_base_does(case: Case, model_folder: Path) -> None:
    expected = logits(base(model_folder))
    torch.manual_seed(0)
    found = logits(adapt(base(model_folder), chosen(case)))
    if case.exact:
        assert torch.equal(found, expected)
    else:
        close(found, expected)


def test_its_first_loss_is_the_bases_on_the_same_data(trained: Trained, first_loss: float) -> None:
    assert trained.run.read_training()["loss"].iloc[0] == pytest.approx(first_loss, abs=1e-5)


def test_it_learns(trained: Trained) -> None:
    rows = trained.run.read_training()
    assert rows["step"].tolist() == list(range(1, STEPS + 1))
    assert rows[["loss", "grad_norm", "lr", "seconds"]].notna().all(axis=None)
    regularized = trained.case.method in ("sorsa", "sorsa-noreg", "adalora")
    assert rows["ortho_loss"].notna().all() == regularized
    loss = rows["loss"]
    assert loss.iloc[-3:].mean() < (1 - trained.case.fall) * loss.iloc[:3].mean()


def test_its_run_says_what_it_was_and_what_it_cost(trained: Trained) -> None:
    stored, model = trained.run.read_settings(), trained.model
    assert (stored["method"], stored["state"]) == (trained.case.method, "finished")
    resolved = chosen(trained.case).as_dict()
    assert {name: stored["settings"][name] for name in resolved} == resolved
    cost = stored["cost"]
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert cost["trainable_parameters"] == count == promised(trained)
    assert 0 < cost["seconds_per_step"] < 60 and cost["peak_memory"] > 2**20
    assert not trained.run.checkpoints_path.exists()


def promised(trained: Trained) -> int:
    method = METHODS[trained.case.method]
    if method.trains_everything:
        return sum(p.numel() for p in trained.model.parameters())
    return trained_parameters(method.name, [(32, 32), (16, 32)] * 2, chosen(trained.case))


def test_what_it_gives_is_the_trained_model_on_the_original_base(
    trained: Trained, model_folder: Path
) -> None:
    expected = logits(trained.model)
    assert (expected - logits(base(model_folder))).abs().max() > 0.01
    close(logits(loaded(trained, model_folder)), expected)


def test_merged_it_computes_the_same(trained: Trained, model_folder: Path) -> None:
    model = loaded(trained, model_folder)
    expected = logits(model)
    close(logits(model.merge_and_unload() if hasattr(model, "peft_config") else model), expected)


def test_it_is_recorded_and_its_drift_is_the_merged_weights(
    trained: Trained, model_folder: Path, tmp_path: Path
) -> None:
    run, method = trained.run, METHODS[trained.case.method]
    steps = [snapshot.step for snapshot in find_snapshots(run.snapshots_path)]
    dense = method.trains_everything or method.name == "partial-ft"  # step 0 is the base
    recorded = [0, SAVE_EVERY, 2 * SAVE_EVERY, STEPS]
    assert steps == (recorded[1:] if dense else recorded)
    drift = analyze(run.path)
    assert set(drift["step"]) == set(recorded) and set(drift["method"]) == {method.name}
    rows = drift.query(f"step == {STEPS}")
    assert len(rows) == 4
    assert rows["delta_sigma"].mean() > 1e-4  # AdaLoRA may leave a layer no rank at all

    # What a method subtracted from the base was rounded: W_0 is what is left and what it took.
    begun = base(model_folder)
    if method.rewrites_base:
        begun = merged_exactly(adapt(begun, chosen(trained.case)))
    begun.save_pretrained(tmp_path / "base")
    merged_exactly(trained.model).save_pretrained(tmp_path / "trained" / f"checkpoint-{STEPS}")
    expected = analyze(
        tmp_path / "trained", base=str(tmp_path / "base"), out=tmp_path / "run"
    ).query("step > 0")
    keys, quantities = ["layer", "module"], ["delta_sigma", "delta_d", "frobenius_drift"]
    np.testing.assert_allclose(
        rows.set_index(keys)[quantities].sort_index(),
        expected.set_index(keys)[quantities].sort_index(),
        rtol=0,
        atol=1e-8,
    )


def test_killed_it_ends_like_an_undisturbed_run(
    trained: Trained, killed: dict[str, Run], model_folder: Path
) -> None:
    run = killed[trained.case.method]
    assert not (run.path / FINAL).exists()
    assert (run.checkpoints_path / f"checkpoint-{SAVE_EVERY}" / "complete").is_file()
    assert (run.checkpoints_path / f"checkpoint-{2 * SAVE_EVERY}").is_dir()
    train(model_folder, PAIRS, run.path, chosen(trained.case), progress=False)

    columns = ["step", "loss", "grad_norm", "lr", "ortho_loss"]
    pd.testing.assert_frame_equal(
        run.read_training()[columns], trained.run.read_training()[columns]
    )
    equal(tensors(run.path / FINAL), tensors(trained.run.path / FINAL))
    for path in trained.run.snapshots_path.glob("step-*"):
        equal(load_file(run.snapshots_path / path.name), load_file(path))


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
