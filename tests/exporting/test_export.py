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
from safetensors.torch import load_file
from torch import Tensor

import spectra
from spectra.exporting import Exported
from spectra.methods import LoraXsConfig, MiloraConfig, SorsaConfig, SvfConfig, SvftConfig
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
    "MiLoRA": Method(_on(MiloraConfig, r=3), 6),
    "LoRA-XS": Method(_on(LoraXsConfig, r=3), 3),
    "SVF": Method(_on(SvfConfig), 32),
    "SVF with its vectors": Method(_on(SvfConfig, save_vectors=True), 32),
    "SVFT": Method(_on(SvftConfig), 32),
    "SVFT, banded": Method(_on(SvftConfig, pattern="banded", off_diagonals=2), 32),
    "SVFT, random": Method(_on(SvftConfig, pattern="random", off_diagonals=1), 32),
    "SVFT, top-k": Method(
        _on(SvftConfig, pattern="top-k", off_diagonals=1, target_modules=["q_proj"]), 32
    ),
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


LAYERS = {f"model.layers.{i}.self_attn.{module}" for i in range(2) for module in MODULES}


def adapted_layers(name: str) -> set[str]:
    return {
        layer
        for layer in LAYERS
        if not ("some layers" in name and ".0." in layer or "top-k" in name and "v_proj" in layer)
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


@pytest.mark.parametrize("name", METHODS)
def test_it_is_a_lora_as_every_server_wants_it(name: str, done: dict[str, Done]) -> None:
    folder, rank = done[name].exported.path, METHODS[name].rank
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    assert settings["r"] == settings["lora_alpha"] == rank == done[name].exported.rank
    assert not settings["use_rslora"] and not settings["use_dora"]
    assert settings["bias"] == "none" and not settings["lora_bias"]
    assert settings["rank_pattern"] == settings["alpha_pattern"] == {}
    assert isinstance(settings["target_modules"], list)
    tensors = load_file(folder / "adapter_model.safetensors")
    expected = {
        f"base_model.model.{layer}.lora_{side}.weight": shape
        for layer in adapted_layers(name)
        for side, shape in (("A", (rank, 32)), ("B", (32 if "q_proj" in layer else 16, rank)))
    }
    if name == "whole head":
        expected["base_model.model.lm_head.weight"] = (14, 32)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("name", METHODS)
def test_its_targets_match_the_adapted_layers_and_nothing_else(
    name: str, done: dict[str, Done]
) -> None:
    config = peft.LoraConfig.from_pretrained(str(done[name].exported.path))
    config.modules_to_save = None
    targeted = adapted(config).base_model.targeted_module_names
    assert set(targeted) == adapted_layers(name)


@pytest.mark.parametrize("name", METHODS)
def test_a_merged_model_is_w_t_rounded_once_and_the_base_elsewhere(
    name: str, base: Path, done: dict[str, Done]
) -> None:
    before = load_file(base / "model.safetensors")
    after = load_file(done[name].merged.path / "model.safetensors")
    factors = load_file(done[name].exported.path / "adapter_model.safetensors")
    for tensor, w_0 in before.items():
        path = f"base_model.model.{tensor.removesuffix('.weight')}"
        if f"{path}.lora_B.weight" in factors:
            b, a = (factors[f"{path}.lora_{side}.weight"].double() for side in "BA")
            # Half a unit of W_t, and the rounding of the factors.
            eps = torch.finfo(torch.float32).eps
            tolerance = eps * float(w_0.abs().max() + (b @ a).norm() + b.norm() * a.norm())
            torch.testing.assert_close(
                after[tensor].double(), w_0.double() + b @ a, rtol=0, atol=tolerance
            )
            assert after[tensor].dtype == w_0.dtype
        elif f"{path}.weight" in factors:
            assert torch.equal(after[tensor], factors[f"{path}.weight"])
        else:
            assert torch.equal(after[tensor], w_0)
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in done[name].merged.path.iterdir()} == names
    for config in names - {"model.safetensors"}:
        assert (done[name].merged.path / config).read_bytes() == (base / config).read_bytes()


