"""The hook from a configuration alone: ``module:Class`` and plain values, read from YAML."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from spectra.recording.callback import SpectraCallback
from spectra.store import Run
from tests.helpers import lora, tiny_llama, train_steps
from tests.recording import test_callback, test_lightning
from tests.recording.analysing import patient_staging  # noqa: F401
from tests.recording.test_callback import series

pytestmark = test_lightning.pytestmark

CONFIGURATION = """
hook: {hook}
options:
  run: {run}
  modules: ["re:.*layers[.][01][.]self_attn[.]v_proj", q_proj]
  every: {every}
  method: mine
  settings: {{rank: 3}}
  alerts:
    - {{column: kappa, above: 1e4, modules: q_proj}}
    - {{column: ortho_u, factor: 3, stop: true}}
    - tests.recording.test_configuration:far
"""
HOOKS = ("spectra:Recorder", "spectra:SpectraCallback", "spectra:LightningCallback")
EVERY = {"2": [0, 2, 4, 5], "[1, 3]": [0, 1, 3, 5], "log:3": [0, 1, 2, 5]}


def far(rows: Any) -> str | None:
    """An alert that a configuration names."""
    return "far" if rows["delta_d"].max() > 0.5 else None


def configured(text: str) -> Any:
    """What a trainer does that takes callbacks from its configuration."""
    configuration = yaml.safe_load(text)
    module, _, name = configuration["hook"].partition(":")
    return getattr(importlib.import_module(module), name)(**configuration["options"])


def train(hook: Any, folder: Path) -> None:
    model = lora(tiny_llama())
    if isinstance(hook, SpectraCallback):
        test_callback.trainer(folder / "out", model, hook).train()
    elif hasattr(hook, "recorder"):
        package = "lightning.pytorch"
        made = test_lightning.trainer(package, folder / "out", hook)
        test_lightning.fit(made, test_lightning.module(package, model))
    else:
        with hook.attach(model):
            for step, loss in train_steps(model, 1, 5):
                hook.step(step, loss=loss)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("every", EVERY)
def test_a_hook_is_made_and_works_from_plain_values(hook: str, every: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(configured(CONFIGURATION.format(hook=hook, run=run, every=every)), tmp_path)
    found = series(run)
    assert list(found) == EVERY[every]
    names = [f"model.layers.{i}.self_attn.{m}" for i in (0, 1) for m in ("q_proj", "v_proj")]
    assert sorted(name[name.index("model.layers") :] for name in found[5]) == names
    settings = Run(run).read_settings()
    assert (settings["method"], settings["settings"]) == ("mine", {"rank": 3})
    assert settings["state"] == "finished"


@pytest.mark.parametrize("hook", HOOKS)
def test_a_wrong_value_is_refused_when_the_hook_is_made(hook: str, tmp_path: Path) -> None:
    text = CONFIGURATION.format(hook=hook, run=tmp_path / "run", every="2")
    with pytest.raises(ValueError, match="column must be one of"):
        configured(text.replace("kappa", "kapppa"))


def test_axolotls_plugin_adds_the_callback_of_its_yaml_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it asks of a plugin, as documented; it is no dependency of the tests.
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = type("BasePlugin", (), {})  # type: ignore[attr-defined]
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "spectra.recording.axolotl", raising=False)
    module = importlib.import_module("spectra.recording.axolotl")

    text = f"spectra: {{run: {tmp_path / 'run'}, every: 2, modules: [v_proj]}}"
    plugin = module.SpectraPlugin()
    where, name = plugin.get_input_args().rsplit(".", 1)
    arguments = getattr(importlib.import_module(where), name)(**yaml.safe_load(text))
    (callback,) = plugin.add_callbacks_post_trainer(arguments, trainer=SimpleNamespace())
    train(callback, tmp_path)
    assert list(series(tmp_path / "run")) == [0, 2, 4, 5]
    assert plugin.add_callbacks_post_trainer(module.SpectraArgs(), trainer=None) == []
