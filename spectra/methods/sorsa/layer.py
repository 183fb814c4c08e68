"""One SORSA-adapted linear layer."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from spectra.linalg import decompose
from spectra.methods.sorsa.config import SorsaConfig

# A base that differs from the one an adapter was made on by more than its rounding is another
# base; the floor leaves room for a float32 product.
_BASE_MISMATCH_FLOOR = 1e-4


class SorsaLinear(nn.Module, BaseTunerLayer):
    """A linear layer W_0 whose principal part W_p = U_p diag(S_p) V_pᵀ is trained.

    The layer computes x W_r + x W_p (paper, Eq. 7) in the low-rank order of Eq. 14, where the
    frozen residual W_r = W_0 − U_0 diag(S_0) V_0ᵀ is never formed: the base keeps W_0, and the
    initial principal part, U_0, S_0, V_0, travels with the adapter as frozen buffers,

        y = x W_0ᵀ + [x V_p diag(S_p) U_pᵀ − x V_0 diag(S_0) U_0ᵀ] + bias.

    So W_r is a matter of definition and not of a second SVD on another machine; at step 0 the
    bracket is exactly zero, in every dtype; a disabled adapter leaves exactly W_0; and several
    adapters, quantised bases included, share one base. The price is a second low-rank product
    without a weight gradient.

    Parameters
    ----------
    base_layer : nn.Linear
        Computes W_0; weight of shape (m, n) = (out_features, in_features). Frozen.
    adapter_name : str
        Name of the first adapter.
    config : SorsaConfig
        Its settings.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Eqs. 5 to 7 and 14.
    """

    adapter_layer_names = ("sorsa_u", "sorsa_s", "sorsa_vh")
    other_param_names = ("sorsa_u0", "sorsa_s0", "sorsa_vh0", "sorsa_dropout", "r")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: SorsaConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        base = cast(nn.Linear, self.get_base_layer())
        self.out_features: int = base.out_features
        self.in_features: int = base.in_features
        self.r: dict[str, int] = {}
        self.sorsa_u = nn.ParameterDict()  # (m, r), trained
        self.sorsa_s = nn.ParameterDict()  # (r,), trained
        self.sorsa_vh = nn.ParameterDict()  # (r, n), trained
        self.sorsa_u0 = BufferDict({}, persistent=True)
        self.sorsa_s0 = BufferDict({}, persistent=True)
        self.sorsa_vh0 = BufferDict({}, persistent=True)
        self.sorsa_dropout = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)
        self.register_load_state_dict_post_hook(_warn_of_another_base)

    def update_layer(self, adapter_name: str, config: SorsaConfig) -> None:
        """Add an adapter: the principal part of W_0, or empty factors that will be loaded.

        Raises
        ------
        ValueError
            If the rank exceeds min(m, n), or W_0 has NaN or infinite entries.
        """
        limit = min(self.out_features, self.in_features)
        if not 1 <= config.r <= limit:
            raise ValueError(f"r must be between 1 and min(m, n) = {limit}, got {config.r}.")
        self.r[adapter_name] = config.r
        self.sorsa_dropout[adapter_name] = (
            nn.Dropout(config.sorsa_dropout) if config.sorsa_dropout > 0 else nn.Identity()
        )
        u, s, vh = self._initial_factors(config)
        self.sorsa_u0[adapter_name] = u.clone()
        self.sorsa_s0[adapter_name] = s.clone()
        self.sorsa_vh0[adapter_name] = vh.clone()
        self.sorsa_u[adapter_name] = nn.Parameter(u)
        self.sorsa_s[adapter_name] = nn.Parameter(s)
        self.sorsa_vh[adapter_name] = nn.Parameter(vh)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _initial_factors(self, config: SorsaConfig) -> tuple[Tensor, Tensor, Tensor]:
        if not config.init_weights:
            m, n, r = self.out_features, self.in_features, config.r
            nan = float("nan")
            return torch.full((m, r), nan), torch.full((r,), nan), torch.full((r, n), nan)
        principal = decompose(self.get_base_weight())
        u, s, vh = (t.float() for t in (principal.u, principal.s, principal.vh))
        return u[:, : config.r].clone(), s[: config.r].clone(), vh[: config.r].clone()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output, of shape (..., m), for `x` of shape (..., n)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name not in self.sorsa_u:
                continue
            u, s, vh = self.sorsa_u[name], self.sorsa_s[name], self.sorsa_vh[name]
            u0, s0, vh0 = self.sorsa_u0[name], self.sorsa_s0[name], self.sorsa_vh0[name]
            x_in = self._cast_input_dtype(x, u.dtype)
            trained = F.linear(F.linear(self.sorsa_dropout[name](x_in), vh) * s, u)
            initial = F.linear(F.linear(x_in, vh0) * s0, u0)
            result = result + (trained - initial)
        return result.to(dtype)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return W_t − W_0 = U_p diag(S_p) V_pᵀ − U_0 diag(S_0) V_0ᵀ.

        Returns
        -------
        Tensor of shape (m, n), float64, on the CPU
            Not every accelerator has float64.
        """
        held = (self.sorsa_u, self.sorsa_s, self.sorsa_vh)
        begun = (self.sorsa_u0, self.sorsa_s0, self.sorsa_vh0)
        u, s, vh = (d[adapter].detach().to("cpu", torch.float64) for d in held)
        u0, s0, vh0 = (d[adapter].to("cpu", torch.float64) for d in begun)
        return (u * s) @ vh - (u0 * s0) @ vh0

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
            if name in self.sorsa_u:
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
        """Whether the update can be written as a LoRA; it can, with rank 2r."""
        return True

    def __repr__(self) -> str:
        return "sorsa." + super().__repr__()


def _warn_of_another_base(layer: SorsaLinear, _: object) -> None:
    """Warn after loading if the initial factors are no singular vectors of this base's W_0."""
    weight = cast(nn.Linear, layer.get_base_layer()).weight
    if weight.is_meta or not weight.is_floating_point():
        return
    for name in layer.sorsa_u:
        u0, s0, vh0 = layer.sorsa_u0[name], layer.sorsa_s0[name], layer.sorsa_vh0[name]
        if u0.is_meta or layer.merged:
            continue
        with torch.no_grad():
            seen = u0.T.float() @ (weight.float() @ vh0.T.float())  # (r, r), diag(S_0) expected
            mismatch = float(torch.linalg.matrix_norm(seen - torch.diag(s0.float())))
        limit = max(_BASE_MISMATCH_FLOOR, 2 * torch.finfo(weight.dtype).eps)
        if mismatch > limit * float(torch.linalg.vector_norm(s0.float())):
            relative = mismatch / float(torch.linalg.vector_norm(s0.float()))
            warnings.warn(
                f"SORSA adapter {name!r} was made on another base: its initial principal part "
                f"misses this weight's by {relative:.1%}, rounding would explain {limit:.1%}. "
                "Its W_t here is not the one it was trained to; load it on its original base.",
                stacklevel=2,
            )