def test_sorsa_merges_to_what_its_own_merge_gives_bit_for_bit(
    base: Path, tmp_path: Path, done: dict[str, Done]
) -> None:
    model = trained(METHODS["SORSA"].config(), tmp_path / "adapter").merge_and_unload()
    merged = load_file(done["SORSA"].merged.path / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(merged[name], parameter)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_factors_of_16_bits_err_by_a_share_of_the_update(
    dtype: str, base: Path, tmp_path: Path
) -> None:
    model = trained(SorsaConfig(r=3, target_modules=list(MODULES)), tmp_path / "adapter")
    spectra.export(tmp_path / "adapter", tmp_path / "lora", base=base, dtype=dtype)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    for layer in LAYERS:
        b, a = (tensors[f"base_model.model.{layer}.lora_{side}.weight"].double() for side in "BA")
        update = model.get_submodule(f"base_model.model.{layer}").get_delta_weight("default")
        error = torch.linalg.matrix_norm(b @ a - update)
        eps = torch.finfo(getattr(torch, dtype)).eps
        # As in test_factors: √6 for the six columns.
        assert error < 2 * 6**0.5 * eps * torch.linalg.matrix_norm(update)


def test_a_sharded_base_of_16_bits_keeps_its_shards_and_its_dtype(tmp_path: Path) -> None:
    whole = tiny_llama(dtype=torch.bfloat16)
    whole.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    shards = sorted(path.name for path in (tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 2
    model = peft.get_peft_model(whole, SorsaConfig(r=3, target_modules=list(MODULES)))
    shake(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    spectra.export(tmp_path / "adapter", tmp_path / "merged", base=tmp_path / "base", merged=True)
    assert sorted(p.name for p in (tmp_path / "merged").glob("*.safetensors")) == shards
    expected = model.merge_and_unload().state_dict()
    for shard in shards:
        for name, tensor in load_file(tmp_path / "merged" / shard).items():
            assert torch.equal(tensor, expected[name]), name


def test_an_untrained_adapter_is_the_base(base: Path, tmp_path: Path) -> None:
    adapted(SorsaConfig(r=3, target_modules=list(MODULES))).save_pretrained(tmp_path / "adapter")
    assert spectra.export(tmp_path / "adapter", tmp_path / "lora", base=base).rank == 1
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert not any(tensor.any() for tensor in tensors.values())
    spectra.export(tmp_path / "adapter", tmp_path / "merged", base=base, merged=True)
    same = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert same == (base / "model.safetensors").read_bytes()


def test_directions_that_were_not_trained_are_left_out(base: Path, tmp_path: Path) -> None:
    model = adapted(SvfConfig(target_modules=list(MODULES)))
    for name, parameter in model.named_parameters():
        if "svf_delta" in name:
            parameter.data[[1, 4]] = torch.tensor([0.3, -0.2])
    model.save_pretrained(tmp_path / "adapter")
    assert spectra.export(tmp_path / "adapter", tmp_path / "lora", base=base).rank == 2


def test_conv1d_layers_leave_as_peft_has_them(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=14,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        bos_token_id=None,
        eos_token_id=2,
    )
    with seeded(0):
        model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base")
    options = peft.LoraConfig(
        r=3, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights="pissa"
    )
    tuned = peft.get_peft_model(model, options)
    shake(tuned)
    tuned.save_pretrained(str(tmp_path / "adapter"))
    expected = logits_of(tuned.eval())
    spectra.export(tmp_path / "adapter", tmp_path / "lora", base=tmp_path / "base")
    spectra.export(tmp_path / "adapter", tmp_path / "merged", base=tmp_path / "base", merged=True)
    plain = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    loaded: Any = peft.PeftModel.from_pretrained(plain, str(tmp_path / "lora"))
    merged: Any = GPT2LMHeadModel.from_pretrained(tmp_path / "merged")
    tolerance = 64 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    for other in (loaded, merged):
        torch.testing.assert_close(logits_of(other.eval()), expected, rtol=0, atol=tolerance)
