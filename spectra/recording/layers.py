"""Which matrices of a live model to record, and where their numbers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints_index import CheckpointError, matches
from checkpoints_index.adapter_methods import UNREAD_LORA, method_name, rewritten_base
from checkpoints_index.layouts import Stripes
from checkpoints_index.logical import LogicalMatrix, logical_matrices
from checkpoints_index.matrices import DTYPES, torch_dtype_name
from checkpoints_index.snapshot_kinds import INDICES, INITIAL_PARTS, PARTS, SCALED, SHAPED
from spectra.recording.gathering import whole_shape
from spectra.recording.live_weights import Live, LiveWeight, configuration, live_weights

RECORDED = (
    "LoRA, rsLoRA, DoRA, AdaLoRA, PiSSA, OLoRA, CorDA, LoRA-GA, SORSA, MiLoRA, SVF, SVFT, LoRA-XS "
    "and plain layers"
)
"""What is recorded, for messages."""

# The project's own tuners, by their kinds: what the layer calls the factors with one row for each
# output and with one column for each input. Their parts have the names that the layer gives them,
# and their base holds W_0 itself.
_OWN = {
    "sorsa": ("sorsa_u", "sorsa_vh"),
    "milora": ("milora_b", "milora_a"),
    "svf": ("svf_u", "svf_vh"),
    "svft": ("svft_u", "svft_vh"),
    "lora-xs": ("lora_xs_left", "lora_xs_right"),
}

# LoRA variants that are merged like LoRA itself: MiCA only freezes B.
_LIKE_LORA = {"MiCALinearVariant"}
_DORA = "DoraLinearVariant"
# What an adapter's folder does not say, but the live model does: which layers there are.
_UNRECORDED = set(UNREAD_LORA) - {"layer_replication", "target_parameters"}


@dataclass(frozen=True)
class Part:
    """One tensor of a snapshot, and where in the live model its numbers are.

    Attributes
    ----------
    path : str
        Clean path under which it is stored: the layer's, or the matrix's.
    name : str
        Such as ``"weight"`` or ``"lora_a"``; in files it is ``PATH.NAME``.
    live : Live
        The live parameter or buffer. Parts of a fused layer have equal ones.
    take : callable
        From the whole tensor to what is stored of it, as a view where that is possible.
    shape : tuple of int
        Of what is stored, whole.
    dtype : torch.dtype
        Likewise.
    fixed : bool
        Of a base's part: whether training leaves the live tensor alone, so that a resumed run has
        it still. Others can be had at step 0 only.
    """

    path: str
    name: str
    live: Live
    take: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype
    fixed: bool = False


@dataclass(frozen=True)
class RecordedMatrix:
    """One logical matrix of a recorded layer.

    Attributes
    ----------
    name, layer, module
        As of `checkpoints_index.Matrix`.
    outputs : Stripes, optional
        Which of the layer's outputs it has; ``None``: all.
    """

    name: str
    layer: int
    module: str
    outputs: Stripes | None = None


@dataclass(frozen=True)
class RecordedLayer:
    """One layer of a live model, with what is stored of it.

    Attributes
    ----------
    name : str
        Clean path of the logical matrix, or of the adapted layer.
    kind : str
        One of `checkpoints_index.snapshot_kinds.PARTS`.
    parts : tuple of Part
        W_t: in every snapshot.
    base_parts : tuple of Part
        W_0 of each matrix, and initial factors: in the base's snapshot.
    matrices : tuple of RecordedMatrix
        The logical matrices it holds, of those that are recorded.
    entry : dict
        What a snapshot's header says of it beside its name and its matrices.
    method : str
        What to call the way in which it is trained: ``"full-ft"``, ``"lora"``, ``"pissa"``, ….
    """

    name: str
    kind: str
    parts: tuple[Part, ...]
    base_parts: tuple[Part, ...]
    matrices: tuple[RecordedMatrix, ...]
    entry: dict[str, Any] = field(default_factory=dict)
    method: str = "full-ft"


def find_layers(model: nn.Module, modules: Sequence[str]) -> list[RecordedLayer]:
    """Return what to record: the matrices that match `modules` and are trained.

    Matrices are the logical ones that `checkpoints_index` finds in the saved model, with the same
    names, layers and modules: parts of fused layers, Conv1D weights as (out, in), single experts.

    Parameters
    ----------
    model : nn.Module
        Any model, wrapped by PEFT, ``torch.compile``, DDP, FSDP2 or not.
    modules : sequence of str
        Names, globs, paths, labels and regular expressions, as of `checkpoints_index.matches`.

    Raises
    ------
    ValueError
        If nothing matches, or a matching layer is adapted or quantised in a way that is not
        recorded.
    """
    stored = live_weights(model)
    try:
        tensors = {name: weight.described for name, weight in stored.items()}
        logical = logical_matrices(tensors, configuration(model))
    except CheckpointError as error:
        raise ValueError(f"The model cannot be taken apart into matrices: {error}") from error
    chosen: dict[str, list[LogicalMatrix]] = {}
    for matrix in logical:
        if matches(matrix.matrix.name, modules, matrix.matrix.module):
            chosen.setdefault(matrix.tensor, []).append(matrix)
    found: list[RecordedLayer] = []
    for name, matrices in chosen.items():
        weight = stored[name]
        if weight.adapter is not None:
            found.append(_Adapter(weight, matrices, model).recorded())
        elif weight.is_trained:
            _refuse_packed(weight, matrices)
            found += [_dense(weight, matrix) for matrix in matrices]
    if not found:
        names = [matrix.matrix.name for matrix in logical]
        raise ValueError(
            f"No trained layer matches modules={list(modules)}; the model has e.g. "
            f"{', '.join(names[:3]) or 'no layers with weights'}. Name yours with modules=, and "
            "attach after adapters are added and parameters are frozen."
        )
    return found


def _refuse_packed(weight: LiveWeight, matrices: Sequence[LogicalMatrix]) -> None:
    if not weight.is_plain:
        raise ValueError(
            f"{matrices[0].matrix.name} must have a matrix of {', '.join(DTYPES.values())} as its "
            f"weight, it has one quantised to {weight.described.dtype}. Quantised bases are not "
            "recorded; load the base in 16 bits."
        )


# Plain layers


def _dense(weight: LiveWeight, matrix: LogicalMatrix) -> RecordedLayer:
    m = matrix.matrix
    part = _base_weight(weight, matrix, fixed=False)
    place = RecordedMatrix(m.name, m.layer, m.module)
    return RecordedLayer(m.name, "dense", (part,), (part,), (place,))


def _base_weight(weight: LiveWeight, matrix: LogicalMatrix, fixed: bool) -> Part:
    dtype = getattr(torch, matrix.matrix.dtype)
    m = matrix.matrix
    return Part(m.name, "weight", weight.parameter, matrix.of, m.shape, dtype, fixed)


# Adapters


class _Adapter:
    """One PEFT layer and the logical matrices of its base that are recorded."""

    def __init__(self, weight: LiveWeight, matrices: list[LogicalMatrix], model: nn.Module) -> None:
        self._weight = weight
        self._matrices = matrices
        self._layer = weight.adapter
        self._name = weight.path
        self._model = model

    def recorded(self) -> RecordedLayer:
        """Return what is recorded; raises ValueError where nothing can be."""
        layer = self._layer
        own = next((kind for kind in _OWN if hasattr(layer, PARTS[kind][0])), None)
        if own is not None:
            held, kind = getattr(layer, PARTS[own][0]), own
        elif hasattr(layer, "lora_A") and not hasattr(layer, "parameter_name"):
            held, kind = layer.lora_A, "adalora" if hasattr(layer, "lora_E") else "lora"
        else:
            raise self._unrecorded(type(layer).__name__)
        _refuse_packed(self._weight, self._matrices)
        active = [a for a in layer.active_adapters if a in held]
        if len(active) != 1:
            raise ValueError(
                f"{self._name} must have one active adapter to be recorded, it has {active}."
            )
        if layer.merged:
            raise ValueError(f"{self._name} is merged into its base; call unmerge_adapter() first.")
        self._adapter = active[0]
        settings = self._settings()
        kind = self._lora_kind(settings) if kind == "lora" else kind
        shape = self._checked_shape(kind)
        entry: dict[str, Any] = {}
        if kind in SCALED:
            entry["scaling"] = float(layer.scaling[self._adapter])
        if kind in SHAPED:
            entry["shape"] = list(shape)
        return RecordedLayer(
            self._name,
            kind,
            tuple(self._part(name) for name in PARTS[kind]),
            (
                *(_base_weight(self._weight, m, fixed=True) for m in self._matrices),
                *(self._part(name, fixed=kind in _OWN) for name in INITIAL_PARTS.get(kind, ())),
            ),
            tuple(map(self._placed, self._matrices)),
            entry,
            own or method_name(settings),
        )

    def _placed(self, matrix: LogicalMatrix) -> RecordedMatrix:
        m, outputs = matrix.matrix, matrix.outputs
        assert outputs is not None, "an adapted layer is no tensor of many experts"
        whole = outputs.blocks * outputs.block == len(outputs)
        return RecordedMatrix(m.name, m.layer, m.module, None if whole else outputs)

    def _part(self, name: str, fixed: bool = False) -> Part:
        live = self._live(name)
        tensor = live()
        dtypes = ("int32",) if name in INDICES else DTYPES.values()
        if torch_dtype_name(tensor.dtype) not in dtypes:
            raise self._unrecorded(f"factors of {torch_dtype_name(tensor.dtype)}")
        return Part(self._name, name, live, _whole, whole_shape(tensor), tensor.dtype, fixed)

    def _live(self, name: str) -> Live:
        layer = self._layer
        if hasattr(layer, name):
            return Live(getattr(layer, name), self._adapter, item=True)
        owner = {
            "lora_a": "lora_A",
            "lora_b": "lora_B",
            "lora_a0": "lora_A",
            "lora_b0": "lora_B",
            "lora_e": "lora_E",
            "ranknum": "ranknum",
            "magnitude": "lora_magnitude_vector",
        }[name]
        held = getattr(layer, owner)
        if isinstance(held, nn.ParameterDict):
            return Live(held, self._adapter, item=True)
        return Live(held[self._adapter], "weight")

    def _settings(self) -> dict[str, Any]:
        """Return the adapter's configuration; DDP and other wrappers do not pass it on."""
        holders = (m for m in self._model.modules() if hasattr(m, "peft_config"))
        configs: Any = getattr(next(holders, None), "peft_config", {})
        config = configs.get(self._adapter)
        if config is None:
            return {"peft_type": "LORA"}
        kind = config.peft_type
        return {**config.to_dict(), "peft_type": getattr(kind, "value", kind)}

    def _lora_kind(self, settings: Mapping[str, Any]) -> str:
        variant = self._layer.lora_variant.get(self._adapter)
        name = type(variant).__name__
        unread = [setting for setting in sorted(_UNRECORDED) if settings.get(setting)]
        start = rewritten_base(settings)
        if unread or not (variant is None or name == _DORA or name in _LIKE_LORA):
            raise self._unrecorded(f"LoRA with {', '.join(unread) or name}")
        if start == "loftq":
            # Its start makes up for a part of the quantisation only: W_0 is in neither.
            raise self._unrecorded("LoRA started by LoftQ, whose base is quantised,")
        if start is not None:
            if variant is not None:
                raise self._unrecorded(f"LoRA with {name} started by {start}")
            return "residual-lora"
        return "dora" if name == _DORA else "lora"

    def _checked_shape(self, kind: str) -> tuple[int, int]:
        """Return the layer's shape (m, n), of which the adapter must be too."""
        first = self._matrices[0]
        names = _OWN.get(kind, ("lora_b", "lora_a"))
        b, a = (whole_shape(self._live(name)()) for name in names)
        outputs = first.outputs
        if outputs is None or not self._weight.parameter.name == "weight":
            raise self._unrecorded(f"{type(self._layer).__name__} on {self._weight.parameter.name}")
        shape = (outputs.blocks * outputs.block, first.matrix.shape[1])
        stored = self._weight.described.shape
        transposed = bool(getattr(self._layer, "fan_in_fan_out", False))
        if (b[0], a[1]) != shape or first.transposed != transposed:
            raise ValueError(
                f"{self._name} has a weight of shape {stored}, of which the model's configuration "
                f"tells that it maps {shape[1]} inputs to {shape[0]} outputs, but its adapter maps "
                f"{a[1]} to {b[0]}{' and takes it as transposed' * transposed}. Give the model a "
                "configuration with its model_type."
            )
        return shape

    def _unrecorded(self, what: str) -> ValueError:
        return ValueError(
            f"{self._name} is adapted by {what}, which is not recorded; recorded are {RECORDED}."
        )


def _whole(tensor: Tensor) -> Tensor:
    return tensor
