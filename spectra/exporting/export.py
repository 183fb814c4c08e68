"""The one call: finds adapter and base, checks that they belong together, writes the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from checkpoints_index import CheckpointError, clean_name
from checkpoints_index.adapters import CONFIG_FILE, AdapterFolder, is_adapter_folder
from checkpoints_index.bound_adapters import BoundAdapter
from checkpoints_index.model_folders import ModelCheckpoint
from checkpoints_index.model_readers import open_whole_model
from spectra.analysis.bases import find_base
from spectra.exporting.layers import checked_layers
from spectra.exporting.lora import whole_modules, write_lora
from spectra.exporting.merged import write_merged
from spectra.store import Run
from spectra.store.files import refuse_filled, whole_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""In which an adapter's factors can be stored."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path : Path
        The folder.
    base : Path
        Where the original base was found.
    layers : int
        How many layers differ from the base.
    rank : int, optional
        Of the LoRA adapter; ``None`` for a merged model.
    whole : tuple of str
        Modules that were trained whole, which the LoRA adapter carries (``modules_to_save``).
    size : int
        Of all files, in bytes.
    """

    path: Path
    base: Path
    layers: int
    rank: int | None
    whole: tuple[str, ...]
    size: int


def export(
    adapter: Path | str,
    out: Path | str,
    *,
    base: Path | str | None = None,
    merged: bool = False,
    dtype: str | None = None,
    initial: Path | str | None = None,
    progress: bool = False,
) -> Exported:
    """Write an adapter as a standard LoRA adapter on its original base, or merged into that.

    The LoRA adapter has scaling 1 (``lora_alpha`` equals the rank), one rank for all layers,
    and B A = W_t − W_0, computed in float64 and rounded once to `dtype`. PEFT loads it without
    this package. A merged model is W_t in the base's own dtype, rounded once; every other tensor
    has the base's bytes.

    Parameters
    ----------
    adapter : Path or str
        An adapter's folder as PEFT writes it, of SORSA, PiSSA or any method whose W_t
        `checkpoints_index` reads; or a run that ``spectra train`` wrote.
    out : Path or str
        The new folder; it appears whole.
    base : Path or str, optional
        Folder or hub id of the weights before any method touched them; by default what the
        adapter names.
    merged : bool
        Write the whole model.
    dtype : {"float32", "bfloat16", "float16"}, optional
        Of the adapter's factors; float32 by default. Not for a merged model.
    initial : Path or str, optional
        The adapter as it was before training, of a method such as PiSSA that subtracts it from
        the base. Without it, an adapter that says ``pissa`` or ``olora`` is computed again from
        the base, as PEFT did.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Exported
        Where it is, and its rank and size.

    Raises
    ------
    CheckpointError
        If a file is broken, the base is another than the one the adapter was made on, or the
        adapter cannot be expressed as asked for.
    FileExistsError
        If `out` holds something already.
    FileNotFoundError
        If adapter or base are not there.
    ValueError
        If the options contradict each other, or nothing says which base is meant.

    Examples
    --------
    >>> spectra.export("runs/sorsa", "sorsa-as-lora").rank  # doctest: +SKIP
    32
    """
    if merged and dtype is not None:
        raise ValueError("A merged model has its base's dtype; leave dtype away.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    out = Path(out)
    refuse_filled(out)
    source = AdapterFolder(_find_adapter(Path(adapter)), step=0)
    start = None if initial is None else AdapterFolder(_find_adapter(Path(initial)), step=0)
    place = find_base(base, [source], root=Path(adapter))
    opened = open_whole_model(place, step=0)
    if not isinstance(opened, ModelCheckpoint) or opened.quantisation is not None:
        raise CheckpointError(
            f"{place} is no model of plain weights ({getattr(opened, 'quantisation', None)}). "
            "Give the 16- or 32-bit model that it was made from with --base."
        )
    layers = tqdm(
        checked_layers(source, BoundAdapter(source, opened, start), opened),
        total=len(source.layers),
        unit="layer",
        disable=not progress,
        leave=False,
    )
    with whole_folder(out) as folder:
        rank = None
        if merged:
            write_merged(source, layers, opened, folder)
        else:
            name = source.base if base is None else str(base)
            rank = write_lora(source, layers, opened, DTYPES[dtype or "float32"], name, folder)
    whole = tuple(sorted(map(clean_name, whole_modules(source)))) if rank else ()
    size = sum(file.stat().st_size for file in out.rglob("*"))
    return Exported(out, place, len(source.layers), rank, whole, size)


def _find_adapter(path: Path) -> Path:
    """Return the adapter's folder: the one given, or the one in a run's result."""
    if is_adapter_folder(path):
        return path
    if not Run(path).exists():
        raise FileNotFoundError(
            f"{path} is neither an adapter's folder (it has no {CONFIG_FILE}) nor a run."
        )
    # Here, for the trainer's libraries are slow to import.
    from spectra.training.trainer import FINAL

    final = path / FINAL
    if not final.is_dir():
        raise FileNotFoundError(
            f"{path} has no {FINAL} folder: the run is not finished, or was not trained by "
            "`spectra train`. Give the folder of an adapter."
        )
    if not is_adapter_folder(final):
        raise ValueError(f"{final} is a whole model, which every server loads as it is.")
    return final
