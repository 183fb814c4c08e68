"""What is to be computed: which matrices of which checkpoints have no current row."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from checkpoints_index import Checkpoint, Matrix, matches
from spectra.analysis.rows import Quantities

# Enters every row's source: rows of an engine that computed something else are made anew.
ENGINE = "4"


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


RowKey = tuple[int, int, str, str]
"""Step, layer, module and source of a row."""


def row_keys(drift: pd.DataFrame) -> set[RowKey]:
    """Return what is computed already, of the drift rows there are."""
    return set(drift[["step", "layer", "module", "source"]].itertuples(index=False, name=None))


def plan_tasks(
    base: Checkpoint,
    checkpoints: Sequence[Checkpoint],
    modules: Sequence[str] | None,
    done: Collection[RowKey],
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
        Names or globs of modules; all matrices of the checkpoints by default. A matrix that only
        some of them have is analysed where it is.
    done : collection of RowKey
        The drift rows there are.
    quantities : Quantities
        What is computed, and how; part of a row's source.

    Raises
    ------
    ValueError
        If a checkpoint has no matrix that matches, or the base lacks one, or two matrices of a
        checkpoint share layer and module.
    """
    plan = Plan(base, modules, quantities)
    stale = [s for checkpoint in checkpoints for s in plan.stale(checkpoint, done)]
    if all(c.step != 0 for c in checkpoints):
        stale += plan.stale_base(done)
    return plan.tasks(stale)


def tell_replaced(stale: Iterable[StaleStep], done: Collection[RowKey]) -> str:
    """Say how many rows there are that are going to be computed anew; empty if none."""
    there = {key[:3] for key in done}
    keys = ((s.checkpoint.step, s.matrix.layer, s.matrix.module) for s in stale)
    count = sum(key in there for key in keys)
    if not count:
        return ""
    return (
        f"{count} rows that are there come from an earlier version of Spectra, other options or "
        "other weights: they are computed anew, and stay until then."
    )


class Plan:
    """What is stale of one training's checkpoints, which may come one by one.

    Parameters
    ----------
    base, modules, quantities
        As of `plan_tasks`.
    """

    def __init__(
        self, base: Checkpoint, modules: Sequence[str] | None, quantities: Quantities
    ) -> None:
        self.base = base
        self._modules = modules
        self._quantities = quantities
        self._bases = {m.name: m for m in base.matrices}
        self._seen: set[str] = set()

    def stale(self, checkpoint: Checkpoint, done: Collection[RowKey]) -> list[StaleStep]:
        """Return the matrices of a checkpoint that have no current row.

        Layer and module of a row are those of the base's matrix of that name.

        Raises
        ------
        ValueError
            As `plan_tasks`.
        """
        chosen = _chosen(checkpoint, self._bases, self._modules)
        for matrix in chosen:
            self._refuse_misfit(matrix, checkpoint)
        self._seen.update(m.name for m in chosen)
        return self._without_row(checkpoint, chosen, done, is_base=False)

    def stale_base(self, done: Collection[RowKey]) -> list[StaleStep]:
        """Return the matrices of which the base has no current row as step 0.

        A base has more matrices than its adapters: what the checkpoints so far have counts.
        """
        chosen = [self._bases[name] for name in sorted(self._seen)]
        _refuse_shared_labels(self.base.path, chosen)
        return self._without_row(_AsStepZero(self.base), chosen, done, is_base=True)

    def tasks(self, stale: Iterable[StaleStep]) -> list[Task]:
        """Put stale steps together by their matrices."""
        by_name: dict[str, list[StaleStep]] = {}
        for step in stale:
            by_name.setdefault(step.matrix.name, []).append(step)
        bases = self._bases
        order = sorted(by_name, key=lambda name: (bases[name].layer, bases[name].module))
        return [
            Task(self.base, bases[n], tuple(sorted(by_name[n], key=lambda s: s.checkpoint.step)))
            for n in order
        ]

    def _refuse_misfit(self, matrix: Matrix, checkpoint: Checkpoint) -> None:
        if matrix.name not in self._bases:
            raise ValueError(
                f"The base {self.base.path} has no matrix {matrix.name!r}, which "
                f"{checkpoint.path} has ({len(self._bases)} matrices, e.g. "
                f"{next(iter(self._bases), None)!r}). Give the base this checkpoint was trained "
                "from with --base."
            )
        if self._bases[matrix.name].shape != matrix.shape:
            raise ValueError(
                f"{matrix.name} has shape {self._bases[matrix.name].shape} in the base "
                f"{self.base.path}, but {matrix.shape} in {checkpoint.path}. Give the base this "
                "checkpoint was trained from with --base."
            )

    def _without_row(
        self,
        checkpoint: Checkpoint,
        chosen: Sequence[Matrix],
        done: Collection[RowKey],
        is_base: bool,
    ) -> list[StaleStep]:
        source = _source(checkpoint, self.base, self._quantities)
        # Rows with vectors hold the values too: asking for less recomputes nothing.
        more = dataclasses.replace(self._quantities, vectors=True)
        enough = {source, _source(checkpoint, self.base, more)}
        step = checkpoint.step
        return [
            StaleStep(checkpoint, m, source, is_base)
            for m in chosen
            if not any((step, m.layer, m.module, s) in done for s in enough)
        ]


def _chosen(
    checkpoint: Checkpoint, bases: Mapping[str, Matrix], modules: Sequence[str] | None
) -> list[Matrix]:
    # The base has all matrices and an adapter only some, so what tells them apart is the base's.
    labelled = [_labelled(m, bases.get(m.name, m)) for m in checkpoint.matrices]
    chosen = [m for m in labelled if matches(m.name, modules, m.module)]
    if not chosen:
        names = [m.name for m in checkpoint.matrices]
        raise ValueError(
            f"{checkpoint.path} has no matrix {' or '.join(modules or ['at all'])} "
            f"({len(names)} matrices, e.g. {next(iter(names), None)!r}). Name yours with --modules."
        )
    _refuse_shared_labels(checkpoint.path, chosen)
    return chosen


def _refuse_shared_labels(path: Path, chosen: Sequence[Matrix]) -> None:
    seen: dict[tuple[int, str], str] = {}
    for matrix in chosen:
        other = seen.setdefault((matrix.layer, matrix.module), matrix.name)
        if other != matrix.name:
            raise ValueError(
                f"{path} has two matrices for layer {matrix.layer} {matrix.module}: "
                f"{other!r} and {matrix.name!r}. Choose one kind with --modules, for example "
                f"{_whole_path_glob(matrix)!r}."
            )


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
