"""SVFT: a sparse matrix between the frozen singular vectors of every weight is trained."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectra.methods.core.model import TunerModel, register
from spectra.methods.core.vectors import VectorsConfig, VectorsLayer

Pattern = Literal["plain", "banded", "random", "top-k"]


@dataclass
class SvftConfig(VectorsConfig):
    """Configuration of SVFT for ``peft.get_peft_model``; further fields as in `VectorsConfig`.

    Parameters
    ----------
    pattern : {"plain", "banded", "random", "top-k"}
        Which entries of M are trained: the diagonal, and beside it none; the `off_diagonals`
        next to it on each side; as many as that, drawn at random; or as many, where |uᵢᵀvⱼ| is
        largest, which only square weights have.
    off_diagonals : int
        How many diagonals on each side; 0 for ``"plain"``, 1 to k − 1 for the others.
    seed : int
        Of the random entries. They differ between layers.

    References
    ----------
    Lingam et al., SVFT, arXiv:2405.19597.

    Examples
    --------
    >>> SvftConfig(pattern="banded", off_diagonals=2, target_modules=["q_proj"]).pattern
    'banded'
    """

    method: ClassVar[str] = "SVFT"

    pattern: Pattern = field(
        default="plain", metadata={"help": "Which entries of M are trained beside its diagonal."}
    )
    off_diagonals: int = field(
        default=0, metadata={"help": "Diagonals on each side, or as many entries as they have."}
    )
    seed: int = field(default=0, metadata={"help": "Of the random pattern."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern not in get_args(Pattern):
            known = ", ".join(get_args(Pattern))
            raise ValueError(f"pattern must be one of {known}, got {self.pattern!r}.")
        if (self.pattern == "plain") != (self.off_diagonals == 0) or self.off_diagonals < 0:
            raise ValueError(
                "off_diagonals must be 0 for the plain pattern and at least 1 for any other, got "
                f"{self.off_diagonals} for {self.pattern!r}."
            )


class SvftLinear(VectorsLayer[SvftConfig]):
    """A linear layer with a trained sparse M between all singular vectors of its W_0.

    W_t = W_0 + U M Vᵀ. M starts at 0.

    References
    ----------
    Lingam et al., SVFT, arXiv:2405.19597.
    """

    method = "SVFT"
    adapter_layer_names = ("svft_values",)
    frozen_names = ("svft_u", "svft_vh", "svft_pivot", "svft_s0", "svft_rows", "svft_cols")
    index_names = ("svft_pivot", "svft_rows", "svft_cols")
    other_param_names = (*frozen_names, "save_vectors", "plain")
    svft_values: nn.ParameterDict  # (nnz,), entries of M
    plain: dict[str, bool]

    def update_layer(self, adapter_name: str, config: SvftConfig) -> None:
        """Add an adapter, as `TunerLayer.update_layer` does."""
        k = min(self.out_features, self.in_features)
        if config.off_diagonals > k - 1:
            raise ValueError(
                f"off_diagonals must be at most min(m, n) - 1 = {k - 1}, got "
                f"{config.off_diagonals}, for {self._described()}."
            )
        if config.pattern == "top-k" and self.out_features != self.in_features:
            raise ValueError(
                f"The top-k pattern compares left with right singular vectors, so m = n must hold; "
                f"{self._described()} does not. Take another pattern, or leave it out with "
                "exclude_modules."
            )
        if not hasattr(self, "plain"):
            self.plain = {}
        self.plain[adapter_name] = config.pattern == "plain"
        super().update_layer(adapter_name, config)

    def _described(self) -> str:
        return f"{self.key or 'the layer'} of shape ({self.out_features}, {self.in_features})"

    def _shapes(self, config: SvftConfig) -> dict[str, tuple[int, ...]]:
        k = min(self.out_features, self.in_features)
        entries = (k + _beside(k, config.off_diagonals),)
        own = ("svft_values", "svft_rows", "svft_cols")
        return super()._shapes(config) | dict.fromkeys(own, entries)

    def _initial(self, config: SvftConfig) -> dict[str, Tensor]:
        tensors = super()._initial(config)
        rows, cols = self._positions(config, tensors["svft_u"], tensors["svft_vh"])
        own = {"svft_rows": rows.int(), "svft_cols": cols.int()}
        return tensors | own | {"svft_values": torch.zeros(len(rows))}

    def _positions(self, config: SvftConfig, u: Tensor, vh: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of M's trained entries, the diagonal first."""
        k, d = u.shape[1], config.off_diagonals
        diagonal = torch.arange(k)
        if config.pattern == "plain":
            return diagonal, diagonal
        if config.pattern == "banded":
            rows, cols = torch.ones(k, k, dtype=torch.bool).triu(-d).tril(d).nonzero().unbind(1)
            beside = rows != cols
            rows, cols = rows[beside], cols[beside]
        else:
            count = _beside(k, d)
            if config.pattern == "random":
                seed = config.seed + zlib.crc32(self.key.encode())
                generator = torch.Generator().manual_seed(seed)
                places = torch.randperm(k * (k - 1), generator=generator)[:count]
                rows, cols = places // (k - 1), places % (k - 1)
                cols = cols + (cols >= rows)  # over the diagonal
            else:
                alignment = (vh @ u).T.abs().cpu().fill_diagonal_(-1.0)  # |uᵢᵀvⱼ|
                places = alignment.flatten().topk(count).indices
                rows, cols = places // k, places % k
        return torch.cat([diagonal, rows]), torch.cat([diagonal, cols])

    def _hidden(self, adapter: str, x: Tensor) -> tuple[Tensor, Tensor]:
        held = self._held(adapter)
        h = F.linear(x, held["svft_vh"])
        if self.plain[adapter]:
            return h * held["svft_values"], held["svft_u"]
        return F.linear(h, _sparse(held)), held["svft_u"]

    def _factors(self, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return held["svft_u"], _sparse(held) @ held["svft_vh"]


def _beside(k: int, d: int) -> int:
    """How many entries of a k × k matrix lie on the d diagonals on each side of its own."""
    return d * (2 * k - d - 1)


def _sparse(held: Mapping[str, Tensor]) -> Tensor:
    """M, of shape (k, k)."""
    values, k = held["svft_values"], len(held["svft_vh"])
    places = (held["svft_rows"].long(), held["svft_cols"].long())
    return values.new_zeros(k, k).index_put(places, values)


class SvftModel(TunerModel):
    """A model whose chosen linear layers are adapted by SVFT; ``get_peft_model`` makes it.

    References
    ----------
    Lingam et al., SVFT, arXiv:2405.19597.
    """

    prefix: str = "svft_"
    tuner_layer_cls = SvftLinear


register(SvftConfig, SvftModel)
