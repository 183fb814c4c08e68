"""Thousands of mutated files of every format: the right weights or one clear error, in bounds.

What no format can notice is left alone or not compared: flipped bits of the numbers themselves,
but in PyTorch's archives, which have checksums; and all of what PyTorch wrote before version 1.6,
which has nothing to check by.
"""

from __future__ import annotations

import io
import random
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoints_index import CheckpointError, find_checkpoints, open_model
from checkpoints_index.gguf_files import GgufModel
from tests.checkpoints_index.formats import FORMATS, SNAPSHOTS, STEP
from tests.checkpoints_index.hostile import as_archive, hostile_pickles
from tests.checkpoints_index.model_formats import MODEL_FORMATS
from tests.checkpoints_index.test_damage import W_0

MUTANTS = 400
_SECONDS = 5.0
_GIBIBYTE = 2**20  # in the units of getrusage


def _in_a_step(name: str) -> Callable[[Path], object]:
    return lambda folder: MODEL_FORMATS[name](folder / f"checkpoint-{STEP}")


WRITERS: dict[str, Callable[[Path], object]] = {
    **{name: _in_a_step(name) for name in MODEL_FORMATS},
    **{name: write for name, write in FORMATS.items() if "model folder" not in name},
    **SNAPSHOTS,
}


def read_models(folder: Path) -> dict[str, Tensor]:
    """W_t of every matrix of every checkpoint that there is an answer to compare with."""
    w_0, found = W_0(), {}
    models = [folder / f"checkpoint-{STEP}"] if (folder / f"checkpoint-{STEP}").is_dir() else []
    if models and not (models[0] / "adapter_config.json").is_file():
        checkpoints = [open_model(models[0])]
    else:
        checkpoints = find_checkpoints(folder)
    for checkpoint in checkpoints:
        for matrix in checkpoint.matrices:
            weight = checkpoint.read(matrix)
            if matrix.name in w_0 and matrix.shape == tuple(w_0[matrix.name].shape):
                found[f"{checkpoint.step} {matrix.name}"] = weight.on(w_0[matrix.name])
    return found


def unchecked_from(path: Path) -> int:
    """Where in a file the bytes begin that its format cannot check."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return 8 + int.from_bytes(content[:8], "little")
    if path.suffix == ".gguf":
        return min(info.offset for info in GgufModel([path])._infos.values())
    # Scalings and adapters' settings are plain numbers, of which any could be right.
    if path.name in ("old.pt", "adapter_config.json", "run.json", "trainer_state.json"):
        return 0
    return len(content)


def mutants(content: bytes, other: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """Flips, truncations, and runs of bytes changed, removed, doubled or taken from elsewhere."""
    for _ in range(count):
        mutated = bytearray(content)
        at = rng.randrange(len(content))
        run = rng.choice([1, 4, 8, 64, 500])
        kind = rng.randrange(8)
        if kind == 0:
            mutated = mutated[:at]
        elif kind == 1:
            mutated[at : at + run] = b""
        elif kind == 2:
            mutated[at:at] = mutated[at : at + run]
        elif kind == 3:
            mutated[at : at + run] = bytes([rng.choice([0, 0xFF, 0x5B])]) * run
        elif kind == 4:
            mutated[:run] = other[:run]
        elif kind == 5:
            start = rng.randrange(max(1, len(other) - run))
            mutated[at : at + run] = other[start : start + run]
        else:
            for _ in range(rng.randrange(1, 4)):
                # Half of the flips go where the lengths and places of headers are.
                end = min(512, len(mutated)) if kind == 6 else len(mutated)
                mutated[rng.randrange(end)] ^= 1 << rng.randrange(8)
        yield bytes(mutated)


def assert_bounded(folder: Path, path: Path, expected: dict[str, Tensor]) -> bool:
    """Whether it was an error; it may be nothing else than one, or what is expected."""
    start = time.monotonic()
    try:
        found = read_models(folder)
    except (CheckpointError, FileNotFoundError) as error:
        assert str(folder) in str(error), f"the message must name the file: {error}"
        found = {}
        failed = True
    else:
        failed = False
    assert time.monotonic() - start < _SECONDS
    for key in found.keys() & expected.keys():
        assert torch.equal(found[key], expected[key]), (path.name, key)
    return failed


def test_there_are_thousands() -> None:
    assert MUTANTS * len(WRITERS) >= 2_000


@pytest.mark.parametrize("name", WRITERS)
def test_mutants_give_an_error_or_the_right_weights(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    expected = read_models(tmp_path)
    assert expected
    found = [p for p in sorted(tmp_path.rglob("*")) if p.is_file() and p.name != "optimizer.pt"]
    contents = {path: content for path in found if (content := path.read_bytes())}
    files = list(contents)
    rng = random.Random(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    errors = 0
    # Most of the mutants are of the files with weights.
    weights = [p for p in files if p.suffix not in (".json", ".jinja", ".parquet")]
    plan = [weights[i % len(weights)] if i % 5 else files[i % len(files)] for i in range(MUTANTS)]
    for path in files:
        content = contents[path]
        other = contents[rng.choice(files)] if len(files) > 1 else as_archive(b"\x80\x02}.")
        end = unchecked_from(path)
        scalings = b'\\"scaling' in content[:end]
        for mutated in mutants(content, other, rng, plan.count(path)):
            path.write_bytes(mutated)
            noticeable = mutated[end:] == content[end:] and end > 0 and not scalings
            errors += assert_bounded(tmp_path, path, expected if noticeable else {})
        path.write_bytes(content)
    assert errors > MUTANTS / 4
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < _GIBIBYTE
    assert not assert_bounded(tmp_path, tmp_path, expected)


PICKLED = ("pytorch_model.bin", "sharded .bin", "a trainer's .pt", "legacy .pt", "distributed")


@pytest.mark.parametrize("name", PICKLED)
def test_hostile_pickles_in_every_place_are_errors_and_leave_no_marker(
    name: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path)
    marker = tmp_path / "marker"
    suffixes = (".bin", ".pt", ".distcp", ".metadata")
    files = [p for p in tmp_path.rglob("*") if p.name.endswith(suffixes)]
    for path in [p for p in files if p.name != "optimizer.pt"]:
        content = path.read_bytes()
        for pickled in hostile_pickles(marker).values():
            for replacement in (pickled, as_archive(pickled), with_description(content, pickled)):
                path.write_bytes(replacement)
                assert assert_bounded(tmp_path, path, {})
                assert not marker.exists()
        path.write_bytes(content)


def with_description(content: bytes, pickled: bytes) -> bytes:
    """Return a real archive with another description, its checksum right."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return pickled + content
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as real, zipfile.ZipFile(changed, "w") as archive:
        for name in real.namelist():
            archive.writestr(name, pickled if name.endswith("data.pkl") else real.read(name))
    return changed.getvalue()
