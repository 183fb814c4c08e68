"""W_t of adapters on their bases: PEFT's own merge, for every method that is read."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from checkpoints_index import Checkpoint, CheckpointError, open_model
from checkpoints_index.snapshots import BASE_FILE
from tests.checkpoints_index.adapted import (
    METHODS,
    adapt,
    adapted,
    change_settings,
    open_adapter,
    save,
    write,
)
from tests.helpers import attention_weights, lora, seeded, shake, tiny_llama, tiny_model_folder

LOW_RANK = [name for name, method in METHODS.items() if method.rank is not None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_model(tiny_model_folder(tmp_path_factory.mktemp("float32")))


@pytest.fixture(scope="module")
def half_base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("bfloat16")
    return open_model(tiny_model_folder(folder, dtype=torch.bfloat16))


def deviation(checkpoint: Checkpoint, truth: dict[str, torch.Tensor], dtype: torch.dtype) -> float:
    """Largest error of W_t relative to the largest entry, in units of the dtype's rounding."""
    w_0 = attention_weights(tiny_llama(dtype=dtype))
    assert {m.name for m in checkpoint.matrices} == set(truth)
    worst = 0.0
    for matrix in checkpoint.matrices:
        merged = truth[matrix.name].double()
        found = checkpoint.read(matrix).on(w_0[matrix.name])
        size = max(merged.abs().max().item(), w_0[matrix.name].abs().max().item())
        error = (found - merged).abs().max().item() / size
        moved = (merged - w_0[matrix.name].double()).abs().max().item() / size
        assert moved > 1e-3, "an update this small would prove nothing"
        worst = max(worst, error / torch.finfo(dtype).eps)
    return worst


@pytest.mark.parametrize("name", METHODS)
def test_w_t_is_pefts_own_merge(name: str, tmp_path: Path, base: Checkpoint) -> None:
    merged = write(name, tmp_path)
    # PEFT merges in float32: a few roundings in the update's products, one in the sum.
    assert deviation(open_adapter(tmp_path).bind(base), merged, torch.float32) < 8


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "PiSSA", "OLoRA", "VeRA", "OFT", "LoKr", "IA3"])
def test_w_t_on_a_bfloat16_base(name: str, tmp_path: Path, half_base: Checkpoint) -> None:
    merged = write(name, tmp_path, torch.bfloat16)
    # The merge rounds the update and the sum, that of PiSSA and OLoRA the residual too.
    assert deviation(open_adapter(tmp_path).bind(half_base), merged, torch.bfloat16) < 2


