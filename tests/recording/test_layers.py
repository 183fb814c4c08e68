"""Which layers are recorded, under which names, and which are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spectra.recording.layers import find_layers
from tests.checkpoints_index.adapted import adapt
from tests.checkpoints_index.architectures import tiny
from tests.helpers import MODULES, lora, lora_xs, milora, plain, sorsa, svf, svft, tiny_llama

NAMES = {f"model.layers.{layer}.self_attn.{module}" for layer in range(2) for module in MODULES}


class Wrapper(nn.Module):
    """A model inside another under one name, as DDP and torch.compile have it."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.add_module(name, model)


def tiny_mixture() -> nn.Module:
    """A mixture of experts that may be changed."""
    return copy.deepcopy(tiny("Qwen2-MoE")[0])


def kinds(model: nn.Module, modules: tuple[str, ...] = MODULES) -> dict[str, str]:
    return {layer.name: layer.kind for layer in find_layers(model, modules)}


ADAPTS = {
    "dense": plain,
    "lora": lora,
    "sorsa": sorsa,
    "milora": milora,
    "svf": svf,
    "svft": svft,
    "lora-xs": lora_xs,
}


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


ATTENTION = {f"model.layers.{layer}.self_attn.{m}_proj" for layer in range(2) for m in "qkvo"}


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["re:.*[.]0[.].*[.](q|v)_proj"], {name for name in NAMES if ".0." in name}),
        (["re:model[.]layers[.].*self_attn.*"], ATTENTION),
        (["model.layers.1.*.[qv]_proj"], {name for name in NAMES if ".1." in name}),
        (["q_proj", "re:.*v_proj"], NAMES),
    ],
)
def test_paths_choose_layers(modules: list[str], expected: set[str]) -> None:
    assert kinds(tiny_llama(), tuple(modules)).keys() == expected


def test_a_regular_expression_is_for_the_whole_path() -> None:
    with pytest.raises(ValueError, match="No trained layer matches"):
        find_layers(tiny_llama(), ["re:q_proj"])


def test_a_broken_regular_expression_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'re:\(' is no regular expression \(missing \)"):
        find_layers(tiny_llama(), ["re:("])


def test_labels_choose_layers_and_tell_them_apart() -> None:
    model = copy.deepcopy(tiny("T5")[0])
    chosen = find_layers(model, ["decoder.EncDecAttention.q", "encoder.v"])
    assert {(m.layer, m.module, m.name) for e in chosen for m in e.matrices} == {
        (layer, module, path.replace("#", str(layer)))
        for layer in range(2)
        for module, path in (
            ("decoder.EncDecAttention.q", "decoder.block.#.layer.1.EncDecAttention.q"),
            ("encoder.v", "encoder.block.#.layer.0.SelfAttention.v"),
        )
    }


def test_labels_are_those_of_all_matrices_though_few_are_trained() -> None:
    model = copy.deepcopy(tiny("T5")[0])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("encoder" in name)
    assert {m.module for e in find_layers(model, ["q"]) for m in e.matrices} == {"encoder.q"}


def test_all_linear_layers_can_be_chosen() -> None:
    assert len(kinds(tiny_llama(), ("all-linear",))) == 2 * 7


def test_what_replaces_an_original_module_is_found_under_its_name() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["o_proj"])
    model = adapt(tiny_llama(), lambda: config)
    assert kinds(model, ("q_proj", "o_proj")) == {
        f"model.layers.{layer}.self_attn.{module}": kind
        for layer in range(2)
        for module, kind in (("q_proj", "lora"), ("o_proj", "dense"))
    }


def test_a_wrappers_own_configuration_is_not_the_models() -> None:
    model: Any = Wrapper("model", copy.deepcopy(tiny("GPT-2")[0]))
    model.config = {"learning_rate": 0.1}
    assert {name.rsplit(".", 1)[1] for name in kinds(model, ("all-linear",))} == {
        *("q_proj", "k_proj", "v_proj", "c_proj", "c_fc")
    }


# Parts.


@pytest.mark.parametrize("kind", ADAPTS)
def test_parts_follow_a_parameter_that_is_swapped(kind: str) -> None:
    # As FSDP2 does between forward passes.
    model = ADAPTS[kind](tiny_llama())
    parts = [part for layer in find_layers(model, MODULES) for part in layer.parts]
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.full_like(parameter, 7.0))
    for part in parts:
        taken = part.take(part.live())
        assert tuple(taken.shape) == part.shape
        assert taken.dtype == part.dtype
        assert bool((taken == 7.0).all())


@pytest.mark.parametrize("kind", ADAPTS)
def test_parts_are_views(kind: str) -> None:
    for layer in find_layers(ADAPTS[kind](tiny_llama()), MODULES):
        for part in (*layer.parts, *layer.base_parts):
            live = part.live()
            assert part.take(live).untyped_storage().data_ptr() == live.untyped_storage().data_ptr()


def test_parts_of_one_tensor_have_one_live_tensor() -> None:
    model = copy.deepcopy(tiny("GPT-2")[0])
    parts = [part for layer in find_layers(model, ["q_proj", "v_proj"]) for part in layer.parts]
    assert len(parts) == 4
    assert len({part.live for part in parts}) == 2


