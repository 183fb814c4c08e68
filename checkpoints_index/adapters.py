"""PEFT adapter folders: which layers they change, from headers, and their low-rank updates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from checkpoints_index.adapter_methods import (
    MERGED_VARIANTS,
    METHODS,
    POSITIONS,
    check_settings,
    method_name,
    rewritten_base,
    scaling,
    shape_and_rank,
)
from checkpoints_index.byte_files import has_file, inside, open_bytes, read_json
from checkpoints_index.errors import CheckpointError
from checkpoints_index.matrices import (
    DTYPES,
    Checkpoint,
    Matrix,
    TrainedFactors,
    Weight,
    clean_name,
    locate,
)
from checkpoints_index.safetensors_files import TensorFile
from checkpoints_index.tensors import TensorStore
from checkpoints_index.torch_files import TorchFile
from checkpoints_index.updates import core_weight, moved_weight, sorsa_weight

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# The first one there is taken, as by PEFT.
_STORES: dict[str, Callable[[Path], TensorStore]] = {
    WEIGHTS_FILE: TensorFile,
    "adapter_model.bin": TorchFile,
}

_PEFT_PREFIX = "base_model.model."
_SHARED_STEM = "base_model"
_INITIAL = re.compile(r"(?:^|[-_])init(?:ial)?$")


@dataclass(frozen=True)
class AdapterLayer:
    """One layer that an adapter changes.

    Attributes
    ----------
    path : str
        The layer's, as the model that PEFT adapted calls it.
    tensors : mapping of str to str
        Its tensors' names in the file, by their names within the layer.
    matrix : Matrix
        As the headers describe it, dimensions that they do not show being 0.
    whole : bool
        Whether the tensor is the layer's whole weight (PEFT's ``modules_to_save``).
    """

    path: str
    tensors: Mapping[str, str]
    matrix: Matrix
    whole: bool = False


class AdapterFolder:
    """A PEFT adapter as ``save_pretrained`` writes it.

    Unbound, it lists its layers, and reads those whose update needs no W_0; `bind` it to a base
    for all others and for the parts of fused layers.

    Parameters
    ----------
    path : Path
        The folder, with ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin``.
    step : int
        The optimizer step it belongs to.

    Raises
    ------
    CheckpointError
        If a file is missing or broken, or the adapter is of a method that is not read here.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step
        self.settings = read_json(inside(path, CONFIG_FILE))
        self.kind = str(self.settings.get("peft_type"))
        if self.kind not in METHODS:
            raise CheckpointError(
                f"{path} is a {self.kind} adapter; read are {', '.join(METHODS)}. Merge it into "
                "its base with PEFT and analyse the merged model."
            )
        try:
            check_settings(self.settings)
        except ValueError as error:
            raise CheckpointError(f"{path / CONFIG_FILE}: {error}.") from error
        self.method = method_name(self.settings)
        self._file = _open_weights(path)
        self.shared: dict[str, str] = {}
        """Names in the file of the tensors that belong to all layers."""
        self.layers = self._find_layers()
        self.others = self._find_others()
        """Names in the file of the tensors of no layer: embeddings, heads, norms, biases."""
        self.matrices = tuple(layer.matrix for layer in self.layers.values())

    @property
    def fingerprint(self) -> str:
        """Names, sizes and times of change of both files."""
        settings = open_bytes(self.path / CONFIG_FILE)
        return f"{self._file.fingerprint},{settings.fingerprint}"

    @property
    def base(self) -> str | None:
        """The base that the adapter's configuration names."""
        name = self.settings.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    @property
    def rewrites_base(self) -> str | None:
        """The initialisation that left the stored base without the adapter's start, if any."""
        return rewritten_base(self.settings) if self.kind == "LORA" else None

    @property
    def has_factors(self) -> bool:
        """Whether the updates are products of factors."""
        variant = any(self.settings.get(setting) for setting in MERGED_VARIANTS)
        return METHODS[self.kind].low_rank and not (self.kind == "LORA" and variant)

    def bind(self, base: Checkpoint) -> Checkpoint:
        """Return the adapter as seen on its base: the base's logical matrices that it changes.

        The base must hold W_0, the weights before any method touched them. A base that already
        has the start of a PiSSA or OLoRA adapter subtracted cannot be told from one that has
        not, and would be taken for W_0.

        Raises
        ------
        CheckpointError
            If the base has none of the adapter's layers or other shapes, or W_t does not follow
            from W_0 and the adapter.
        """
        # Imported here, for it builds on this class.
        from checkpoints_index.bound_adapters import BoundAdapter

        return BoundAdapter(self, base)

    def read(self, matrix: Matrix) -> Weight:
        """Read one matrix whose update needs no W_0."""
        layer = self.layers.get(matrix.name)
        if layer is None:
            raise CheckpointError(f"{self.path} has no matrix {matrix.name!r}.")
        if layer.whole:
            return Weight(dense=self.read_tensor(layer, "weight"))
        if not self.has_factors or self.kind == "VERA" or self.rewrites_base:
            wanted = f" ({self.base})" if self.base else ""
            raise CheckpointError(
                f"{self.path} is a {self.method} adapter, whose W_t needs its base{wanted}. Bind "
                "it to that first."
            )
        return self.read_factors(layer)

    def read_factors(self, layer: AdapterLayer) -> Weight:
        """Read the low-rank update that the file itself has for a layer, scaling included."""
        method = METHODS[self.kind]
        parts = [self.read_tensor(layer, name) for name in method.factors + method.start]
        if self.kind == "SORSA":
            return sorsa_weight(TrainedFactors(*parts[:3]), TrainedFactors(*parts[3:]))
        if self.kind == "MILORA":
            return moved_weight(*parts)
        if self.kind == "LORA_XS":
            return core_weight(*parts)
        b, a = (part.double() for part in parts)
        if self.kind == "ADALORA":
            a = a * self.read_tensor(layer, "lora_E").double()  # (r, n)
        return Weight(update=(scaling(self.settings, layer.path, b.shape[1]) * b, a))

    def read_other(self, name: str) -> Tensor:
        """Read one of `others`."""
        return self._file.read(name)

    def read_tensor(self, layer: AdapterLayer, name: str) -> Tensor:
        """Read one of a layer's tensors by its name within the layer."""
        return self._file.read(layer.tensors[name])

    def read_all(self, layer: AdapterLayer) -> dict[str, Tensor]:
        """Read all tensors that a layer's update follows from, by the names PEFT gives them."""
        own = {f"{_PEFT_PREFIX}{layer.path}.{inner}": n for inner, n in layer.tensors.items()}
        shared = {f"{_SHARED_STEM}.{inner}": name for inner, name in self.shared.items()}
        return {name: self._file.read(stored) for name, stored in (own | shared).items()}

    def read_shared(self) -> dict[str, Tensor]:
        """Read the tensors that belong to all layers."""
        return {inner: self._file.read(name) for inner, name in self.shared.items()}

    def _find_layers(self) -> dict[str, AdapterLayer]:
        prefix = METHODS[self.kind].prefix
        found: dict[str, dict[str, str]] = {}
        for name in self._file.tensors:
            parted = _parted(name, prefix)
            if parted is not None:
                stem, inner = parted
                found.setdefault(stem, {})[inner] = name
        for stem in ("", _SHARED_STEM):
            self.shared |= found.pop(stem, {})
        layers: dict[str, AdapterLayer] = {}
        for stem, tensors in found.items():
            layer = self._layer(stem, tensors)
            if layer is None:
                continue
            known = layers.setdefault(layer.matrix.name, layer)
            # Parameters of one module, adapted one around the other, which `bind` refuses.
            if known is not layer and not self.settings.get("target_parameters"):
                raise CheckpointError(f"{self._file.path} has {layer.matrix.name!r} twice.")
        return layers

    def _find_others(self) -> tuple[str, ...]:
        of_layers = {name for layer in self.layers.values() for name in layer.tensors.values()}
        known = of_layers | set(self.shared.values())
        return tuple(name for name in self._file.tensors if name not in known)

    def _layer(self, stem: str, tensors: dict[str, str]) -> AdapterLayer | None:
        name = clean_name(stem)
        place = locate(name)
        if place is None:
            # An embedding or a head.
            return None
        path = stem.removeprefix(_PEFT_PREFIX)
        stored = {inner: self._file.tensors[name] for inner, name in tensors.items()}
        if "weight" in stored:
            if len(stored) > 1:
                raise CheckpointError(f"{self._file.path} has {name!r} twice.")
            weight = stored["weight"]
            if len(weight.shape) != 2 or weight.dtype not in DTYPES.values():
                return None
            shape = (weight.shape[0], weight.shape[1])
            matrix = Matrix(name, *place, shape, weight.dtype)
            return AdapterLayer(path, tensors, matrix, whole=True)
        shapes = {inner: tensor.shape for inner, tensor in stored.items()}
        needed = METHODS[self.kind].factors + METHODS[self.kind].start
        if needed and all(len(shapes.get(part, ())) > 2 for part in needed):
            # A convolution's.
            return None
        try:
            size, rank = shape_and_rank(self.settings, shapes)
        except ValueError as error:
            raise CheckpointError(f"{self._file.path}: {stem!r} {error}.") from error
        # Beside floats, some methods store positions.
        floats = [stored[part] for part in needed or stored if not part.endswith(POSITIONS)]
        if not floats or any(tensor.dtype not in DTYPES.values() for tensor in floats):
            raise CheckpointError(f"{self._file.path}: {stem!r} is no matrix of floats.")
        return AdapterLayer(path, tensors, Matrix(name, *place, size, floats[0].dtype, rank))


def _parted(name: str, prefix: str) -> tuple[str, str] | None:
    """Return a layer's path and the tensor's name within it, where it is one of an adapter's."""
    # A layer's own name may begin like a method's tensors: the last one counts.
    stem, found, inner = f".{name}".rpartition(f".{prefix}")
    if found:
        return stem[1:], prefix + inner
    return (name.removesuffix(".weight"), "weight") if name.endswith(".weight") else None


def _open_weights(folder: Path) -> TensorStore:
    present = [name for name in _STORES if has_file(inside(folder, name))]
    name = present[0] if present else WEIGHTS_FILE
    return _STORES[name](inside(folder, name))


def is_adapter_folder(path: Path) -> bool:
    """Whether the folder holds a PEFT adapter."""
    return has_file(path / CONFIG_FILE)


def is_initial_adapter(path: Path) -> bool:
    """Whether the folder holds an adapter as it was before training, by its name.

    PEFT's guides save one beside those of a training whose method rewrites the base, in a folder
    such as ``pissa-init``. It is no step of the training.
    """
    return bool(_INITIAL.search(path.name)) and is_adapter_folder(path)
