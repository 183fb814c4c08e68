"""An adapter as seen on its base: W_t of the base's own logical matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

from torch import Tensor

from checkpoints_index import peft_layers
from checkpoints_index.adapter_methods import METHODS, REPEATABLE, UNREAD_LORA, scaling
from checkpoints_index.adapters import AdapterFolder, AdapterLayer, is_initial_adapter
from checkpoints_index.byte_files import names_in
from checkpoints_index.errors import CheckpointError
from checkpoints_index.layouts import Stripes
from checkpoints_index.logical import LogicalMatrix
from checkpoints_index.matrices import Checkpoint, Matrix, Weight
from checkpoints_index.stacks import Stacks
from checkpoints_index.updates import moved_weight

Update = tuple[Tensor, Tensor]


class LayeredBase(Protocol):
    """A base that tells which logical matrices a layer's stored weight holds."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    def parts_of(self, layer_path: str) -> list[LogicalMatrix]:
        """Return a layer's logical matrices; none where there is no such layer."""
        ...

    def read_layer(self, layer_path: str) -> Tensor:
        """Read a layer's weight as stored."""
        ...


class BoundAdapter:
    """A PEFT adapter on its base.

    Parameters
    ----------
    adapter : AdapterFolder
        The adapter.
    base : Checkpoint
        W_0. One without logical matrices (a run's recorded base) counts as one matrix a layer.
    initial : AdapterFolder, optional
        The LoRA as it was before training, whose product a method subtracted from the base it
        trained on. Otherwise looked for beside an adapter that says it is of such a method.

    Raises
    ------
    CheckpointError
        If the base has none of the adapter's layers or other shapes, or W_t does not follow from
        W_0 and the adapter.
    """

    def __init__(
        self, adapter: AdapterFolder, base: Checkpoint, initial: AdapterFolder | None = None
    ) -> None:
        self._adapter = adapter
        self._base = cast(LayeredBase, base) if hasattr(base, "parts_of") else _PlainBase(base)
        self.path = adapter.path
        self.step = adapter.step
        self.method = adapter.method
        self._refuse_unread()
        self._initial = self._find_initial() if initial is None else _checked(initial, adapter)
        self._layers: dict[str, LogicalMatrix] = {}
        self._parts: dict[str, tuple[AdapterLayer, LogicalMatrix]] = {}
        matrices = []
        stacks = Stacks(matrix.name for matrix in base.matrices)
        for layer in adapter.layers.values():
            parts = self._parts_of(layer, stacks)
            self._refuse_other_shape(layer, parts)
            if parts:
                self._layers[layer.matrix.name] = parts[0]
            for part in parts:
                if part.matrix.name in self._parts:
                    raise CheckpointError(f"{self.path} has {part.matrix.name!r} twice.")
                self._parts[part.matrix.name] = (layer, part)
                matrices.append(
                    replace(part.matrix, dtype=layer.matrix.dtype, rank=layer.matrix.rank)
                )
            if not parts:
                # Listed as it is: only where it is asked for, its absence in the base matters.
                matrices.append(layer.matrix)
        if adapter.layers and not self._parts:
            some = next(iter(adapter.layers))
            wanted = f"{adapter.base!r}, which it names" if adapter.base else "the right one"
            raise CheckpointError(
                f"The base {base.path} has none of the {len(adapter.layers)} layers that "
                f"{self.path} changes, e.g. {some!r}. Give {wanted}."
            )
        self.matrices = tuple(matrices)

    @property
    def fingerprint(self) -> str:
        """That of the adapter, and of the initial adapter that was found beside it."""
        own = self._adapter.fingerprint
        return own if self._initial is None else f"{own},{self._initial.fingerprint}"

    @property
    def base(self) -> str | None:
        """The base that the adapter's configuration names."""
        return self._adapter.base

    @property
    def initial(self) -> AdapterFolder | None:
        """The adapter from before training, where the update is what changed since."""
        return self._initial

    def bind(self, base: Checkpoint) -> Checkpoint:
        """Return the adapter on another base."""
        return BoundAdapter(self._adapter, base)

    def read(self, matrix: Matrix) -> Weight:
        """Read one matrix; of the base, W_0 of its layer where that is needed."""
        if matrix.name not in self._parts:
            raise CheckpointError(
                f"{self.path} has no matrix {matrix.name!r} on {self._base.path}."
            )
        layer, part = self._parts[matrix.name]
        return _weight_of_part(self._layer_weight(layer, part), part)

    def place_of(self, layer: AdapterLayer) -> LogicalMatrix:
        """Return a matrix of the base in the tensor that holds a layer: the layer, or a part of it.

        Raises
        ------
        CheckpointError
            If the base has no such layer.
        """
        part = self._layers.get(layer.matrix.name)
        if part is None:
            raise CheckpointError(
                f"The base {self._base.path} has no layer {layer.path!r}, which {self.path} "
                "changes. Give the base it was trained on with --base."
            )
        return part

    def read_layer(self, layer: AdapterLayer) -> Weight:
        """Read W_t of a whole layer, fused or not.

        An update of this project's methods is always given as factors, also of full rank, and
        refused on another base than the adapter was made on.

        Returns
        -------
        Weight
            `dense` and `delta` as the base stores the layer's tensor, `update` as the layer maps:
            (out_features, q) and (q, in_features), also of a Conv1D.

        Raises
        ------
        CheckpointError
            If the base has no such layer, or a file is broken.
        """
        part = self.place_of(layer)
        if METHODS[self._adapter.kind].ours and not layer.whole:
            return Weight(update=self._own_factors(layer, part))
        return self._layer_weight(layer, part)

    def _parts_of(self, layer: AdapterLayer, stacks: Stacks) -> list[LogicalMatrix]:
        name = layer.matrix.name
        with _naming(self.path):
            found = [parts for n in stacks.same_layer(name) if (parts := self._base.parts_of(n))]
        return found[0] if found else []

    def _layer_weight(self, layer: AdapterLayer, part: LogicalMatrix) -> Weight:
        """W_t of a whole layer: `dense` and `delta` as stored, `update` as (out, in)."""
        adapter = self._adapter
        if layer.whole:
            return Weight(dense=adapter.read_tensor(layer, "weight"))
        if adapter.kind == "VERA":
            return Weight(update=self._vera_update(layer))
        if not adapter.has_factors:
            return self._merged(layer, part)
        if self._initial is None and not adapter.rewrites_base:
            return adapter.read_factors(layer)
        b, a = cast(Update, adapter.read_factors(layer).update)
        b_0, a_0 = self._initial_update(layer, part)
        if b_0.shape != b.shape or a_0.shape != a.shape:
            raise CheckpointError(
                f"{self.path}: the initial factors of {layer.path!r} have shapes "
                f"{tuple(b_0.shape)} and {tuple(a_0.shape)}, the trained ones {tuple(b.shape)} and "
                f"{tuple(a.shape)}. Put the adapter saved before this training beside it."
            )
        return moved_weight(b, a, b_0, a_0)

    def _merged(self, layer: AdapterLayer, part: LogicalMatrix) -> Weight:
        """Return what the tuner's own code adds to the layer."""
        if METHODS[self._adapter.kind].ours:
            b, a = self._own_factors(layer, part)
            delta = b @ a
            return Weight(delta=delta) if delta.any() else Weight()
        w_0 = self._base.read_layer(part.layer_path)
        tensors = self._adapter.read_all(layer)
        settings, extents = self._adapter.settings, self._shared_extents
        with _naming(self.path):
            delta = peft_layers.merged(settings, layer.path, tensors, w_0, part.transposed, extents)
        delta -= w_0
        return Weight(delta=delta) if delta.any() else Weight()

    def _own_factors(self, layer: AdapterLayer, part: LogicalMatrix) -> Update:
        """Return the update's factors as this project's tuner has them on W_0."""
        adapter, w_0 = self._adapter, self._base.read_layer(part.layer_path)
        tensors = adapter.read_all(layer)
        with _naming(self.path):
            return peft_layers.own_factors(
                adapter.settings, layer.path, tensors, w_0, part.transposed
            )

    def _initial_update(self, layer: AdapterLayer, part: LogicalMatrix) -> Update:
        """Return the start that the method subtracted from the base, as factors."""
        if self._initial is not None:
            initial = self._initial.layers.get(layer.matrix.name)
            if initial is None or initial.whole:
                raise CheckpointError(f"{self._initial.path} has no layer {layer.path!r}.")
            return cast(Update, self._initial.read_factors(initial).update)
        rank = cast(int, layer.matrix.rank) // 2
        w_0 = self._base.read_layer(part.layer_path)
        settings = {**self._adapter.settings, "r": rank, "rank_pattern": {}}
        with _naming(self.path):
            b, a = peft_layers.initial_factors(settings, layer.path, w_0, part.transposed)
        return scaling(settings, layer.path, rank) * b, a

    def _vera_update(self, layer: AdapterLayer) -> Update:
        adapter = self._adapter
        lambda_b = adapter.read_tensor(layer, "vera_lambda_b").double()  # (m,)
        lambda_d = adapter.read_tensor(layer, "vera_lambda_d").double()  # (r,)
        m, n = self._extents[layer.path]
        b, a = self._vera_projections
        rank = len(lambda_d)
        if b.shape[1:] != (rank,) or a.shape[:1] != (rank,) or len(b) < m or a.shape[1] < n:
            raise CheckpointError(
                f"{self.path}: the shared projections do not fit layer {layer.path!r}."
            )
        return lambda_b[:, None] * b[:m], lambda_d[:, None] * a[:, :n]

    @property
    def _vera_projections(self) -> Update:
        shared = self._adapter.read_shared()
        if {"vera_A", "vera_B"} <= shared.keys():
            return shared["vera_B"].double(), shared["vera_A"].double()
        with _naming(self.path):
            return peft_layers.vera_projections(self._adapter.settings, self._shared_extents)

    @cached_property
    def _extents(self) -> dict[str, tuple[int, int]]:
        """The adapted layers' shapes (m, n) by their paths."""
        found: dict[str, tuple[int, int]] = {}
        for layer, part in self._parts.values():
            if layer.whole:
                continue
            m, _ = found.get(layer.path, (0, 0))
            found[layer.path] = (m + part.matrix.shape[0], part.matrix.shape[1])
        return found

    @property
    def _shared_extents(self) -> dict[str, tuple[int, int]]:
        """One layer of each shape, where what all layers share depends on the largest."""
        if not METHODS[self._adapter.kind].shared:
            return {}
        adapted = [layer.path for layer in self._adapter.layers.values() if not layer.whole]
        missing = [path for path in adapted if path not in self._extents]
        if missing:
            raise CheckpointError(
                f"{self.path}: what its layers share depends on {missing[0]!r} too, which the "
                f"base {self._base.path} has not. Give the base it was trained on with --base."
            )
        one_of_each = {shape: path for path, shape in self._extents.items()}
        return {path: shape for shape, path in one_of_each.items()}

    def _refuse_unread(self) -> None:
        adapter = self._adapter
        used = [s for s in UNREAD_LORA if adapter.settings.get(s)] if adapter.kind == "LORA" else []
        start = adapter.rewrites_base
        if start == "loftq":
            used.append("init_lora_weights='loftq'")
        if start and not adapter.has_factors:
            used.append(f"init_lora_weights={start!r} and {adapter.method}")
        if used:
            raise CheckpointError(
                f"{self.path} is a LoRA with {', '.join(used)}, which is not read here. Merge it "
                "into its base with PEFT and analyse the merged model."
            )

    def _find_initial(self) -> AdapterFolder | None:
        start = self._adapter.rewrites_base
        if start is None:
            return None
        around = [p / name for p in (self.path, self.path.parent) for name in sorted(names_in(p))]
        found = [p for p in around if p != self.path and is_initial_adapter(p)]
        if len(found) > 1:
            raise CheckpointError(
                f"{self.path} needs the adapter from before training, and several folders could "
                f"be that: {', '.join(map(str, found))}. Leave one."
            )
        if found:
            return _checked(AdapterFolder(found[0], step=0), self._adapter)
        if start not in REPEATABLE:
            raise CheckpointError(
                f"{self.path} is a LoRA that started from {start!r}, which cannot be computed "
                f"again from the base. Put the adapter saved before training beside it, in a "
                f"folder {start.split('_niter')[0]}-init, or save it as a LoRA with PEFT's "
                "path_initial_model_for_weight_conversion."
            )
        return None

    def _refuse_other_shape(self, layer: AdapterLayer, parts: list[LogicalMatrix]) -> None:
        if not parts:
            return
        if any(p.outputs is None for p in parts):
            raise CheckpointError(
                f"{self.path} changes {layer.matrix.name!r}, which holds many experts in the base "
                f"{self._base.path}. Merge it into its base with PEFT and analyse the merged model."
            )
        base = (sum(p.matrix.shape[0] for p in parts), parts[0].matrix.shape[1])
        own = layer.matrix.shape
        if layer.whole and own == base[::-1]:
            return
        if any(o not in (0, b) for o, b in zip(own, base, strict=True)):
            raise CheckpointError(
                f"{layer.matrix.name} has shape {base} in the base {self._base.path}, but {own} "
                f"in {self.path}. Give the base this adapter was trained on with --base."
            )


