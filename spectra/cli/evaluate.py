"""``spectra evaluate``."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from spectra import load
from spectra.cli.options import add_command, numbers, positive, quiet_transformers

_DTYPES = ("float32", "bfloat16", "float16")


def add(commands: Any) -> None:
    """Add `evaluate` to the commands."""
    command = add_command(
        commands,
        "evaluate",
        _evaluate,
        "perplexity and accuracy of a run's recorded steps, or of a model's or adapter's folder",
        "spectra evaluate runs/sorsa --task gsm8k --data gsm8k/test.jsonl --steps all",
    )
    command.add_argument(
        "path", metavar="RUN", help="a run; or a model (folder or hub id) or an adapter's folder"
    )
    command.add_argument(
        "--task",
        required=True,
        help="perplexity (every recorded step), gsm8k, or lm-eval:NAME for a task of EleutherAI's "
        "lm-eval, such as lm-eval:minerva_math or lm-eval:humaneval",
    )
    command.add_argument("--base", help="folder or hub id of the base, if it is not where it was")
    command.add_argument("--held-out", help="perplexity: questions and answers, as for training")
    command.add_argument(
        "--other-text", help="perplexity: text of another kind, .txt or .jsonl with a column text"
    )
    command.add_argument("--data", help="gsm8k: its JSONL file")
    command.add_argument(
        "--steps",
        default="last",
        help="which recorded steps of a run for gsm8k and lm-eval: last, all, or numbers such as "
        "0,40 (default: %(default)s)",
    )
    command.add_argument("--limit", type=positive, help="the first so many problems")
    command.add_argument("--batch-size", type=positive, help="examples or problems at once")
    command.add_argument(
        "--max-length",
        type=positive,
        help="tokens of prompt and response (default: 1024 for gsm8k, 2048 for lm-eval, the "
        "training's for perplexity)",
    )
    command.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="of the weights (default: float32 for perplexity, else bfloat16 where the hardware "
        "has it)",
    )
    command.add_argument(
        "--again", action="store_true", help="replace what a run has of this already"
    )
    command.add_argument("--out", help="file for a model's outputs; a run keeps its own")
    command.add_argument("--tasks-in", help="lm-eval: folder with task files of your own")
    command.add_argument(
        "--unsafe-code",
        action="store_true",
        help="lm-eval: run the code that the model writes, as HumanEval needs; use a sandbox",
    )


def _evaluate(options: argparse.Namespace) -> None:
    load("spectra.training.evaluation.runs", "train")
    quiet_transformers()
    from spectra.store import Run

    run = Run(options.path)
    chosen: dict[str, Any] = {"base": options.base, "dtype": options.dtype}
    for name in ("batch_size", "max_length"):
        if (value := getattr(options, name)) is not None:
            chosen[name] = value
    if options.task == "perplexity":
        _perplexity(run, options, chosen)
    elif options.task == "gsm8k":
        _gsm8k(run, options, chosen)
    elif options.task.startswith("lm-eval:"):
        _lm_eval(run, options, chosen)
    else:
        raise ValueError(f"--task must be perplexity, gsm8k or lm-eval:NAME, got {options.task!r}.")


def _perplexity(run: Any, options: argparse.Namespace, chosen: dict[str, Any]) -> None:
    from spectra.training.evaluation.folders import model_perplexity
    from spectra.training.evaluation.runs import evaluate_perplexity

    files = {"held_out": options.held_out, "other_text": options.other_text}
    if not run.exists():
        for column, value in model_perplexity(options.path, **files, **chosen).items():
            print(f"{column}: {value:.4f}")
        return
    rows = evaluate_perplexity(run, **files, again=options.again, **chosen)
    print(rows.to_string(index=False, float_format="{:.4f}".format, na_rep=""))
    print(f"Written into {run.training_path}.")


def _gsm8k(run: Any, options: argparse.Namespace, chosen: dict[str, Any]) -> None:
    from spectra.training.evaluation.folders import model_gsm8k
    from spectra.training.evaluation.runs import evaluate_gsm8k

    if options.data is None:
        raise ValueError("The task gsm8k needs --data FILE, such as GSM8K's test.jsonl.")
    chosen["limit"] = options.limit
    if not run.exists():
        print(model_gsm8k(options.path, options.data, out=options.out, **chosen))
        return
    scores = evaluate_gsm8k(
        run, options.data, steps=_steps(options.steps), again=options.again, **chosen
    )
    for step, score in scores.items():
        print(f"step {step}: {score}")
    print(f"Written into {run.training_path}; every output is in {run.path / 'evaluation'}.")


def _lm_eval(run: Any, options: argparse.Namespace, chosen: dict[str, Any]) -> None:
    from spectra.training.evaluation.folders import model_lm_eval
    from spectra.training.evaluation.lm_eval import NOTE, PREFIX
    from spectra.training.evaluation.runs import evaluate_lm_eval

    # It warns of a model that comes loaded, which is how it always comes here.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    task = options.task.removeprefix(PREFIX)
    chosen |= {
        "limit": options.limit,
        "task_folder": options.tasks_in,
        "unsafe_code": options.unsafe_code,
    }
    if run.exists():
        found = evaluate_lm_eval(run, task, steps=_steps(options.steps), **chosen)
        for step, results in found.items():
            _print_results(f"step {step}: ", results)
        print(f"lm-eval's own report is in {run.path / 'evaluation'}.")
    else:
        _print_results("", model_lm_eval(options.path, task, out=options.out, **chosen))
    print(NOTE)


def _print_results(head: str, results: dict[str, dict[str, Any]]) -> None:
    for task, values in results.items():
        for name, value in values.items():
            error = values.get(name.replace(",", "_stderr,", 1))
            if isinstance(value, float) and "_stderr" not in name:
                spread = f" ± {error:.4f}" if isinstance(error, float) else ""
                print(f"{head}{task} {name}: {value:.4f}{spread}")


def _steps(text: str) -> Any:
    return text if text in ("last", "all") else numbers(text)
