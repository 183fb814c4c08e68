"""MiLoRA: the minor part of every weight is trained, the principal part stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from spectra.linalg import decompose
from spectra.methods.core.config import TunerConfig, require_probability, require_rank
from spectra.methods.core.layer import Triplets
from spectra.methods.core.model import TunerModel, register
from spectra.methods.core.moved import MovedLayer


@dataclass
class MiloraConfig(TunerConfig):
    """Configuration of MiLoRA for ``peft.get_peft_model``; further fields as in `TunerConfig`.

    Parameters
    ----------
    r : int
        Rank of the trained minor part, between 1 and min(m, n) of every target.
    milora_dropout : float
        Probability of dropping an input of the trained part, during training.

    References
    ----------
    Wang et al., MiLoRA, arXiv:2406.09044.

    Examples
    --------
    >>> MiloraConfig(r=16, target_modules=["q_proj", "v_proj"]).r
    16
    """

    method: ClassVar[str] = "MILORA"

    r: int = field(default=16, metadata={"help": "Rank of the trained minor part."})
    milora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout on the input of the trained part."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rank(self.r)
        require_probability("milora_dropout", self.milora_dropout)


class MiloraLinear(MovedLayer[MiloraConfig]):
    """A linear layer W_0 whose minor part, its r smallest singular triplets, is trained.

    W_t = W_0 + B A − B_0 A_0 with B_0 = U_m diag(S_m)^½ and A_0 = diag(S_m)^½ V_mᵀ. As in
    `SorsaLinear` the base keeps W_0 and the frozen residual, here the principal part, is never
    formed. A singular value of 0 leaves its row and column at 0, without a gradient.

    References
    ----------
    Wang et al., MiLoRA, arXiv:2406.09044.
    """

    method = "MiLoRA"
    adapter_layer_names = ("milora_a", "milora_b")
    frozen_names = ("milora_a0", "milora_b0")
    other_param_names = (*frozen_names, "milora_dropout", "r")
    dropout_name = "milora_dropout"
    milora_a: nn.ParameterDict  # (r, n)
    milora_b: nn.ParameterDict  # (m, r)

    def _shapes(self, config: MiloraConfig) -> dict[str, tuple[int, ...]]:
        a, b = (config.r, self.in_features), (self.out_features, config.r)
        return {"milora_a": a, "milora_b": b, "milora_a0": a, "milora_b0": b}

    def _initial(self, config: MiloraConfig) -> dict[str, Tensor]:
        found = decompose(self._weight_to_decompose())
        root = found.s[-config.r :].sqrt()
        a, b = root[:, None] * found.vh[-config.r :], found.u[:, -config.r :] * root
        return {"milora_a": a, "milora_b": b, "milora_a0": a, "milora_b0": b}

    def _parts(self, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return held["milora_b"], held["milora_b0"], held["milora_a"], held["milora_a0"]

    def _initial_triplets(self, held: Mapping[str, Tensor]) -> Triplets:
        b, a = held["milora_b0"], held["milora_a0"]
        root = torch.linalg.vector_norm(b, dim=0).clamp(min=torch.finfo(b.dtype).tiny)
        return b / root, root.square(), a / root[:, None]


class MiloraModel(TunerModel):
    """A model whose chosen linear layers are adapted by MiLoRA; ``get_peft_model`` makes it.

    References
    ----------
    Wang et al., MiLoRA, arXiv:2406.09044.
    """

    prefix: str = "milora_"
    tuner_layer_cls = MiloraLinear


register(MiloraConfig, MiloraModel)
