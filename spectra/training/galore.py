"""GaLore through Transformers' own support of it: what it needs to be told and to be allowed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from spectra.training.settings import TrainSettings

EXTRA = "galore"


def galore_arguments(settings: TrainSettings, layers: list[str]) -> dict[str, Any]:
    """Return the arguments of a ``Trainer`` for GaLore's AdamW on the given linear layers.

    Raises
    ------
    ModuleNotFoundError
        If the package is not installed.
    """
    _projector()
    options = {"rank": settings.rank, **settings.options}
    return {
        "optim": "galore_adamw",
        "optim_args": ", ".join(f"{name}={value}" for name, value in options.items()),
        # As a regular expression, for of a list of names one fits all that contain it.
        "optim_target_modules": "|".join(layer.replace(".", "[.]") for layer in layers),
    }


@contextmanager
def galore_allowed(trainer: Trainer, settings: TrainSettings) -> Iterator[None]:
    """Make a trainer's GaLore optimizer, and let its state be loaded again within the block."""
    with warnings.catch_warnings():
        # It is a copy of a class that Transformers has dropped, and says so.
        warnings.filterwarnings("ignore", "This implementation of AdamW", FutureWarning)
        optimizer: Any = trainer.create_optimizer()
    for group in optimizer.param_groups:
        if "rank" in group:  # Transformers leaves it out
            group["weight_decay"] = settings.weight_decay
    trainer.add_callback(_ProjectorsToDevice())
    # The state holds a projector for each matrix, of a class that torch does not know.
    with torch.serialization.safe_globals([_projector()]):
        yield


def _projector() -> type:
    try:
        from galore_torch.galore_projector import GaLoreProjector
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"galore needs {error.name}, which is not installed. Install Spectra with its extra "
            f'"{EXTRA}": pip install ".[{EXTRA}]" in a clone.',
            name=error.name,
        ) from error
    projector: type = GaLoreProjector
    return projector


class _ProjectorsToDevice(TrainerCallback):
    """Brings loaded projectors to where the weights are; torch moves plain tensors only."""

    def on_train_begin(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        optimizer: Any = kwargs["optimizer"]
        for parameter, state in optimizer.state.items():
            projector = state.get("projector")
            if projector is not None and projector.ortho_matrix is not None:
                projector.ortho_matrix = projector.ortho_matrix.to(parameter.device)
