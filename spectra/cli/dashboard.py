"""``spectra dashboard``."""

from __future__ import annotations

import argparse
from typing import Any

from spectra.cli.options import add_command, port


def add(commands: Any) -> None:
    """Add `dashboard` to the commands."""
    command = add_command(
        commands,
        "dashboard",
        _dashboard,
        "the Streamlit app over every run below ROOT",
        "spectra dashboard runs",
    )
    command.add_argument("root")
    command.add_argument("--port", type=port, help="default: the first free one from 8501 on")
    command.add_argument("--address", default="127.0.0.1", help="default: %(default)s only")


def _dashboard(options: argparse.Namespace) -> int:
    from spectra.dashboard import serve

    return serve(options.root, options.address, options.port)
