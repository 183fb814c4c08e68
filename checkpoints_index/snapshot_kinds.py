"""The kinds of layers that a snapshot holds: which tensors each has, and of which shapes.

`checkpoints_index.snapshots` tells what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from checkpoints_index.matrices import factors_fit

Shape = tuple[int, ...]

PARTS = {
    "dense": ("weight",),
    "delta": ("delta",),
    "lora": ("lora_a", "lora_b"),
    "residual-lora": ("lora_a", "lora_b"),
    "adalora": ("lora_a", "lora_b", "lora_e", "ranknum"),
    "dora": ("lora_a", "lora_b", "magnitude"),
    "sorsa": ("sorsa_u", "sorsa_s", "sorsa_vh"),
    "milora": ("milora_a", "milora_b"),
    "svf": ("svf_delta",),
    "svft": ("svft_values",),
    "lora-xs": ("lora_xs_core",),
    "residual": ("lora_a0", "lora_b0"),
}
"""The tensors of each kind of layer; the last kind is a base's, beside the ``weight`` of each
matrix."""
INITIAL_PARTS = {
    "residual-lora": PARTS["residual"],
    "sorsa": ("sorsa_u0", "sorsa_s0", "sorsa_vh0"),
    "milora": ("milora_a0", "milora_b0"),
    "svf": ("svf_u", "svf_vh"),
    "svft": ("svft_u", "svft_vh", "svft_rows", "svft_cols"),
    "lora-xs": ("lora_xs_left", "lora_xs_right"),
}
"""What the base's snapshot holds beside ``weight`` for the layers of a kind."""
INDICES = ("svft_rows", "svft_cols")
"""The parts that are positions, int32; all others are floats."""
RECOMPUTED = ("svf_u", "svf_vh", "svft_u", "svft_vh")
"""The base's parts that follow from W_0 and are computed again when a training goes on, perhaps
on another machine: the same but for the last digit."""
SCALED = ("lora", "residual-lora", "adalora", "dora", "residual")
"""The kinds that have a scaling."""
SHAPED = ("svf", "svft", "lora-xs")
"""The kinds whose trained tensors do not show the matrix's shape, so that the header tells it."""

# Of the update's factors, in ranks of the trained ones.
_RANKS = {"lora": 1, "adalora": 1, "residual-lora": 2, "sorsa": 2, "milora": 2, "lora-xs": 1}


def fitted(
    kind: str, shapes: Sequence[Shape], told: tuple[int, int] | None
) -> tuple[tuple[int, int], int | None] | None:
    """Return a layer's shape (m, n) and its update's rank, if its tensors fit each other.

    Parameters
    ----------
    kind : str
        One of `PARTS`.
    shapes : sequence of tuple of int
        Of these, in their order.
    told : pair of int, optional
        The layer's shape as the header tells it; of the kinds in `SHAPED` only.

    Returns
    -------
    tuple or None
        ``None`` where they do not fit. The rank is ``None`` where the update has no factors.
    """
    if kind in ("dense", "delta"):
        return ((shapes[0][0], shapes[0][1]), None) if len(shapes[0]) == 2 else None
    if kind in SHAPED:
        return None if told is None else _of_core(kind, shapes[0], told)
    if kind == "sorsa":
        first, last, fit = shapes[0], shapes[2], factors_fit(shapes)
    else:
        # Named in the order of their use, A before B.
        last, first, *others = shapes
        fit = factors_fit([first, last]) and _others_fit(kind, others, first)
    if not fit:
        return None
    rank = _RANKS[kind] * last[0] if kind in _RANKS else None
    return (first[0], last[1]), rank


def _others_fit(kind: str, others: list[Shape], b: Shape) -> bool:
    if kind == "adalora":
        return others == [(b[1], 1), (1,)]
    return kind != "dora" or others == [(b[0],)]


def _of_core(
    kind: str, core: Shape, told: tuple[int, int]
) -> tuple[tuple[int, int], int | None] | None:
    k = min(told)
    if kind == "lora-xs":
        fit = len(core) == 2 and core[0] == core[1] <= k
        return (told, core[0]) if fit else None
    size = core[0] if len(core) == 1 else -1
    fit = size == k if kind == "svf" else 0 <= size <= k * k
    return (told, None) if fit else None


def initial_shapes(
    kind: str, shape: tuple[int, int], trained: Sequence[Shape]
) -> tuple[Shape, ...]:
    """Return the shapes of `INITIAL_PARTS` of a layer of that shape with these trained tensors."""
    (m, n), k = shape, min(shape)
    if kind == "svf":
        return (m, k), (k, n)
    if kind == "svft":
        return (m, k), (k, n), trained[0], trained[0]
    if kind == "lora-xs":
        r = trained[0][0]
        return (m, r), (r, n)
    return tuple(trained)
