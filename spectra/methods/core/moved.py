"""Layers that train factors which W_0 holds already: W_t = W_0 + B A − B_0 A_0."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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

    def _add_update(self, adapter: str, result: Tensor, x: Tensor) -> Tensor:
        parts = self._parts(self._held(adapter))
        # Beside autocast and other dtypes: other bases and hooks may need their output as it is,
        # and a compiler, which fuses by itself, warns of the node.
        plain = (
            result.dtype == x.dtype == parts[0].dtype
            and type(self.get_base_layer()) is nn.Linear
            and not _is_hooked(self.base_layer)
            and not self._drops(adapter)
            and not torch.compiler.is_compiling()
        )
        return (
            AddMoved.apply(result, x, *parts) if plain else super()._add_update(adapter, result, x)
        )

    def _drops(self, adapter: str) -> bool:
        dropout = getattr(self, self.dropout_name)[adapter]
        return dropout.training and not isinstance(dropout, nn.Identity)

    def _hidden(self, adapter: str, x: Tensor) -> tuple[Tensor, Tensor]:
        held = self._held(adapter)
        if not self._drops(adapter):
            b, a = self._factors(held)
            return F.linear(x, a), b
        b, b_0, a, a_0 = self._parts(held)
        kept = F.linear(getattr(self, self.dropout_name)[adapter](x), a)
        return torch.cat([kept, -F.linear(x, a_0)], dim=-1), torch.cat([b, b_0], dim=1)


def _is_hooked(layer: nn.Module) -> bool:
    """Whether a hook may keep the layer's output, or torch guards it for one on its gradient."""
    return bool(layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks)


class AddMoved(torch.autograd.Function):
    """``result`` += x (B A − B_0 A_0)ᵀ, as one node of the autograd graph.

    Autograd alone would also multiply out the gradients of the frozen halves of
    [B, B − B_0] and [A − A_0; A_0]: 12 products with r columns where 10 do (LoRA: 6), and it
    would copy the base's output once more. At 4096×4096, 2,048 tokens and rank 128 that is 1.07
    times the time of PEFT's LoRA layer instead of 1.0.
    """

    @staticmethod
    def forward(
        ctx: Any, result: Tensor, x: Tensor, b: Tensor, b_0: Tensor, a: Tensor, a_0: Tensor
    ) -> Tensor:
        """Add in place; B, B_0 are (m, r), A, A_0 are (r, n)."""
        r, rows = b.shape[1], x.reshape(-1, x.shape[-1])
        left = torch.cat([b, b - b_0], dim=1)  # (m, 2r)
        right = torch.cat([a - a_0, a_0])  # (2r, n)
        h = rows @ right.T  # (tokens, 2r)
        result.view(-1, result.shape[-1]).addmm_(h, left.T)
        ctx.mark_dirty(result)
        ctx.shape = x.shape
        ctx.save_for_backward(rows, h[:, :r] + h[:, r:], left, right)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of what needs one."""
        x, h, left, right = ctx.saved_tensors  # h = x Aᵀ
        g = gradient.reshape(-1, gradient.shape[-1])
        _, for_x, for_b, _, for_a, _ = ctx.needs_input_grad
        d_h = g @ left if for_x or for_a else None  # (tokens, 2r)
        d_x = (d_h @ right).view(ctx.shape) if d_h is not None and for_x else None
        d_a = d_h[:, : h.shape[1]].T @ x if d_h is not None and for_a else None
        return gradient, d_x, g.T @ h if for_b else None, None, d_a, None
