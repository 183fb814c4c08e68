"""One trained adapter per PEFT method, as PEFT writes it, with the weights that PEFT merges it to.

A new method is a new line in `METHODS`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from checkpoints_index import Checkpoint, find_checkpoints
from spectra.methods import LoraXsConfig, MiloraConfig, SorsaConfig, SvfConfig, SvftConfig
from tests.helpers import MODULES, attention_weights, seeded, shake, tiny_llama


@dataclass(frozen=True)
class Adapted:
    """A method's configuration, and what its update is.

    Attributes
    ----------
    config : callable
        Makes the configuration for `tiny_llama`.
    rank : int, optional
        Of the update's factors; ``None`` where it has none.
    start : float, optional
        How much the untrained adapter changes a float32 weight, relative to it: rounding, or
        nothing. ``None`` for a method whose start is another matrix than the base.
    size : float
        How much training moves its parameters.
    """

    config: Callable[[], peft.PeftConfig]
    rank: int | None = None
    start: float | None = 0.0
    size: float = 0.05


def _on(kind: Callable[..., peft.PeftConfig], **options: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: kind(**({"target_modules": list(MODULES)} | options))


METHODS = {
    "LoRA": Adapted(_on(peft.LoraConfig, r=3, lora_alpha=8), 3),
    "rsLoRA": Adapted(_on(peft.LoraConfig, r=3, use_rslora=True), 3),
    "LoRA with a bias": Adapted(_on(peft.LoraConfig, r=3, bias="all"), 3),
    "LoRA, orthogonal": Adapted(
        _on(peft.LoraConfig, r=4, init_lora_weights="orthogonal"), 4, start=None
    ),
    "LoRA, gaussian": Adapted(_on(peft.LoraConfig, r=3, init_lora_weights="gaussian"), 3),
    "LoRA, MiCA": Adapted(_on(peft.LoraConfig, r=3, init_lora_weights="mica"), 3),
    "LoRA, fan-in-fan-out": Adapted(_on(peft.LoraConfig, r=3, fan_in_fan_out=True), 3),
    "LoRA, alphas by layer": Adapted(
        _on(
            peft.LoraConfig,
            r=3,
            # The first that fits counts; a regular expression, and the end of a path.
            alpha_pattern={r"^model\.layers\.0\..*": 2, "q_proj": 5, "self_attn.q_proj": 99},
        ),
        3,
    ),
    # It stores the rows' norms, in float32.
    "DoRA": Adapted(_on(peft.LoraConfig, r=3, use_dora=True), start=2e-7),
    "DoRA, alphas and ranks by layer": Adapted(
        _on(
            peft.LoraConfig,
            r=3,
            use_dora=True,
            rank_pattern={"q_proj": 5},
            alpha_pattern={"layers.1.self_attn.v_proj": 3},
        ),
        start=2e-7,
    ),
    "KaSA": Adapted(_on(peft.LoraConfig, r=3, kasa_config=peft.KasaConfig()), start=None),
    "PiSSA": Adapted(_on(peft.LoraConfig, r=3, init_lora_weights="pissa"), 6),
    "PiSSA, rsLoRA": Adapted(
        _on(peft.LoraConfig, r=3, init_lora_weights="pissa", lora_alpha=2, use_rslora=True), 6
    ),
    "OLoRA": Adapted(_on(peft.LoraConfig, r=3, init_lora_weights="olora"), 6),
    "AdaLoRA": Adapted(_on(peft.AdaLoraConfig, init_r=4, total_step=10), 4, size=0.3),
    "AdaLoRA without alpha": Adapted(
        _on(peft.AdaLoraConfig, init_r=4, total_step=10, lora_alpha=0), 4, size=0.3
    ),
    "SORSA": Adapted(_on(SorsaConfig, r=3), 6),
    "MiLoRA": Adapted(_on(MiloraConfig, r=3), 6),
    "SVF": Adapted(_on(SvfConfig)),
    "SVF with vectors": Adapted(_on(SvfConfig, save_vectors=True)),
    "SVFT": Adapted(_on(SvftConfig)),
    "SVFT, banded": Adapted(_on(SvftConfig, pattern="banded", off_diagonals=2)),
    "SVFT, random, with vectors": Adapted(
        _on(SvftConfig, pattern="random", off_diagonals=2, save_vectors=True)
    ),
    "LoRA-XS": Adapted(_on(LoraXsConfig, r=3), 3),
    "VeRA": Adapted(_on(peft.VeraConfig, r=4), 4),
    "VeRA without projections": Adapted(_on(peft.VeraConfig, r=4, save_projection=False), 4),
    "LoHa": Adapted(_on(peft.LoHaConfig, r=3), size=0.3),
    "LoKr": Adapted(_on(peft.LoKrConfig, r=3)),
    "LoKr, decomposed": Adapted(_on(peft.LoKrConfig, r=2, decompose_both=True)),
    "OFT": Adapted(_on(peft.OFTConfig, oft_block_size=8)),
    "OFT, blocks shared": Adapted(_on(peft.OFTConfig, oft_block_size=8, block_share=True)),
    "OFT, constrained": Adapted(_on(peft.OFTConfig, oft_block_size=8, coft=True, eps=0.1)),
    "BOFT": Adapted(_on(peft.BOFTConfig, boft_block_size=4, boft_n_butterfly_factor=2)),
    "IA3": Adapted(_on(peft.IA3Config, feedforward_modules=[])),
    "IA3 on inputs": Adapted(_on(peft.IA3Config, feedforward_modules=["v_proj"])),
    # Pairs of equal reflections.
    "HRA": Adapted(_on(peft.HRAConfig, r=4), start=1e-15),
    "FourierFT": Adapted(_on(peft.FourierFTConfig, n_frequency=20), start=None),
    "MiSS": Adapted(_on(peft.MissConfig, r=4)),
    "SHiRA": Adapted(_on(peft.ShiraConfig, r=2)),
    "RandLoRA": Adapted(_on(peft.RandLoraConfig, r=4)),
    "RandLoRA without projections": Adapted(_on(peft.RandLoraConfig, r=4, save_projection=False)),
    "C3A": Adapted(_on(peft.C3AConfig, block_size=8), start=None),
    "VB-LoRA": Adapted(
        _on(peft.VBLoRAConfig, r=2, num_vectors=12, vector_length=8, topk=2),
        start=None,
    ),
    "DeLoRA": Adapted(_on(peft.DeloraConfig, r=4)),
    "WaveFT": Adapted(_on(peft.WaveFTConfig, n_frequency=20)),
    "GraLoRA": Adapted(_on(peft.GraloraConfig, r=4)),
    "HiRA": Adapted(_on(peft.HiraConfig, r=4)),
    "GLoRA": Adapted(_on(peft.GloraConfig, r=4)),
    "DEFT": Adapted(_on(peft.DeftConfig, r=4)),
    "PEANuT": Adapted(_on(peft.PeanutConfig)),
}
"""Every method that is read."""


def adapted(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """`tiny_llama` with an untrained adapter of a method."""
    return adapt(tiny_llama(dtype=dtype), METHODS[name].config)


def adapt(model: nn.Module, config: Callable[[], peft.PeftConfig]) -> Any:
    """`model` with an untrained adapter; PEFT's advice on settings is left unheard."""
    with seeded(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config())


def save(model: Any, folder: Path, **options: Any) -> None:
    """Write the adapter as PEFT does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder), **options)


def write(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Train an adapter of a method and write it; returns W_t as PEFT merges it, by layer."""
    model = adapted(name, dtype)
    shake(model, size=METHODS[name].size)
    save(model, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return attention_weights(model.merge_and_unload())


def open_adapter(folder: Path) -> Checkpoint:
    """The one adapter of a folder, not yet bound to a base."""
    (checkpoint,) = find_checkpoints(folder)
    return checkpoint


def change_settings(folder: Path, **changes: object) -> None:
    """Change entries of an adapter's configuration."""
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
