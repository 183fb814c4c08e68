"""PiSSA and OLoRA: the same residual when a run goes on, and a plain LoRA at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spectra.training.adaptation import adapt
from spectra.training.residuals import initial_factors, save_as_lora
from tests.helpers import MODULES, attention_weights, shake, tiny_llama
from tests.training.tiny_runs import settings


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_with_the_initial_factors_given_it_is_what_peft_makes(method: str) -> None:
    peft_made: Any = adapt(tiny_llama(), settings(method, alpha=5.0))
    given: Any = adapt(tiny_llama(), settings(method, alpha=5.0), initial_factors(peft_made))
    expected, found = peft_made.state_dict(), given.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    begun = given.peft_config["default"].init_lora_weights
    assert begun == peft_made.peft_config["default"].init_lora_weights


def test_given_factors_are_taken_and_not_computed_again() -> None:
    """Singular vectors of the other sign, as another machine may find: the product is the same."""
    model: Any = adapt(tiny_llama(), settings("pissa"))
    flipped = {name: -factor for name, factor in initial_factors(model).items()}
    again: Any = adapt(tiny_llama(), settings("pissa"), flipped)
    assert all(torch.equal(t, flipped[name]) for name, t in initial_factors(again).items())
    for name, weight in attention_weights(model.get_base_model(), ("base_layer",)).items():
        assert torch.equal(again.get_base_model().get_submodule(name).weight, weight)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_the_lora_at_the_end_is_the_update_without_rounding(method: str, tmp_path: Path) -> None:
    model: Any = adapt(tiny_llama(), settings(method, alpha=5.0))
    initial = initial_factors(model)
    shake(model)
    save_as_lora(model, initial, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (6, 10.0, True)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    paths = [n for n, _ in tiny_llama().named_modules() if n.split(".")[-1] in MODULES]
    for path, layer in zip(paths, layers, strict=True):
        b, a = (layer.lora_B["default"].weight.double(), layer.lora_A["default"].weight.double())
        b_0, a_0 = (initial[f"{path}.{name}"].double() for name in ("lora_B", "lora_A"))
        name = f"base_model.model.{path}"
        lora = saved[f"{name}.lora_B.weight"].double() @ saved[f"{name}.lora_A.weight"].double()
        torch.testing.assert_close(lora, b @ a - b_0 @ a_0, rtol=0, atol=1e-14)
