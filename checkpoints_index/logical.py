"""Which logical matrices a model's stored tensors are: fused and transposed ones taken apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from checkpoints_index.architectures import (
    EXPERT_TENSORS,
    Fusion,
    find_fusion,
    scopes,
    stores_experts_transposed,
    stores_transposed,
)
from checkpoints_index.errors import CheckpointError
from checkpoints_index.labels import label_paths
from checkpoints_index.layouts import Settings, Stripes, divide
from checkpoints_index.matrices import Matrix, clean_name, is_linear, locate
from checkpoints_index.tensors import StoredTensor

# Switch Transformers has 2,048; a header could claim any number.
_MOST_EXPERTS = 65_536
_NUMBERS = re.compile(r"(?<![^.])(0|[1-9][0-9]{0,5})(?![^.])")  # as `is_number` has them


@dataclass(frozen=True)
class LogicalMatrix:
    """One logical matrix (out_features, in_features) and where its numbers are.

    Attributes
    ----------
    matrix : Matrix
        Its name, layer, module and shape.
    tensor : str
        The stored tensor that holds it, alone or with others.
    layer_path : str
        Cleaned path of the layer that the tensor belongs to (an adapter's name for it).
    take : callable
        From the stored tensor to the matrix of shape (m, n), as a view where that is possible.
    rows : slice, optional
        The run along the tensor's first dimension that holds it, where a reader need not read
        more; `take` then gets just that run.
    outputs : Stripes, optional
        Which of the layer's outputs it holds: all, or those of one part of a fused layer.
        ``None`` where the tensor holds many layers (experts), which share no output.
    transposed : bool
        Whether the tensor has it as (in, out), as a Conv1D does.
    """

    matrix: Matrix
    tensor: str
    layer_path: str
    take: Callable[[Tensor], Tensor]
    rows: slice | None = None
    outputs: Stripes | None = None
    transposed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """Return the matrix, given all of the stored tensor or of another one laid out like it.

        A dense update of a layer in the orientation of its stored weight is such a one.
        """
        return self.take(tensor if self.rows is None else tensor[self.rows])

    def of_update(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of the matrix's update, given those of its layer's.

        Parameters
        ----------
        b : Tensor of shape (out_features of the layer, r)
            As the layer maps: also of a Conv1D, whose weight is stored transposed.
        a : Tensor of shape (r, in_features)
            Likewise; all parts of a layer share it.

        Raises
        ------
        ValueError
            If the tensor holds many experts, whose updates have no common factors.
        """
        if self.outputs is None:
            raise ValueError(
                f"{self.matrix.name} must be of one layer to have factors of that layer's update; "
                f"{self.tensor} holds many experts. Take the matrix from the dense update."
            )
        return self.outputs.of(b), a


def logical_matrices(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any] | None = None
) -> list[LogicalMatrix]:
    """Return the logical matrices of a model's stored tensors.

    These are the weights of linear layers that have a layer number in their path. Fused layers
    are divided, Conv1D weights transposed, and expert tensors taken apart by what
    `checkpoints_index.architectures` knows of the configuration's model type; without a
    configuration, or with one that does not tell, a layer is one matrix under its own name and as
    it is stored (each expert's part too). Left out are embeddings, heads over the vocabulary,
    norms, biases, tables, kernels of convolutions and what is not stored in floating point.

    Parameters
    ----------
    tensors : mapping of str to StoredTensor
        All tensors of the checkpoint.
    config : mapping, optional
        The model's ``config.json``, where there is one.

    Returns
    -------
    list of LogicalMatrix
        In the order of `tensors`. Layers and modules as `label_paths` gives them.

    Raises
    ------
    CheckpointError
        If the configuration contradicts the tensors or itself, or two tensors are the same layer.
    """
    if config is not None and not isinstance(config, Mapping):
        raise CheckpointError(
            f"A model's configuration must be an object of settings, got {type(config).__name__}. "
            "Repair config.json."
        )
    found: dict[str, LogicalMatrix] = {}
    kinds: dict[str, _Kind] = {}
    for name, stored in tensors.items():
        path = clean_name(name)
        if not stored.can_be_weight or min(stored.shape, default=0) < 1:
            continue
        # A model has thousands of paths, but few that differ in more than numbers.
        pattern = _NUMBERS.sub("#", path)
        if pattern not in kinds:
            kinds[pattern] = _kind(path, config or {})
        for matrix in _matrices(name, path, stored, kinds[pattern]):
            other = found.setdefault(matrix.matrix.name, matrix)
            if other is not matrix:
                raise CheckpointError(
                    f"A checkpoint must have one tensor for each matrix, but {other.tensor!r} and "
                    f"{name!r} are both {matrix.matrix.name!r}. Save the model without wrappers."
                )
    places = label_paths(found)
    return [_placed(m, *places[name]) for name, m in found.items()]


@dataclass(frozen=True)
class _Kind:
    """What is known of all layers whose paths differ in nothing but numbers.

    Attributes
    ----------
    listed : bool
        Whether these are linear layers with a layer number.
    config : mapping
        The configuration of the tower they are in.
    fusions : tuple of pairs of Fusion and mapping
        What they may consist of, by which configurations; the first that tells counts.
    conv1d : bool
        Whether they are stored transposed.
    """

    listed: bool
    config: Mapping[str, Any]
    fusions: tuple[tuple[Fusion, Mapping[str, Any]], ...]
    conv1d: bool


