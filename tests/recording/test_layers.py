"""Which layers are recorded, under which names, and which are refused."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

from spectra.recording.layers import find_layers
from tests.helpers import MODULES, lora, plain, sorsa, tiny_llama

NAMES = {f"model.layers.{layer}.self_attn.{module}" for layer in range(2) for module in MODULES}


class Wrapper(nn.Module):
    """A model inside another under one name, as DDP and torch.compile have it."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.add_module(name, model)


def kinds(model: nn.Module, modules: tuple[str, ...] = MODULES) -> dict[str, str]:
    return {layer.name: layer.kind for layer in find_layers(model, modules)}


ADAPTS = {"dense": plain, "lora": lora, "sorsa": sorsa}


@pytest.mark.parametrize("kind", ADAPTS)
def test_every_layer_is_found_once_with_its_kind(kind: str) -> None:
    assert kinds(ADAPTS[kind](tiny_llama())) == dict.fromkeys(NAMES, kind)


@pytest.mark.parametrize("kind", ADAPTS)
@pytest.mark.parametrize("wrappers", [["_orig_mod"], ["module"], ["module", "_orig_mod"]])
def test_wrappers_do_not_show(kind: str, wrappers: list[str]) -> None:
    model = ADAPTS[kind](tiny_llama())
    for name in wrappers:
        model = Wrapper(name, model)
    assert kinds(model) == dict.fromkeys(NAMES, kind)


def test_compiled_models_have_clean_names() -> None:
    # Compilation itself happens at the first forward, which is not needed here.
    compiled: Any = torch.compile(plain(tiny_llama()), backend="eager")
    assert kinds(compiled) == dict.fromkeys(NAMES, "dense")


def test_frozen_layers_are_not_recorded() -> None:
    model = plain(tiny_llama())
    model.model.layers[0].self_attn.q_proj.requires_grad_(False)
    assert kinds(model).keys() == NAMES - {"model.layers.0.self_attn.q_proj"}


def test_layers_without_an_adapter_are_not_recorded_beside_adapted_ones() -> None:
    model = lora(tiny_llama(), layers_to_transform=[1])
    assert kinds(model) == {name: "lora" for name in NAMES if ".1." in name}


def test_globs_choose_layers() -> None:
    assert {n.rsplit(".", 1)[1] for n in kinds(tiny_llama(), ("*_proj",))} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }


@pytest.mark.parametrize("kind", ["lora", "sorsa"])
def test_the_inside_of_an_adapter_is_no_layer(kind: str) -> None:
    # "*" also matches the names of lora_A's and dropout's entries.
    model = ADAPTS[kind](tiny_llama(), **{f"{kind}_dropout": 0.1})
    assert kinds(model, ("*",)) == dict.fromkeys(NAMES, kind)


# Refusals.


@pytest.mark.parametrize("modules", [("query",), (), ("Q_PROJ",)])
def test_no_matching_layer_is_an_error_that_names_some(modules: tuple[str, ...]) -> None:
    message = r"No trained layer matches modules=.*e\.g\. model\.layers\.0\.self_attn\.q_proj.*"
    with pytest.raises(ValueError, match=message + "Name yours with modules="):
        find_layers(tiny_llama(), modules)


def test_a_model_without_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match="the model has e.g. no layers with weights"):
        find_layers(nn.Linear(2, 3), MODULES)


def test_a_frozen_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="after adapters are added and parameters are frozen"):
        find_layers(tiny_llama().requires_grad_(False), MODULES)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "KaSA": ({"kasa_config": peft.KasaConfig()}, "KasaLinearVariant"),
    "aLoRA": (
        {"alora_invocation_tokens": [3], "task_type": "CAUSAL_LM"},
        "alora_invocation_tokens",
    ),
}


@pytest.mark.parametrize("wrappers", [[], ["_orig_mod"], ["module", "_orig_mod"]])
@pytest.mark.parametrize("name", OTHERS)
def test_other_loras_are_refused(name: str, wrappers: list[str]) -> None:
    options, told = OTHERS[name]
    model: nn.Module = lora(tiny_llama(), **options)
    for wrapper in wrappers:
        model = Wrapper(wrapper, model)
    with pytest.raises(ValueError, match=f"LoRA with .*{told}.* is not recorded; recorded are"):
        find_layers(model, MODULES)


def test_a_lora_with_another_start_is_recorded() -> None:
    assert kinds(lora(tiny_llama(), init_lora_weights="gaussian")) == dict.fromkeys(NAMES, "lora")


@pytest.mark.parametrize("adapt", [lora, sorsa])
def test_merged_adapters_are_refused(adapt) -> None:
    model = adapt(tiny_llama())
    model.merge_adapter()
    with pytest.raises(
        ValueError, match=r"is merged into its base; call unmerge_adapter\(\) first"
    ):
        find_layers(model, MODULES)
    model.unmerge_adapter()
    assert len(find_layers(model, MODULES)) == len(NAMES)


def test_other_adapters_are_refused() -> None:
    config = peft.LoHaConfig(r=2, target_modules=list(MODULES))
    with pytest.raises(ValueError, match="by Linear, which is not recorded; recorded are LoRA"):
        find_layers(peft.get_peft_model(tiny_llama(), config), MODULES)


def test_two_active_adapters_are_refused() -> None:
    model = lora(tiny_llama())
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=list(MODULES)))
    assert kinds(model) == dict.fromkeys(NAMES, "lora")
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="must have one active adapter to be recorded, it has"):
        find_layers(model, MODULES)


def test_the_active_adapter_is_recorded() -> None:
    model = lora(tiny_llama())
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=list(MODULES)))
    model.set_adapter("second")
    for layer in find_layers(model, MODULES):
        lora_a, lora_b = layer.parts
        assert lora_a.shape[0] == lora_b.shape[1] == 2
        assert tuple(lora_a.live().shape) == lora_a.shape


@pytest.mark.parametrize("adapt", [lora, sorsa])
def test_quantised_bases_are_refused(adapt) -> None:
    model = adapt(tiny_llama())
    # As bitsandbytes holds them: packed integers in the place of the matrix.
    base = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    packed = torch.zeros(512, 1, dtype=torch.uint8)
    base.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj.*uint8"):
        find_layers(model, MODULES)
