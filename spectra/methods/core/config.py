"""Settings that every tuner has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peft import PeftConfig


@dataclass
class TunerConfig(PeftConfig):
    """Settings that every tuner has.

    Parameters
    ----------
    target_modules : list of str or str
        Names of the linear layers to adapt, or a regular expression, or ``"all-linear"``.
    exclude_modules : list of str or str, optional
        Names to leave out.
    layers_to_transform : list of int or int, optional
        Adapt these layers only.
    layers_pattern : list of str or str, optional
        Name of the module list that `layers_to_transform` counts in.
    modules_to_save : list of str, optional
        Further modules to train whole and to save with the adapter.
    init_weights : bool
        Whether to compute the factors from the base's weights when the adapter is made.
        A saved adapter carries ``False``, because its factors come with it; until they are
        loaded they are NaN, so that a forgotten file cannot pass for an adapter.
    """

    method: ClassVar[str]  # what PEFT calls the peft_type

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names of the linear layers to adapt."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names to leave out."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Adapt these layers only."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module list that holds the layers."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules to train whole and save."}
    )
    bias: Literal["none"] = field(
        default="none", metadata={"help": "Biases are never trained; here because PEFT asks."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Compute the factors from the base's weights."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # PEFT's registries are dictionaries and take a plain string beside their own enum.
        self.peft_type = self.method
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if self.layers_pattern and not self.layers_to_transform:
            raise ValueError("layers_pattern needs layers_to_transform.")

    def to_dict(self) -> dict[str, Any]:
        """Return what ``save_pretrained`` stores, with `init_weights` off."""
        return super().to_dict() | {"init_weights": False}


def require_rank(r: int) -> None:
    """Refuse a rank below 1; the layer knows the upper limit."""
    if r < 1:
        raise ValueError(f"r must be at least 1, got {r}.")


def require_probability(name: str, value: float) -> None:
    """Refuse what is no probability of dropping an input."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}.")
