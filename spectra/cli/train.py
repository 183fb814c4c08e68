"""``spectra train``."""

from __future__ import annotations

import argparse
from typing import Any

from spectra import load
from spectra.cli.options import add_command, add_modules, names, quiet_transformers

# Options of `spectra train` that override a field of TrainSettings, with type and help.
_TRAIN_OPTIONS: dict[str, tuple[type, str]] = {
    "learning_rate": (float, "maximum learning rate (Table 2: 3e-5 for sorsa, else 2e-5)"),
    "rank": (int, "rank of the adapter (Table 2: 128)"),
    "alpha": (float, "LoRA's alpha; its scaling is alpha/rank (default: the rank)"),
    "gamma": (float, "learning rate of SORSA's regularizer (Table 2: 5e-4)"),
    "reduction": (str, "mean or sum of the regularizer over factors (default: mean)"),
    "epochs": (float, "passes over the data (default: 1)"),
    "max_steps": (int, "optimizer steps, instead of epochs"),
    "batch_size": (int, "examples per optimizer step (default: 128)"),
    "micro_batch_size": (int, "examples per forward pass (default: 4)"),
    "squared": (bool, "square the regularizer's norms, as the author's blog does"),
    "clip_together": (bool, "clip the gradients of task and regularizer together"),
    "max_length": (int, "tokens of prompt and response (default: 512)"),
    "warmup_ratio": (float, "share of the steps that warm up (default: 0.03)"),
    "weight_decay": (float, "weight decay (default: 0)"),
    "max_grad_norm": (float, "clip the gradient's norm; 0 does not (default: 0)"),
    "seed": (int, "seed of initialisation, data order and dropout (default: 42)"),
    "every": (int, "steps between snapshots (default: 50)"),
    "save_every": (int, "steps between checkpoints to resume from (default: 50)"),
}
_CHOICES = {"reduction": ("mean", "sum")}


def add(commands: Any) -> None:
    """Add `train` to the commands."""
    command = add_command(
        commands,
        "train",
        _train,
        "fine-tune with the hook attached; settings are Table 2's unless given",
        "spectra train --model ./smollm2 --method sorsa --data train.jsonl --out runs/sorsa",
    )
    command.add_argument("--model", required=True, help="folder or hub id")
    command.add_argument(
        "--method", default="sorsa", choices=("sorsa", "sorsa-noreg", "lora", "partial-ft")
    )
    command.add_argument("--data", required=True, help="JSONL or Parquet file, or a datasets id")
    command.add_argument("--out", required=True, help="the run's folder; continued if it exists")
    add_modules(command)
    for name, (kind, text) in _TRAIN_OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            command.add_argument(option, action="store_true", default=None, help=text)
        else:
            command.add_argument(option, type=kind, choices=_CHOICES.get(name), help=text)


def _train(options: argparse.Namespace) -> None:
    trainer = load("spectra.training.trainer", "train")
    quiet_transformers()
    from spectra.training import table_2

    changes = {name: getattr(options, name) for name in _TRAIN_OPTIONS}
    settings = table_2(options.method, modules=names(options.modules), **changes)
    run = trainer.train(options.model, options.data, options.out, settings)
    print(f"Recorded in {run.path}. Next: spectra analyze {run.path}")