@pytest.mark.parametrize(
    "name",
    [
        "PiSSA",
        "OLoRA",
        "KaSA",
        "LoRA, alphas by layer",
        "AdaLoRA",
        "VeRA without projections",
        "RandLoRA without projections",
        "FourierFT",
    ],
)
def test_w_t_is_what_peft_makes_of_the_saved_adapter(
    name: str, tmp_path: Path, base: Checkpoint
) -> None:
    """Loading subtracts starts, draws projections and reads sorted settings anew."""
    write(name, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
        merged = attention_weights(model.merge_and_unload())
    assert deviation(open_adapter(tmp_path).bind(base), merged, torch.float32) < 8


@pytest.mark.parametrize("name", METHODS)
def test_only_what_has_a_low_rank_comes_as_factors(
    name: str, tmp_path: Path, base: Checkpoint
) -> None:
    write(name, tmp_path)
    checkpoint = open_adapter(tmp_path).bind(base)
    for matrix in checkpoint.matrices:
        weight = checkpoint.read(matrix)
        assert weight.dense is None
        assert matrix.rank == METHODS[name].rank
        if METHODS[name].rank is None:
            assert weight.update is None
            assert weight.delta is not None
            assert weight.delta.dtype == torch.float64
        else:
            assert weight.update is not None
            assert weight.update[0].shape == (matrix.shape[0], matrix.rank)
            assert weight.update[1].shape == (matrix.rank, matrix.shape[1])
            assert {factor.dtype for factor in weight.update} == {torch.float64}


@pytest.mark.parametrize("name", [n for n in LOW_RANK if not n.startswith(("PiSSA", "OLoRA"))])
def test_factors_are_exact(name: str, tmp_path: Path, base: Checkpoint) -> None:
    write(name, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    loaded.double()
    checkpoint = open_adapter(tmp_path).bind(base)
    for matrix in checkpoint.matrices:
        update = checkpoint.read(matrix).update
        assert update is not None
        layer: Any = loaded.get_base_model().get_submodule(matrix.name)
        delta = layer.get_delta_weight("default").detach()
        tolerance = 32 * torch.finfo(torch.float64).eps * delta.abs().max().item()
        torch.testing.assert_close(update[0] @ update[1], delta, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.start is not None])
def test_an_untrained_adapter_changes_nothing(name: str, tmp_path: Path, base: Checkpoint) -> None:
    save(adapted(name), tmp_path)
    checkpoint = open_adapter(tmp_path).bind(base)
    w_0 = attention_weights(tiny_llama())
    for matrix in checkpoint.matrices:
        before = w_0[matrix.name].double()
        change = (checkpoint.read(matrix).on(w_0[matrix.name]) - before).abs().max().item()
        assert change <= (METHODS[name].start or 0.0) * before.abs().max().item()


def test_an_adapter_of_any_name_is_read(tmp_path: Path, base: Checkpoint) -> None:
    model = adapted("LoRA")
    model.add_adapter("other", METHODS["DoRA"].config())
    model.set_adapter("other")
    shake(model)
    save(model, tmp_path, selected_adapters=["other"])
    merged = attention_weights(model.merge_and_unload())
    assert deviation(open_adapter(tmp_path / "other").bind(base), merged, torch.float32) < 8


def test_wholly_saved_modules_are_dense(tmp_path: Path, base: Checkpoint) -> None:
    options: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["v_proj"]}
    model = lora(tiny_llama(), **options)
    shake(model)
    save(model, tmp_path)
    checkpoint = open_adapter(tmp_path).bind(base)
    merged = attention_weights(model.merge_and_unload())
    assert deviation(checkpoint, merged, torch.float32) < 8
    for matrix in checkpoint.matrices:
        dense = checkpoint.read(matrix).dense
        assert (matrix.module == "v_proj") == (dense is not None)
        assert dense is None or torch.equal(dense, merged[matrix.name])


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_replication": [[0, 2], [1, 2]]},
        {"alora_invocation_tokens": [3]},
        {"target_parameters": ["experts.gate_up_proj"]},
        {"init_lora_weights": "loftq"},
        {"use_dora": True, "init_lora_weights": "pissa"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_loras_whose_w_t_is_not_had_are_refused(
    changes: dict[str, Any], tmp_path: Path, base: Checkpoint
) -> None:
    write("LoRA", tmp_path)
    change_settings(tmp_path, **changes)
    checkpoint = open_adapter(tmp_path)
    option = next(iter(changes)) if "use_dora" not in changes else "init_lora_weights"
    with pytest.raises(CheckpointError, match=rf"is a LoRA with .*{option}.*Merge it"):
        checkpoint.bind(base)


def test_a_lora_on_experts_in_one_tensor_is_listed_and_refused(
    tmp_path: Path, base: Checkpoint
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads))  # type: ignore[arg-type]
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    save(adapt(model, lambda: peft.LoraConfig(r=2, target_parameters=names)), tmp_path)
    checkpoint = open_adapter(tmp_path)
    assert [m.name for m in checkpoint.matrices] == ["model.layers.0.mlp.experts"]
    with pytest.raises(CheckpointError, match="is a LoRA with target_parameters"):
        checkpoint.bind(base)


# Methods that rewrite the base.


def start_and_train(folder: Path, start: str, **options: Any) -> dict[str, Tensor]:
    """Save a LoRA that rewrites its base before and after training; returns W_t as merged."""
    model = lora(tiny_llama(), init_lora_weights=start, **options)
    save(model, folder / f"{start.split('_')[0]}-init")
    shake(model)
    save(model, folder / "checkpoint-30")
    return attention_weights(model.merge_and_unload())


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_adapter_from_before_training_is_taken_where_it_lies_beside(
    start: str, rslora: bool, tmp_path: Path, base: Checkpoint
) -> None:
    merged = start_and_train(tmp_path, start, use_rslora=rslora)
    checkpoint = open_adapter(tmp_path / "checkpoint-30").bind(base)
    assert deviation(checkpoint, merged, torch.float32) < 8
    update = checkpoint.read(checkpoint.matrices[0]).update
    assert update is not None
    initial = load_file(tmp_path / f"{start.split('_')[0]}-init" / "adapter_model.safetensors")
    name = f"base_model.model.{checkpoint.matrices[0].name}.lora_A.weight"
    assert torch.equal(update[1][3:], initial[name].double())


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "lora_ga"])
def test_a_start_that_cannot_be_repeated_is_asked_for(
    start: str, tmp_path: Path, base: Checkpoint
) -> None:
    write("PiSSA", tmp_path)
    change_settings(tmp_path, init_lora_weights=start)
    with pytest.raises(
        CheckpointError, match=rf"started from '{start}'.*path_initial_model_for_weight_conversion"
    ):
        open_adapter(tmp_path).bind(base)


