"""The readers of whole weights, and opening a model by its folder or file."""

from __future__ import annotations

from pathlib import Path

from checkpoints_index.byte_files import is_file, names_in
from checkpoints_index.distributed_files import DistributedReader
from checkpoints_index.errors import CheckpointError
from checkpoints_index.gguf_files import GgufReader
from checkpoints_index.matrices import Checkpoint
from checkpoints_index.readers import Candidate, Reader
from checkpoints_index.safetensors_files import SafetensorsReader
from checkpoints_index.torch_files import TorchFileReader, TorchReader

MODEL_READERS: tuple[Reader, ...] = (
    SafetensorsReader(),
    TorchReader(),
    DistributedReader(),
    TorchFileReader(),
    GgufReader(),
)
"""Of all formats that hold whole weights."""
LOOKED_FOR = (
    "model.safetensors, pytorch_model.bin, their indices of shards, .metadata with *.distcp, "
    "*.pt, *.pth, *.ckpt, *.bin and *.gguf"
)
"""What the files of these are called, for messages."""


def find_models(path: Path) -> list[Candidate]:
    """Return the models in a folder itself, or the one that a file is; by names alone."""
    if is_file(path):
        folder, names = path.parent, {path.name}
    else:
        folder, names = path, names_in(path)
    return [candidate for reader in MODEL_READERS for candidate in reader.find(folder, names)]


def open_whole_model(path: Path, step: int) -> Checkpoint:
    """Open the one model that a folder or a file holds.

    Raises
    ------
    CheckpointError
        If it holds none or several, or is broken.
    """
    found = find_models(path)
    if not found:
        raise CheckpointError(
            f"{path} holds no base model: looked for {LOOKED_FOR}. Give the folder or file of one."
        )
    if len(found) > 1:
        listed = ", ".join(str(candidate.path) for candidate in found)
        raise CheckpointError(f"{path} holds {len(found)} models: {listed}. Give one of them.")
    (candidate,) = found
    reader = next(reader for reader in MODEL_READERS if reader.format == candidate.format)
    return reader.open(candidate, step)
