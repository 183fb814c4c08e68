"""Evaluates runs after the fact: at recorded steps, into their ``training.parquet``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from spectra.store import Run
from spectra.training.data import read_pairs
from spectra.training.evaluation import gsm8k as problems_solved
from spectra.training.evaluation import perplexity as likelihood
from spectra.training.evaluation.lm_eval import lm_eval
from spectra.training.evaluation.models import (
    dtype_for_text,
    dtype_named,
    fingerprint,
    load_model,
    load_tokenizer,
)
from spectra.training.evaluation.recorded_weights import (
    RecordedModel,
    recorded_states,
    why_final_only,
)
from spectra.training.evaluation.texts import DEFAULT_LENGTH, READERS
from spectra.training.trainer import FINAL

_OPTIONS = {"perplexity": "held_out", "perplexity_other": "other_text"}


class RunModels:
    """The models of a run's steps: of every recorded one, or of the final one only.

    Parameters
    ----------
    run : Run
        The run.
    base : Path or str, optional
        Its base; by default the one that ``run.json`` names.
    say : callable of str
        Told in one line where only the final model can be had.

    Attributes
    ----------
    steps : list of int
        Those whose model can be had.
    tokenizer : PreTrainedTokenizerBase
        Theirs.

    Raises
    ------
    FileNotFoundError
        If only the final model could be had and there is none, or there are no snapshots.
    ValueError
        If the tokenizer cannot be loaded.
    checkpoints_index.CheckpointError
        If the snapshots are broken.
    """

    def __init__(
        self, run: Run, base: Path | str | None = None, say: Callable[[str], None] = print
    ) -> None:
        self._run = run
        settings = run.read_settings()
        named = settings.get("base", {}).get("name")
        self._base = base or named or ""
        self._final = run.path / FINAL
        self._recorded: RecordedModel | None = None
        self._model: tuple[Any, nn.Module] | None = None
        reason = why_final_only(settings)
        self.is_final_only = reason is not None
        if reason is None:
            self._states = recorded_states(run)
            self.steps = list(self._states)
            self.tokenizer = load_tokenizer(self._base)
            return
        if not self._final.is_dir() or not settings.get("last_step"):
            raise FileNotFoundError(
                f"Only the final model of {run.path} could be evaluated ({reason}), and it has no "
                f"{FINAL}/ yet. Finish the training first."
            )
        say(f"Only the final model of {run.path} is evaluated: {reason}.")
        self.steps = [int(settings["last_step"])]
        self.tokenizer = load_tokenizer(self._final, self._base)

    def fingerprint(self, step: int) -> str:
        """Return what changes when a step is trained anew."""
        if self.is_final_only:
            return fingerprint(self._final, self._base)
        return self._states[step].fingerprint

    def at(self, step: int, dtype: torch.dtype) -> nn.Module:
        """Return the model of a step; it is the same object as that of the step before."""
        if self._model is not None and self._model[0] == (step, dtype):
            return self._model[1]
        if self.is_final_only:
            model = load_model(self._final, dtype, self._base)
        else:
            if self._recorded is None or next(self._recorded.model.parameters()).dtype != dtype:
                self._recorded = RecordedModel(self._run, load_model(self._base, dtype))
            model = self._recorded.show(step)
        self._model = ((step, dtype), model)
        return model


def evaluate_perplexity(
    run: Run,
    *,
    held_out: Path | str | None = None,
    other_text: Path | str | None = None,
    base: Path | str | None = None,
    max_length: int | None = None,
    batch_size: int = likelihood.DEFAULT_BATCH_SIZE,
    dtype: str | None = None,
    again: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Measure perplexities at every recorded step of a run, into its ``training.parquet``.

    What is measured already is left, so an interrupted evaluation goes on where it stopped.

    Parameters
    ----------
    run : Run
        The run; not one that is being recorded.
    held_out, other_text : Path or str, optional
        Files; by default those that the run was trained with. See `read_held_out` and
        `read_other_text`.
    base : Path or str, optional
        The run's base, where it is not where ``run.json`` says.
    max_length : int, optional
        Tokens of an example; by default the training's, or 512.
    batch_size : int
        Examples a forward pass.
    dtype : str, optional
        Of the model: what was measured before, or float32.
    again : bool
        Measure anew what is there, also on other data than before.
    progress : bool
        Show a bar with the time left.
    say : callable of str
        Told what the user should know.

    Returns
    -------
    DataFrame
        The training rows that have a value: step and the columns measured.

    Raises
    ------
    ValueError
        If no file is given or known, the run holds values on other data, or something does not
        fit.
    RuntimeError
        If the run is being recorded, or evaluated elsewhere.
    """
    with _held(run):
        settings = run.read_settings()
        trained = settings.get("settings", {})
        given = {"held_out": held_out, "other_text": other_text}
        if not (held_out or other_text):
            given = {name: trained.get(name) for name in given}
        files = {c: f for c, option in _OPTIONS.items() if (f := given[option])}
        if not files:
            raise ValueError(
                f"{run.path} was trained without held-out data. Give --held-out FILE (questions "
                "and answers), --other-text FILE (.txt or .jsonl), or both."
            )
        models = RunModels(run, base, say)
        length = max_length or trained.get("max_length") or DEFAULT_LENGTH
        examples = {c: READERS[c](f, models.tokenizer, length) for c, f in files.items()}
        before = settings.get("evaluation", {})
        named = dtype or next((before[c]["dtype"] for c in files if c in before), "float32")
        chosen = dtype_named(named)
        told = {c: likelihood.identity(e, chosen) for c, e in examples.items()}
        done = _begin(run, told, again)
        todo = {s: [c for c in files if s not in done[c]] for s in models.steps}
        total = sum(len(examples[c]) for columns in todo.values() for c in columns)
        with tqdm(total=total, desc=f"Perplexity of {run.name}", unit="example",
                  disable=not progress or not total) as bar:  # fmt: skip
            for step, columns in todo.items():
                if columns:
                    model = models.at(step, chosen)
                    values = {
                        c: likelihood.perplexity(
                            model, examples[c], batch_size=batch_size, on_batch=bar.update
                        )
                        for c in columns
                    }
                    run.update_training(step, **values)
        frame = run.read_training()[["step", *files]]
        return frame[frame[list(files)].notna().any(axis=1)].reset_index(drop=True)


