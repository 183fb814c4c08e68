"""``spectra report``."""

from __future__ import annotations

import argparse
import sys
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
    command.add_argument("runs", nargs="+", help="runs, or folders of runs")
    command.add_argument("--out", required=True, help="FILE.html, about 5 MB and the figures")


def _report(options: argparse.Namespace) -> None:
    from checkpoints_index import printable
    from spectra.listing import in_units
    from spectra.report import LeftOut, write_report
    from spectra.store import expand_runs

    runs, left_out = [], []
    for path in options.runs:
        try:
            runs += expand_runs([path])
        except (OSError, ValueError) as error:
            left_out.append(LeftOut(path, str(error)))
    written = write_report(runs, options.out, left_out=left_out)
    for one in left_out:
        print(printable(f"Left out {one.name}: {one.reason}"), file=sys.stderr)
    print(f"Wrote {written} ({in_units(written.stat().st_size)})")
