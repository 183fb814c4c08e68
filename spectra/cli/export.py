"""``spectra export``."""

from __future__ import annotations

import argparse
from typing import Any

from spectra import load
from spectra.cli.options import add_command, quiet_transformers

# What vLLM 0.33 serves unless told otherwise, and what its `--max-lora-rank` can be.
_DEFAULT_SERVED_RANK = 16
_SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def add(commands: Any) -> None:
    """Add `export` to the commands."""
    command = add_command(
        commands,
        "export",
        _export,
        "an adapter of any method as a standard LoRA adapter on the original base, or merged",
        "spectra export runs/sorsa --out sorsa-as-lora",
    )
    command.add_argument("adapter", help="folder of an adapter, or a finished run")
    command.add_argument("--out", required=True, help="new folder")
    command.add_argument(
        "--base", help="folder or hub id of the original base (default: what the adapter names)"
    )
    command.add_argument(
        "--merged", action="store_true", help="write the whole model, in the base's dtype"
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the LoRA adapter's factors (default: float32)",
    )
    command.add_argument(
        "--initial",
        help="the adapter as it was before training, of PiSSA and other methods that subtract it "
        "from the base (default for pissa and olora: computed again from the base)",
    )


def _export(options: argparse.Namespace) -> None:
    exporting = load("spectra.exporting", "train")
    quiet_transformers()
    from spectra.listing import in_units

    done = exporting.export(
        options.adapter,
        options.out,
        base=options.base,
        merged=options.merged,
        dtype=options.dtype,
        initial=options.initial,
        progress=True,
    )
    what = "model" if done.rank is None else f"LoRA adapter of rank {done.rank}"
    print(
        f"Wrote {done.path}: {what}, {done.layers} layers changed, {in_units(done.size)}; its base "
        f"is {done.base}."
    )
    if done.whole:
        print(
            f"It carries {', '.join(done.whole)} whole, which vLLM and llama.cpp do not take from "
            "an adapter: use --merged for them."
        )
    if done.rank is not None and done.rank > _SERVED_RANKS[-1]:
        print(f"vLLM serves adapters up to rank {_SERVED_RANKS[-1]}: use --merged for it.")
    elif done.rank is not None and done.rank > _DEFAULT_SERVED_RANK:
        enough = next(rank for rank in _SERVED_RANKS if rank >= done.rank)
        print(f"vLLM serves it with --max-lora-rank {enough}.")
