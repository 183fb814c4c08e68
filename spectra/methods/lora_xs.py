"""LoRA-XS: an r × r matrix between frozen singular vectors is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectra.linalg import decompose
from spectra.methods.core.config import TunerConfig, require_rank
from spectra.methods.core.layer import Triplets, TunerLayer
from spectra.methods.core.model import TunerModel, register


@dataclass
class LoraXsConfig(TunerConfig):
    """Configuration of LoRA-XS for ``peft.get_peft_model``; further fields as in `TunerConfig`.

    Parameters
    ----------
    r : int
        Rank, between 1 and min(m, n) of every target; r² numbers of each are trained.
    init_std : float
        Standard deviation of R at the start. With 0, the default, step 0 is exactly W_0; the
        paper takes 1e-5.

    References
    ----------
    Bałazy et al., LoRA-XS, arXiv:2405.17604.

    Examples
    --------
    >>> LoraXsConfig(r=16, target_modules=["q_proj", "v_proj"]).r
    16
    """

    method: ClassVar[str] = "LORA_XS"

    r: int = field(default=16, metadata={"help": "Rank; r × r numbers are trained."})
    init_std: float = field(
        default=0.0, metadata={"help": "Standard deviation of the trained matrix at the start."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rank(self.r)
        if not self.init_std >= 0:
            raise ValueError(f"init_std must be at least 0, got {self.init_std}.")


class LoraXsLinear(TunerLayer[LoraXsConfig]):
    """A linear layer with a trained R between the frozen principal factors of its W_0.

    W_t = W_0 + U_r diag(S_r) R V_rᵀ.

    References
    ----------
    Bałazy et al., LoRA-XS, arXiv:2405.17604.
    """

    method = "LoRA-XS"
    adapter_layer_names = ("lora_xs_core",)
    frozen_names = ("lora_xs_left", "lora_xs_right")
    other_param_names = (*frozen_names, "r")
    lora_xs_core: nn.ParameterDict  # (r, r)

    def _shapes(self, config: LoraXsConfig) -> dict[str, tuple[int, ...]]:
        return {
            "lora_xs_core": (config.r, config.r),
            "lora_xs_left": (self.out_features, config.r),
            "lora_xs_right": (config.r, self.in_features),
        }

    def _initial(self, config: LoraXsConfig) -> dict[str, Tensor]:
        found = decompose(self._weight_to_decompose())
        r = config.r
        # No number is drawn where none is needed: the random state stays the caller's.
        core = torch.randn(r, r) * config.init_std if config.init_std > 0 else torch.zeros(r, r)
        return {
            "lora_xs_core": core,
            "lora_xs_left": found.u[:, :r] * found.s[:r],
            "lora_xs_right": found.vh[:r],
        }

    def _hidden(self, adapter: str, x: Tensor) -> tuple[Tensor, Tensor]:
        held = self._held(adapter)
        return F.linear(F.linear(x, held["lora_xs_right"]), held["lora_xs_core"]), held[
            "lora_xs_left"
        ]

    def _factors(self, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return held["lora_xs_left"], held["lora_xs_core"] @ held["lora_xs_right"]

    def _initial_triplets(self, held: Mapping[str, Tensor]) -> Triplets:
        left = held["lora_xs_left"]
        s = torch.linalg.vector_norm(left, dim=0)
        return left / s.clamp(min=torch.finfo(s.dtype).tiny), s, held["lora_xs_right"]


class LoraXsModel(TunerModel):
    """A model whose chosen linear layers are adapted by LoRA-XS; ``get_peft_model`` makes it.

    References
    ----------
    Bałazy et al., LoRA-XS, arXiv:2405.17604.
    """

    prefix: str = "lora_xs_"
    tuner_layer_cls = LoraXsLinear


register(LoraXsConfig, LoraXsModel)
