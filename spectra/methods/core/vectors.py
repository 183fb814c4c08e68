"""Layers between all singular vectors of W_0, which are computed anew instead of saved."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from spectra.linalg import decompose
from spectra.methods.core.config import TunerConfig
from spectra.methods.core.layer import Triplets, TunerLayer

# A vector computed again is the adapter's if its entry there, the adapter's largest, is still
# about as large as any. Rounding moves that by 1e-9; a vector turned in its cluster by far more.
_PIVOT_SHARE = 0.9
# So many leading triplets tell one base from another.
_CHECKED_TRIPLETS = 64


@dataclass
class VectorsConfig(TunerConfig):
    """Settings of the tuners that train between all singular vectors.

    Parameters
    ----------
    save_vectors : bool
        Save U and V with the adapter. They are as large as the base's weights; without them the
        base is decomposed again on loading, which gives the same vectors unless singular values
        lie closer together than its rounding.
    """

    save_vectors: bool = field(
        default=False, metadata={"help": "Save the frozen singular vectors with the adapter."}
    )


Config = TypeVar("Config", bound=VectorsConfig)


class VectorsLayer(TunerLayer[Config]):
    """A linear layer whose update lies between all k singular vectors of its W_0.

    On loading, vectors that were not saved are computed from the base. Their signs are then those
    that the saved pivots tell (the row of each left vector's largest entry, made positive), and
    the saved singular values tell whether it is the same base. Adapters of one layer share them.

    `frozen_names` begins with the names of U, Vᵀ, the pivots and S.
    """

    save_vectors: dict[str, bool]

    def update_layer(self, adapter_name: str, config: Config) -> None:
        """Add an adapter, as `TunerLayer.update_layer` does."""
        if not hasattr(self, "save_vectors"):
            self.save_vectors = {}
        self.save_vectors[adapter_name] = config.save_vectors
        super().update_layer(adapter_name, config)

    def _shapes(self, config: Config) -> dict[str, tuple[int, ...]]:
        m, n = self.out_features, self.in_features
        k = min(m, n)
        return dict(zip(self.frozen_names, ((m, k), (k, n), (k,), (k,)), strict=False))

    def _initial(self, config: Config) -> dict[str, Tensor]:
        return dict(zip(self.frozen_names, self._vectors(), strict=False))

    def _hold(self, name: str, adapter: str, tensor: Tensor, saved: bool = True) -> None:
        if self.save_vectors[adapter] or name not in self.frozen_names[:2]:
            super()._hold(name, adapter, tensor)
        else:  # no copy: adapters share it
            tensor = tensor.to(self._factor_dtype())
            getattr(self, name).register_buffer(adapter, tensor, persistent=False)

    def _vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U, Vᵀ, pivots and S of W_0: those of another adapter where they are at hand."""
        for adapter, saved in self.save_vectors.items():
            if not saved and self._has(adapter):
                u, vh, pivot, s = (getattr(self, n)[adapter] for n in self.frozen_names[:4])
                if not u[0, 0].isnan():
                    return u, vh, pivot, s
        found = decompose(self._weight_to_decompose())
        pivot = found.u.abs().argmax(dim=0)
        signs = found.u.gather(0, pivot[None])[0].sign()
        dtype = self._factor_dtype()
        u = (found.u * signs).to(dtype).contiguous()
        vh = (found.vh * signs[:, None]).to(dtype).contiguous()
        return u, vh, pivot.int(), found.s

    def _finish_loading(self) -> None:
        for adapter, saved in self.save_vectors.items():
            pivot = getattr(self, self.frozen_names[2])[adapter]
            if saved or pivot.is_meta or bool((pivot < 0).any()):
                continue
            holders = [getattr(self, name) for name in self.frozen_names[:2]]
            u, vh = (holder[adapter] for holder in holders)
            if u[0, 0].isnan():
                u, vh = (t.to(u.device) for t in self._vectors()[:2])
            at_pivot = u.gather(0, pivot.to(u.device).long()[None])[0]
            if bool((at_pivot < 0).any()):
                signs = torch.where(at_pivot < 0, -1.0, 1.0).to(u.dtype)
                u, vh = u * signs, vh * signs[:, None]
            for holder, tensor in zip(holders, (u, vh), strict=True):
                holder.register_buffer(adapter, tensor, persistent=False)

    def _warn_of_other_vectors(self, adapter: str) -> None:
        u, pivot = (getattr(self, self.frozen_names[i])[adapter] for i in (0, 2))
        if bool((pivot < 0).any()):
            return  # not loaded: the vectors are NaN, and so is what comes of them
        at_pivot = u.gather(0, pivot.to(u.device).long()[None])[0]
        turned = int((at_pivot < _PIVOT_SHARE * u.abs().amax(dim=0)).sum())
        if turned:
            warnings.warn(
                f"{self.method} adapter {adapter!r}: {turned} of {len(pivot)} singular vectors of "
                "this base are not those that it was trained between. Load it on its original "
                "base in its original dtype, or save it with save_vectors=True.",
                stacklevel=2,
            )

    def _initial_triplets(self, held: Mapping[str, Tensor]) -> Triplets:
        u, vh, _, s = (held[name] for name in self.frozen_names[:4])
        count = min(len(s), _CHECKED_TRIPLETS)
        return u[:, :count], s[:count], vh[:count]
