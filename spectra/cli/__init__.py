"""The ``spectra`` command: one module per sub-command that parses, calls and prints."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from spectra.cli import (
    analyze,
    cache,
    dashboard,
    demo,
    evaluate,
    export,
    index,
    plot,
    report,
    sweep,
    train,
)
from spectra.cli.options import LateParser

# In the order of `spectra --help`.
_COMMANDS = (demo, train, sweep, index, analyze, plot, dashboard, report, evaluate, export, cache)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0 done, 1 failed with one line on stderr. Wrong usage exits with 2.
    """
    from checkpoints_index import CheckpointError, bytes_read, printable

    options = _parser().parse_args(arguments)
    options.bytes_before = bytes_read()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("spectra").setLevel(logging.INFO)
    # It warns of kernels for inference that are not there, whoever imports it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Between the libraries, not for the user to act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\b")
    try:
        return options.run(options) or 0
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to continue.", file=sys.stderr)
    except (OSError, ValueError, RuntimeError, CheckpointError, ModuleNotFoundError) as error:
        print(f"spectra: {printable(str(error))}", file=sys.stderr)
    return 1


class _Printable(logging.Formatter):
    """Messages with names from files in them, which do not command the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        from checkpoints_index import printable

        return "\n".join(map(printable, super().format(record).split("\n")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectra",
        description="What fine-tuning did to a model's singular spectrum.",
        epilog="Try: spectra demo",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=LateParser)
    for module in _COMMANDS:
        module.add(commands)
    return parser
