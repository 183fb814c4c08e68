"""What the index says of a matrix, and what reading it gives."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

# Parts of a parameter's path that wrappers put there: DDP, torch.compile, PEFT, FSDP.
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "base_layer",
}
_PEFT_PREFIX = "base_model.model."

ALL_LINEAR = "all-linear"
"""The pattern for every linear layer, as PEFT spells it."""
REGEX = "re:"
"""What a pattern begins with that is a regular expression for the whole path."""

_NOT_LINEAR = re.compile(
    r"(^|_)(bias(es|_table|_[uv])?|norm\d?|layernorm|ln(_\w)?|emb|embed|embeddings?|wte|wpe"
    r"|embed_(tokens|positions|in|out|sum|avg)|pos_embed|rel_pos_[hw]|positions?|inv_freq|codebook"
    r"|scales?|scale_inv|lm_heads?)$|^(shared|d)$|_log$|^time_(mix|decay|first|maa|faaaa)"
)

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
"""The floating dtypes of safetensors headers, by the names torch uses."""


@dataclass(frozen=True)
class Matrix:
    """One weight of a checkpoint, as its headers describe it.

    Attributes
    ----------
    name : str
        Path of the layer without wrappers and without ``.weight``.
    layer : int
        Index of the transformer layer, from the path.
    module : str
        Last part of the path, such as ``"q_proj"``; with what tells it apart where a layer of the
        checkpoint has several, such as ``"decoder.EncDecAttention.q"``.
    shape : tuple of int
        (out_features, in_features).
    dtype : str
        In which the numbers lie on disk, such as ``"bfloat16"``.
    rank : int, optional
        Rank of the update's factors, where that is what is stored: r of a LoRA, 2r of SORSA.
    """

    name: str
    layer: int
    module: str
    shape: tuple[int, int]
    dtype: str
    rank: int | None = None


@dataclass(frozen=True)
class TrainedFactors:
    """The trained principal part W_p = U_p diag(S_p) V_pᵀ of a SORSA adapter.

    Attributes
    ----------
    u, s, vh : Tensor of shape (m, r), (r,), (r, n)
        As stored.
    """

    u: Tensor
    s: Tensor
    vh: Tensor


@dataclass(frozen=True)
class Weight:
    """W_t of one matrix: the matrix itself, or its update on the base as factors.

    Attributes
    ----------
    dense : Tensor of shape (m, n), optional
        W_t as stored.
    update : pair of Tensor of shape (m, q) and (q, n), float64, optional
        Factors B, A with W_t = W_0 + B A, scaling included. Where W_t is exactly W_0, all of
        `dense`, `update` and `delta` are ``None``.
    factors : TrainedFactors, optional
        The trained SVD factors behind the update, where the method has them.
    delta : Tensor of shape (m, n), float64, optional
        W_t − W_0 of an adapter whose update has no low rank, or of a trained weight that was
        recorded so. Of `dense`, `update` and `delta` at most one is given.
    rounded : bool
        Whether W_t itself is a trained weight, in the dtype that the checkpoint tells, though what
        is given is its `delta`. An adapter's W_t is rounded nowhere.
    """

    dense: Tensor | None = None
    update: tuple[Tensor, Tensor] | None = None
    factors: TrainedFactors | None = None
    delta: Tensor | None = None
    rounded: bool = False

    def on(self, w_0: Tensor) -> Tensor:
        """Return W_t in float64, given W_0 of the same shape.

        Raises
        ------
        ValueError
            If the shapes do not fit: the base is another model's.
        """
        self.require_shape(w_0)
        if self.dense is not None:
            return self.dense.double()
        base = w_0.double()
        if self.delta is not None:
            return base + self.delta
        return base if self.update is None else base + self.update[0] @ self.update[1]

    def require_shape(self, w_0: Tensor) -> None:
        """Raise ValueError if W_t and W_0 have different shapes: the base is another model's."""
        shape = tuple(w_0.shape)
        if self.dense is not None:
            shape = tuple(self.dense.shape)
        elif self.delta is not None:
            shape = tuple(self.delta.shape)
        elif self.update is not None:
            shape = (self.update[0].shape[0], self.update[1].shape[1])
        if shape != tuple(w_0.shape):
            raise ValueError(
                f"The base's matrix has shape {tuple(w_0.shape)}, the checkpoint's has {shape}. "
                "Give the base this checkpoint was trained from."
            )

    def same_as(self, other: Weight) -> bool:
        """Whether two weights are equal bit for bit, factors included."""
        mine, others = self._tensors(), other._tensors()
        return len(mine) == len(others) and all(
            a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(mine, others, strict=True)
        )

    def _tensors(self) -> list[Tensor]:
        # An update from trained factors follows from these and the base.
        tensors = [] if self.dense is None else [self.dense]
        tensors += self.update or ()
        tensors += [] if self.delta is None else [self.delta]
        if self.factors is not None:
            tensors += [self.factors.u, self.factors.s, self.factors.vh]
        return tensors


