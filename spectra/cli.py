"""The ``spectra`` command: one function per sub-command that parses, calls and prints."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from spectra import load


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


def _demo(options: argparse.Namespace) -> int:
    from spectra.dashboard import require_streamlit, serve

    if options.dashboard:
        require_streamlit()  # now, and not after minutes of training
    demo = load("spectra.demo", "train")
    _quiet_transformers()
    demo.demo(options.out, options.steps)
    if options.dashboard:
        return serve(Path(options.out) / "runs")
    print(f"Look at it with: spectra dashboard {Path(options.out) / 'runs'}")
    return 0


def _train(options: argparse.Namespace) -> None:
    trainer = load("spectra.training.trainer", "train")
    _quiet_transformers()
    from spectra.training import table_2

    changes = {name: getattr(options, name) for name in _TRAIN_OPTIONS}
    settings = table_2(options.method, modules=_names(options.modules), **changes)
    run = trainer.train(options.model, options.data, options.out, settings)
    print(f"Recorded in {run.path}. Next: spectra analyze {run.path}")


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
        _tell_bytes_read(options, sys.stderr)
        return
    for line in as_table(index):
        print(line)
    _tell_bytes_read(options, sys.stdout)


def _tell_bytes_read(options: argparse.Namespace, where: TextIO) -> None:
    from checkpoints_index import bytes_read
    from spectra.listing import in_units

    if read := bytes_read() - options.bytes_before:
        print(f"Read {read:,} bytes of remote files ({in_units(read)}).", file=where)


def _analyze(options: argparse.Namespace) -> None:
    from spectra.analysis import analyze, estimate

    if options.dry_run:
        print(estimate(options.paths, **_chosen(options)))
        _tell_bytes_read(options, sys.stdout)
        return
    drift = analyze(
        options.paths,
        **_chosen(options),
        workers=options.workers,
        scheduler=options.scheduler,
        progress=True,
    )
    steps, layers = drift["step"].nunique(), drift["layer"].nunique()
    failed = int((drift["solver"] == "none").sum())
    print(
        f"{len(drift)} rows: {steps} steps × {layers} layers × {drift['module'].nunique()} modules"
    )
    if failed:
        print(f"{failed} of them could not be decomposed; they are marked solver = none.")
    _tell_bytes_read(options, sys.stdout)


def _watch(options: argparse.Namespace) -> None:
    rows = count = 0
    try:
        if options.background:
            from spectra.background import go_to_background

            go_to_background()
        from spectra.analysis import watch

        for done in watch(
            options.path,
            **_chosen(options),
            workers=1 if options.background else options.workers,
            interval=options.interval,
            idle=options.idle,
            until_finished=options.until_finished,
        ):
            count, rows = count + 1, rows + done.rows
            print(
                f"{done.run.name}: step {done.step}, {done.rows} rows in {done.seconds:.1f} s",
                flush=True,
            )
    except KeyboardInterrupt:
        print()
    print(f"Analysed {count} steps: {rows} rows.")


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that `analyze`, `estimate` and `watch` share."""
    return {
        "base": options.base,
        "dequantise": options.dequantise,
        "modules": _names(options.modules),
        "out": options.out,
        "values_only": options.values_only,
        "solver": options.solver,
        "precision": options.precision,
    }


def _plot(options: argparse.Namespace) -> None:
    from spectra import figures
    from spectra.store import expand_runs, read_runs

    runs = expand_runs(options.runs)
    backend = figures.backend_for(options.out)
    chosen: dict[str, Any] = {
        "modules": _names(options.modules),
        "layers": _range(options.layers),
        "steps": _range(options.steps),
    }
    if options.figure == "training":
        rows = read_runs(runs, "training")
        if chosen["steps"] is not None:
            rows = rows[rows["step"].isin(chosen["steps"])]
        columns = _names(options.columns) or ("loss", "grad_norm")
        figure = figures.training(rows, columns, backend=backend, log=options.log)
    else:
        rows = read_runs(runs, "drift")
        if options.figure == "trajectory":
            figure = figures.trajectory(rows, backend=backend, axes=options.axes, **chosen)
        else:
            column = options.columns or "kappa"
            figure = figures.curves(
                rows, column, backend=backend, overlay=options.overlay, log=options.log, **chosen
            )
    print(f"Wrote {figures.save(figure, options.out)}")


