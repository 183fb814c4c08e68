"""One SORSA-adapted linear layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from spectra.linalg import decompose
from spectra.methods.core.layer import Triplets
from spectra.methods.core.moved import MovedLayer
from spectra.methods.sorsa.config import SorsaConfig


class SorsaLinear(MovedLayer[SorsaConfig]):
    """A linear layer W_0 whose principal part W_p = U_p diag(S_p) V_pᵀ is trained.

    The layer computes x W_r + x W_p (paper, Eq. 7) in the low-rank order of Eq. 14, where the
    frozen residual W_r = W_0 − U_0 diag(S_0) V_0ᵀ is never formed: the base keeps W_0, and the
    initial principal part, U_0, S_0, V_0, travels with the adapter as frozen buffers,

        y = x W_0ᵀ + [x V_p diag(S_p) U_pᵀ − x V_0 diag(S_0) U_0ᵀ] + bias.

    So W_r is a matter of definition and not of a second SVD on another machine; at step 0 the
    bracket is exactly zero, in every dtype; a disabled adapter leaves exactly W_0; and several
    adapters, quantised bases included, share one base. The price is a second low-rank product.

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

    method = "SORSA"
    adapter_layer_names = ("sorsa_u", "sorsa_s", "sorsa_vh")
    frozen_names = ("sorsa_u0", "sorsa_s0", "sorsa_vh0")
    other_param_names = (*frozen_names, "sorsa_dropout", "r")
    dropout_name = "sorsa_dropout"
    sorsa_u: nn.ParameterDict  # (m, r)
    sorsa_s: nn.ParameterDict  # (r,)
    sorsa_vh: nn.ParameterDict  # (r, n)

    def _shapes(self, config: SorsaConfig) -> dict[str, tuple[int, ...]]:
        u, s, vh = (self.out_features, config.r), (config.r,), (config.r, self.in_features)
        return dict(zip(self.adapter_layer_names + self.frozen_names, 2 * (u, s, vh), strict=True))

    def _initial(self, config: SorsaConfig) -> dict[str, Tensor]:
        found = decompose(self._weight_to_decompose())
        u, s, vh = found.u[:, : config.r], found.s[: config.r], found.vh[: config.r]
        names = self.adapter_layer_names + self.frozen_names
        return dict(zip(names, 2 * (u, s, vh), strict=True))

    def _parts(self, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, s, vh = (held[name] for name in self.adapter_layer_names)
        u_0, s_0, vh_0 = self._initial_triplets(held)
        return u, u_0, s[:, None] * vh, s_0[:, None] * vh_0

    def _initial_triplets(self, held: Mapping[str, Tensor]) -> Triplets:
        return held["sorsa_u0"], held["sorsa_s0"], held["sorsa_vh0"]