def test_several_starts_are_ambiguous(tmp_path: Path, base: Checkpoint) -> None:
    start_and_train(tmp_path, "pissa")
    save(lora(tiny_llama()), tmp_path / "old_init")
    with pytest.raises(CheckpointError, match=r"old_init.*pissa-init|pissa-init.*old_init"):
        open_adapter(tmp_path / "checkpoint-30").bind(base)


def test_a_start_of_another_rank_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    start_and_train(tmp_path, "pissa")
    save(lora(tiny_llama(), r=2), tmp_path / "pissa-init")
    checkpoint = open_adapter(tmp_path / "checkpoint-30").bind(base)
    with pytest.raises(CheckpointError, match=r"initial factors .* have shapes \(32, 2\)"):
        checkpoint.read(checkpoint.matrices[0])


def test_an_adapter_that_peft_converted_is_a_plain_lora(tmp_path: Path, base: Checkpoint) -> None:
    model = lora(tiny_llama(), init_lora_weights="pissa")
    model.peft_config["default"].init_lora_weights = True
    save(model, tmp_path / "start")
    shake(model)
    save(
        model,
        tmp_path / "converted",
        path_initial_model_for_weight_conversion=str(tmp_path / "start"),
    )
    merged = attention_weights(model.merge_and_unload())
    checkpoint = open_adapter(tmp_path / "converted").bind(base)
    assert checkpoint.method == "lora"
    assert {m.rank for m in checkpoint.matrices} == {6}
    assert deviation(checkpoint, merged, torch.float32) < 8


# Layers that are more, or stored otherwise, than one matrix (out, in).


def tiny_gpt2() -> Any:
    config = GPT2Config(
        vocab_size=8, n_positions=8, n_embd=24, n_layer=1, n_head=2, initializer_range=0.2
    )
    with seeded(0):
        return GPT2LMHeadModel(config)