def test_parts_that_training_changes_are_no_fixed_ones() -> None:
    fixed = {
        name: {
            part.name for e in find_layers(model, MODULES) for part in e.base_parts if part.fixed
        }
        for name, model in {
            "dense": plain(tiny_llama()),
            "lora": lora(tiny_llama()),
            "pissa": lora(tiny_llama(), init_lora_weights="pissa"),
            "sorsa": sorsa(tiny_llama()),
            "svft": svft(tiny_llama()),
        }.items()
    }
    assert fixed == {
        "dense": set(),
        "lora": {"weight"},
        "pissa": {"weight"},
        "sorsa": {"weight", "sorsa_u0", "sorsa_s0", "sorsa_vh0"},
        "svft": {"weight", "svft_u", "svft_vh", "svft_rows", "svft_cols"},
    }


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


def _config(kind: Callable[..., peft.PeftConfig], **options: Any) -> Callable[[], Any]:
    return lambda: kind(**({"target_modules": list(MODULES)} | options))


UNRECORDED: dict[str, tuple[Callable[[], peft.PeftConfig], str]] = {
    "KaSA": (_config(peft.LoraConfig, kasa_config=peft.KasaConfig()), "KasaLinearVariant"),
    "aLoRA": (
        _config(peft.LoraConfig, alora_invocation_tokens=[3], task_type="CAUSAL_LM"),
        "alora_invocation_tokens",
    ),
    "DoRA on PiSSA": (
        _config(peft.LoraConfig, use_dora=True, init_lora_weights="pissa"),
        "DoraLinearVariant started by pissa",
    ),
    "VeRA": (_config(peft.VeraConfig, r=4), "adapted by Linear"),
    "LoHa": (_config(peft.LoHaConfig, r=2), "adapted by Linear"),
    "LoKr": (_config(peft.LoKrConfig, r=2), "adapted by Linear"),
    "IA3": (_config(peft.IA3Config, feedforward_modules=[]), "adapted by Linear"),
    "OFT": (_config(peft.OFTConfig, oft_block_size=8), "adapted by Linear"),
    "BOFT": (_config(peft.BOFTConfig, boft_block_size=4), "adapted by Linear"),
    "RandLoRA": (_config(peft.RandLoraConfig, r=4), "adapted by Linear"),
    "GraLoRA": (_config(peft.GraloraConfig, r=4), "adapted by Linear"),
}


@pytest.mark.parametrize("wrappers", [[], ["module", "_orig_mod"]])
@pytest.mark.parametrize("name", UNRECORDED)
def test_other_methods_are_refused_with_what_is_recorded(name: str, wrappers: list[str]) -> None:
    config, told = UNRECORDED[name]
    model: nn.Module = adapt(tiny_llama(), config)
    for wrapper in wrappers:
        model = Wrapper(wrapper, model)
    with pytest.raises(ValueError, match=f"{told}.* is not recorded; recorded are LoRA, .*SORSA"):
        find_layers(model, MODULES)


def test_a_start_on_a_quantised_base_is_refused() -> None:
    model = lora(tiny_llama())
    # PEFT makes LoftQ's start on a GPU only; afterwards its configuration tells it.
    model.peft_config["default"].init_lora_weights = "loftq"
    with pytest.raises(ValueError, match="LoRA started by LoftQ, .* is not recorded"):
        find_layers(model, MODULES)


def test_adapted_experts_are_refused() -> None:
    experts = tiny_mixture()
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]
    )
    model = adapt(experts, lambda: config)
    assert len(find_layers(model, ["q_proj"])) == 2
    with pytest.raises(ValueError, match="experts.* is adapted by ParamWrapper, which is not"):
        find_layers(model, ["up_proj"])


def test_a_transposed_layer_of_an_unknown_architecture_is_refused() -> None:
    model = adapt(nn.ModuleDict({"h": nn.ModuleList([Conv1D(6, 6)])}), _conv1d)
    message = r"h\.0 .* its adapter maps 6 to 6 and takes it as transposed.*model_type"
    with pytest.raises(ValueError, match=message):
        find_layers(model, ["*"])


def _conv1d() -> peft.LoraConfig:
    return peft.LoraConfig(r=2, target_modules=["h.0"], fan_in_fan_out=True)


def test_a_lora_with_another_start_is_recorded() -> None:
    assert kinds(lora(tiny_llama(), init_lora_weights="gaussian")) == dict.fromkeys(NAMES, "lora")


@pytest.mark.parametrize("adapt", [lora, sorsa, milora, svf, svft, lora_xs])
def test_merged_adapters_are_refused(adapt) -> None:
    model = adapt(tiny_llama())
    model.merge_adapter()
    with pytest.raises(
        ValueError, match=r"is merged into its base; call unmerge_adapter\(\) first"
    ):
        find_layers(model, MODULES)
    model.unmerge_adapter()
    assert len(find_layers(model, MODULES)) == len(NAMES)


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


class Packed(nn.Module):
    """A layer as GPTQ holds it: under other names than a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features = self.out_features = 32
        self.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))


def test_bases_packed_under_other_names_are_refused() -> None:
    model = lora(tiny_llama())
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    layer.base_layer = Packed()
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj.*packed integers.*16 bits"):
        find_layers(model, MODULES)


@pytest.mark.parametrize("adapt", [lora, sorsa])
def test_quantised_bases_are_refused(adapt) -> None:
    model = adapt(tiny_llama())
    # As bitsandbytes holds them: packed integers in the place of the matrix.
    base = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    packed = torch.zeros(512, 1, dtype=torch.uint8)
    base.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj.*uint8"):
        find_layers(model, MODULES)
