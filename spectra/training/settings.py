"""What a training run is set to, and the paper's presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class TrainSettings:
    """Hyperparameters of one run; the defaults are those that all methods of Table 2 share.

    Attributes
    ----------
    method : str
        A key of `spectra.training.METHODS`.
    modules : tuple of str
        Layers that are trained and recorded.
    learning_rate : float
        η_d, the scheduler's maximum.
    rank : int
        Rank of the adapter, where the method has one.
    alpha : float
        LoRA's α; its scaling is α/rank. The paper names none; here it equals the rank.
    gamma : float
        γ of SORSA's regularizer (Eq. 10).
    reduction, squared
        Form of the regularizer, see `spectra.methods.orthonormal_regularizer`.
    clip_together : bool
        Clip the gradients of task and regularizer together, as the paper's formula has it; the
        authors' code, and the default, clips the task's alone.
    epochs : float
        Passes over the data, unless `max_steps` ends the run before.
    max_steps : int
        Optimizer steps; -1 for what `epochs` gives.
    batch_size : int
        Examples an optimizer step.
    micro_batch_size : int
        Examples a forward pass; the rest of the batch is accumulated.
    max_length : int
        Tokens of prompt and response together; longer examples are cut.
    warmup_ratio, weight_decay, max_grad_norm
        Of schedule and optimizer; ``max_grad_norm=0`` does not clip.
    seed : int
        Of initialisation, data order and dropout.
    every : int
        Steps between snapshots.
    save_every : int
        Steps between the trainer's own checkpoints, from which a killed run goes on.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Table 2.
    """

    method: str = "sorsa"
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    learning_rate: float = 3e-5
    rank: int = 128
    alpha: float = 128.0
    gamma: float = 5e-4
    reduction: Reduction = "mean"
    squared: bool = False
    clip_together: bool = False
    epochs: float = 1.0
    max_steps: int = -1
    batch_size: int = 128
    micro_batch_size: int = 4
    max_length: int = 512
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    seed: int = 42
    every: int = 50
    save_every: int = 50

    def __post_init__(self) -> None:
        for name in ("rank", "batch_size", "micro_batch_size", "max_length", "every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")
        if self.gamma < 0:
            raise ValueError(f"gamma must be at least 0, got {self.gamma}.")
        if self.gamma > 0 and self.method != "sorsa":
            raise ValueError(f"gamma is sorsa's; {self.method} has no regularizer.")
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, or -1 for none, got {self.max_steps}.")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size must be a multiple of micro_batch_size, got {self.batch_size} and "
                f"{self.micro_batch_size}."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON stores them."""
        return asdict(self) | {"modules": list(self.modules)}


# Table 2: what differs between the methods of the analysis runs.
_TABLE_2: dict[str, dict[str, Any]] = {
    "partial-ft": {"learning_rate": 2e-5, "gamma": 0.0},
    "lora": {"learning_rate": 2e-5, "gamma": 0.0},
    "sorsa-noreg": {"learning_rate": 2e-5, "gamma": 0.0},
    "sorsa": {"learning_rate": 3e-5, "gamma": 5e-4},
}


def table_2(method: str, **changes: Any) -> TrainSettings:
    """Return the paper's settings of an analysis run, with `changes`.

    Parameters
    ----------
    method : str
        One of the paper's four: ``"partial-ft"``, ``"lora"``, ``"sorsa-noreg"``, ``"sorsa"``.
    **changes
        Fields of `TrainSettings` to override; ``None`` leaves the preset's value. `alpha`
        follows `rank` unless it is given.

    Raises
    ------
    ValueError
        For an unknown method or an impossible value.
    TypeError
        For a field that does not exist.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Table 2.

    Examples
    --------
    >>> table_2("sorsa").learning_rate
    3e-05
    """
    if method not in _TABLE_2:
        raise ValueError(f"method must be one of {', '.join(_TABLE_2)}, got {method!r}.")
    known = {f.name for f in fields(TrainSettings)}
    unknown = changes.keys() - known
    if unknown:
        raise TypeError(f"No setting is called {', '.join(sorted(unknown))}.")
    changes = {name: value for name, value in changes.items() if value is not None}
    if "rank" in changes:
        changes.setdefault("alpha", float(changes["rank"]))
    return replace(TrainSettings(method=method, **_TABLE_2[method]), **changes)
