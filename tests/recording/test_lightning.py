"""The hook inside Lightning's Trainer, of both its packages."""

from __future__ import annotations

import csv
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import spectra
from spectra.recording.lightning import LightningCallback
from spectra.store import Run
from tests.helpers import lora, plain, seeded, tiny_llama, token_rows
from tests.recording.analysing import (
    analyse,
    drift_after,
    patient_staging,  # noqa: F401
    prompt_feed,  # noqa: F401
    tensorboard_scalars,
)
from tests.recording.test_callback import assert_equal_series, series

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
ADAPTS = {"dense": plain, "lora": lambda model: lora(model, lora_dropout=0.3)}
STEPS = 5
LR = 0.1

pytestmark = [
    pytest.mark.usefixtures("patient_staging"),
    # Advice on numbers of workers and on loggers' intervals, for real trainings.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable:UserWarning"),
    # Lightning uses what PyTorch 2.13 deprecates.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    names = [*PACKAGES, "lightning.pytorch.utilities.rank_zero"]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def module(package: str, model: nn.Module, **attributes: Any) -> Any:
    """A LightningModule around a language model, which notes every loss and norm."""

    class Module(importlib.import_module(package).LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.losses: list[float] = []
            self.norms: list[float] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = self.model(input_ids=batch, labels=batch).loss
            self.losses.append(float(loss.detach()))
            self.log("my_loss", loss)
            return loss

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))
            self.log("grad_norm", self.norms[-1])

        def configure_optimizers(self) -> Any:
            trained = [p for p in self.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(trained, lr=LR, momentum=0.9)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    made = Module()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def trainer(package: str, folder: Path, *callbacks: Any, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "max_steps": STEPS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    return importlib.import_module(package).Trainer(**(defaults | options))


def batches(count: int = 30) -> Any:
    return DataLoader(list(token_rows(seed=5, rows=2 * count)), batch_size=2)  # type: ignore[arg-type]


def fit(made: Any, fitted: Any, **options: Any) -> None:
    with seeded(7):
        made.fit(fitted, batches(), **options)


@pytest.mark.parametrize("package", PACKAGES)
def test_steps_are_the_optimizers_under_gradient_accumulation(package: str, tmp_path: Path) -> None:
    callback = LightningCallback(tmp_path / "run", every=2)
    fitted = module(package, lora(tiny_llama()))
    fit(trainer(package, tmp_path, callback, accumulate_grad_batches=3), fitted)
    assert list(series(tmp_path / "run")) == [0, 2, 4, 5]
    frame = Run(tmp_path / "run").read_training()
    assert frame["step"].tolist() == [1, 2, 3, 4, 5]
    losses = torch.tensor(fitted.losses).reshape(STEPS, 3).mean(1)
    assert frame["loss"].tolist() == pytest.approx(losses.tolist(), rel=1e-6)
    assert frame["lr"].tolist() == [LR * 0.5**i for i in range(STEPS)]
    assert frame["grad_norm"].tolist() == pytest.approx(fitted.norms, rel=1e-6)
    run = Run(tmp_path / "run")
    assert (run.state, run.read_settings()["last_step"]) == ("finished", STEPS)


def test_steps_of_several_optimizers_are_the_trainers(tmp_path: Path) -> None:
    package = PACKAGES[0]

    def training_step(batch: Tensor, batch_idx: int) -> None:
        optimizers = fitted.optimizers()
        fitted.manual_backward(fitted.model(input_ids=batch, labels=batch).loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers() -> Any:
        trained = [p for p in fitted.parameters() if p.requires_grad]
        return [torch.optim.SGD(trained[i::2], lr=LR * (i + 1)) for i in range(2)]

    fitted = module(
        package,
        lora(tiny_llama()),
        automatic_optimization=False,
        training_step=training_step,
        configure_optimizers=configure_optimizers,
    )
    made = trainer(package, tmp_path, LightningCallback(tmp_path / "run", every=4), max_steps=10)
    fit(made, fitted)
    assert made.global_step == 10
    assert list(series(tmp_path / "run")) == [0, 4, 8, 10]
    frame = Run(tmp_path / "run").read_training()
    assert frame["step"].tolist() == [2, 4, 6, 8, 10]
    assert frame["lr"].tolist() == [LR] * 5


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("kind", ADAPTS)
def test_a_recorded_training_ends_in_the_same_bits(kind: str, package: str, tmp_path: Path) -> None:
    bare, recorded = (ADAPTS[kind](tiny_llama(dropout=0.2)) for _ in range(2))
    callback = LightningCallback(tmp_path / "run", every=1)
    fit(trainer(package, tmp_path / "a"), module(package, bare))
    fit(trainer(package, tmp_path / "b", callback), module(package, recorded))
    for name, tensor in bare.state_dict().items():
        assert torch.equal(tensor, recorded.state_dict()[name]), name
    assert list(series(tmp_path / "run"))[-5:] == [1, 2, 3, 4, 5]


class AnalyseBetweenSteps:
    """Mixed into a package's Callback: analyses all snapshots before the next step begins."""

    recorder: Any

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        analyse(self.recorder)


def between(package: str, callback: LightningCallback) -> Any:
    base = importlib.import_module(package).Callback
    made = type("Between", (AnalyseBetweenSteps, base), {})()
    made.recorder = callback.recorder
    return made


@pytest.mark.usefixtures("prompt_feed")
@pytest.mark.parametrize("package", PACKAGES)
def test_loggers_show_each_analysed_step_where_it_was(package: str, tmp_path: Path) -> None:
    loggers = importlib.import_module(f"{package}.loggers")
    both = [loggers.TensorBoardLogger(tmp_path / "tb"), loggers.CSVLogger(tmp_path / "csv")]
    callback = LightningCallback(tmp_path / "run", every=2)
    made = trainer(package, tmp_path, callback, between(package, callback), logger=both)
    fit(made, module(package, lora(tiny_llama())))

    rows = drift_after(tmp_path / "run")
    steps = [0, 2, 4]  # the last one's analysis comes after the loggers are closed
    expected = {step: rows[rows["step"] == step]["delta_d"].mean() for step in steps}
    shown = tensorboard_scalars(tmp_path / "tb")
    assert "my_loss" in shown
    assert shown["spectra/delta_d"] == pytest.approx(expected, rel=1e-6)
    (path,) = (tmp_path / "csv").rglob("metrics.csv")
    table = csv.DictReader(path.read_text().splitlines())
    lines = [row for row in table if row["spectra/delta_d"]]
    assert {int(r["step"]): float(r["spectra/delta_d"]) for r in lines} == pytest.approx(expected)


@pytest.mark.usefixtures("prompt_feed")
def test_a_logger_that_raises_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = PACKAGES[0]

    class Offline(importlib.import_module(f"{package}.loggers").CSVLogger):  # type: ignore[misc]
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if any("spectra" in name for name in metrics):
                raise ConnectionError("no network")

    callback = LightningCallback(tmp_path / "run", every=1)
    options = {"logger": Offline(tmp_path)}
    made = trainer(package, tmp_path, callback, between(package, callback), **options)
    fit(made, module(package, lora(tiny_llama())))
    assert made.global_step == STEPS
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warned) == 1 and "Offline" in warned[0] and "no network" in warned[0]


@pytest.mark.usefixtures("prompt_feed")
@pytest.mark.parametrize("package", PACKAGES)
def test_an_alert_stops_the_training_at_the_next_steps_end(package: str, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Any:
        callback = LightningCallback(tmp_path / name, every=1, **options)
        made = trainer(package, tmp_path, callback, between(package, callback))
        fit(made, module(package, lora(tiny_llama())))
        return made

    run("free")
    drift = drift_after(tmp_path / "free").groupby("step")["frobenius_drift"].max()
    assert drift.is_monotonic_increasing
    alert = {"column": "frobenius_drift", "above": float(drift[2] + drift[3]) / 2, "stop": True}
    assert run("run", alerts=alert).global_step == 4  # step 3's rows are there before it begins
    assert Run(tmp_path / "run").read_settings()["last_step"] == 4


@pytest.mark.parametrize("kind", ADAPTS)
def test_a_resumed_training_equals_an_undisturbed_one(kind: str, tmp_path: Path) -> None:
    package = PACKAGES[0]
    # Resuming starts the data again: the same batch at every step makes both runs equal.
    rows = list(token_rows(seed=5, rows=2))

    def run(name: str, steps: int, **options: Any) -> Any:
        made = trainer(
            package, tmp_path, LightningCallback(tmp_path / name, every=2), max_steps=steps
        )
        with seeded(7):
            fitted = module(package, (lora if kind == "lora" else plain)(tiny_llama()))
            made.fit(fitted, DataLoader(rows * 5, batch_size=2), **options)  # type: ignore[arg-type]
        return made

    run("undisturbed", STEPS)
    run("resumed", 3).save_checkpoint(tmp_path / "step-3.ckpt")
    assert list(series(tmp_path / "resumed"))[-2:] == [2, 3]
    run("resumed", STEPS, ckpt_path=tmp_path / "step-3.ckpt", weights_only=False)
    resumed = series(tmp_path / "resumed")
    resumed.pop(3)  # the first part's last
    assert_equal_series(resumed, series(tmp_path / "undisturbed"))
    columns = ["step", "loss", "lr"]
    frames = [Run(tmp_path / n).read_training()[columns] for n in ("resumed", "undisturbed")]
    assert frames[0].to_dict("list") == frames[1].to_dict("list")


@pytest.mark.parametrize(
    ("raised", "seen"), [(ZeroDivisionError, ZeroDivisionError), (KeyboardInterrupt, SystemExit)]
)
def test_a_training_that_raises_leaves_an_interrupted_run(
    raised: type[BaseException], seen: type[BaseException], tmp_path: Path
) -> None:
    package = PACKAGES[0]
    fitted = module(package, lora(tiny_llama()))
    take_step = fitted.training_step

    def training_step(batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 3:
            raise raised
        return take_step(batch, batch_idx)

    fitted.training_step = training_step
    made = trainer(package, tmp_path, LightningCallback(tmp_path / "run", every=2))
    with pytest.raises(seen):
        fit(made, fitted)
    run = Run(tmp_path / "run")
    assert run.state == "interrupted"
    assert run.read_training()["step"].tolist() == [1, 2, 3]
    assert list(series(tmp_path / "run")) == [0, 2]


def test_an_error_of_ours_is_logged_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = PACKAGES[0]
    callback = LightningCallback(tmp_path / "run")

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(callback.recorder, "step", broken)
    made = trainer(package, tmp_path, callback)
    fit(made, module(package, lora(tiny_llama())))
    assert made.global_step == STEPS
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert told == ["Spectra failed in on_train_batch_end; training goes on."]


def test_what_is_wrong_with_the_model_is_said_before_training(tmp_path: Path) -> None:
    fitted = module(PACKAGES[0], lora(tiny_llama()))
    made = trainer(PACKAGES[0], tmp_path, LightningCallback(tmp_path / "run", modules=["no_such"]))
    with pytest.raises(ValueError, match="no_such"):
        fit(made, fitted)
    assert fitted.losses == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_callback_is_public_and_of_both_packages(package: str) -> None:
    assert spectra.LightningCallback is LightningCallback
    assert issubclass(LightningCallback, importlib.import_module(package).Callback)
