"""Which layers of a live model to record, and what of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints_index import clean_name, locate, matches
from checkpoints_index.adapter_methods import BASE_REWRITING_LORA
from checkpoints_index.matrices import DTYPES, torch_dtype_name
from checkpoints_index.snapshots import INITIAL_PARTS, PARTS


@dataclass(frozen=True)
class RecordedLayer:
    """One layer of a live model, with what a snapshot stores of it.

    Attributes
    ----------
    name : str
        Path without wrappers, as in the checkpoint index.
    kind : str
        ``"dense"``, ``"lora"`` or ``"sorsa"``.
    layer : nn.Module
        The linear layer itself, or the PEFT layer around it.
    adapter : str
        Name of the active adapter; empty for dense layers.
    """

    name: str
    kind: str
    layer: Any
    adapter: str = ""

    def w_0(self) -> Tensor:
        """Return the base weight of shape (m, n), before training: W_0."""
        weight = self.layer.weight if self.kind == "dense" else self.layer.get_base_weight()
        return weight.detach()

    def tensors(self) -> dict[str, Tensor]:
        """Return the parts of the present W_t that this kind's snapshots hold."""
        if self.kind == "dense":
            values: tuple[Tensor, ...] = (self.layer.weight,)
        elif self.kind == "lora":
            values = (
                self.layer.lora_A[self.adapter].weight,
                self.layer.lora_B[self.adapter].weight,
            )
        else:
            values = tuple(getattr(self.layer, part)[self.adapter] for part in PARTS["sorsa"])
        return {p: v.detach() for p, v in zip(PARTS[self.kind], values, strict=True)}

    def initial_tensors(self) -> dict[str, Tensor]:
        """Return what never changes and belongs beside W_0: SORSA's initial factors."""
        if self.kind != "sorsa":
            return {}
        return {p: getattr(self.layer, p)[self.adapter].detach() for p in INITIAL_PARTS}

    def description(self) -> dict[str, Any]:
        """Return the entry of this matrix in a snapshot's header."""
        entry: dict[str, Any] = {"kind": self.kind}
        if self.kind == "lora":
            entry["scaling"] = float(self.layer.scaling[self.adapter])
        return entry


def find_layers(model: nn.Module, modules: Sequence[str]) -> list[RecordedLayer]:
    """Return the layers to record: those that match `modules` and are trained.

    Parameters
    ----------
    model : nn.Module
        Any model, wrapped by PEFT, ``torch.compile`` or DDP or not.
    modules : sequence of str
        Names or globs of the layers' last path component, such as ``"q_proj"``; with a dot,
        of the whole path.

    Raises
    ------
    ValueError
        If nothing matches, two matches share layer and module, or a matching layer is adapted
        in a way that is not recorded.
    """
    found: dict[str, RecordedLayer] = {}
    names = []
    adapted: str | None = None
    for path, module in model.named_modules():
        # A glob may match what an adapter is made of, which follows the adapted layer.
        if adapted is not None and path.startswith(adapted):
            continue
        adapted = f"{path}." if hasattr(module, "base_layer") else None
        name = clean_name(path)
        place = locate(name)
        if place is None or not isinstance(getattr(module, "weight", None), Tensor):
            continue
        names.append(name)
        if not matches(name, modules) or name in found:
            continue
        if hasattr(module, "base_layer"):
            found[name] = _adapted(name, module, model)
        elif module.weight.ndim == 2 and module.weight.requires_grad:
            found[name] = RecordedLayer(name, "dense", module)
    places: dict[tuple[int, str], str] = {}
    for layer in found.values():
        _refuse_other_weights(layer.name, layer.w_0())
        other = places.setdefault(locate(layer.name) or (0, ""), layer.name)
        if other != layer.name:
            raise ValueError(
                f"{other} and {layer.name} are both layer {locate(layer.name)}; choose one of "
                "them with a pattern for the whole path in modules=, such as "
                f"{re.sub(r'[.][0-9]+[.]', '.*.', layer.name)!r}."
            )
    if not found:
        raise ValueError(
            f"No trained layer matches modules={list(modules)}; the model has e.g. "
            f"{', '.join(names[:3]) or 'no layers with weights'}. Name yours with modules=, and "
            "attach after adapters are added and parameters are frozen."
        )
    return list(found.values())


def _adapted(name: str, layer: Any, model: nn.Module) -> RecordedLayer:
    kind = "sorsa" if hasattr(layer, "sorsa_u") else "lora" if hasattr(layer, "lora_A") else None
    if kind is None:
        raise ValueError(
            f"{name} is adapted by {type(layer).__name__}, which is not recorded; recorded are "
            "LoRA, SORSA and plain layers."
        )
    held = layer.sorsa_u if kind == "sorsa" else layer.lora_A
    active = [a for a in layer.active_adapters if a in held]
    if len(active) != 1:
        raise ValueError(f"{name} must have one active adapter to be recorded, it has {active}.")
    if layer.merged:
        raise ValueError(f"{name} is merged into its base; call unmerge_adapter() first.")
    if kind == "lora":
        _refuse_other_lora(name, layer, active[0], model)
    return RecordedLayer(name, kind, layer, active[0])


def _refuse_other_lora(name: str, layer: Any, adapter: str, model: nn.Module) -> None:
    # DDP and other wrappers do not pass the attribute on.
    holders = (m for m in model.modules() if hasattr(m, "peft_config"))
    configs: Any = getattr(next(holders, None), "peft_config", {})
    initialisation = getattr(configs.get(adapter), "init_lora_weights", True)
    if isinstance(initialisation, str) and initialisation.lower().startswith(BASE_REWRITING_LORA):
        raise ValueError(
            f"{name}: init_lora_weights={initialisation!r} rewrites the base, so W_0 is no longer "
            "in the model; recorded are LoRA adapters that leave it alone."
        )
    if getattr(layer, "lora_variant", {}).get(adapter) is not None or layer.fan_in_fan_out:
        raise ValueError(
            f"{name}: only plain LoRA on torch.nn.Linear is recorded, without DoRA and variants."
        )


def _refuse_other_weights(name: str, w_0: Tensor) -> None:
    if w_0.ndim != 2 or torch_dtype_name(w_0.dtype) not in DTYPES.values():
        raise ValueError(
            f"{name} must have a matrix of {', '.join(DTYPES.values())} as its weight, it has "
            f"{torch_dtype_name(w_0.dtype)} of shape {tuple(w_0.shape)}. Quantised bases are not "
            "recorded; load the base in 16 bits."
        )


def on_cpu(tensor: Tensor) -> Tensor:
    """Return a contiguous copy-free view where possible, on the CPU, ready to be written."""
    with torch.no_grad():
        return tensor.to("cpu").contiguous()
