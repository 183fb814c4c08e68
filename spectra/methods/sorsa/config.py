"""Configuration of the SORSA tuner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spectra.methods.core.config import TunerConfig, require_probability, require_rank

PEFT_TYPE = "SORSA"


@dataclass
class SorsaConfig(TunerConfig):
    """Configuration of SORSA for ``peft.get_peft_model``; further fields as in `TunerConfig`.

    Parameters
    ----------
    r : int
        Rank of the trained principal part, between 1 and min(m, n) of every target.
    sorsa_dropout : float
        Probability of dropping an input of the trained part, during training.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Section 4.

    Examples
    --------
    >>> SorsaConfig(r=16, target_modules=["q_proj", "v_proj"]).r
    16
    """

    method: ClassVar[str] = PEFT_TYPE

    r: int = field(default=16, metadata={"help": "Rank of the trained principal part."})
    sorsa_dropout: float = field(
        default=0.0, metadata={"help": "Dropout on the input of the trained part."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rank(self.r)
        require_probability("sorsa_dropout", self.sorsa_dropout)
