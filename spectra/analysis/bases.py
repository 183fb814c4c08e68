"""Which base checkpoints are compared with: the one given, the one they name, or the one beside."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from checkpoints_index import (
    Checkpoint,
    CheckpointError,
    as_location,
    find_models,
    is_remote,
)
from checkpoints_index.model_folders import ModelCheckpoint

logger = logging.getLogger(__name__)

# Weights, configuration and tokenizer.
_FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def find_base(
    base: Path | str | None,
    checkpoints: Sequence[Checkpoint],
    root: Path | None = None,
    beside: Sequence[Path] = (),
) -> Path:
    """Return where W_0 is.

    Parameters
    ----------
    base : Path or str, optional
        What the user gave: a folder or file, an address such as ``s3://…``, or an id on the hub.
    checkpoints : sequence of Checkpoint
        What is compared with it. The base that they name is looked for in the working folder, in
        `root` and in the hub's cache; then among `beside`, by its name; then on the hub. Where they
        name none, it is the only one of `beside`.
    root : Path, optional
        The folder that they were found in.
    beside : sequence of Path
        Models in it that are no step of anything.

    Raises
    ------
    ValueError
        If neither the user nor the checkpoints name a base, or these name several.
    FileNotFoundError
        If the named base is nowhere.
    """
    if base is not None:
        given = as_location(base)
        return given if is_remote(given) else _fetched(str(base))
    named = {c.base or None for c in checkpoints}
    if len(named) > 1:
        raise ValueError(f"The checkpoints name several bases: {named}. Choose one with --base.")
    name = named.pop()
    if name is None and len(beside) != 1:
        if not beside:
            raise ValueError(
                f"{checkpoints[0].path} does not say what it was trained from; give --base."
            )
        raise ValueError(
            f"{checkpoints[0].path} names no base, and there are several models beside it: "
            f"{', '.join(map(str, beside))}. Choose one with --base."
        )
    if name is not None:
        if Path(name).exists():
            return Path(name)
        if root is not None and (below := _below(root, name)) is not None:
            return below
        if (cached := _cached(name)) is not None:
            return cached
    called_so = [path for path in beside if name is not None and path.name == Path(name).name]
    if name is not None and len(called_so) != 1:
        # What else lies beside may well be this training merged: it is named, and never taken.
        return _fetched(name, beside)
    (found,) = called_so or beside
    logger.warning(
        "%s wants the base %s, which is not there under that name: %s is taken, the %s beside it. "
        "Give another with --base.",
        checkpoints[0].path,
        name or "(it names none)",
        found,
        "model of its name" if called_so else "only model",
    )
    return found


def warn_of_another_model(base: Checkpoint, checkpoint: Checkpoint) -> None:
    """Say so if base and checkpoint are of different architectures, by what both say.

    Their matrices may be called alike and have the same shapes, and rows would look like drift.
    """
    if isinstance(base, ModelCheckpoint) and isinstance(checkpoint, ModelCheckpoint):
        wanted, found = (model.config.get("model_type") for model in (checkpoint, base))
        if wanted is not None and found is not None and wanted != found:
            logger.warning(
                "%s is a %s model, its base %s a %s: they may not belong together. Give another "
                "with --base.",
                checkpoint.path,
                wanted,
                base.path,
                found,
            )


def _below(root: Path, name: str) -> Path | None:
    """Return the model that a checkpoint means by `name`, in the folder that it was found in."""
    place = root / name
    if not is_remote(root):
        return place if place.exists() else None
    # A name in a file must not lead to another server.
    if PurePosixPath(name).is_absolute() or {"", ".."} & set(name.split("/")) or "://" in name:
        return None
    try:
        return place if find_models(place) else None
    except CheckpointError:
        return None


def _cached(name: str) -> Path | None:
    """Return the snapshot of a hub id in the hub's cache, if the whole weights are there."""
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, local_files_only=True))
    except Exception:  # the hub's client raises many kinds, and may not be installed
        return None
    return folder if any(not model.missing for model in find_models(folder)) else None


def _fetched(name: str, beside: Sequence[Path] = ()) -> Path:
    if Path(name).exists():
        return Path(name)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=_FETCHED))
    except Exception as error:  # as in `_cached`
        others = f", or choose what lies beside: {', '.join(map(str, beside))}" if beside else ""
        raise FileNotFoundError(
            f"The base {name} is neither a folder here nor a model that could be fetched from the "
            f"hub ({type(error).__name__}). Give its folder with --base{others}."
        ) from error
