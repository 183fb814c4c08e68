"""What `spectra export` refuses, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import spectra
from checkpoints_index import CheckpointError
from spectra.cli import main
from spectra.methods import LoraXsConfig, MiloraConfig, SorsaConfig, SvfConfig
from spectra.store import Run
from tests.checkpoints_index.adapted import adapt, change_settings, save
from tests.checkpoints_index.hostile import as_archive, hostile_pickles
from tests.helpers import MODULES, shake, tiny_llama, tiny_model_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("other"), seed=1)


def pissa(**options: Any) -> peft.PeftConfig:
    start: dict[str, Any] = {"r": 3, "lora_alpha": 3, "init_lora_weights": "pissa"}
    return peft.LoraConfig(**(start | {"target_modules": list(MODULES)} | options))


def sorsa(**options: Any) -> peft.PeftConfig:
    start: dict[str, Any] = {"r": 3, "target_modules": list(MODULES)}
    return SorsaConfig(**(start | options))


def milora() -> peft.PeftConfig:
    return MiloraConfig(r=3, target_modules=list(MODULES))


def lora_xs() -> peft.PeftConfig:
    return LoraXsConfig(r=3, target_modules=list(MODULES))


def svf() -> peft.PeftConfig:
    return SvfConfig(target_modules=list(MODULES))


def write(config: Callable[[], peft.PeftConfig], folder: Path) -> Any:
    """Write an adapter, and as it was before training, by a name that is not found by itself."""
    model = adapt(tiny_llama(), config)
    save(model, folder / "before")
    shake(model)
    save(model, folder / "adapter")
    return model


def products(folder: Path) -> dict[str, torch.Tensor]:
    """B A of every layer of an exported adapter."""
    tensors = load_file(folder / "adapter_model.safetensors")
    paths = {name.rsplit(".", 2)[0] for name in tensors}
    return {
        path: tensors[f"{path}.lora_B.weight"].double() @ tensors[f"{path}.lora_A.weight"].double()
        for path in paths
    }


# PiSSA, as people store it.


def test_pissa_with_its_initial_adapter_gives_what_computing_that_again_gives(
    base: Path, tmp_path: Path
) -> None:
    write(pissa, tmp_path)
    # As PEFT's guide has it, which then hides that the base was rewritten.
    change_settings(tmp_path / "adapter", init_lora_weights=True)
    shutil.copytree(tmp_path / "adapter", tmp_path / "again" / "adapter")
    change_settings(tmp_path / "again" / "adapter", init_lora_weights="pissa")
    spectra.export(tmp_path / "adapter", tmp_path / "given", base=base, initial=tmp_path / "before")
    spectra.export(tmp_path / "again" / "adapter", tmp_path / "computed", base=base)
    computed = products(tmp_path / "computed")
    for path, product in products(tmp_path / "given").items():
        torch.testing.assert_close(product, computed[path], rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", ["lora_ga", "pissa"])
def test_a_start_of_gradients_need_be_no_part_of_the_base(
    start: str, base: Path, tmp_path: Path
) -> None:
    write(lambda: pissa(init_lora_weights="orthogonal", r=4), tmp_path)
    change_settings(tmp_path / "adapter", init_lora_weights=start)
    given: dict[str, Any] = {"base": base, "initial": tmp_path / "before"}
    if start == "pissa":
        with pytest.raises(CheckpointError, match="is no part of the weights"):
            spectra.export(tmp_path / "adapter", tmp_path / "out", **given)
    else:
        assert spectra.export(tmp_path / "adapter", tmp_path / "out", **given).rank == 8


def test_an_initial_adapter_beside_the_trained_one_is_found(base: Path, tmp_path: Path) -> None:
    write(lambda: pissa(init_lora_weights="pissa_niter_4"), tmp_path)
    (tmp_path / "before").rename(tmp_path / "pissa-init")
    assert spectra.export(tmp_path / "adapter", tmp_path / "out", base=base).rank == 6


def test_a_pissa_adapter_that_says_it_began_at_zero_is_not_believed(
    base: Path, tmp_path: Path
) -> None:
    write(pissa, tmp_path)
    change_settings(tmp_path / "adapter", init_lora_weights=True)
    with pytest.raises(CheckpointError, match="--initial"):
        spectra.export(tmp_path / "adapter", tmp_path / "out", base=base)


def test_a_converted_pissa_adapter_is_a_lora_like_any_other(base: Path, tmp_path: Path) -> None:
    model = write(pissa, tmp_path)
    save(
        model,
        tmp_path / "converted",
        path_initial_model_for_weight_conversion=str(tmp_path / "before"),
    )
    done = spectra.export(tmp_path / "converted", tmp_path / "out", base=base)
    spectra.export(tmp_path / "adapter", tmp_path / "direct", base=base)
    direct = products(tmp_path / "direct")
    assert done.rank == 6
    for path, product in products(tmp_path / "out").items():
        torch.testing.assert_close(product, direct[path], rtol=0, atol=1e-6)


@pytest.mark.parametrize("initial", [False, True])
def test_a_residual_base_is_refused(initial: bool, tmp_path: Path) -> None:
    model = write(pissa, tmp_path)
    model.unload().save_pretrained(tmp_path / "residual")
    given = tmp_path / "before" if initial else None
    with pytest.raises(CheckpointError, match="or its residual"):
        spectra.export(
            tmp_path / "adapter", tmp_path / "out", base=tmp_path / "residual", initial=given
        )


def test_a_random_initialisation_is_not_made_up(base: Path, tmp_path: Path) -> None:
    model = adapt(tiny_llama(), lambda: pissa(init_lora_weights="pissa_niter_4"))
    save(model, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="pissa_niter_4.*cannot be computed again"):
        spectra.export(tmp_path / "adapter", tmp_path / "out", base=base)


# Bases.


@pytest.mark.parametrize("config", [sorsa, pissa, milora, lora_xs, svf])
@pytest.mark.parametrize("merged", [False, True])
def test_another_base_is_refused_and_nothing_is_left(
    config: Callable[[], peft.PeftConfig], merged: bool, other_base: Path, tmp_path: Path
) -> None:
    write(config, tmp_path)
    with pytest.raises(CheckpointError, match="another base"):
        spectra.export(tmp_path / "adapter", tmp_path / "out", base=other_base, merged=merged)
    assert {path.name for path in tmp_path.iterdir()} == {"before", "adapter"}


def test_the_same_base_in_16_bits_is_not_another(tmp_path: Path) -> None:
    write(sorsa, tmp_path)
    rounded = tiny_model_folder(tmp_path / "base", dtype=torch.bfloat16)
    assert spectra.export(tmp_path / "adapter", tmp_path / "out", base=rounded).rank == 6


def test_a_quantised_base_is_refused(base: Path, tmp_path: Path) -> None:
    write(sorsa, tmp_path)
    quantised = Path(shutil.copytree(base, tmp_path / "quantised"))
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no model of plain weights.*--base"):
        spectra.export(tmp_path / "adapter", tmp_path / "out", base=quantised, merged=True)


def test_a_base_of_torch_files_can_be_exported_for_but_not_merged_into(
    base: Path, tmp_path: Path
) -> None:
    write(sorsa, tmp_path)
    (tmp_path / "base").mkdir()
    shutil.copy(base / "config.json", tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), tmp_path / "base" / "pytorch_model.bin")
    spectra.export(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base")
    with pytest.raises(CheckpointError, match="must be in safetensors files"):
        spectra.export(
            tmp_path / "adapter", tmp_path / "merged", base=tmp_path / "base", merged=True
        )


def test_the_base_that_the_adapter_names_is_found_and_named_again(
    base: Path, tmp_path: Path
) -> None:
    write(sorsa, tmp_path)
    change_settings(tmp_path / "adapter", base_model_name_or_path=str(base))
    done = spectra.export(tmp_path / "adapter", tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert done.base == base
    assert settings["base_model_name_or_path"] == str(base)
    with pytest.raises(ValueError, match="give --base"):
        change_settings(tmp_path / "adapter", base_model_name_or_path=None)
        spectra.export(tmp_path / "adapter", tmp_path / "again")


# Adapters.


def test_an_update_that_is_no_product_can_be_merged_only(base: Path, tmp_path: Path) -> None:
    model = write(lambda: pissa(init_lora_weights=True, use_dora=True), tmp_path)
    with pytest.raises(CheckpointError, match="dora adapter.*--merged"):
        spectra.export(tmp_path / "adapter", tmp_path / "out", base=base)
    spectra.export(tmp_path / "adapter", tmp_path / "merged", base=base, merged=True)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    for name, parameter in model.merge_and_unload().named_parameters():
        torch.testing.assert_close(merged[name], parameter, rtol=0, atol=1e-6)


def test_an_adapted_head_is_not_left_out_in_silence(base: Path, tmp_path: Path) -> None:
    write(lambda: sorsa(target_modules=["q_proj", "lm_head"]), tmp_path)
    for merged, reason in ((False, "'lm_head'"), (True, "does not store")):
        with pytest.raises(CheckpointError, match=reason):
            spectra.export(tmp_path / "adapter", tmp_path / "out", base=base, merged=merged)


def test_a_trained_embedding_of_a_tied_head_is_refused(base: Path, tmp_path: Path) -> None:
    write(lambda: sorsa(modules_to_save=["embed_tokens"]), tmp_path)
    tied = Path(shutil.copytree(base, tmp_path / "tied"))
    tensors = load_file(tied / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tied / "model.safetensors")
    with pytest.raises(CheckpointError, match="uses for two modules"):
        spectra.export(tmp_path / "adapter", tmp_path / "out", base=tied, merged=True)


@pytest.mark.parametrize("config", [sorsa, svf, lambda: pissa(init_lora_weights=True)])
@pytest.mark.parametrize("merged", [False, True])
def test_numbers_that_are_not_finite_are_refused(
    config: Callable[[], peft.PeftConfig], merged: bool, base: Path, tmp_path: Path
) -> None:
    write(config, tmp_path)
    spoil(tmp_path / "adapter", float("nan"), ("sorsa_s", "svf_delta", "lora_B.weight"))
    with pytest.raises(CheckpointError, match="NaN or infinite numbers in 'model.layers"):
        spectra.export(tmp_path / "adapter", tmp_path / "out", base=base, merged=merged)


def test_numbers_that_do_not_fit_the_dtype_are_refused(base: Path, tmp_path: Path) -> None:
    write(sorsa, tmp_path)
    spoil(tmp_path / "adapter", 1e30, ("sorsa_s",))
    with pytest.raises(CheckpointError, match=r"too large for torch\.float16"):
        spectra.export(tmp_path / "adapter", tmp_path / "out", base=base, dtype="float16")


def spoil(folder: Path, value: float, names: tuple[str, ...]) -> None:
    """Put a value into an adapter's tensors of these names."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in tensors:
        if name.endswith(names):
            tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "adapter_model.safetensors")


