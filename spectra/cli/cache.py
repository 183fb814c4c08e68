"""``spectra cache``."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any

from spectra.cli.options import add_command


def add(commands: Any) -> None:
    """Add `cache` to the commands."""
    command = add_command(
        commands,
        "cache",
        _cache,
        "the decompositions of bases that are kept on this machine; SPECTRA_CACHE names their "
        "folder, SPECTRA_CACHE_GIB bounds it",
        "spectra cache --clear",
    )
    command.add_argument("--clear", action="store_true", help="delete them")
    command.add_argument("--json", action="store_true")


def _cache(options: argparse.Namespace) -> None:
    from spectra.analysis.base_cache import BaseCache
    from spectra.listing import in_units

    cache = BaseCache()
    if options.clear:
        count, freed = cache.clear()
        if options.json:
            print(json.dumps({"folder": str(cache.folder), "deleted": count, "freed": freed}))
        else:
            print(f"Deleted {count} entries from {cache.folder}: {in_units(freed)} freed.")
        return
    entries = cache.entries()
    total = sum(entry.size for entry in entries)
    if options.json:
        content = {
            "folder": str(cache.folder),
            "bytes": total,
            "max_bytes": cache.max_bytes,
            "entries": [
                {
                    "key": entry.key,
                    "kind": entry.kind,
                    "shape": entry.shape,
                    "bytes": entry.size,
                    "last_used": _when(entry.used),
                }
                for entry in entries
            ],
        }
        print(json.dumps(content, indent=2))
        return
    bound = f"at most {in_units(cache.max_bytes)}" if cache.max_bytes else "switched off"
    print(f"{cache.folder}: {len(entries)} entries, {in_units(total)} ({bound})")
    if entries:
        print(f"{'shape':>13}  {'what':<20}{'size':>10}  last used")
    for entry in entries:
        shape = f"{entry.shape[0]} × {entry.shape[1]}"
        size = in_units(entry.size)
        print(f"{shape:>13}  {entry.kind:<20}{size:>10}  {_when(entry.used)}")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
