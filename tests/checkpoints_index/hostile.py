"""Pickles that would write a marker file if anything executed them."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class _Calls:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def hostile_objects(marker: Path) -> dict[str, Any]:
    """Objects whose unpickling would create `marker`, by the way in which they would."""
    command = f"touch '{marker}'"
    python = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": _Calls(os.system, command),
        "eval": _Calls(builtins.eval, python.replace(".close()", "")),
        "exec": _Calls(builtins.exec, python),
        "open": _Calls(builtins.open, str(marker), "w"),
        "getattr": _Calls(getattr, _Calls(__import__, "os"), "system"),
        "in a list": [1, {"a": _Calls(os.system, command)}],
        "as a key's value": {"w": _Calls(os.system, command)},
        "a path's method": _Calls(Path.touch, marker),
    }


def hostile_pickles(marker: Path) -> dict[str, bytes]:
    """Return such pickles in several protocols, and with opcodes that name classes otherwise."""
    found = {
        f"{name}, protocol {protocol}": pickle.dumps(value, protocol)
        for name, value in hostile_objects(marker).items()
        for protocol in (0, 2, 4)
    }
    text = f"touch '{marker}'"
    # INST and OBJ, which no pickler has written for twenty years.
    found["inst"] = f"(S{text!r}\nios\nsystem\n.".encode()
    found["obj"] = b"(cos\nsystem\n" + f"S{text!r}\no.".encode()
    found["build"] = b"ctorch\nSize\n(tR(dS'__reduce__'\ncos\nsystem\nsb."
    return found


def as_archive(description: bytes) -> bytes:
    """Return a PyTorch file with this description."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", description)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(64))
    return stream.getvalue()


def nested(levels: int) -> bytes:
    """Return the operations that make a tuple of twice the one before, so many times."""
    made = b")q\x00"
    for i in range(levels):
        made += bytes([0x68, i, 0x68, i, 0x86, 0x71, i + 1])
    return made


def nested_key(levels: int) -> bytes:
    """Return a pickle with that as a key, which takes for ever to hash."""
    return b"\x80\x02" + nested(levels) + b"}h" + bytes([levels]) + b"K\x01s."


def nested_call(levels: int) -> bytes:
    """Return a pickle that calls that, which takes for ever to say."""
    return b"\x80\x02" + nested(levels) + b")R."
