"""From a folder to its checkpoints, opened and in order."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from checkpoints_index.bitsandbytes_files import dequantised
from checkpoints_index.byte_files import has_file, is_file, is_remote, names_in
from checkpoints_index.errors import CheckpointError, IncompleteCheckpointError
from checkpoints_index.formats import (
    ADAPTER_FORMAT,
    SNAPSHOT_NAME,
    SNAPSHOTS,
    method_of_run,
    refuse_foreign_base,
)
from checkpoints_index.growing import UNFINISHED, open_candidate
from checkpoints_index.index import (
    LONE_STEP,
    Series,
    ambiguity,
    as_location,
    build_index,
    nothing_in,
    searched,
)
from checkpoints_index.matrices import Checkpoint
from checkpoints_index.model_folders import BITSANDBYTES, ModelCheckpoint
from checkpoints_index.model_readers import open_whole_model
from checkpoints_index.placing import Placed, place
from checkpoints_index.readers import Candidate
from checkpoints_index.snapshots import BASE_FILE, Snapshot

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointSeries:
    """The checkpoints of one training, opened.

    Attributes
    ----------
    name : str
        Its folder relative to where it was looked for, or its repository on the hub; with the
        method where another series has the same.
    checkpoints : sequence of Checkpoint
        In order of their steps.
    is_adapter : bool
        Whether they are adapters, which need a base to be read.
    has_steps : bool
        Whether anything says their steps. A lone model of which nothing does may be a base.
    """

    name: str
    checkpoints: Sequence[Checkpoint]
    is_adapter: bool
    has_steps: bool


def find_checkpoints(
    path: Path | str, broken: list[CheckpointError] | None = None
) -> list[Checkpoint]:
    """Return the checkpoints in a folder and below it, ordered by step; headers only are read.

    A folder of snapshots (or the run that has one) gives its snapshots. Elsewhere all formats are
    found, with steps from ``trainer_state.json``, from names such as ``checkpoint-500``, or from
    revisions in the hub's cache. One that is still being written is left out with a warning.

    Parameters
    ----------
    path : Path or str
        A run, a checkpoint's folder or file, or a folder of them.
    broken : list of CheckpointError, optional
        Where what is wrong with a broken checkpoint is left, while all others are returned.
        Without it, the first one is raised.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist or holds no checkpoint.
    CheckpointError
        If a checkpoint is broken, none is whole, or steps are missing or ambiguous.
    """
    root = as_location(path)
    if not is_file(root):
        for snapshots in (root / SNAPSHOTS, root):
            if has_file(snapshots / BASE_FILE):
                return find_snapshots(snapshots, broken)
    placed = place(root.parent if is_file(root) else root, searched(root))
    # A trainer's output often ends with the last checkpoint's weights once more, at its top; or
    # the base lies there.
    inner = [p for p in placed if p.found.candidate.path != root]
    chosen = [p for p in placed if p.step is not None or p in inner] if inner else placed
    if not chosen:
        raise FileNotFoundError(nothing_in(path))
    steps = {p.found.candidate.path: p.step for p in chosen if not _is_unfinished(p)}
    if len(steps) > 1 and (problem := ambiguity(steps)):
        raise CheckpointError(problem)
    found: list[Checkpoint] = []
    left: list[IncompleteCheckpointError] = []
    before = len(broken or ())
    for p in chosen:
        try:
            step = LONE_STEP if p.step is None else p.step
            found.append(open_candidate(p.found.candidate, step))
        except IncompleteCheckpointError as error:
            left.append(error)
        except CheckpointError as error:
            _raise_or_leave(error, broken)
    if not found:
        raise [*left, *(broken or ())[before:]][0]
    _tell_left(left)
    return sorted(found, key=_by_step)


def find_series(
    path: Path | str, broken: list[CheckpointError] | None = None
) -> list[CheckpointSeries]:
    """Return the trainings in a folder and below it, each with its checkpoints in order.

    Parameters
    ----------
    path : Path or str
        The folder.
    broken : list of CheckpointError, optional
        Where what is wrong with a broken checkpoint, or with the steps of a series, is left, while
        all others are returned. Without it, the first one is raised; and so is always that of a
        model of no known step, which may be the others' base.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist or holds no checkpoint.
    CheckpointError
        If a checkpoint is broken, none is whole, or the steps of one series are missing or
        ambiguous.
    """
    known: dict[Candidate, Checkpoint] = {}
    index = build_index(path, opened=known)
    if not index.series:
        raise FileNotFoundError(nothing_in(path))
    count = Counter(series.name for series in index.series)
    taken: set[str] = set()
    found: list[CheckpointSeries] = []
    left = [IncompleteCheckpointError(e.problem) for e in index.entries if e.state == "incomplete"]
    for series in index.series:
        for entry in series.entries:
            if entry.state == "broken":
                may_be_base = entry.step is None and entry.format != ADAPTER_FORMAT
                _raise_or_leave(CheckpointError(entry.problem), None if may_be_base else broken)
        if series.problem:
            _raise_or_leave(CheckpointError(series.problem), broken)
            continue
        whole = [entry for entry in series.entries if entry.state == "complete"]
        if whole:
            opened = [known[entry.candidate] for entry in whole]
            is_adapter = whole[0].format == ADAPTER_FORMAT
            has_steps = any(entry.step is not None for entry in whole)
            name = _name_of_its_own(series, count[series.name] > 1, taken)
            taken.add(name)
            found.append(CheckpointSeries(name, opened, is_adapter, has_steps))
    if not found:
        raise [*left, *(broken or ())][0]
    _tell_left(left)
    return found


def find_snapshots(folder: Path, broken: list[CheckpointError] | None = None) -> list[Checkpoint]:
    """Return a run's snapshots, ordered by step, without its base.

    Parameters
    ----------
    folder : Path
        The run's ``snapshots``.
    broken : list of CheckpointError, optional
        As of `find_checkpoints`.

    Raises
    ------
    CheckpointError
        If one is broken, or was recorded on another base than the one beside it; if none is whole.
    """
    method = method_of_run(folder.parent)
    base = Snapshot(folder / BASE_FILE)
    names = sorted(filter(SNAPSHOT_NAME.fullmatch, names_in(folder)))
    found: list[Checkpoint] = []
    for name in names:
        try:
            snapshot = Snapshot(folder / name, method)
            refuse_foreign_base(snapshot, base)
        except CheckpointError as error:
            _raise_or_leave(error, broken)
        else:
            found.append(snapshot)
    if broken and not found:
        raise broken[0]
    return sorted(found, key=_by_step)


def open_model(path: Path | str, *, dequantise: bool = False) -> Checkpoint:
    """Open a base: whole weights in any format, or the ``base.safetensors`` of a run.

    Parameters
    ----------
    path : Path or str
        Its folder or file.
    dequantise : bool
        Of weights quantised by bitsandbytes, take the numbers that they stand for as W_0.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or file.
    CheckpointError
        If it holds no whole weights, or holds them quantised and `dequantise` does not say so or
        the quantisation is another one: which numbers are W_0 is then the user's choice. (The
        blocks of GGUF are read.)
    """
    root = as_location(path)
    if is_file(root):
        if root.name == BASE_FILE:
            return Snapshot(root, "base")
    elif not is_remote(root) and not root.is_dir():
        raise FileNotFoundError(f"{path} is not a folder. Give the base model's.")
    model = open_whole_model(root, step=0)
    if not isinstance(model, ModelCheckpoint) or model.quantisation is None:
        return model
    if dequantise and model.quantisation == BITSANDBYTES:
        return dequantised(model)
    own = "a folder to which Transformers has saved this one after model.dequantize()"
    if model.quantisation == BITSANDBYTES:
        own = "this one together with --dequantise"
    raise CheckpointError(
        f"{path} holds quantised weights ({model.quantisation:.100}), and W_0 may be either of "
        "two: the 16-bit weights that they were made from, or the numbers that they stand for. "
        f"Choose with --base: the folder or hub id of the 16-bit model; or {own}."
    )


def settle_quantisation(checkpoint: Checkpoint, dequantise: bool) -> Checkpoint:
    """Return a training's checkpoint with weights that are numbers: as it is, or de-quantised.

    Raises
    ------
    CheckpointError
        If it holds whole weights that are quantised, and `dequantise` does not say so or they were
        not quantised by bitsandbytes.
    """
    if not isinstance(checkpoint, ModelCheckpoint) or checkpoint.quantisation is None:
        return checkpoint
    if checkpoint.quantisation != BITSANDBYTES:
        raise CheckpointError(
            f"{checkpoint.path} holds quantised weights ({checkpoint.quantisation:.100}), which "
            "are not read. Give a folder to which Transformers has saved the model after "
            "model.dequantize()."
        )
    if not dequantise:
        raise CheckpointError(
            f"{checkpoint.path} holds quantised weights ({BITSANDBYTES}). Compare the numbers that "
            "they stand for with --dequantise."
        )
    return dequantised(checkpoint)


def _name_of_its_own(series: Series, is_shared: bool, taken: Collection[str]) -> str:
    name = f"{series.name}-{series.method}" if is_shared and series.method else series.name
    numbers = (f"{name}-{i}" for i in range(2, len(taken) + 3))
    return next(n for n in chain([name], numbers) if n not in taken)


def _is_unfinished(placed: Placed) -> bool:
    candidate = placed.found.candidate
    return bool(candidate.missing) or candidate.format == UNFINISHED


def _raise_or_leave(error: CheckpointError, broken: list[CheckpointError] | None) -> None:
    if broken is None:
        raise error
    broken.append(error)


def _tell_left(left: Sequence[IncompleteCheckpointError]) -> None:
    for error in left:
        logger.warning("Left for the next time: %s", error)


def _by_step(checkpoint: Checkpoint) -> int:
    return checkpoint.step