def _kind(path: str, config: Mapping[str, Any]) -> _Kind:
    nested = scopes(config, path)
    fusions = ((find_fusion(scope, path), scope) for scope in nested)
    return _Kind(
        listed=locate(path) is not None and is_linear(path),
        config=nested[0],
        fusions=tuple((fusion, scope) for fusion, scope in fusions if fusion is not None),
        conv1d=any(stores_transposed(scope, path) for scope in nested),
    )


def _matrices(name: str, path: str, stored: StoredTensor, kind: _Kind) -> Iterator[LogicalMatrix]:
    """Yield the matrices of one tensor, with layer and module still open."""
    if not kind.listed:
        return
    experts = _experts(path, stored.shape, kind)
    if experts is not None:
        yield from _of_experts(name, path, stored, kind, experts)
    elif len(stored.shape) == 2:
        yield from _of_layer(name, path, stored, kind)


def _of_layer(name: str, path: str, stored: StoredTensor, kind: _Kind) -> Iterator[LogicalMatrix]:
    conv1d = kind.conv1d and not stored.dequantised
    m, n = stored.shape[::-1] if conv1d else stored.shape
    for part, outputs in _parts(path, m, kind).items():
        whole = len(outputs) == m
        run = not whole and not conv1d and outputs.blocks == 1
        yield LogicalMatrix(
            matrix=Matrix(part, 0, "", (len(outputs), n), stored.dtype),
            tensor=name,
            layer_path=path,
            take=partial(_taken, transposed=conv1d, outputs=None if whole or run else outputs),
            rows=slice(outputs.start, outputs.stop) if run else None,
            outputs=outputs,
            transposed=conv1d,
        )


def _of_experts(
    name: str, path: str, stored: StoredTensor, kind: _Kind, experts: int
) -> Iterator[LogicalMatrix]:
    parent, last = path.rsplit(".", 1)
    if len(stored.shape) == 2:  # DBRX: the layers of all experts below one another
        parent = parent.removesuffix(".mlp")
        run = stored.shape[0] // experts
        shape: tuple[int, ...] = (run, stored.shape[1])
        transposed = last == "w2"
    else:
        run, shape = 1, stored.shape[1:]
        width = Settings(kind.config, path).hidden_size
        transposed = stores_experts_transposed(kind.config, width, last, shape)
    m, n = shape[::-1] if transposed else shape
    parent = parent if "expert" in parent.rsplit(".", 1)[-1] else f"{parent}.experts"
    for part, outputs in _parts(path, m, kind).items():
        take = partial(_taken, transposed=transposed, outputs=outputs if len(outputs) < m else None)
        module = part.rsplit(".", 1)[-1]
        for expert in range(experts):
            yield LogicalMatrix(
                matrix=Matrix(
                    f"{parent}.{expert}.{module}", 0, "", (len(outputs), n), stored.dtype
                ),
                tensor=name,
                layer_path=path,
                take=take,
                rows=slice(expert * run, (expert + 1) * run),
                transposed=transposed,
            )


def _parts(path: str, outputs: int, kind: _Kind) -> dict[str, Stripes]:
    """Return the paths of what a layer holds and where; of itself, if it is not a fused one."""
    for fusion, config in kind.fusions:
        divided = divide(fusion.layout, fusion.parts, Settings(config, path), outputs)
        if divided is not None:
            parent = path.rsplit(".", 1)[0]
            return {f"{parent}.{part}": stripes for part, stripes in divided.items()}
    return {path: Stripes(1, outputs, 0, outputs)}


def _experts(path: str, shape: tuple[int, ...], kind: _Kind) -> int | None:
    """Return how many experts a tensor holds; ``None`` if it is a single layer's."""
    if len(shape) == 3:
        *parents, last = path.split(".")
        if last not in EXPERT_TENSORS and not any("expert" in p or "moe" in p for p in parents):
            return None
        if shape[0] > _MOST_EXPERTS:
            raise CheckpointError(
                f"A layer must have at most {_MOST_EXPERTS} experts, {path} has {shape[0]}. "
                "The file is damaged."
            )
        return shape[0]
    if len(shape) == 2 and path.rsplit(".", 1)[0].endswith(".experts.mlp"):
        return _experts_below_one_another(path, shape, kind.config)
    return None


def _experts_below_one_another(
    path: str, shape: tuple[int, ...], config: Mapping[str, Any]
) -> int | None:
    """Return how many experts a tensor of DBRX holds, by its configuration."""
    experts = Settings(config, path).count("ffn_config.moe_num_experts")
    if experts is not None and (shape[0] % experts or experts > _MOST_EXPERTS):
        raise CheckpointError(
            f"{path} has {shape[0]} rows, which do not divide among the {experts} experts of the "
            "model's configuration. Give the config.json that belongs to these weights."
        )
    return experts


def _placed(found: LogicalMatrix, layer: int, module: str) -> LogicalMatrix:
    return replace(found, matrix=replace(found.matrix, layer=layer, module=module))


def _taken(tensor: Tensor, *, transposed: bool, outputs: Stripes | None) -> Tensor:
    matrix = tensor[0] if tensor.ndim == 3 else tensor
    matrix = matrix.T if transposed else matrix
    return matrix if outputs is None else outputs.of(matrix)