def evaluate_gsm8k(
    run: Run,
    data: Path | str,
    *,
    steps: str | Sequence[int] = "last",
    limit: int | None = None,
    base: Path | str | None = None,
    max_length: int = problems_solved.DEFAULT_MAX_LENGTH,
    batch_size: int = problems_solved.DEFAULT_BATCH_SIZE,
    dtype: str | None = None,
    again: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[int, problems_solved.Score]:
    """Solve GSM8K's problems with a run's model at some steps, into its ``training.parquet``.

    Every output is kept in ``RUN/evaluation/gsm8k-step-N.jsonl``; what is there is not generated
    again, so an interrupted evaluation goes on where it stopped.

    Parameters
    ----------
    run : Run
        The run; not one that is being recorded.
    data : Path or str
        GSM8K's file, such as ``test.jsonl``.
    steps : {"last", "all"} or sequence of int
        Which recorded steps.
    limit : int, optional
        The first so many problems.
    again : bool
        Generate anew what is there, and leave no value of other steps.
    base, progress, say
        As of `evaluate_perplexity`.
    max_length, batch_size
        As of `spectra.training.evaluation.gsm8k.gsm8k`.
    dtype : str, optional
        Of the model; bfloat16 where the hardware has it, else float32.

    Returns
    -------
    dict of int to Score
        By step.

    Raises
    ------
    ValueError, RuntimeError
        As of `evaluate_perplexity`; also for a step that is not recorded.
    """
    problems = read_pairs(data, limit)
    chosen = dtype_named(dtype) if dtype else dtype_for_text()
    scores = {}
    with _held(run):
        models = RunModels(run, base, say)
        wanted = choose_steps(models.steps, steps)
        name = str(chosen).removeprefix("torch.")
        identity = {
            "digest": hashlib.sha256(json.dumps(problems).encode()).hexdigest()[:16],
            "problems": len(problems),
            "max_length": max_length,
            "dtype": name,
        }
        _begin(run, {"gsm8k": identity}, again)
        outputs = {s: run.path / "evaluation" / f"gsm8k-step-{s}.jsonl" for s in wanted}
        if again:
            for path in outputs.values():
                path.unlink(missing_ok=True)
        total = len(wanted) * len(problems)
        with tqdm(total=total, desc=f"GSM8K of {run.name}", unit="problem",
                  disable=not progress) as bar:  # fmt: skip
            for step in wanted:
                scores[step] = problems_solved.gsm8k(
                    lambda step=step: models.at(step, chosen),  # type: ignore[misc]
                    models.tokenizer,
                    problems,
                    outputs[step],
                    source=f"{models.fingerprint(step)}, {name}",
                    batch_size=batch_size,
                    max_length=max_length,
                    on_batch=bar.update,
                )
                run.update_training(step, gsm8k=scores[step].share)
    return scores


def evaluate_lm_eval(
    run: Run,
    task: str,
    *,
    steps: str | Sequence[int] = "last",
    base: Path | str | None = None,
    dtype: str | None = None,
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[int, dict[str, dict[str, float | str]]]:
    """Evaluate a run's model at some steps on a task of lm-eval's.

    What lm-eval gives is kept in ``RUN/evaluation/lm-eval-TASK-step-N.json``.

    Parameters
    ----------
    run : Run
        The run.
    task : str
        lm-eval's name for it.
    steps, base, dtype, say
        As of `evaluate_gsm8k`.
    **options
        As of `spectra.training.evaluation.lm_eval.lm_eval`.

    Returns
    -------
    dict of int to dict
        lm-eval's results, by step.

    Raises
    ------
    ModuleNotFoundError, ValueError, RuntimeError
        As of `evaluate_gsm8k` and `lm_eval`.
    """
    results = {}
    with _held(run):
        models = RunModels(run, base, say)
        for step in choose_steps(models.steps, steps):
            results[step] = lm_eval(
                models.at(step, dtype_named(dtype) if dtype else dtype_for_text()),
                models.tokenizer,
                task,
                out=run.path / "evaluation" / f"lm-eval-{task}-step-{step}.json",
                **options,
            )
    return results


def choose_steps(recorded: Sequence[int], wanted: str | Sequence[int]) -> list[int]:
    """Return the steps that ``"last"``, ``"all"`` or a list name.

    Raises
    ------
    ValueError
        If one of them is not recorded.
    """
    if wanted == "all":
        return list(recorded)
    if wanted == "last":
        return [recorded[-1]]
    if isinstance(wanted, str):
        raise ValueError(f'steps must be "last", "all" or numbers, got {wanted!r}.')
    if missing := sorted(set(wanted) - set(recorded)):
        raise ValueError(
            f"Step {', '.join(map(str, missing))} cannot be evaluated; there is "
            f"{', '.join(map(str, recorded))}."
        )
    return sorted(set(wanted))


def _begin(run: Run, identities: Mapping[str, dict[str, Any]], again: bool) -> dict[str, set[int]]:
    """Note what columns are measured on; return the steps that have a value on the same.

    Raises
    ------
    ValueError
        If a column has values on something else, unless all of it is measured again.
    """
    rows = run.read_training()
    before = run.read_settings().get("evaluation", {})
    done = {}
    for column, identity in identities.items():
        filled = rows.loc[rows[column].notna(), "step"].tolist()
        if again:
            for step in filled:
                run.update_training(step, **{column: float("nan")})
            filled = []
        if filled and before.get(column) != identity:
            raise ValueError(
                f"{run.path} has values of {column} on something else "
                f"({_listed(before.get(column, {}))}; now {_listed(identity)}), and one column "
                "holds one thing. Give the same data and settings, or --again to replace them."
            )
        done[column] = set(filled)
    run.update_settings(evaluation=before | dict(identities))
    return done


@contextmanager
def _held(run: Run) -> Iterator[None]:
    """Be the only one that writes the run's training rows, within a block."""
    run.read_settings()  # says what a run is
    try:
        lock = run.take_lock("recording")
    except RuntimeError as error:
        raise RuntimeError(
            f"{run.path} is being recorded or evaluated by another process. Wait for it."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _listed(identity: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in identity.items()) or "nobody said what"