def tiny_neox() -> Any:
    config = GPTNeoXConfig(
        vocab_size=8,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    with seeded(0):
        return GPTNeoXForCausalLM(config)


CONV1D: dict[str, Callable[..., peft.PeftConfig]] = {
    "LoRA": partial(peft.LoraConfig, r=3, fan_in_fan_out=True),
    "rsLoRA, default layout": partial(peft.LoraConfig, r=3, use_rslora=True),
    "PiSSA": partial(peft.LoraConfig, r=3, init_lora_weights="pissa", fan_in_fan_out=True),
    "DoRA": partial(peft.LoraConfig, r=3, use_dora=True, fan_in_fan_out=True),
    "AdaLoRA": partial(peft.AdaLoraConfig, init_r=3, total_step=9, fan_in_fan_out=True),
    "VeRA": partial(peft.VeraConfig, r=3, fan_in_fan_out=True),
    "IA3": partial(peft.IA3Config, feedforward_modules=["c_proj"], fan_in_fan_out=True),
    "FourierFT": partial(peft.FourierFTConfig, n_frequency=20, fan_in_fan_out=True),
}


@pytest.mark.parametrize("name", CONV1D)
def test_parts_of_a_fused_conv1d(name: str, tmp_path: Path) -> None:
    # c_proj of the attention is square: nothing in its shape shows that it is transposed.
    targets = ["c_attn", "c_proj", "c_fc"]
    assert_parts(tiny_gpt2, partial(CONV1D[name], target_modules=targets), tmp_path)


@pytest.mark.parametrize(
    "name", ["LoRA", "DoRA", "PiSSA", "AdaLoRA", "SORSA", "VeRA", "OFT", "IA3"]
)
def test_parts_that_lie_head_by_head(name: str, tmp_path: Path) -> None:
    config = METHODS[name].config()
    config.target_modules = {"query_key_value", "dense"}  # type: ignore[attr-defined]
    assert_parts(tiny_neox, lambda: config, tmp_path)


def assert_parts(
    make: Callable[[], Any], config: Callable[[], peft.PeftConfig], folder: Path
) -> None:
    """The matrices of the merged model are those of its adapter on the base."""
    make().save_pretrained(folder / "base")
    base = open_model(folder / "base")
    model = adapt(make(), config)
    shake(model, size=0.1)
    save(model, folder / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_and_unload().save_pretrained(folder / "merged")
    merged = open_model(folder / "merged")
    after = {matrix.name: matrix for matrix in merged.matrices}
    before = {matrix.name: matrix for matrix in base.matrices}
    checkpoint = open_adapter(folder / "adapter").bind(base)
    # q, k, v and the others; all of the attention's, at least.
    assert len(checkpoint.matrices) >= 4
    for matrix in checkpoint.matrices:
        w_0, w_t = base.read(before[matrix.name]).dense, merged.read(after[matrix.name]).dense
        assert w_0 is not None
        assert w_t is not None
        size = max(w_t.abs().max().item(), w_0.abs().max().item())
        tolerance = 16 * torch.finfo(torch.float32).eps * size
        found = checkpoint.read(matrix).on(w_0)
        torch.testing.assert_close(found, w_t.double(), rtol=0, atol=tolerance)
        assert (w_t - w_0).abs().max().item() > 1e-4 * size
        assert matrix.shape == tuple(w_t.shape)


# Bases.


@pytest.mark.parametrize("name", ["DoRA", "PiSSA", "VeRA", "LoRA"])
def test_a_bound_adapter_travels_to_other_processes(
    name: str, tmp_path: Path, base: Checkpoint
) -> None:
    write(name, tmp_path)
    checkpoint = open_adapter(tmp_path).bind(base)
    matrix = checkpoint.matrices[0]
    travelled = pickle.loads(pickle.dumps(checkpoint))
    assert travelled.matrices == checkpoint.matrices
    assert travelled.fingerprint == checkpoint.fingerprint
    assert travelled.read(matrix).same_as(checkpoint.read(matrix))


def test_a_runs_recorded_base_will_do(tmp_path: Path, base: Checkpoint) -> None:
    from spectra.recording import Recorder

    model = tiny_llama()
    with Recorder(tmp_path / "run", every=1).attach(model) as recorder:
        recorder.step(1)
    recorded = open_model(tmp_path / "run" / "snapshots" / BASE_FILE)
    merged = write("DoRA", tmp_path / "adapter")
    checkpoint = open_adapter(tmp_path / "adapter").bind(recorded)
    assert deviation(checkpoint, merged, torch.float32) < 8


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "PiSSA"])
def test_a_base_may_have_another_name_for_its_stack(
    name: str, tmp_path: Path, base: Checkpoint
) -> None:
    merged = write(name, tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    # As saved from the model without its head.
    save_file({k.replace("model.model.", "model."): v for k, v in tensors.items()}, weights)
    checkpoint = open_adapter(tmp_path)
    assert checkpoint.matrices[0].name.startswith("layers.0")
    assert deviation(checkpoint.bind(base), merged, torch.float32) < 8


def test_a_layer_that_the_base_lacks_is_missed_only_where_it_is_read(
    tmp_path: Path, base: Checkpoint
) -> None:
    save(lora(tiny_llama(layers=3)), tmp_path)
    checkpoint = open_adapter(tmp_path).bind(base)
    first, *_, last = checkpoint.matrices
    checkpoint.read(first)
    with pytest.raises(CheckpointError, match=r"no matrix 'model\.layers\.2\.self_attn\.v_proj'"):
        checkpoint.read(last)


def test_a_base_without_any_of_the_layers_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    save(lora(tiny_llama()), tmp_path)
    folder = tmp_path / "adapter_model.safetensors"
    tensors = load_file(folder)
    save_file({k.replace("layers", "blocks"): v for k, v in tensors.items()}, folder)
    change_settings(tmp_path, base_model_name_or_path="someone/model")
    with pytest.raises(CheckpointError, match=r"none of the 4 layers .*blocks\.0.*'someone/model'"):
        open_adapter(tmp_path).bind(base)


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model with layers of the same names and of other shapes."""
    folder = tmp_path_factory.mktemp("other")
    sizes = {"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 8}
    config = LlamaConfig(num_attention_heads=2, **sizes)  # type: ignore[arg-type]
    LlamaForCausalLM(config).save_pretrained(folder)
    return open_model(folder)


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "VeRA", "AdaLoRA", "SORSA"])
def test_a_base_of_other_shapes_is_refused(
    name: str, tmp_path: Path, other_base: Checkpoint
) -> None:
    write(name, tmp_path)
    with pytest.raises(CheckpointError, match=r"q_proj has shape \(24, 24\) in the base"):
        open_adapter(tmp_path).bind(other_base)


@pytest.mark.parametrize("name", ["LoHa", "OFT", "IA3", "RandLoRA", "SHiRA"])
def test_tensors_that_do_not_fit_the_base_are_refused(
    name: str, tmp_path: Path, other_base: Checkpoint
) -> None:
    write(name, tmp_path)
    checkpoint = open_adapter(tmp_path).bind(other_base)
    with pytest.raises(CheckpointError, match=r"PEFT .* cannot merge layer 'model\.layers\.0"):
        checkpoint.read(checkpoint.matrices[0])
