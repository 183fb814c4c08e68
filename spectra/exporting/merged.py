"""A whole model: the base's files, in which the adapted weights are replaced by W_t."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from checkpoints_index import CheckpointError, clean_name, is_remote
from checkpoints_index.adapters import AdapterFolder
from checkpoints_index.model_folders import ModelCheckpoint
from checkpoints_index.safetensors_files import TensorFile
from checkpoints_index.shards import ShardedStore
from spectra.exporting.layers import ChangedLayer

# What a model's folder has beside its weights: configuration, tokenizer, code, licence.
_BESIDE = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"}
_LICENCE = re.compile(r"(licen[cs]e|notice|use_policy).*", re.IGNORECASE)
# Descriptions of weights of other formats, which are not copied.
_OTHER_WEIGHTS = re.compile(r".*\.bin\.index\.json|adapter_config\.json")
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output|output_layer)")
_EMBEDDING = re.compile(r"(.*\.)?(embed_\w+|\w*embeddings?|wte|shared)")


def write_merged(
    adapter: AdapterFolder, changed: Iterable[ChangedLayer], base: ModelCheckpoint, folder: Path
) -> None:
    """Write the model, a tensor at a time: no more than one layer is in memory in float64.

    Raises
    ------
    CheckpointError
        If the base is not in safetensors files, or has no tensor for something that the adapter
        changes.
    """
    files = _files(base)
    names = {name: path for path, file in files.items() for name in file.tensors}
    _copy(base.path, files, folder)
    for name, tensor in _new_values(adapter, changed, base):
        file = files[names[name]]
        stored = file.tensors[name]
        dtype = getattr(torch, stored.dtype)
        if tuple(tensor.shape) != stored.shape:
            raise CheckpointError(
                f"{adapter.path} has {name!r} with shape {tuple(tensor.shape)}, the base "
                f"{base.path} with {stored.shape}. Resize the base first."
            )
        rounded = tensor.to(dtype)
        if not torch.isfinite(rounded).all():
            raise CheckpointError(
                f"{adapter.path}: the merged {name!r} would have NaN or infinite entries in "
                f"{stored.dtype}."
            )
        with open(folder / names[name], "r+b") as target:
            target.seek(file.offset(name))
            target.write(rounded.contiguous().view(torch.uint8).numpy().data)


def _new_values(
    adapter: AdapterFolder, changed: Iterable[ChangedLayer], base: ModelCheckpoint
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names in the base's files and the new values of all that differs from it."""
    for each in changed:
        place, weight = each.place, each.weight
        if weight.dense is not None:
            yield place.tensor, weight.dense
            continue
        w_0 = base.read_layer(place.layer_path)
        if weight.delta is not None:
            yield place.tensor, w_0.double() + weight.delta
        elif weight.update is not None:
            b, a = weight.update
            update = b @ a  # (m, n)
            yield place.tensor, w_0.double() + (update.T if place.transposed else update)
    stored = {clean_name(name): name for name in base.store.tensors}
    is_tied = not any(_HEAD.fullmatch(name) for name in stored)
    for name in adapter.others:
        path = clean_name(name)
        if path not in stored:
            raise CheckpointError(
                f"{adapter.path} changes {path!r}, which the base {base.path} does not store. "
                "Merge this adapter with PEFT."
            )
        if is_tied and _EMBEDDING.fullmatch(path):
            raise CheckpointError(
                f"{adapter.path} changes {path!r}, which the base {base.path} uses for two "
                "modules, and just one was trained. Merge this adapter with PEFT."
            )
        yield stored[path], adapter.read_other(name)


def _files(base: ModelCheckpoint) -> dict[str, TensorFile]:
    store = base.store
    if not is_remote(base.path):
        if isinstance(store, TensorFile):
            return {store.path.name: store}
        if isinstance(store, ShardedStore):
            shards = store.shards
            files = {name: file for name, file in shards.items() if isinstance(file, TensorFile)}
            if len(files) == len(shards):
                return files
    raise CheckpointError(
        f"The base {base.path} must be in safetensors files of this machine. Load it with "
        "Transformers and save it there, then give that folder with --base."
    )


def _copy(source: Path, files: dict[str, TensorFile], folder: Path) -> None:
    for path in sorted(source.iterdir()):
        beside = path.suffix in _BESIDE and not _OTHER_WEIGHTS.fullmatch(path.name)
        if path.is_file() and (beside or path.name in files or _LICENCE.fullmatch(path.name)):
            shutil.copyfile(path, folder / path.name)
