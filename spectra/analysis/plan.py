"""What is to be computed: which matrices of which checkpoints have no current row."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from checkpoints_index import Checkpoint, Matrix, matches
from spectra.analysis.rows import Quantities

# Enters every row's source: rows of an engine that computed something else are made anew.
ENGINE = "3"


@dataclass(frozen=True)
class StaleStep:
    """One matrix of one checkpoint that has no current row.

    Attributes
    ----------
    checkpoint : Checkpoint
        Where W_t is.
    matrix : Matrix
        Which one, with the base's layer and module.
    source : str
        Digest that the new row will carry.
    is_base : bool
        Whether the base itself stands for this step: nothing to decompose.
    """

    checkpoint: Checkpoint
    matrix: Matrix
    source: str
    is_base: bool = False


@dataclass(frozen=True)
class Task:
    """One base matrix and all its stale steps: W_0 is read and decomposed once.

    Attributes
    ----------
    base : Checkpoint
        Where W_0 is.
    matrix : Matrix
        Which one.
    steps : tuple of StaleStep
        In ascending order of their steps.
    """

    base: Checkpoint
    matrix: Matrix
    steps: tuple[StaleStep, ...]


def refuse_shared_steps(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise ValueError if two checkpoints stand for one step of one run."""
    by_step: dict[int, Checkpoint] = {}
    for checkpoint in checkpoints:
        other = by_step.setdefault(checkpoint.step, checkpoint)
        if other is not checkpoint:
            raise ValueError(
                f"{other.path} and {checkpoint.path} are both step {checkpoint.step}. Analyse "
                "them one by one, each with an --out of its own."
            )


def plan_tasks(
    base: Checkpoint,
    checkpoints: Sequence[Checkpoint],
    modules: Sequence[str] | None,
    current: pd.DataFrame,
    quantities: Quantities,
) -> list[Task]:
    """Return what is stale, matrix by matrix.

    Parameters
    ----------
    base : Checkpoint
        Holds W_0 of every analysed matrix.
    checkpoints : sequence of Checkpoint
        The steps. Where none is step 0, the base stands for it.
    modules : sequence of str, optional
        Names or globs of modules; all matrices of the checkpoints by default. Layer and module
        of a row are those of the base's matrix of that name.
    current : DataFrame
        The drift rows there are, with their `source`.
    quantities : Quantities
        What is computed, and how; part of a row's source.

    Raises
    ------
    ValueError
        If a checkpoint has no matrix that matches, or the base lacks one, or two matrices of a
        checkpoint share layer and module.
    """
    done = set(current[["step", "layer", "module", "source"]].itertuples(index=False, name=None))
    bases = {m.name: m for m in base.matrices}
    by_name: dict[str, list[StaleStep]] = {}
    if all(c.step != 0 for c in checkpoints):
        checkpoints = [_AsStepZero(base), *checkpoints]
    wanted: set[str] | None = None
    for checkpoint in reversed(checkpoints):
        chosen = _chosen(checkpoint, bases, modules, wanted)
        # A base has more matrices than its adapters: the last checkpoint says which count.
        wanted = wanted or {m.name for m in chosen}
        for matrix in chosen:
            if matrix.name not in bases:
                raise ValueError(
                    f"The base {base.path} has no matrix {matrix.name!r}, which {checkpoint.path} "
                    f"has ({len(bases)} matrices, e.g. {next(iter(bases), None)!r}). Give the base "
                    "this checkpoint was trained from with --base."
                )
            if bases[matrix.name].shape != matrix.shape:
                raise ValueError(
                    f"{matrix.name} has shape {bases[matrix.name].shape} in the base {base.path}, "
                    f"but {matrix.shape} in {checkpoint.path}. Give the base this checkpoint was "
                    "trained from with --base."
                )
            key = (checkpoint.step, matrix.layer, matrix.module)
            source = _source(checkpoint, base, quantities)
            # Rows with vectors hold the values too: asking for less recomputes nothing.
            more = dataclasses.replace(quantities, vectors=True)
            enough = {source, _source(checkpoint, base, more)}
            if not any((*key, s) in done for s in enough):
                is_base = isinstance(checkpoint, _AsStepZero)
                stale = StaleStep(checkpoint, matrix, source, is_base)
                by_name.setdefault(matrix.name, []).append(stale)
    order = sorted(by_name, key=lambda name: (bases[name].layer, bases[name].module))
    return [
        Task(base, bases[n], tuple(sorted(by_name[n], key=lambda s: s.checkpoint.step)))
        for n in order
    ]


def _chosen(
    checkpoint: Checkpoint,
    bases: Mapping[str, Matrix],
    modules: Sequence[str] | None,
    wanted: set[str] | None,
) -> list[Matrix]:
    # The base has all matrices and an adapter only some, so what tells them apart is the base's.
    labelled = [_labelled(m, bases.get(m.name, m)) for m in checkpoint.matrices]
    chosen = [
        m
        for m in labelled
        if matches(m.name, modules, m.module) and (wanted is None or m.name in wanted)
    ]
    if not chosen:
        names = [m.name for m in checkpoint.matrices]
        raise ValueError(
            f"{checkpoint.path} has no matrix {' or '.join(modules or ['at all'])} "
            f"({len(names)} matrices, e.g. {next(iter(names), None)!r}). Name yours with --modules."
        )
    seen: dict[tuple[int, str], str] = {}
    for matrix in chosen:
        other = seen.setdefault((matrix.layer, matrix.module), matrix.name)
        if other != matrix.name:
            raise ValueError(
                f"{checkpoint.path} has two matrices for layer {matrix.layer} {matrix.module}: "
                f"{other!r} and {matrix.name!r}. Choose one kind with --modules, for example "
                f"{_whole_path_glob(matrix)!r}."
            )
    return chosen


def _labelled(matrix: Matrix, as_in: Matrix) -> Matrix:
    return dataclasses.replace(matrix, layer=as_in.layer, module=as_in.module)


def _whole_path_glob(matrix: Matrix) -> str:
    """Return a pattern that tells this matrix's kind by the whole path."""
    return re.sub(r"\.\d+\.", ".*.", matrix.name)


class _AsStepZero:
    """The base in the place of a checkpoint at step 0."""

    step = 0

    def __init__(self, base: Checkpoint) -> None:
        self.path = base.path
        self.method = base.method
        self.matrices = base.matrices
        self.fingerprint = base.fingerprint
        self.base = base.base
        self.read = base.read

    def bind(self, base: Checkpoint) -> Checkpoint:
        return self


def _source(checkpoint: Checkpoint, base: Checkpoint, quantities: Quantities) -> str:
    mode = "vectors" if quantities.vectors else "values-only"
    precision = quantities.precision or "stored"
    parts = (ENGINE, mode, quantities.solver, precision, checkpoint.fingerprint, base.fingerprint)
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
