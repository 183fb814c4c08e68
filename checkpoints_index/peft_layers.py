"""Single layers through PEFT's own code: the one file of this package that runs PEFT.

A layer is put at its real path into a tree of otherwise empty modules, adapted as the adapter's
configuration says, given the stored tensors and merged. Nothing of the configuration is executed:
what would make PEFT import or open something is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from checkpoints_index.adapter_methods import POSITIONS
from checkpoints_index.errors import CheckpointError

if TYPE_CHECKING:
    from peft import PeftModel

# What says nothing of how a layer is merged, chooses layers (there is just the one), or names
# modules and files that PEFT would open.
_LEFT_OUT = {
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "peft_version",
    "bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "layer_replication",
    "megatron_config",
    "megatron_core",
    "corda_config",
    "eva_config",
    "lora_ga_config",
    "loftq_config",
    "arrow_config",
    "runtime_config",
}
_ADAPTER = "default"
# What PEFT repeats so many times, which no method that works needs often: 5 terms, 3 factors.
_COUNTS = ("num_cayley_neumann_terms", "boft_n_butterfly_factor", "gralora_k", "depth")
_LARGEST_COUNT = 256
# Ranks above so many times the layer's size come from a damaged file; PEFT would allocate them.
_LARGEST_RANK = 4


def merged(
    settings: Mapping[str, Any],
    path: str,
    tensors: dict[str, Tensor],
    w_0: Tensor,
    conv1d: bool = False,
    extents: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> Tensor:
    """Return W_t of one layer, merged by PEFT in float64.

    Parameters
    ----------
    settings : mapping
        The adapter's configuration.
    path : str
        The layer's, as the model that PEFT adapted calls it.
    tensors : dict of str to Tensor
        Its tensors and those of all layers, by their names in the file.
    w_0 : Tensor of shape (m, n), or (n, m) of a Conv1D
        The layer's weight as stored, before any method touched it.
    conv1d : bool
        Whether the layer is a GPT-2 ``Conv1D``.
    extents : mapping of str to tuple of int, optional
        Shapes (m, n) of other adapted layers by their paths, where the tensors that all layers
        share depend on the largest.

    Raises
    ------
    CheckpointError
        If PEFT is not installed, or cannot do it.
    """
    with _peft(settings, path):
        # A copy, for PEFT writes to it.
        w_0 = w_0.to(torch.float64, copy=True)
        layer = _loaded(settings, path, tensors, w_0, conv1d, extents)
        layer.double()
        layer.merge()
        return layer.get_base_layer().weight.detach()


def own_factors(
    settings: Mapping[str, Any],
    path: str,
    tensors: dict[str, Tensor],
    w_0: Tensor,
    conv1d: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return B, A with W_t − W_0 = B A of one layer as this project's tuner has it, float64.

    What the adapter's file leaves out is computed from W_0 again, as when the adapter is loaded
    for training: in the layer's own dtype, for it decides that of the factors.

    Parameters
    ----------
    settings, path, tensors, w_0, conv1d
        As of `merged`.

    Raises
    ------
    CheckpointError
        If PEFT is not installed, the tuner cannot do it, or W_0 is another than the adapter's.
    """
    with _peft(settings, path):
        import spectra.methods  # noqa: F401  # makes the tuners known to PEFT

        # Of another base, or of vectors that are not the adapter's.
        warnings.filterwarnings("error", message=rf"\S+ adapter '{_ADAPTER}'")
        for name, tensor in tensors.items():
            if name.endswith(POSITIONS) and (
                tensor.dtype != torch.int32 or bool((tensor < 0).any())
            ):
                raise ValueError(f"{name} must hold positions from 0 on, int32")
        settings = {**settings, "init_weights": False}
        layer = _loaded(settings, path, tensors, w_0, conv1d, {})
        own = [name for name in layer.state_dict() if name.endswith(f".{_ADAPTER}")]
        needed = {name.removesuffix(f".{_ADAPTER}") for name in own}
        if needed != {name.rpartition(".")[2] for name in tensors}:
            raise ValueError(f"it needs {', '.join(sorted(needed))}")
        return layer.low_rank_update(_ADAPTER)


