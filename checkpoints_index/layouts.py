"""How a fused layer's output is divided among the matrices that it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from checkpoints_index.errors import CheckpointError

# More heads or experts than any model has: a configuration beyond this is broken or hostile.
_MOST = 2**24


@dataclass(frozen=True)
class Stripes:
    """A part of a dimension: the same run of every one of its equal blocks.

    Attributes
    ----------
    blocks : int
        Into how many blocks the dimension is divided; with 1 the part is one contiguous run.
    block : int
        Length of a block.
    start, stop : int
        The run within each block.

    Examples
    --------
    >>> import torch
    >>> Stripes(2, 3, 0, 1).of(torch.arange(6)).tolist()
    [0, 3]
    """

    blocks: int
    block: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.blocks * (self.stop - self.start)

    def of(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor's first dimension, as a view where it is one run."""
        parted = tensor.unflatten(0, (self.blocks, self.block))
        return parted[:, self.start : self.stop].flatten(0, 1)


@dataclass(frozen=True)
class Settings:
    """A model's configuration, read with suspicion: it comes with the files.

    Attributes
    ----------
    values : mapping
        The ``config.json``, or the part of it that describes one tower.
    layer : str
        Path of the layer that is divided; for messages.
    """

    values: Mapping[str, Any]
    layer: str

    def count(self, *names: str) -> int | None:
        """Return the first of the settings that is given; a dot leads into a nested one."""
        for name in names:
            value: Any = self.values
            for key in name.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST:
                raise CheckpointError(
                    f"The model's configuration must give {name} as a positive number, to divide "
                    f"{self.layer}; it gives {_shown(value)}. Repair config.json."
                )
            return value
        return None

    def flag(self, name: str, default: bool) -> bool:
        """Return a setting that is true or false."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise CheckpointError(
                f"The model's configuration must give {name} as true or false, to divide "
                f"{self.layer}; it gives {_shown(value)}. Repair config.json."
            )
        return value

    @property
    def heads(self) -> int | None:
        """Number of query heads."""
        return self.count("num_attention_heads", "n_head", "n_heads", "num_heads")

    @property
    def hidden_size(self) -> int | None:
        """Width of what the layers exchange."""
        return self.count("hidden_size", "n_embd", "d_model", "embed_dim")

    @property
    def key_value_heads(self) -> int | None:
        """Number of key and value heads; as many as query heads where nothing is said."""
        names = ("num_key_value_heads", "num_kv_heads", "attn_config.kv_n_heads")
        return self.count(*names) or self.heads

    @property
    def head_size(self) -> int | None:
        """Length of a head."""
        given = self.count("head_dim", "kv_channels", "attention_head_dim")
        heads, width = self.heads, self.hidden_size
        if given or not heads or not width:
            return given
        if width % heads:
            raise CheckpointError(
                f"The model's configuration divides a width of {width} among {heads} heads, which "
                f"does not go, so {self.layer} cannot be divided. Repair config.json."
            )
        return width // heads


Division = tuple[int, tuple[int, ...]]
"""Number of blocks, and the sizes of the parts within one, in their order."""

Layout = Callable[[Settings, int], Division | None]
"""From the configuration and the size of the output to its division; ``None``: not told."""


def equal(parts: int, settings: Settings, size: int) -> Division | None:
    """Parts of one size, one after the other."""
    return 1, (size // parts,) * parts


def alternating(settings: Settings, size: int) -> Division | None:
    """Two parts row by row: one of the first, one of the second."""
    return size // 2, (1, 1)


def four_equal(settings: Settings, size: int) -> Division | None:
    """Four blocks, as from four devices, each with three parts of one size (CodeGen)."""
    return 4, (size // 12,) * 3


def by_heads(settings: Settings, size: int) -> Division | None:
    """All query heads, then all key heads, then all value heads."""
    return _stacked(settings, settings.key_value_heads)


def by_groups(settings: Settings, size: int) -> Division | None:
    """For every key and value head: the query heads that share it, then itself."""
    return _grouped(settings, settings.key_value_heads)


def by_head(settings: Settings, size: int) -> Division | None:
    """For every head its query, its key, its value."""
    return _grouped(settings, settings.heads)


def falcon(settings: Settings, size: int) -> Division | None:
    """Falcon's three: grouped, one key and value head for all, or head by head."""
    if settings.flag("new_decoder_architecture", False):
        return by_groups(settings, size)
    if settings.flag("multi_query", True):
        return _stacked(settings, 1)
    return by_head(settings, size)


def gpt_bigcode(settings: Settings, size: int) -> Division | None:
    """One key and value head for all, or head by head."""
    return _stacked(settings, 1) if settings.flag("multi_query", True) else by_head(settings, size)


def chatglm(settings: Settings, size: int) -> Division | None:
    """Stacked with heads in groups, or head by head."""
    if settings.flag("multi_query_attention", False):
        return _stacked(settings, settings.count("multi_query_group_num"))
    return by_head(settings, size)


def linear_attention(settings: Settings, size: int) -> Division | None:
    """Stacked queries, keys and values of a gated delta rule (Qwen3.5)."""
    sizes = _linear_attention_sizes(settings)
    if sizes is None:
        return None
    keys, values, key_length, value_length = sizes
    return 1, (keys * key_length, keys * key_length, values * value_length)


def linear_attention_by_groups(settings: Settings, size: int) -> Division | None:
    """For every key head its query, itself, its values and as many gates (Qwen3-Next)."""
    sizes = _linear_attention_sizes(settings)
    if sizes is None:
        return None
    keys, values, key_length, value_length = sizes
    each = values // keys * value_length
    return keys, (key_length, key_length, each, each)


def _linear_attention_sizes(settings: Settings) -> tuple[int, int, int, int] | None:
    keys = settings.count("linear_num_key_heads")
    values = settings.count("linear_num_value_heads")
    key_length = settings.count("linear_key_head_dim")
    value_length = settings.count("linear_value_head_dim")
    if not keys or not values or not key_length or not value_length:
        return None
    return keys, values, key_length, value_length


def _stacked(settings: Settings, shared: int | None) -> Division | None:
    heads, length = settings.heads, settings.head_size
    if not heads or not shared or not length:
        return None
    return 1, (heads * length, shared * length, shared * length)


def _grouped(settings: Settings, shared: int | None) -> Division | None:
    heads, length = settings.heads, settings.head_size
    if not heads or not shared or not length:
        return None
    if heads % shared:
        raise CheckpointError(
            f"The model's configuration divides {heads} query heads among {shared} key and value "
            f"heads, which does not go, so {settings.layer} cannot be divided. Repair config.json."
        )
    return shared, (heads // shared * length, length, length)


def divide(
    layout: Layout, parts: Sequence[str], settings: Settings, size: int
) -> dict[str, Stripes] | None:
    """Return where the parts of a fused output lie, or ``None`` where it is not told.

    Raises
    ------
    CheckpointError
        If the configuration's sizes do not add up to the output's.
    """
    division = layout(settings, size)
    if division is None:
        return None
    blocks, sizes = division
    block = sum(sizes)
    if blocks * block != size or min(blocks, *sizes) < 1:
        raise CheckpointError(
            f"{settings.layer} has {size} outputs, but by the model's configuration they are "
            f"{' + '.join(map(str, sizes))} ({', '.join(parts)})"
            f"{f' in each of {blocks} blocks' if blocks != 1 else ''}. Give the config.json that "
            "belongs to these weights."
        )
    found, start = {}, 0
    for part, length in zip(parts, sizes, strict=True):
        found[part] = Stripes(blocks, block, start, start + length)
        start += length
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
