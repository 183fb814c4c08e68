"""The layers that an adapter changes, and whether it was made on the base that it is put on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints_index import CheckpointError, Weight
from checkpoints_index.adapters import AdapterFolder, AdapterLayer
from checkpoints_index.bound_adapters import BoundAdapter
from checkpoints_index.logical import LogicalMatrix
from checkpoints_index.model_folders import ModelCheckpoint
from spectra.exporting.factors import squared_norm

# A LoRA whose product is a principal part P of W_0 has ⟨P, W_0⟩ = ‖P‖² and a share of W_0's
# norm; the update of a LoRA that began at zero has neither.
_PART_OF_BASE = (0.7, 1.4)
_LEAST_SHARE = 0.1
# Of a trained PiSSA or OLoRA adapter with its own start: 1 until training moves it by as much as
# it weighs; with the start on another base, or on the residual of its own, about 0.
_LEAST_ALIGNMENT = 0.2


@dataclass(frozen=True)
class ChangedLayer:
    """One layer that an adapter changes, and what it becomes.

    Attributes
    ----------
    layer : AdapterLayer
        As the adapter has it.
    place : LogicalMatrix
        Where the base stores it.
    weight : Weight
        W_t of the whole layer, as `BoundAdapter.read_layer` gives it.
    """

    layer: AdapterLayer
    place: LogicalMatrix
    weight: Weight

    def tensors(self) -> list[Tensor]:
        """Return all tensors that W_t follows from, beside W_0."""
        weight = self.weight
        found = [weight.dense, weight.delta, *(weight.update or ())]
        return [tensor for tensor in found if tensor is not None]


def checked_layers(
    adapter: AdapterFolder, bound: BoundAdapter, base: ModelCheckpoint
) -> Iterator[ChangedLayer]:
    """Yield the layers one by one; what follows from all of them is checked after the last one.

    Raises
    ------
    CheckpointError
        Where the base cannot be the weights before the method touched them.
    """
    sums = _Sums()
    for layer in adapter.layers.values():
        if any(name.endswith("bias") for name in layer.tensors):
            raise CheckpointError(
                f"{adapter.path} adds a bias to {layer.path!r}, which is not exported. Merge this "
                "adapter with PEFT."
            )
        changed = ChangedLayer(layer, bound.place_of(layer), bound.read_layer(layer))
        if not all(torch.isfinite(tensor).all() for tensor in changed.tensors()):
            raise CheckpointError(
                f"{adapter.path} has NaN or infinite numbers in {layer.path!r}. Look at the "
                "training, or take an earlier checkpoint."
            )
        if adapter.kind == "LORA" and not layer.whole:
            sums.add(adapter, bound, base, changed)
        yield changed
    if adapter.kind != "LORA":
        return
    if bound.initial is None and adapter.rewrites_base:
        _refuse_other_start(adapter, base, sums)
    else:
        _refuse_wrong_start(adapter, bound, base, sums)


@dataclass
class _Sums:
    """Over all layers: of the product B A, and of the start P, the given or computed one.

    Without a start, P is the product itself.
    """

    product: float = 0.0  # ‖B A‖²
    start: float = 0.0  # ‖P‖²
    base: float = 0.0  # ‖W_0‖²
    aligned: float = 0.0  # ⟨B A, P⟩
    inner: float = 0.0  # ⟨P, W_0⟩

    def add(
        self,
        adapter: AdapterFolder,
        bound: BoundAdapter,
        base: ModelCheckpoint,
        changed: ChangedLayer,
    ) -> None:
        if changed.weight.update is None:
            return
        b, a = b_0, a_0 = changed.weight.update
        if bound.initial is not None or adapter.rewrites_base:
            rank = b.shape[1] // 2
            b, b_0, a, a_0 = b[:, :rank], -b[:, rank:], a[:rank], a[rank:]
        w_0 = _stored(base, changed.place)
        self.product += squared_norm(b, a)
        self.start += squared_norm(b_0, a_0)
        self.base += float(torch.linalg.matrix_norm(w_0)) ** 2
        self.aligned += float(((b.T @ b_0) * (a @ a_0.T)).sum())
        self.inner += float(((b_0.T @ w_0) * a_0).sum())


def _refuse_other_start(adapter: AdapterFolder, base: ModelCheckpoint, sums: _Sums) -> None:
    """Check that the trained adapter still points where its start, computed again, does."""
    if sums.aligned < _LEAST_ALIGNMENT * math.sqrt(sums.product * sums.start):
        raise CheckpointError(
            f"{adapter.path} has nothing in common with the start that {adapter.rewrites_base!r} "
            f"computes on {base.path}: this is another base than the one it was made on, or its "
            f"residual. {_advice(adapter)}"
        )


def _refuse_wrong_start(
    adapter: AdapterFolder, bound: BoundAdapter, base: ModelCheckpoint, sums: _Sums
) -> None:
    """Check that a given start is a part of W_0, and that without one the product is none."""
    low, high = _PART_OF_BASE
    is_part = sums.start > 0 and low < sums.inner / sums.start < high
    if bound.initial is None and is_part and sums.start > _LEAST_SHARE**2 * sums.base:
        raise CheckpointError(
            f"{adapter.path} says that it began at zero, but its product is a principal part of "
            f"{base.path}: it is a PiSSA adapter on a residual base. Give the adapter as it was "
            "before training with --initial."
        )
    # LoRA-GA begins with gradients; the others with a projection of W_0.
    is_any_matrix = adapter.rewrites_base == "lora_ga"
    if bound.initial is not None and sums.start > 0 and not (is_part or is_any_matrix):
        raise CheckpointError(
            f"{bound.initial.path} is no part of the weights of {base.path}, which is another "
            f"base than the one it was taken from, or its residual. {_advice(adapter)}"
        )


def _stored(base: ModelCheckpoint, place: LogicalMatrix) -> Tensor:
    """Return W_0 of a whole layer, (out_features, in_features), float64."""
    stored = base.read_layer(place.layer_path).double()
    return stored.T if place.transposed else stored


def _advice(adapter: AdapterFolder) -> str:
    named = f" ({adapter.base})" if adapter.base else ""
    return f"Give the original base{named} with --base: the weights before any method touched them."