def test_a_bias_beside_the_factors_is_not_left_out_in_silence(base: Path, tmp_path: Path) -> None:
    write(lambda: pissa(init_lora_weights=True), tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    b = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file(tensors | {b.replace("weight", "bias"): torch.ones(len(tensors[b]))}, file)
    with pytest.raises(CheckpointError, match="adds a bias"):
        spectra.export(tmp_path / "adapter", tmp_path / "out", base=base)


@pytest.mark.parametrize("kind", ["os.system, protocol 2", "exec, protocol 4", "build"])
def test_a_hostile_adapter_is_one_error_and_runs_nothing(
    kind: str, base: Path, tmp_path: Path
) -> None:
    write(sorsa, tmp_path)
    marker = tmp_path / "marker"
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    hostile = as_archive(hostile_pickles(marker)[kind])
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(hostile)
    with pytest.raises(CheckpointError):
        spectra.export(tmp_path / "adapter", tmp_path / "out", base=base)
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_a_truncated_adapter_is_one_line_on_the_command_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(sorsa, tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    given = [str(tmp_path / "adapter"), "--base", str(base), "--out", str(tmp_path / "out")]
    assert main(["export", *given]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "adapter_model.safetensors is shorter" in lines[0]


# Folders.


def test_what_is_there_is_not_overwritten(base: Path, tmp_path: Path) -> None:
    write(sorsa, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    spectra.export(tmp_path / "adapter", out, base=base)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FileExistsError, match="out is there already"):
        spectra.export(tmp_path / "adapter", out, base=base, merged=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_runs_result_is_what_is_exported(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(sorsa, tmp_path)
    run = Run(tmp_path / "run")
    run.update_settings(base=str(base))
    given = ["export", str(run.path), "--base", str(base), "--out", str(tmp_path / "out")]
    assert main(given) == 1
    assert "not finished" in capsys.readouterr().err
    shutil.copytree(tmp_path / "adapter", run.path / "final")
    assert main(given) == 0
    assert "LoRA adapter of rank 6, 4 layers" in capsys.readouterr().out
    shutil.rmtree(run.path / "final")
    shutil.copytree(base, run.path / "final")
    assert main([*given[:-1], str(tmp_path / "again")]) == 1
    assert "is a whole model" in capsys.readouterr().err


def test_a_rank_beyond_the_servers_default_is_told(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(lambda: sorsa(r=9), tmp_path)
    given = [str(tmp_path / "adapter"), "--base", str(base), "--out", str(tmp_path / "out")]
    assert main(["export", *given]) == 0
    assert "--max-lora-rank 32" in capsys.readouterr().out


def test_whole_modules_are_told(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(lambda: sorsa(modules_to_save=["lm_head"]), tmp_path)
    given = [str(tmp_path / "adapter"), "--base", str(base), "--out", str(tmp_path / "out")]
    assert main(["export", *given]) == 0
    assert "carries lm_head whole" in capsys.readouterr().out


def test_options_that_contradict_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave dtype away"):
        spectra.export(tmp_path, tmp_path / "out", merged=True, dtype="float16")
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        spectra.export(tmp_path, tmp_path / "out", dtype="int8")
    with pytest.raises(FileNotFoundError, match="neither an adapter's folder"):
        spectra.export(tmp_path, tmp_path / "out", base=base)
