"""Layers that train factors which W_0 holds already: W_t = W_0 + B A − B_0 A_0."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectra.methods.core.layer import Config, TunerLayer


class MovedLayer(TunerLayer[Config]):
    """A linear layer of which a part B_0 A_0 of rank r is trained, as B A.

    The frozen residual W_0 − B_0 A_0 is never formed. The update is the product of what moved,

        B A − B_0 A_0 = [B, B − B_0] [A − A_0; A_0],

    which is exactly zero at step 0, in every dtype, and one product of rank 2r. With dropout,
    which acts on the trained part's input alone, the two parts are multiplied apart.
    """

    dropout_name: ClassVar[str]  # of the configuration's field and of the layer's attribute

    def update_layer(self, adapter_name: str, config: Config) -> None:
        """Add an adapter, as `TunerLayer.update_layer` does."""
        if not hasattr(self, self.dropout_name):
            setattr(self, self.dropout_name, nn.ModuleDict())
        p = getattr(config, self.dropout_name)
        getattr(self, self.dropout_name)[adapter_name] = nn.Dropout(p) if p > 0 else nn.Identity()
        super().update_layer(adapter_name, config)

    @abstractmethod
    def _parts(self, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return B, B_0 of shape (m, r) and A, A_0 of shape (r, n)."""

    def _factors(self, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        b, b_0, a, a_0 = self._parts(held)
        return torch.cat([b, b - b_0], dim=1), torch.cat([a - a_0, a_0])

    def _hidden(self, adapter: str, x: Tensor) -> tuple[Tensor, Tensor]:
        held, dropout = self._held(adapter), getattr(self, self.dropout_name)[adapter]
        if isinstance(dropout, nn.Identity) or not dropout.training:
            b, a = self._factors(held)
            return F.linear(x, a), b
        b, b_0, a, a_0 = self._parts(held)
        kept = F.linear(dropout(x), a)
        return torch.cat([kept, -F.linear(x, a_0)], dim=-1), torch.cat([b, b_0], dim=1)
