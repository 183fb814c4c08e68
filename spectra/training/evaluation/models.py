"""Loads what is evaluated: whole models and adapters, on the device that there is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# Registers our adapters with PEFT, which reads them by their names.
import spectra.methods  # noqa: F401

_ADAPTER = "adapter_config.json"
_WEIGHTS = {".safetensors", ".bin", ".pt", ".json"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""In which models are evaluated, by the names that users give."""


def device() -> torch.device:
    """Return the accelerator, or the CPU where there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def dtype_for_text() -> torch.dtype:
    """Return bfloat16 where the hardware has it, as in the paper's §6, else float32."""
    modern = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if modern else torch.float32


def dtype_named(name: str) -> torch.dtype:
    """Return one of `DTYPES`; raises ValueError for another name."""
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}.")
    return DTYPES[name]


def is_adapter(path: Path | str) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(path) / _ADAPTER).is_file()


def load_model(path: Path | str, dtype: torch.dtype, base: Path | str | None = None) -> Any:
    """Load a model, or an adapter merged into its base, onto the device.

    An adapter is merged in float32 and the sum rounded once, to `dtype`.

    Parameters
    ----------
    path : Path or str
        Folder or hub id of a causal language model, or folder of a PEFT adapter.
    dtype : torch.dtype
        Of the loaded model.
    base : Path or str, optional
        The adapter's base; by default the one that it names.

    Raises
    ------
    ValueError
        If it cannot be loaded.
    """
    if not is_adapter(path):
        return _loaded(_whole_model, path, dtype)
    whole = _loaded(_whole_model, _base_of(path, base), torch.float32)
    return _merged(whole, Path(path)).to(dtype)


def load_tokenizer(path: Path | str, base: Path | str | None = None) -> Any:
    """Load the tokenizer of a model; of an adapter its own or, where it has none, its base's."""
    lacks_one = is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file()
    return _loaded(_tokenizer, _base_of(path, base) if lacks_one else path)


def fingerprint(path: Path | str, base: Path | str | None = None) -> str:
    """Return what changes when a model's, or an adapter's and its base's files change; cheaply."""
    files = sorted(p for p in Path(path).glob("*") if p.suffix in _WEIGHTS)
    if not files:
        return str(path)  # of the hub
    stats: list[Any] = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    if is_adapter(path):
        stats.append(fingerprint(_base_of(path, base)))
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def _base_of(path: Path | str, base: Path | str | None) -> Path | str:
    named = json.loads((Path(path) / _ADAPTER).read_bytes()).get("base_model_name_or_path")
    if not (base or named):
        raise ValueError(f"{path} does not name its base. Give it with --base.")
    return base or named


def _whole_model(path: str, dtype: torch.dtype) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.to(device())


def _tokenizer(path: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _merged(model: Any, path: Path) -> Any:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    adapted = PeftModel.from_pretrained(model, str(path))
    tuner = adapted.base_model
    if not isinstance(tuner, BaseTuner):
        raise ValueError(
            f"{path} is an adapter that cannot be merged into its base "
            f"({adapted.peft_type}); only those that change weights are evaluated."
        )
    return adapted.merge_and_unload()


def _loaded(load: Callable[..., Any], path: Path | str, *arguments: Any) -> Any:
    try:
        return load(str(path), *arguments)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{str(path)!r} is neither a folder with a causal language model and its tokenizer "
            f"nor a hub id that could be loaded ({reason})."
        ) from error
