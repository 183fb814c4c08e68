"""A LoRA adapter as PEFT writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoints_index import CheckpointError, clean_name
from checkpoints_index.adapters import WEIGHTS_FILE, AdapterFolder
from checkpoints_index.model_folders import ModelCheckpoint
from spectra.exporting.factors import balanced, padded
from spectra.exporting.layers import ChangedLayer

_PREFIX = "base_model.model."


def write_lora(
    adapter: AdapterFolder,
    changed: Iterable[ChangedLayer],
    base: ModelCheckpoint,
    dtype: torch.dtype,
    base_name: str | None,
    folder: Path,
) -> int:
    """Write configuration and factors; returns the rank.

    Raises
    ------
    CheckpointError
        If the adapter changes something that a LoRA adapter has no place for.
    """
    kept = whole_modules(adapter)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    places, transposed = set(), False
    for each in changed:
        if not each.layer.whole:
            b, a = balanced(*_update(adapter, each))
            factors[each.layer.path] = b.to(dtype), a.to(dtype)
            places.add(each.place.layer_path)
            transposed |= each.place.transposed
    if not factors:
        raise CheckpointError(f"{adapter.path} adapts no layer, so there is nothing to export.")
    rank = max(1, *(b.shape[1] for b, _ in factors.values()))
    tensors: dict[str, Tensor] = {}
    for path, rounded in factors.items():
        # One rank for all: llama.cpp divides one alpha by each layer's own, older servers know
        # no other than the configuration's.
        for name, factor in zip(("lora_B", "lora_A"), padded(*rounded, rank), strict=True):
            if not torch.isfinite(factor).all():
                raise CheckpointError(
                    f"{adapter.path}: the update of {path!r} is too large for {dtype}. Choose "
                    "another dtype."
                )
            tensors[f"{_PREFIX}{path}.{name}.weight"] = factor.contiguous()
    settings = {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": _targets(sorted(factors), places, base),
        "modules_to_save": adapter.settings.get("modules_to_save") if kept else None,
        "fan_in_fan_out": transposed,
    }
    _write_config(adapter, settings, base_name, folder)
    save_file(tensors | kept, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return rank


def _update(adapter: AdapterFolder, changed: ChangedLayer) -> tuple[Tensor, Tensor]:
    weight = changed.weight
    if weight.update is not None:
        return weight.update
    if weight.delta is not None:
        raise CheckpointError(
            f"{adapter.path} is a {adapter.method} adapter, whose update is no product of small "
            "factors, so no LoRA adapter equals it. Use --merged."
        )
    m, n = changed.layer.matrix.shape
    return torch.zeros(m, 0, dtype=torch.float64), torch.zeros(0, n, dtype=torch.float64)


def whole_modules(adapter: AdapterFolder) -> dict[str, Tensor]:
    """Return the tensors of the modules that were trained whole, under PEFT's names.

    Raises
    ------
    CheckpointError
        If the adapter changes something else than these and linear layers.
    """
    saved = adapter.settings.get("modules_to_save")
    modules = saved if isinstance(saved, list) else []
    found = {}
    for name in adapter.others:
        path = clean_name(name)
        inside = any(f".{module}." in f".{path}." for module in modules)
        if not inside or name.rsplit(".", 1)[-1] not in ("weight", "bias"):
            raise CheckpointError(
                f"{adapter.path} changes {path!r}, for which a LoRA adapter of linear layers has "
                "no place. Use --merged."
            )
        found[name] = adapter.read_other(name)
    for layer in adapter.layers.values():
        if layer.whole:
            found[f"{_PREFIX}{layer.path}.weight"] = adapter.read_tensor(layer, "weight")
    return found


def _targets(paths: list[str], places: set[str], base: ModelCheckpoint) -> list[str]:
    """Return names that match the adapted layers and nothing else, short ones if there are such.

    PEFT takes a name for every module whose path ends in it.
    """
    short = {path.rsplit(".", 1)[-1] for path in paths}
    modules = {clean_name(n.rpartition(".")[0]) for n in base.store.tensors}
    if {module for module in modules if module.rsplit(".", 1)[-1] in short} == places:
        return sorted(short)
    return paths


def _write_config(
    adapter: AdapterFolder, settings: dict[str, Any], base_name: str | None, folder: Path
) -> None:
    from peft import LoraConfig, TaskType

    task = adapter.settings.get("task_type")
    config = LoraConfig(
        **settings,
        task_type=task if task in list(TaskType) else None,
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