def _dashboard(options: argparse.Namespace) -> int:
    from spectra.dashboard import serve

    return serve(options.root, options.address, options.port)


def _report(options: argparse.Namespace) -> None:
    from spectra.report import write_report
    from spectra.store import expand_runs

    print(f"Wrote {write_report(expand_runs(options.runs), options.out)}")


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


# Options of `spectra train` that override a field of TrainSettings, with type and help.
_TRAIN_OPTIONS: dict[str, tuple[type, str]] = {
    "learning_rate": (float, "maximum learning rate (Table 2: 3e-5 for sorsa, else 2e-5)"),
    "rank": (int, "rank of the adapter (Table 2: 128)"),
    "alpha": (float, "LoRA's alpha; its scaling is alpha/rank (default: the rank)"),
    "gamma": (float, "learning rate of SORSA's regularizer (Table 2: 5e-4)"),
    "reduction": (str, "mean or sum of the regularizer over factors (default: mean)"),
    "epochs": (float, "passes over the data (default: 1)"),
    "max_steps": (int, "optimizer steps, instead of epochs"),
    "batch_size": (int, "examples per optimizer step (default: 128)"),
    "micro_batch_size": (int, "examples per forward pass (default: 4)"),
    "squared": (bool, "square the regularizer's norms, as the author's blog does"),
    "clip_together": (bool, "clip the gradients of task and regularizer together"),
    "max_length": (int, "tokens of prompt and response (default: 512)"),
    "warmup_ratio": (float, "share of the steps that warm up (default: 0.03)"),
    "weight_decay": (float, "weight decay (default: 0)"),
    "max_grad_norm": (float, "clip the gradient's norm; 0 does not (default: 0)"),
    "seed": (int, "seed of initialisation, data order and dropout (default: 42)"),
    "every": (int, "steps between snapshots (default: 50)"),
    "save_every": (int, "steps between checkpoints to resume from (default: 50)"),
}
_CHOICES = {"reduction": ("mean", "sum")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectra",
        description="What fine-tuning did to a model's singular spectrum.",
        epilog="Try: spectra demo",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _command(commands, "demo", _demo, "the whole job on what is built in", "spectra demo")
    command.add_argument("--out", default="spectra-demo", help="folder (default: %(default)s)")
    command.add_argument(
        "--steps", type=_positive, default=80, help="per method (default: %(default)s)"
    )
    command.add_argument("--no-dashboard", dest="dashboard", action="store_false")

    command = _command(
        commands,
        "train",
        _train,
        "fine-tune with the hook attached; settings are Table 2's unless given",
        "spectra train --model ./smollm2 --method sorsa --data train.jsonl --out runs/sorsa",
    )
    command.add_argument("--model", required=True, help="folder or hub id")
    command.add_argument(
        "--method", default="sorsa", choices=("sorsa", "sorsa-noreg", "lora", "partial-ft")
    )
    command.add_argument("--data", required=True, help="JSONL or Parquet file, or a datasets id")
    command.add_argument("--out", required=True, help="the run's folder; continued if it exists")
    _modules(command)
    for name, (kind, text) in _TRAIN_OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            command.add_argument(option, action="store_true", default=None, help=text)
        else:
            command.add_argument(option, type=kind, choices=_CHOICES.get(name), help=text)

    command = _command(
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

    command = _command(
        commands,
        "analyze",
        _analyze,
        "checkpoints to drift rows; only what is new",
        "spectra analyze runs/sorsa",
    )
    command.add_argument(
        "paths",
        nargs="+",
        help="runs, a folder of runs, or folders with checkpoints; or addresses of such",
    )
    _analysis(command)
    command.add_argument("--scheduler", help="address of a Dask scheduler, tcp://…")
    command.add_argument(
        "--dry-run", action="store_true", help="what would be computed, and its time and memory"
    )

    command = _command(
        commands,
        "watch",
        _watch,
        "follow a folder and analyse each checkpoint when it is complete; Ctrl+C ends it",
        "spectra watch outputs/ --base base-model --out runs/outputs",
    )
    command.add_argument(
        "path",
        help="a run, a folder of runs, or a folder that any trainer writes checkpoints to; it need "
        "not exist yet",
    )
    _analysis(command)
    command.add_argument(
        "--interval",
        type=_duration,
        default=0.5,
        metavar="SECONDS",
        help="between two looks at the folder (default: %(default)s)",
    )
    command.add_argument(
        "--idle", type=_duration, metavar="MINUTES", help="end after so long without news"
    )
    command.add_argument(
        "--until-finished",
        action="store_true",
        help="end when no run is being recorded any more and all is analysed",
    )
    command.add_argument(
        "--background",
        action="store_true",
        help="lowest priority, one thread, no GPU: for analysis beside a training",
    )

    command = _command(
        commands,
        "plot",
        _plot,
        "one figure; the ending of --out chooses the format",
        "spectra plot trajectory runs/lora runs/sorsa --out figure.pdf",
    )
    command.add_argument("figure", choices=("trajectory", "curves", "training"))
    command.add_argument("runs", nargs="+", help="runs, or folders of runs")
    command.add_argument("--out", required=True, help="FILE.pdf, .svg, .png or .html")
    _modules(command)
    command.add_argument("--layers", help="such as 0-11 or 3,5,7")
    command.add_argument("--steps", help="such as 0-60 or 0,20,40")
    command.add_argument("--axes", choices=("shared", "free"), default="shared")
    command.add_argument("--column", dest="columns", help="of curves, e.g. kappa; of training, a,b")
    command.add_argument("--overlay", action="store_true", help="curves: runs over one another")
    command.add_argument(
        "--log", action="store_true", default=None, help="curves, training: logarithmic axis"
    )

    command = _command(
        commands,
        "dashboard",
        _dashboard,
        "the Streamlit app over every run below ROOT",
        "spectra dashboard runs",
    )
    command.add_argument("root")
    command.add_argument("--port", type=_port, help="default: the first free one from 8501 on")
    command.add_argument("--address", default="127.0.0.1", help="default: %(default)s only")

    command = _command(
        commands,
        "report",
        _report,
        "one self-contained HTML page to share",
        "spectra report runs/lora runs/sorsa --out report.html",
    )
    command.add_argument("runs", nargs="+")
    command.add_argument("--out", required=True)

    command = _command(
        commands,
        "cache",
        _cache,
        "the decompositions of bases that are kept on this machine; SPECTRA_CACHE names their "
        "folder, SPECTRA_CACHE_GIB bounds it",
        "spectra cache --clear",
    )
    command.add_argument("--clear", action="store_true", help="delete them")
    command.add_argument("--json", action="store_true")
    return parser


def _command(
    commands: Any, name: str, run: Any, text: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"Example: {example}"
    )
    command.set_defaults(run=run)
    return command


def _modules(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--modules",
        help="comma-separated: names (q_proj), globs (*_proj), paths (model.layers.*.q_proj), "
        "labels (decoder.EncDecAttention.q), all-linear for every linear layer, regular "
        "expressions without commas for the whole path (re:.*[.](q|v)_proj)",
    )


def _analysis(command: argparse.ArgumentParser) -> None:
    command.add_argument("--base", help="folder, file, address or hub id of the base model")
    command.add_argument(
        "--dequantise",
        action="store_true",
        help="of weights quantised by bitsandbytes, take the numbers that they stand for (for a "
        "base the other choice is --base with the 16-bit model)",
    )
    _modules(command)
    command.add_argument(
        "--out",
        help="run to write to, a folder of runs for several trainings (default for checkpoints: "
        "runs/NAME)",
    )
    command.add_argument("--values-only", action="store_true", help="no singular vectors, no ΔD")
    command.add_argument(
        "--solver",
        choices=("auto", "low-rank", "gram", "svd"),
        default="auto",
        help="default: the fastest exact one",
    )
    command.add_argument(
        "--precision",
        help="what the weights were rounded to, where the files do not show it, such as q4_0 or "
        "nf4: for the noise floor",
    )
    command.add_argument(
        "--workers", type=_workers, help="processes; -1 all cores (default: what is found best)"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _workers(text: str) -> int:
    number = int(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be at least 1, or -1 for all cores, got 0")
    return number


def _duration(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 2**16:
        raise argparse.ArgumentTypeError(f"must be between 1 and 65535, got {number}")
    return number


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else None


def _range(text: str | None) -> list[int] | None:
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError as error:
            raise ValueError(f"A range is written 0-11 or 3,5,7, got {text!r}.") from error
    return numbers


def _quiet_transformers() -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
