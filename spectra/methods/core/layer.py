"""The frame of an adapted linear layer: W_t = W_0 + B A, whatever B and A are made of."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn

from spectra.methods.core.config import TunerConfig

# A base that differs from the one an adapter was made on by more than its rounding is another
# base; the floor leaves room for a float32 product.
_BASE_MISMATCH_FLOOR = 1e-4

Config = TypeVar("Config", bound=TunerConfig)
Triplets = tuple[Tensor, Tensor, Tensor]


class TunerLayer(nn.Module, BaseTunerLayer, Generic[Config]):
    """A frozen linear layer W_0 and, for every adapter, a trained update W_t − W_0 = B A.

    The base keeps W_0 and is never rewritten, except while merged: a disabled adapter leaves
    exactly W_0, and several adapters, quantised bases included, share one base. What a method
    takes from the decomposition of W_0 lies in frozen buffers of the adapter. Factors are
    float32, or float64 on a float64 base; the base's dtype does not round them.

    A method names its tensors and says how they make the update.

    Parameters
    ----------
    base_layer : nn.Linear
        Computes W_0; weight of shape (m, n) = (out_features, in_features). Frozen.
    adapter_name : str
        Name of the first adapter.
    config : TunerConfig
        Its settings.
    key : str
        The layer's path in its model.
    """

    method: ClassVar[str]  # as users read it
    adapter_layer_names: tuple[str, ...]  # trained, one tensor an adapter
    frozen_names: ClassVar[tuple[str, ...]]  # from W_0, likewise
    index_names: ClassVar[tuple[str, ...]] = ()  # those of them that hold int32 indices

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: Config, key: str = ""
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        base = cast(nn.Linear, self.get_base_layer())
        if type(base) is not nn.Linear:  # asking imports the libraries that quantise
            self.quantization_backend = resolve_quantization_backend(base)
        self.out_features: int = base.out_features
        self.in_features: int = base.in_features
        self.key = key
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        for name in self.frozen_names:
            setattr(self, name, BufferDict({}, persistent=True))
        self.r: dict[str, int] = {}  # ranks, where a method has one
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)
        self.register_load_state_dict_post_hook(_after_loading)

    def update_layer(self, adapter_name: str, config: Config) -> None:
        """Add an adapter: made from W_0, or empty tensors that will be loaded.

        Raises
        ------
        ValueError
            If the settings do not fit the layer, W_0 has NaN or infinite entries, or the layer
            is merged, so that W_0 is not at hand.
        """
        if (r := getattr(config, "r", None)) is not None:
            limit = min(self.out_features, self.in_features)
            if not 1 <= r <= limit:
                raise ValueError(f"r must be between 1 and min(m, n) = {limit}, got {r}.")
            self.r[adapter_name] = r
        shapes = self._shapes(config).items()
        if config.init_weights:
            tensors = self._initial(config)
        else:
            tensors = {name: self._unloaded(name, shape) for name, shape in shapes}
        for name, tensor in tensors.items():
            self._hold(name, adapter_name, tensor)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @abstractmethod
    def _shapes(self, config: Config) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of an adapter."""

    @abstractmethod
    def _initial(self, config: Config) -> dict[str, Tensor]:
        """Every tensor of a new adapter, from W_0."""

    @abstractmethod
    def _hidden(self, adapter: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return h of shape (..., q) and B of shape (m, q): the update's output is h Bᵀ."""

    @abstractmethod
    def _factors(self, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return B of shape (m, q) and A of shape (q, n) of an adapter with these tensors."""

    @abstractmethod
    def _initial_triplets(self, held: Mapping[str, Tensor]) -> Triplets:
        """Return U, S, Vᵀ: the singular triplets of W_0 that the adapter starts from."""

    def _unloaded(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name in self.index_names:
            return torch.tensor(-1, dtype=torch.int32).expand(shape)
        return torch.tensor(float("nan")).expand(shape)

    def _weight_to_decompose(self) -> Tensor:
        if self.merged:
            raise ValueError(
                f"{self.method} starts from W_0, but {self.merged_adapters} are merged into it; "
                "call unmerge_adapter() first."
            )
        return self.get_base_weight()

    def _factor_dtype(self) -> torch.dtype:
        double = self.get_base_layer().weight.dtype == torch.float64
        return torch.float64 if double else torch.float32

    def _hold(self, name: str, adapter: str, tensor: Tensor, saved: bool = True) -> None:
        # A copy of its own: two names may start from one tensor.
        dtype = self._factor_dtype() if tensor.is_floating_point() else tensor.dtype
        tensor = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
        holder = getattr(self, name)
        if isinstance(holder, nn.ParameterDict):
            holder[adapter] = nn.Parameter(tensor)
        else:
            holder.register_buffer(adapter, tensor, persistent=saved)

    def _held(self, adapter: str) -> dict[str, Tensor]:
        return {n: getattr(self, n)[adapter] for n in self.adapter_layer_names + self.frozen_names}

    def _has(self, adapter: str) -> bool:
        return adapter in getattr(self, self.adapter_layer_names[0])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output, of shape (..., m), for `x` of shape (..., n)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if self._has(name):
                trained = getattr(self, self.adapter_layer_names[0])[name]
                x_in = self._cast_input_dtype(x, trained.dtype)
                result = self._add_update(name, result, x_in)
        return result.to(dtype)

    def _add_update(self, adapter: str, result: Tensor, x: Tensor) -> Tensor:
        """Add an adapter's update to the base's output, which may be overwritten."""
        return _add_product(result, *self._hidden(adapter, x))

    def low_rank_update(self, adapter: str) -> tuple[Tensor, Tensor]:
        """Return B and A with W_t − W_0 = B A.

        Returns
        -------
        b : Tensor of shape (m, q), float64, on the CPU
            q is the rank of the update: 2r where factors are trained that W_0 holds already.
        a : Tensor of shape (q, n), float64, on the CPU
            Not every accelerator has float64.
        """
        held = {name: tensor.detach().cpu() for name, tensor in self._held(adapter).items()}
        return self._factors(
            {
                name: tensor.double() if tensor.is_floating_point() else tensor
                for name, tensor in held.items()
            }
        )

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return W_t − W_0.

        Returns
        -------
        Tensor of shape (m, n), float64, on the CPU
        """
        b, a = self.low_rank_update(adapter)
        return b @ a

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active adapters' updates to the base weight, rounding once to its dtype.

        Parameters
        ----------
        safe_merge : bool
            Check the merged weight for NaN and infinities first.
        adapter_names : list of str, optional
            Which adapters; the active ones by default.

        Raises
        ------
        ValueError
            With `safe_merge`, if the merged weight would not be finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if self._has(name):
                self._add_to_base(self.get_delta_weight(name), check=safe_merge)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take merged updates out of the base weight again, exact to the rounding of its dtype."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            self._add_to_base(-self.get_delta_weight(self.merged_adapters.pop()))

    def _add_to_base(self, update: Tensor, check: bool = False) -> None:
        weight = self.get_base_weight()
        merged = (weight.to("cpu", torch.float64) + update).to(weight.device, weight.dtype)
        if check and not torch.isfinite(merged).all():
            raise ValueError("The merged weight would have NaN or Inf; the adapter is broken.")
        self.set_base_weight(merged)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the update can be written as a LoRA; it can, by `low_rank_update`."""
        return True

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move the adapter alone, and leave its dtype: half precision would round the factors."""
        device = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        for name in self.adapter_layer_names + self.frozen_names:
            holder = getattr(self, name)
            if device is None or adapter_name not in holder or holder[adapter_name].is_meta:
                continue
            tensor = holder[adapter_name]
            if isinstance(holder, nn.ParameterDict):
                tensor.data = tensor.data.to(device)
            else:
                holder._buffers[adapter_name] = tensor.to(device)

    def _finish_loading(self) -> None:
        """Compute what the loaded adapters did not bring along; nothing, as a rule."""

    def _warn_of_other_vectors(self, adapter: str) -> None:
        """Warn if what an adapter computed on loading is not what it was trained with."""

    def __repr__(self) -> str:
        return f"{type(self).__module__.split('.')[2]}.{super().__repr__()}"


def _add_product(result: Tensor, h: Tensor, b: Tensor) -> Tensor:
    """Add h Bᵀ to the base's output, in one pass over it where the dtypes allow."""
    if not result.dtype == h.dtype == b.dtype:
        return result + F.linear(h, b)
    flat = torch.addmm(result.reshape(-1, len(b)), h.reshape(-1, b.shape[1]), b.T)
    return flat.view(result.shape)


def _after_loading(layer: TunerLayer[Any], _: object) -> None:
    layer._finish_loading()
    _warn_of_another_base(layer)


def _warn_of_another_base(layer: TunerLayer[Any]) -> None:
    """Warn after loading if the initial factors are no singular vectors of this base's W_0."""
    weight = cast(nn.Linear, layer.get_base_layer()).weight
    if weight.is_meta or not weight.is_floating_point() or layer.merged:
        return
    for name in getattr(layer, layer.adapter_layer_names[0]):
        held = layer._held(name)
        if any(held[n].is_meta for n in layer.frozen_names):
            continue
        with torch.no_grad():
            u, s, vh = (t.float() for t in layer._initial_triplets(held))
            seen = u.T @ (weight.float() @ vh.T)  # (r, r), diag(S) expected
            mismatch = float(torch.linalg.matrix_norm(seen - torch.diag(s)))
            norm = float(torch.linalg.matrix_norm(weight.float()))
            # Another base shows about r entries' worth of noise where S is 0.
            entry = norm / weight.numel() ** 0.5
            scale = max(float(torch.linalg.vector_norm(s)), len(s) * entry)
        limit = max(_BASE_MISMATCH_FLOOR, 2 * torch.finfo(weight.dtype).eps)
        if mismatch > limit * scale + 8 * torch.finfo(torch.float32).eps * norm:
            warnings.warn(
                f"{layer.method} adapter {name!r} was made on another base: its initial singular "
                f"triplets miss this weight's by {mismatch / scale:.1%}, rounding would explain "
                f"{limit:.1%}. Its W_t here is not the one it was trained to; load it on its "
                "original base.",
                stacklevel=2,
            )
        else:
            layer._warn_of_other_vectors(name)
