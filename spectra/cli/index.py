"""``spectra index``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from spectra.cli.options import add_command, tell_bytes_read


def add(commands: Any) -> None:
    """Add `index` to the commands."""
    command = add_command(
        commands,
        "index",
        _index,
        "what checkpoints and matrices are there; loads no weights",
        "spectra index outputs/",
    )
    command.add_argument(
        "path",
        help="folder, searched with all below it, or file; or its address, as in s3://bucket/run",
    )
    command.add_argument(
        "--json",
        action="store_true",
        help="a list with an object a checkpoint: path, series, step, revisions, format, method, "
        "base, size, state (complete, incomplete, broken), problem, matrices",
    )


def _index(options: argparse.Namespace) -> None:
    from checkpoints_index import IndexStore, as_location, build_index, nothing_in, printable
    from spectra.cache_folder import cache_folder
    from spectra.listing import as_objects, as_table

    location = as_location(options.path)
    index = build_index(location, IndexStore(cache_folder() / "index"))
    if not index.series:
        raise FileNotFoundError(nothing_in(options.path))
    if options.json:
        print(json.dumps(as_objects(index), indent=2))
        for note in index.notes:
            print(printable(note), file=sys.stderr)
        tell_bytes_read(options, sys.stderr)
        return
    for line in as_table(index):
        print(line)
    tell_bytes_read(options, sys.stdout)
