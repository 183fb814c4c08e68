"""SVF: only the singular values of every weight are trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectra.methods.core.model import TunerModel, register
from spectra.methods.core.vectors import VectorsConfig, VectorsLayer

# Relative difference of singular values that the rounding of a base to bfloat16 explains.
_SAME_BASE = 0.02


@dataclass
class SvfConfig(VectorsConfig):
    """Configuration of SVF for ``peft.get_peft_model``; its fields as in `VectorsConfig`.

    References
    ----------
    Sun, Cetin and Tang, Transformer²: Self-adaptive LLMs, arXiv:2501.06252, Section 3.

    Examples
    --------
    >>> SvfConfig(target_modules=["q_proj", "v_proj"]).save_vectors
    False
    """

    method: ClassVar[str] = "SVF"


class SvfLinear(VectorsLayer[SvfConfig]):
    """A linear layer whose singular values are trained: W_t = U diag(S + δ) Vᵀ.

    Computed as W_0 + U diag(δ) Vᵀ, so that δ = 0 is exactly W_0. The paper writes the same with
    factors instead of differences, S_t = S ⊙ z.

    References
    ----------
    Sun, Cetin and Tang, Transformer²: Self-adaptive LLMs, arXiv:2501.06252, Section 3.
    """

    method = "SVF"
    adapter_layer_names = ("svf_delta",)
    frozen_names = ("svf_u", "svf_vh", "svf_pivot", "svf_s0")
    index_names = ("svf_pivot",)
    other_param_names = (*frozen_names, "save_vectors")
    svf_delta: nn.ParameterDict  # (k,)

    def _shapes(self, config: SvfConfig) -> dict[str, tuple[int, ...]]:
        return super()._shapes(config) | {"svf_delta": (min(self.out_features, self.in_features),)}

    def _initial(self, config: SvfConfig) -> dict[str, Tensor]:
        frozen = super()._initial(config)
        return frozen | {"svf_delta": torch.zeros_like(frozen["svf_s0"])}

    def _hidden(self, adapter: str, x: Tensor) -> tuple[Tensor, Tensor]:
        held = self._held(adapter)
        return F.linear(x, held["svf_vh"]) * held["svf_delta"], held["svf_u"]

    def _factors(self, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return held["svf_u"], held["svf_delta"][:, None] * held["svf_vh"]


class SvfModel(TunerModel):
    """A model whose chosen linear layers are adapted by SVF; ``get_peft_model`` makes it.

    References
    ----------
    Sun, Cetin and Tang, Transformer²: Self-adaptive LLMs, arXiv:2501.06252.
    """

    prefix: str = "svf_"
    tuner_layer_cls = SvfLinear

    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str
    ) -> None:
        """Combine trained adapters into a new one: δ = Σᵢ wᵢ δᵢ. It is not made active.

        Parameters
        ----------
        adapters : sequence of str
            Names of adapters of this model.
        weights : sequence of float
            The wᵢ, one for each.
        adapter_name : str
            Name of the new one.

        Raises
        ------
        ValueError
            If a name is unknown or taken, the lengths differ, or the adapters were made on
            different bases or for targets that cannot be put together.

        References
        ----------
        Sun, Cetin and Tang, Transformer²: Self-adaptive LLMs, arXiv:2501.06252, Section 3.
        """
        unknown = [name for name in adapters if name not in self.peft_config]
        if unknown or not adapters:
            raise ValueError(f"adapters must be among {[*self.peft_config]}, got {[*adapters]}.")
        if len(adapters) != len(weights):
            raise ValueError(f"{len(adapters)} adapters need as many weights, got {len(weights)}.")
        if adapter_name in self.peft_config:
            raise ValueError(f"There is an adapter {adapter_name!r} already; choose another name.")
        config = self._combined_config(adapters)
        layers = [m for m in self.model.modules() if isinstance(m, SvfLinear)]
        for layer in layers:
            s = [layer._held(name)["svf_s0"].double() for name in adapters if layer._has(name)]
            if any((other - s[0]).norm() > _SAME_BASE * s[0].norm() for other in s[1:]):
                raise ValueError(f"Adapters {[*adapters]} were made on different bases.")
        self.peft_config[adapter_name] = config
        for layer in layers:
            held = [(w, n) for w, n in zip(weights, adapters, strict=True) if layer._has(n)]
            if held:
                layer.update_layer(adapter_name, config)
                total = sum(w * layer.svf_delta[name].detach().cpu().double() for w, name in held)
                layer.svf_delta[adapter_name].data.copy_(torch.as_tensor(total))

    def _combined_config(self, adapters: Sequence[str]) -> SvfConfig:
        """Return settings that target what any of the adapters does."""
        configs = [cast(SvfConfig, self.peft_config[name]) for name in adapters]
        config = copy.deepcopy(configs[0])
        config.init_weights = True
        targets: list[Any] = [c.target_modules for c in configs]
        if all(isinstance(t, set) for t in targets):
            config.target_modules = cast(Any, set().union(*targets))
        elif any(t != targets[0] for t in targets):
            raise ValueError(
                f"target_modules {targets} cannot be put together; use lists of names."
            )
        return config


register(SvfConfig, SvfModel)
