"""``spectra report``."""

from __future__ import annotations

import argparse
from typing import Any

from spectra.cli.options import add_command


def add(commands: Any) -> None:
    """Add `report` to the commands."""
    command = add_command(
        commands,
        "report",
        _report,
        "one self-contained HTML page to share",
        "spectra report runs/lora runs/sorsa --out report.html",
    )
    command.add_argument("runs", nargs="+")
    command.add_argument("--out", required=True)


def _report(options: argparse.Namespace) -> None:
    from spectra.report import write_report
    from spectra.store import expand_runs

    print(f"Wrote {write_report(expand_runs(options.runs), options.out)}")