class Checkpoint(Protocol):
    """One state of a model on disk, read matrix by matrix."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def step(self) -> int:
        """Optimizer steps done; 0 is the base."""
        ...

    @property
    def method(self) -> str:
        """The fine-tuning method, as far as the files tell."""
        ...

    @property
    def matrices(self) -> Sequence[Matrix]:
        """Its weights, as the headers describe them."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the checkpoint's content may have changed."""
        ...

    @property
    def base(self) -> str | None:
        """Which base the checkpoint names: a folder or a hub id."""
        ...

    def bind(self, base: Checkpoint) -> Checkpoint:
        """Return the checkpoint as seen on its base.

        An adapter's layers become the base's logical matrices (the parts of a fused layer), and
        what needs W_0 to be merged gets it from there; whole weights are as they are.

        Raises
        ------
        CheckpointError
            If the base lacks a layer that the adapter changes, or cannot be the adapter's base.
        """
        ...

    def read(self, matrix: Matrix) -> Weight:
        """Read one matrix and nothing else; raises `CheckpointError` where the file is broken."""
        ...


def clean_name(parameter: str) -> str:
    """Return a parameter's path without ``.weight`` and without what wrappers added.

    Examples
    --------
    >>> clean_name("_orig_mod.base_model.model.model.layers.3.self_attn.q_proj.base_layer.weight")
    'model.layers.3.self_attn.q_proj'
    """
    name = parameter.removesuffix(".weight").replace(".modules_to_save.default", "")
    parts = [p for p in name.split(".") if p not in _WRAPPERS]
    return ".".join(parts).removeprefix(_PEFT_PREFIX)


def is_number(part: str) -> bool:
    """Whether a part of a path is the number of a layer, of an expert or of another list's item."""
    # No model has a million layers; a longer number is part of a name, and could not be stored.
    if not part.isdecimal() or len(part) > 6 or not part.isascii():
        return False
    return part == "0" or part[0] != "0"


def locate(name: str) -> tuple[int, str] | None:
    """Return (layer, module) of a cleaned path, or ``None`` where it has no layer number.

    The layer is the first number. The module is the last part of the path; where that is a number
    (of a layer in a sequence), the name before it belongs to the module.

    Examples
    --------
    >>> locate("model.layers.12.self_attn.v_proj")
    (12, 'v_proj')
    >>> locate("blocks.3.mlp.0")
    (3, 'mlp.0')
    """
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if is_number(part)), None)
    if first is None:
        return None
    named = [i for i, part in enumerate(parts) if not is_number(part)]
    module = [part for i, part in enumerate(parts) if i >= max(named, default=0) and i != first]
    return int(parts[first]), ".".join(module) or name


def is_linear(name: str) -> bool:
    """Whether a cleaned path is that of a linear layer, as far as names tell.

    Embeddings, heads over the vocabulary, norms, biases, tables of positions and the scales of
    quantised weights are not.

    Examples
    --------
    >>> is_linear("encoder.block.0.layer.0.SelfAttention.q")
    True
    >>> is_linear("encoder.block.0.layer.0.SelfAttention.relative_attention_bias")
    False
    """
    named = [part for part in name.split(".") if not is_number(part)]
    return bool(named) and _NOT_LINEAR.search(named[-1].lower()) is None


def matches(name: str, patterns: Iterable[str] | None, module: str | None = None) -> bool:
    """Whether a layer's path fits one of `patterns`; ``None`` matches all.

    A pattern is a name or a glob for the last part of the path; one with a dot in it is for the
    whole path, or for the module's label where that tells more than the last part. The pattern
    ``all-linear`` is for every linear layer, and one that begins with ``re:`` a regular expression
    that must fit the whole path.

    Parameters
    ----------
    name : str
        Cleaned path.
    patterns : iterable of str, optional
        Names, globs and regular expressions.
    module : str, optional
        `Matrix.module`, where it is known.

    Raises
    ------
    ValueError
        If a regular expression is none.

    Examples
    --------
    >>> matches("vision_tower.layers.0.self_attn.q_proj", ["q_*", "k_proj"])
    True
    >>> matches("vision_tower.layers.0.self_attn.q_proj", ["language_model.*.q_proj"])
    False
    >>> matches("vision_tower.layers.0.self_attn.q_proj", ["vision_tower.*"], "vision_tower.q_proj")
    True
    >>> matches("model.layers.12.mlp.up_proj", [r"re:.*[.]1[0-9][.].*(up|gate)_proj"])
    True
    """
    if patterns is None:
        return True
    return any(_matches(name, pattern, module or name) for pattern in patterns)


def _matches(name: str, pattern: str, module: str) -> bool:
    if pattern == ALL_LINEAR:
        return is_linear(name)
    if pattern.startswith(REGEX):
        try:
            return re.fullmatch(pattern.removeprefix(REGEX), name) is not None
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error}).") from error
    paths, lasts = (name, module), (name.rsplit(".", 1)[-1], module.rsplit(".", 1)[-1])
    return any(fnmatch.fnmatchcase(text, pattern) for text in (paths if "." in pattern else lasts))


def factors_fit(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether factors (m, r), perhaps (r,), and (r, n) can be multiplied."""
    first, *middle, last = shapes
    if not len(first) == len(last) == 2:
        return False
    return first[1] == last[0] and all(shape == (last[0],) for shape in middle)


def torch_dtype_name(dtype: torch.dtype) -> str:
    """Return ``"bfloat16"`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")
