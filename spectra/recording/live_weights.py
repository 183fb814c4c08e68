"""The weights of a live model as a saved one would have them, whatever is wrapped around it."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from checkpoints_index import clean_name
from checkpoints_index.matrices import DTYPES, torch_dtype_name
from checkpoints_index.tensors import StoredTensor
from spectra.recording.gathering import whole_shape

# Where PEFT puts the copy of a whole layer that an adapter trains.
_ADAPTERS_COPY = re.compile(r"\.modules_to_save\.[^.]+")
# Weights that are packed integers behind the looks of a float tensor.
_PACKING = {"torchao", "hqq", "quanto", "optimum"}


@dataclass(frozen=True)
class Live:
    """A parameter or buffer of the live model, looked up at each call.

    FSDP2 and others put another tensor in a parameter's place. Those of equal `Live` are one.
    """

    owner: Any
    name: str
    item: bool = False
    """Whether it is an item of a dictionary, not an attribute."""

    def __call__(self) -> Tensor:
        """Return the tensor as it is now, perhaps a shard only."""
        return (operator.getitem if self.item else getattr)(self.owner, self.name)


@dataclass(frozen=True)
class LiveWeight:
    """A weight of the base model.

    Attributes
    ----------
    path : str
        Clean path of its layer.
    live : Live, optional
        The parameter; ``None`` where the layer is packed under other names.
    described : StoredTensor
        As a file's header would describe it.
    is_trained : bool
        Whether the parameter itself is trained.
    adapter : nn.Module, optional
        PEFT's layer around its own.
    """

    path: str
    live: Live | None
    described: StoredTensor
    is_trained: bool
    adapter: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether it holds the numbers themselves, not a quantisation of them."""
        return not self.described.dequantised and self.described.dtype in DTYPES.values()

    @property
    def parameter(self) -> Live:
        """The parameter of a plain weight."""
        assert self.live is not None
        return self.live


def live_weights(model: nn.Module) -> dict[str, LiveWeight]:
    """Return the weights that the saved base model would have, by their names in the live one."""
    found: dict[str, LiveWeight] = {}
    for name, weight in _weights(model):
        # PEFT may hold copies of one weight for several adapters.
        if name not in found or weight.is_trained:
            found[name] = weight
    return found


def _weights(model: nn.Module) -> Iterator[tuple[str, LiveWeight]]:
    adapter: Any = None
    prefix = ""
    for path, module in model.named_modules():
        if adapter is not None and path.startswith(prefix):
            # What an adapter is made of follows the adapted layer.
            if path[len(prefix) :].split(".")[0] != "base_layer":
                continue
        else:
            adapter = module if hasattr(module, "base_layer") else None
            prefix = f"{path}." if path else ""
        if hasattr(module, "base_layer") or "original_module" in path.split("."):
            continue
        path = _ADAPTERS_COPY.sub("", path)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                full = f"{path}.{name}"
                described = _described(module, name, parameter)
                trained = parameter.requires_grad
                live = Live(module, name)
                yield full, LiveWeight(clean_name(full), live, described, trained, adapter)
        packed = (module._parameters or module._buffers) and "weight" not in module._parameters
        if packed and (shape := _linear_shape(module)) is not None:
            # Under other names, as by GPTQ and AWQ.
            full = f"{path}.weight"
            described = StoredTensor(shape, "packed integers", dequantised=True)
            yield full, LiveWeight(clean_name(full), None, described, False, adapter)


def _described(module: nn.Module, name: str, parameter: Tensor) -> StoredTensor:
    dtype, shape = torch_dtype_name(parameter.dtype), whole_shape(parameter)
    linear = _linear_shape(module) if name == "weight" else None
    packed = type(parameter.data).__module__.split(".")[0] in _PACKING
    if linear is not None and (packed or dtype not in DTYPES.values()):
        return StoredTensor(linear, dtype, dequantised=True)
    return StoredTensor(shape, dtype)


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    shape = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return shape if all(isinstance(size, int) for size in shape) else None  # type: ignore[return-value]


def configuration(model: nn.Module) -> Mapping[str, Any] | None:
    """Return the outermost configuration that names a model type.

    DDP and other wrappers do not pass it on, and some have a configuration of something else.
    """
    seen: set[int] = set()
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if config is None or id(config) in seen:
            continue
        seen.add(id(config))
        values = config.to_dict() if hasattr(config, "to_dict") else config
        # What PEFT says of a model without a configuration.
        if isinstance(values, Mapping) and values.get("model_type", "custom") != "custom":
            return values
    return None
