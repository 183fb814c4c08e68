"""Snapshots of SVF, SVFT, LoRA-XS and MiLoRA whose headers or base do not hold together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoints_index import CheckpointError, find_checkpoints
from checkpoints_index.snapshot_kinds import INDICES, INITIAL_PARTS, PARTS, SHAPED
from checkpoints_index.snapshots import BASE_FILE
from tests.checkpoints_index.formats import SNAPSHOTS
from tests.checkpoints_index.test_damage import (
    change_header,
    change_tensors,
    drop_each,
    entry,
    read_all,
    replace_each,
)

WRITERS = {
    "milora": SNAPSHOTS["snapshots of MiLoRA"],
    "svf": SNAPSHOTS["snapshots of SVF"],
    "svft": SNAPSHOTS["snapshots of SVFT"],
    "lora-xs": SNAPSHOTS["snapshots of LoRA-XS"],
}
BASE_PARTS = [(kind, part) for kind in WRITERS for part in INITIAL_PARTS[kind]]


def last_step(folder: Path) -> Path:
    return find_checkpoints(folder)[-1].path


@pytest.mark.parametrize(
    "shape",
    [
        None,
        7,
        "32, 32",
        [32],
        [32, 32, 1],
        [32.0, 32],
        ["32", 32],
        [True, 32],
        [0, 32],
        [-32, 32],
        [32, 2**31],
        [10**400, 10**400],
        [{}, []],
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", SHAPED)
def test_a_shape_that_is_none_is_refused(kind: str, shape: object, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    path = last_step(tmp_path)
    change_header(path, entry(shape=shape))
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize("shape", [[33, 32], [32, 33], [2**30, 32], [2**30, 2**30], [2, 2]])
@pytest.mark.parametrize("kind", SHAPED)
def test_another_shape_than_the_bases_is_refused(
    kind: str, shape: list[int], tmp_path: Path
) -> None:
    WRITERS[kind](tmp_path)
    change_header(last_step(tmp_path), entry(shape=shape))
    # Where the trained tensors show it, the header alone; else the base, before anything is made.
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        for checkpoint in find_checkpoints(tmp_path):
            for matrix in checkpoint.matrices:
                checkpoint.read(matrix)


def ones(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda stacked: torch.ones(len(stacked), *shape)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("milora", ones(2, 32)),
        ("milora", ones(32)),
        ("svf", ones(31)),
        ("svf", ones(32, 1)),
        ("svf", ones()),
        ("svft", ones(32 * 32 + 1)),
        ("svft", ones(4, 4)),
        ("svft", ones(0)),
        ("lora-xs", ones(3, 2)),
        ("lora-xs", ones(33, 33)),
        ("lora-xs", ones(9)),
        ("lora-xs", ones(0, 0)),
        *((kind, lambda t: t.to(torch.int32)) for kind in WRITERS),
        *((kind, lambda t: t.to(torch.complex64)) for kind in WRITERS),
    ],
)
def test_trained_tensors_that_do_not_fit_are_refused(
    kind: str, change: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    WRITERS[kind](tmp_path)
    path = last_step(tmp_path)
    change_tensors(path, replace_each(PARTS[kind][0], change))
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize(("kind", "part"), BASE_PARTS)
@pytest.mark.parametrize(
    "change",
    [
        None,
        lambda t: t[..., :-1],
        lambda t: t[..., None],
        lambda t: t.to(torch.int64),
        lambda t: t.to(torch.bool),
        lambda t: t.to(torch.complex64),
    ],
    ids=["missing", "shorter", "of more dimensions", "int64", "bool", "complex"],
)
def test_what_the_base_holds_must_fit(
    kind: str, part: str, change: Callable[[Tensor], Tensor] | None, tmp_path: Path
) -> None:
    WRITERS[kind](tmp_path)
    path = tmp_path / "snapshots" / BASE_FILE
    change_tensors(path, drop_each(part) if change is None else replace_each(part, change))
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))}.*{part}"):
        read_all(tmp_path)


@pytest.mark.parametrize("part", INDICES)
@pytest.mark.parametrize("place", [-1, 32, 2**31 - 1, -(2**31)])
def test_places_outside_the_matrix_are_refused(part: str, place: int, tmp_path: Path) -> None:
    WRITERS["svft"](tmp_path)
    path = tmp_path / "snapshots" / BASE_FILE

    def change(stacked: Tensor) -> Tensor:
        stacked[0, 5] = place
        return stacked

    change_tensors(path, replace_each(part, change))
    with pytest.raises(CheckpointError, match=r"must be at rows and columns from 0 to (15|31)"):
        read_all(tmp_path)


@pytest.mark.parametrize("part", INDICES)
def test_places_are_integers(part: str, tmp_path: Path) -> None:
    WRITERS["svft"](tmp_path)
    path = tmp_path / "snapshots" / BASE_FILE
    change_tensors(path, replace_each(part, lambda t: t.float()))
    with pytest.raises(CheckpointError, match=rf"{part}' has .* dtype float32"):
        read_all(tmp_path)
