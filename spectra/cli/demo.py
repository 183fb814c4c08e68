"""``spectra demo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spectra import load
from spectra.cli.options import add_command, positive, quiet_transformers


def add(commands: Any) -> None:
    """Add `demo` to the commands."""
    command = add_command(
        commands, "demo", _demo, "the whole job on what is built in", "spectra demo"
    )
    command.add_argument("--out", default="spectra-demo", help="folder (default: %(default)s)")
    command.add_argument(
        "--steps", type=positive, default=80, help="per method (default: %(default)s)"
    )
    command.add_argument("--no-dashboard", dest="dashboard", action="store_false")


def _demo(options: argparse.Namespace) -> int:
    from spectra.dashboard import require_streamlit, serve

    if options.dashboard:
        require_streamlit()  # now, and not after minutes of training
    demo = load("spectra.demo", "train")
    quiet_transformers()
    demo.demo(options.out, options.steps)
    if options.dashboard:
        return serve(Path(options.out) / "runs")
    print(f"Look at it with: spectra dashboard {Path(options.out) / 'runs'}")
    return 0
