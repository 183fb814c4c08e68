"""``spectra train``."""

from __future__ import annotations

import argparse
from typing import Any

from spectra import load
from spectra.cli.options import add_command, add_modules, names, quiet_transformers
from spectra.training import METHODS, PRESETS, preset
from spectra.training.settings import PRECISIONS

# Options that override a field of TrainSettings, with type and help.
_FIELDS: dict[str, tuple[type, str]] = {
    "learning_rate": (float, "maximum learning rate"),
    "rank": (int, "rank of the adapter, or of GaLore's gradients"),
    "alpha": (float, "LoRA's alpha; its scaling is alpha/rank (default: the rank)"),
    "gamma": (float, "learning rate of SORSA's regularizer"),
    "reduction": (str, "mean or sum of the regularizer over factors (default: mean)"),
    "epochs": (float, "passes over the data"),
    "max_steps": (int, "optimizer steps, instead of epochs"),
    "batch_size": (int, "examples per optimizer step"),
    "micro_batch_size": (int, "examples per forward pass"),
    "squared": (bool, "square the regularizer's norms, as the author's blog does"),
    "clip_together": (bool, "clip the gradients of task and regularizer together"),
    "max_length": (int, "tokens of prompt and response"),
    "warmup_ratio": (float, "share of the steps that warm up"),
    "weight_decay": (float, "weight decay"),
    "max_grad_norm": (float, "clip the gradient's norm; 0 does not"),
    "precision": (str, "of products; auto: bfloat16 and TF32 where the GPU has them"),
    "gradient_checkpointing": (bool, "less memory for activations, a third more time"),
    "torch_compile": (bool, "compile the model"),
    "held_out": (str, "file of questions and answers whose perplexity is followed"),
    "other_text": (str, "file of plain text whose perplexity is followed"),
    "seed": (int, "seed of initialisation, data order and dropout"),
    "every": (int, "steps between snapshots"),
    "save_every": (int, "steps between checkpoints to resume from"),
}
_CHOICES = {"reduction": ("mean", "sum"), "precision": PRECISIONS}


def add(commands: Any) -> None:
    """Add `train` to the commands."""
    command = add_command(
        commands,
        "train",
        _train,
        "fine-tune with the hook attached; settings are the preset's unless given",
        "spectra train --model ./smollm2 --method sorsa --data train.jsonl --out runs/sorsa",
    )
    command.add_argument("--model", required=True, help="folder or hub id")
    command.add_argument("--method", default="sorsa", choices=METHODS)
    command.add_argument("--data", required=True, help="JSONL or Parquet file, or a datasets id")
    command.add_argument("--out", required=True, help="the run's folder; continued if it exists")
    command.add_argument(
        "--preset",
        default="table-2",
        choices=PRESETS,
        help="settings: the paper's Table 2 (analysis) or 3 (all linear layers), or for small "
        "machines (default: %(default)s)",
    )
    add_modules(command)
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        type=_option,
        help="a setting of the method's own: "
        + "; ".join(f"{m.name} {', '.join(m.options)}" for m in METHODS.values() if m.options),
    )
    for name, (kind, text) in _FIELDS.items():
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            command.add_argument(option, action="store_true", default=None, help=text)
        else:
            command.add_argument(option, type=kind, choices=_CHOICES.get(name), help=text)


def _train(options: argparse.Namespace) -> None:
    from spectra.listing import in_units

    trainer = load("spectra.training.trainer", "train")
    quiet_transformers()
    changes = {name: getattr(options, name) for name in _FIELDS}
    changes |= {"modules": names(options.modules), "options": dict(options.option)}
    settings = preset(options.preset, options.method, **changes)
    run = trainer.train(options.model, options.data, options.out, settings)
    if cost := run.read_settings().get("cost"):
        print(
            f"{cost['trainable_parameters']:,} parameters trained, "
            f"{cost['seconds_per_step']:.3g} s a step, {in_units(cost['peak_memory'])} of "
            f"{'GPU ' * (cost['memory'] == 'gpu')}memory"
        )
    print(f"Recorded in {run.path}. Next: spectra analyze {run.path}")


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    return name, value
