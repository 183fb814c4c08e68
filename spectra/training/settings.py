"""What a training run is set to, and the presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from spectra.training.methods import method_called, resolve_options

Reduction = Literal["mean", "sum"]
Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainSettings:
    """Hyperparameters of one run; the defaults are those that all methods of Table 2 share.

    Attributes
    ----------
    method : str
        A key of `spectra.training.METHODS`.
    modules : tuple of str
        Layers that are recorded, and trained by methods that do not train everything.
    learning_rate : float
        η_d, the scheduler's maximum.
    rank : int
        Rank of the adapter, or of GaLore's gradients, where the method has one.
    alpha : float
        α of LoRA and its relatives; the scaling is α/rank (rsLoRA: α/√rank). The paper names
        none; here it equals the rank.
    options : mapping
        The method's own settings; what is not given has the defaults of `METHODS`.
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
    precision : {"auto", "float32", "bfloat16"}
        In which products are computed; weights and optimizer stay in float32. ``"auto"`` is
        bfloat16 and TF32 on a GPU that has them, else float32.
    gradient_checkpointing : bool
        Compute activations again in the backward pass instead of keeping them.
    torch_compile : bool
        Compile the model.
    held_out, other_text : str, optional
        Files of questions and answers, and of plain text, whose perplexity is computed at every
        recorded step.
    seed : int
        Of initialisation, data order and dropout.
    every : int
        Steps between snapshots.
    save_every : int
        Steps between the trainer's own checkpoints, from which a killed run goes on.

    Raises
    ------
    ValueError
        For values that cannot be, or do not go together.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Table 2.
    """

    method: str = "sorsa"
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    learning_rate: float = 3e-5
    rank: int = 128
    alpha: float = 128.0
    options: Mapping[str, Any] = field(default_factory=dict)
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
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    held_out: str | None = None
    other_text: str | None = None
    seed: int = 42
    every: int = 50
    save_every: int = 50

    def __post_init__(self) -> None:
        method = method_called(self.method)
        for name in ("rank", "batch_size", "micro_batch_size", "max_length", "every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "alpha", "epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("gamma", "weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.warmup_ratio < 1:  # from 1 on, Transformers counts steps
            raise ValueError(f"warmup_ratio must be in [0, 1), got {self.warmup_ratio}.")
        if self.gamma > 0 and self.method != "sorsa":
            raise ValueError(f"gamma is sorsa's; {self.method} has no regularizer.")
        if self.clip_together and not self.method.startswith("sorsa"):
            raise ValueError(f"clip_together is sorsa's; {self.method} has no regularizer.")
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, or -1 for none, got {self.max_steps}.")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size must be a multiple of micro_batch_size, got {self.batch_size} and "
                f"{self.micro_batch_size}."
            )

        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}."
            )
        resolved = resolve_options(method, self.options, self.rank)
        object.__setattr__(self, "options", resolved)

    @property
    def measured_on(self) -> dict[str, str]:
        """The files whose perplexity is followed, by the columns that it gets in a run."""
        files = {"perplexity": self.held_out, "perplexity_other": self.other_text}
        return {column: file for column, file in files.items() if file is not None}

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON stores them."""
        return asdict(self) | {"modules": list(self.modules)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs between a run's stored settings and others, as one line; else ``""``."""
    differing = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    return "; ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in differing)


# What a preset sets for all methods, and what differs for some. The paper's tables have four of the
# methods, or three; what they say of those beside SORSA goes for all others.
_PRESETS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "table-2": (
        {"learning_rate": 2e-5, "gamma": 0.0},
        {"sorsa": {"learning_rate": 3e-5, "gamma": 5e-4}},
    ),
    "table-3": (
        {
            "learning_rate": 2e-5,
            "gamma": 0.0,
            "modules": ("all-linear",),
            "max_grad_norm": 1.0,
        },
        {"sorsa": {"learning_rate": 3e-5, "gamma": 4e-4}},
    ),
    # Minutes on a few CPU cores for a model of 100M parameters. The rates are such that every
    # method learns in so few steps; between SORSA's γ and its rate is the paper's ratio.
    "small": (
        {
            "learning_rate": 2e-4,
            "gamma": 0.0,
            "rank": 16,
            "batch_size": 8,
            "micro_batch_size": 4,
            "max_length": 256,
            "max_steps": 100,
            "max_grad_norm": 1.0,
            "every": 10,
            "save_every": 25,
        },
        {
            "full-ft": {"learning_rate": 5e-5},
            "galore": {"learning_rate": 2e-4},
            "lisa": {"learning_rate": 5e-5},
            "adalora": {"learning_rate": 2e-3},
            "sorsa": {"learning_rate": 3e-4, "gamma": 5e-3},
            "svf": {"learning_rate": 5e-3},
            "svft": {"learning_rate": 5e-3},
            "lora-xs": {"learning_rate": 2e-3},
        },
    ),
}
PRESETS = tuple(_PRESETS)
"""The presets' names: the paper's analysis runs, its NLG runs, and one for small machines."""


def preset(name: str, method: str, **changes: Any) -> TrainSettings:
    """Return the settings of a preset for one method, with `changes`.

    Parameters
    ----------
    name : str
        One of `PRESETS`.
    method : str
        A key of `spectra.training.METHODS`.
    **changes
        Fields of `TrainSettings` to override; ``None`` leaves the preset's value. `alpha`
        follows `rank` unless it is given.

    Raises
    ------
    ValueError
        For an unknown preset or method, or an impossible value.
    TypeError
        For a field that does not exist.

    References
    ----------
    Cao and Song, SORSA, arXiv:2409.00055, Tables 2 and 3.

    Examples
    --------
    >>> preset("table-3", "sorsa").gamma
    0.0004
    """
    if name not in _PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}.")
    method_called(method)
    unknown = changes.keys() - {f.name for f in fields(TrainSettings)}
    if unknown:
        raise TypeError(f"No setting is called {', '.join(sorted(unknown))}.")
    shared, own = _PRESETS[name]
    given = {field: value for field, value in changes.items() if value is not None}
    values = {**shared, **own.get(method, {}), **given}
    if "rank" in values:
        values.setdefault("alpha", float(values["rank"]))
    return TrainSettings(method=method, **values)


def table_2(method: str, **changes: Any) -> TrainSettings:
    """Return the paper's settings of an analysis run, with `changes`; see `preset`.

    Examples
    --------
    >>> table_2("sorsa").learning_rate
    3e-05
    """
    return preset("table-2", method, **changes)