def initial_factors(
    settings: Mapping[str, Any], path: str, w_0: Tensor, conv1d: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the factors B, A that a LoRA of this configuration starts from on W_0, unscaled.

    Raises
    ------
    CheckpointError
        If PEFT is not installed, or cannot do it.
    """
    with _peft(settings, path):
        # In float32, in which PEFT computes them from weights of any dtype.
        model = _adapted(settings, path, w_0.to(torch.float32, copy=True), conv1d, {}, empty=False)
        layer: Any = model.get_base_model().get_submodule(path)
        factors = layer.lora_B[_ADAPTER].weight, layer.lora_A[_ADAPTER].weight
        return factors[0].detach().double(), factors[1].detach().double()


def vera_projections(
    settings: Mapping[str, Any], extents: Mapping[str, tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return VeRA's shared B, A as PEFT draws them from the configuration's key.

    Parameters
    ----------
    settings : mapping
        The adapter's configuration.
    extents : mapping of str to tuple of int
        Shapes (m, n) of the adapted layers by their paths, one of each at least.

    Raises
    ------
    CheckpointError
        If PEFT is not installed, or cannot do it.
    """
    (path, shape), *others = extents.items()
    with _peft(settings, path):
        w_0 = torch.empty(shape)
        model = _adapted(settings, path, w_0, False, dict(others), empty=True)
        tuner: Any = model.base_model
        return tuner.vera_B[_ADAPTER].double(), tuner.vera_A[_ADAPTER].double()


def _loaded(
    settings: Mapping[str, Any],
    path: str,
    tensors: dict[str, Tensor],
    weight: Tensor,
    conv1d: bool,
    extents: Mapping[str, tuple[int, int]],
) -> Any:
    """Return the adapted layer with its stored tensors."""
    from peft import set_peft_model_state_dict

    model = _adapted(settings, path, weight, conv1d, extents, empty=True)
    result: Any = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True)
    layer: Any = model.get_base_model().get_submodule(path)
    lacking = [name for name, tensor in layer.state_dict().items() if tensor.is_meta]
    if lacking or result.unexpected_keys:
        raise ValueError(f"tensors do not fit: {[*lacking, *result.unexpected_keys][:3]}")
    return layer


def _adapted(
    settings: Mapping[str, Any],
    path: str,
    weight: Tensor,
    conv1d: bool,
    extents: Mapping[str, tuple[int, int]],
    empty: bool,
) -> PeftModel:
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    tree = nn.Module()
    _put(tree, path, _layer(weight, conv1d))
    for other, (m, n) in extents.items():
        if other != path:
            # Not on the meta device, to which PEFT would move what the layers share. Memory that
            # is not written to costs nothing.
            _put(tree, other, _layer(torch.empty(m, n, dtype=weight.dtype), conv1d=False))
    largest = max(*weight.shape, *(size for shape in extents.values() for size in shape), 1)
    rank = settings.get("r", 1)
    # 0 where a method has block sizes instead.
    if not isinstance(rank, int) or not 0 <= rank <= _LARGEST_RANK * largest:
        raise ValueError(f"r must be between 0 and {_LARGEST_RANK * largest}, got {rank!r}")
    for name in _COUNTS:
        count = settings.get(name, 1)
        if not isinstance(count, int) or not 0 <= count <= _LARGEST_COUNT:
            raise ValueError(f"{name} must be between 0 and {_LARGEST_COUNT}, got {count!r}")
    kept = {key: value for key, value in settings.items() if key not in _LEFT_OUT}
    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]].from_peft_type(**kept)
    config.target_modules = {path, *extents}
    config.inference_mode = True
    return get_peft_model(tree, config, low_cpu_mem_usage=empty)


def _layer(weight: Tensor, conv1d: bool) -> nn.Module:
    layer: nn.Module
    if conv1d:
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            layer = Conv1D(weight.shape[1], weight.shape[0])
        layer.bias = None  # type: ignore[assignment]
    else:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _put(tree: nn.Module, path: str, layer: nn.Module) -> None:
    *above, last = path.split(".")
    node = tree
    for name in above:
        child = node._modules.get(name)
        if child is None:
            child = nn.Module()
            node.add_module(name, child)
        node = child
    node.add_module(last, layer)


@contextmanager
def _peft(settings: Mapping[str, Any], path: str) -> Iterator[None]:
    """Leave random state and warnings alone, and turn PEFT's many errors into one."""
    kind = settings.get("peft_type")
    try:
        import peft
    except ImportError as error:
        raise CheckpointError(
            f'A {kind} adapter is merged by PEFT, which is not installed: pip install ".[train]".'
        ) from error
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except UserWarning as warning:  # those that `own_factors` does not leave unheard
        raise CheckpointError(f"{path!r}: {warning}") from warning
    except Exception as error:  # foreign code on a file's numbers and settings
        raise CheckpointError(
            f"PEFT {peft.__version__} cannot merge layer {path!r} of the {kind} adapter "
            f"({type(error).__name__}: {error})."
        ) from error
