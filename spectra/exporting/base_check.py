"""Whether an adapter was made on the base that it is put on, as far as that can be told."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from checkpoints_index import CheckpointError
from checkpoints_index.adapters import AdapterFolder, AdapterLayer
from checkpoints_index.bound_adapters import BoundAdapter
from checkpoints_index.model_folders import ModelCheckpoint
from spectra.exporting.factors import squared_norm

# A base of the same model in another precision misses SORSA's initial part by 2^-8 at most
# (bfloat16), one quantised to 4 bits by a few percent, another model's by about 100%.
_LARGEST_MISS = 0.05
# A LoRA whose product is a principal part P of W_0 has ⟨P, W_0⟩ = ‖P‖² and a share of W_0's
# norm; the update of a LoRA that began at zero has neither.
_PART_OF_BASE = (0.7, 1.4)
_LEAST_SHARE = 0.1


def refuse_another_base(adapter: AdapterFolder, bound: BoundAdapter, base: ModelCheckpoint) -> None:
    """Raise CheckpointError where the base cannot be the weights before the method touched them."""
    layers = [layer for layer in adapter.layers.values() if not layer.whole]
    if adapter.kind == "SORSA":
        for layer in layers:
            _refuse_other_part(adapter, layer, base, _stored(bound, base, layer))
    elif adapter.kind == "LORA" and adapter.has_factors:
        if bound.initial is None and adapter.rewrites_base:
            _refuse_far_start(adapter, bound, base, layers)
        else:
            _refuse_wrong_start(adapter, bound, base, layers)


def _refuse_other_part(
    adapter: AdapterFolder, layer: AdapterLayer, base: ModelCheckpoint, w_0: Tensor
) -> None:
    """Check that U_0ᵀ W_0 V_0 is diag(S_0)."""
    u, s, vh = (adapter.read_tensor(layer, f"sorsa_{n}0").double() for n in ("u", "s", "vh"))
    seen = u.T @ (w_0 @ vh.T)  # (r, r)
    norm = float(torch.linalg.vector_norm(s))
    miss = float(torch.linalg.matrix_norm(seen - torch.diag(s))) / (norm or 1.0)
    if not miss <= _LARGEST_MISS:
        raise CheckpointError(
            f"{adapter.path} was made on another base than {base.path}: the initial principal "
            f"part of {layer.path!r} misses this base's by {miss:.0%}. {_advice(adapter)}"
        )


def _refuse_far_start(
    adapter: AdapterFolder,
    bound: BoundAdapter,
    base: ModelCheckpoint,
    layers: list[AdapterLayer],
) -> None:
    """Check that training moved the adapter by less than its whole start, computed again."""
    moved = start = 0.0
    for layer in layers:
        update = bound.read_layer(layer).update
        if update is None:
            continue
        b, a = update
        rank = b.shape[1] // 2
        moved += squared_norm(b, a)
        start += squared_norm(b[:, rank:], a[rank:])
    if moved > start:
        raise CheckpointError(
            f"{adapter.path} lies further from the start that {adapter.rewrites_base!r} computes "
            f"on {base.path} than that start's own norm ({math.sqrt(moved / start or 1):.1f} "
            f"times): this is no base it was made on, or the residual of one. {_advice(adapter)}"
        )


def _refuse_wrong_start(
    adapter: AdapterFolder,
    bound: BoundAdapter,
    base: ModelCheckpoint,
    layers: list[AdapterLayer],
) -> None:
    """Check that a given start is a part of W_0, and that without one the product is none."""
    inner = product = weight = 0.0
    for layer in layers:
        source = bound.initial or adapter
        own = source.layers.get(layer.matrix.name)
        update = None if own is None or own.whole else source.read_factors(own).update
        if update is None:
            continue
        b, a = update
        w_0 = _stored(bound, base, layer)
        inner += float(((b.T @ w_0) * a).sum())
        product += squared_norm(b, a)
        weight += float(torch.linalg.matrix_norm(w_0)) ** 2
    low, high = _PART_OF_BASE
    is_part = product > 0 and low < inner / product < high
    if bound.initial is None and is_part and product > _LEAST_SHARE**2 * weight:
        raise CheckpointError(
            f"{adapter.path} says that it began at zero, but its product is a principal part of "
            f"{base.path}: it is a PiSSA adapter on a residual base. Give the adapter as it was "
            "before training with --initial."
        )
    if bound.initial is not None and not is_part and product > 0:
        raise CheckpointError(
            f"{bound.initial.path} is no part of the weights of {base.path}, which is then not "
            f"the base it was taken from, or the residual of one. {_advice(adapter)}"
        )


def _stored(bound: BoundAdapter, base: ModelCheckpoint, layer: AdapterLayer) -> Tensor:
    """Return W_0 of a whole layer, (out_features, in_features), float64."""
    place = bound.place_of(layer)
    stored = base.read_layer(place.layer_path).double()
    return stored.T if place.transposed else stored


def _advice(adapter: AdapterFolder) -> str:
    named = f" ({adapter.base})" if adapter.base else ""
    return f"Give the original base{named} with --base: the weights before any method touched them."