def _checked(initial: AdapterFolder, adapter: AdapterFolder) -> AdapterFolder:
    for folder in (adapter, initial):
        if folder.kind != "LORA":
            raise CheckpointError(f"{folder.path} is a {folder.kind} adapter, not a LoRA.")
    return initial


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


class _PlainBase:
    """A base whose matrices are its layers."""

    def __init__(self, base: Checkpoint) -> None:
        self.path = base.path
        self._base = base
        self._matrices = {matrix.name: matrix for matrix in base.matrices}

    def parts_of(self, layer_path: str) -> list[LogicalMatrix]:
        matrix = self._matrices.get(layer_path)
        if matrix is None:
            return []
        m, _ = matrix.shape
        every = Stripes(blocks=1, block=m, start=0, stop=m)
        return [LogicalMatrix(matrix, layer_path, layer_path, _whole, outputs=every)]

    def read_layer(self, layer_path: str) -> Tensor:
        weight = self._base.read(self._matrices[layer_path])
        if weight.dense is None:
            raise CheckpointError(f"{self.path} holds no whole weight of {layer_path!r}.")
        return weight.dense


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _weight_of_part(weight: Weight, part: LogicalMatrix) -> Weight:
    if weight.dense is not None:
        return Weight(dense=part.of(weight.dense))
    if weight.delta is not None:
        return Weight(delta=part.of(weight.delta))
    if weight.update is None:
        return weight
    # The trained factors are those of the whole layer, and say nothing of a part of it.
    whole = len(weight.update[0]) == part.matrix.shape[0]
    factors = weight.factors if whole else None
    return Weight(update=part.of_update(*weight.update), factors=factors)
