"""What `spectra export` writes, loaded by a process that has no Spectra."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import spectra
from spectra.exporting import Exported
from spectra.methods import SorsaConfig
from tests.helpers import MODULES, seeded, shake, tiny_llama, tiny_model_folder, token_rows

# Loads what was exported and saves its logits, without this project.
OUTSIDE = """
import json, sys
sys.modules["spectra"] = sys.modules["checkpoints_index"] = None
import peft, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

base, tokens, exported, out = json.loads(sys.argv[1])
rows, logits = torch.tensor(tokens), {}
with torch.no_grad():
    for name, folder in exported.items():
        if name.startswith("merged "):
            model = AutoModelForCausalLM.from_pretrained(folder)
        else:
            model = AutoModelForCausalLM.from_pretrained(base)
            model = peft.PeftModel.from_pretrained(model, folder)
        logits[name] = model.eval()(rows).logits
save_file(logits, out)
"""


@dataclass(frozen=True)
class Method:
    """A method's configuration and what its exported adapter is.

    Attributes
    ----------
    config : callable
        Makes the configuration for `tiny_llama`, rank 3 where it has one.
    rank : int
        Of the exported adapter.
    """

    config: Callable[[], peft.PeftConfig]
    rank: int


def _on(kind: Callable[..., peft.PeftConfig], **options: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: kind(**({"target_modules": list(MODULES)} | options))


METHODS = {
    "SORSA": Method(_on(SorsaConfig, r=3), 6),
    "SORSA on some layers": Method(_on(SorsaConfig, r=3, layers_to_transform=[1]), 6),
    "SORSA of full rank": Method(_on(SorsaConfig, r=16), 32),
    "PiSSA": Method(_on(peft.LoraConfig, r=3, lora_alpha=3, init_lora_weights="pissa"), 6),
    "PiSSA, scaled": Method(
        _on(peft.LoraConfig, r=3, lora_alpha=2, use_rslora=True, init_lora_weights="pissa"), 6
    ),
    "OLoRA": Method(_on(peft.LoraConfig, r=3, init_lora_weights="olora"), 6),
    "LoRA": Method(_on(peft.LoraConfig, r=3, lora_alpha=8), 3),
    "rsLoRA with several ranks": Method(
        _on(
            peft.LoraConfig,
            r=3,
            use_rslora=True,
            rank_pattern={"q_proj": 5},
            alpha_pattern={"layers.1.self_attn.v_proj": 3},
        ),
        5,
    ),
    "AdaLoRA": Method(_on(peft.AdaLoraConfig, init_r=4, total_step=10), 4),
    "whole head": Method(_on(SorsaConfig, r=3, modules_to_save=["lm_head"]), 6),
}


@dataclass(frozen=True)
class Done:
    """One method's adapter, what it was exported to, and the trained model's logits."""

    adapter: Path
    exported: Exported
    merged: Exported
    logits: Tensor


def adapted(config: peft.PeftConfig) -> Any:
    with seeded(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(tiny_llama(), config)


def trained(config: peft.PeftConfig, folder: Path, **options: Any) -> Any:
    """A model whose adapter has been moved and written to `folder` as PEFT does."""
    model = adapted(config)
    shake(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder), **options)
    return model.eval()


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    return model(token_rows()).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def done(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    root = tmp_path_factory.mktemp("exported")
    found = {}
    for name, method in METHODS.items():
        model = trained(method.config(), root / name / "adapter")
        found[name] = Done(
            root / name / "adapter",
            spectra.export(root / name / "adapter", root / name / "lora", base=base),
            spectra.export(root / name / "adapter", root / name / "merged", base=base, merged=True),
            logits_of(model),
        )
    return found


@pytest.fixture(scope="module")
def outside(base: Path, done: dict[str, Done], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Logits of all that was exported, computed where this project cannot be imported."""
    folder = tmp_path_factory.mktemp("outside")
    paths = {name: str(d.exported.path) for name, d in done.items()}
    paths |= {f"merged {name}": str(d.merged.path) for name, d in done.items()}
    given = json.dumps([str(base), token_rows().tolist(), paths, str(folder / "logits")])
    command = [sys.executable, "-W", "ignore", "-c", OUTSIDE, given]
    subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True)
    return load_file(folder / "logits")


@pytest.mark.parametrize("form", ["", "merged "])
@pytest.mark.parametrize("name", METHODS)
def test_it_gives_the_trained_models_logits_without_this_project(
    name: str, form: str, done: dict[str, Done], outside: dict[str, Tensor]
) -> None:
    expected = done[name].logits
    # Products in another order, through two layers: some units of float32 rounding.
    tolerance = 64 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    torch.testing.assert_close(outside[form + name], expected, rtol=0, atol=tolerance)
    with torch.no_grad():
        moved = (logits_of(tiny_llama().eval()) - expected).abs().max()
    assert moved > 1000 * tolerance
