"""Whole weights out of a model that is sharded over processes, one at a time.

What shards a parameter is recognised by what it left on it, so that nothing is imported for a
model that is not sharded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def whole_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of the whole parameter, of which this process may hold a shard only."""
    # ZeRO-3 leaves an empty tensor behind; a DTensor's own shape is the whole one.
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def is_sharded(tensor: Tensor) -> bool:
    """Return whether `gathered` is a collective for this parameter.

    True of every DTensor (FSDP2, tensor parallelism) and of every parameter that DeepSpeed
    ZeRO-3 partitions; it does not depend on what is held at the moment.
    """
    return _is_dtensor(tensor) or _is_partitioned(tensor)


@contextmanager
def gathered(tensor: Tensor) -> Iterator[Tensor]:
    """Give the whole tensor within a block, to be read and not to be kept.

    For a sharded parameter all processes enter, in the same order; each is given the whole.
    Others are given as they are, without a copy. Gradients are not recorded inside.

    Parameters
    ----------
    tensor : Tensor
        The live parameter or buffer itself, not a detached view of it.
    """
    with torch.no_grad():
        if _is_dtensor(tensor):
            yield _full_tensor(tensor)
        elif _is_partitioned(tensor) and tensor.ds_status.name != "AVAILABLE":  # type: ignore[attr-defined]
            import deepspeed

            with deepspeed.zero.GatheredParameters([tensor], modifier_rank=None):
                yield tensor.detach()
        else:
            yield tensor.detach()


def settle(model: nn.Module) -> None:
    """Put FSDP2's modules back into their sharded form, the one that the optimizer updates.

    After a forward pass without a backward one, such as an evaluation, some stay whole: a copy,
    and with mixed precision a rounded one. Every process calls it; where all is sharded, it does
    nothing. The next forward pass gathers again, as after every optimizer step.
    """
    for module in model.modules():
        if _is_a(module, "FSDPModule"):
            module.reshard()  # type: ignore[operator]


def is_writer() -> bool:
    """Return whether this process writes the run: rank 0, or the only one."""
    return not _in_group() or dist.get_rank() == 0


def agreed(value: T) -> T:
    """Return rank 0's `value` on every process; a collective that waits for rank 0.

    Parameters
    ----------
    value : anything that can be pickled
        Of other ranks than 0 it is ignored.
    """
    if not _in_group():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def refuse_unsupported(model: nn.Module) -> None:
    """Refuse a model whose sharding leaves no matrix to gather.

    Raises
    ------
    ValueError
        If FSDP's first version has flattened the parameters.
    """
    flattened = any(_is_a(module, "FullyShardedDataParallel") for module in model.modules())
    if flattened or any(getattr(p, "_fsdp_flattened", False) for p in model.parameters()):
        raise ValueError(
            "The model is wrapped by FullyShardedDataParallel (FSDP1), which flattens the weights "
            "of many layers into one. Use FSDP2: torch.distributed.fsdp.fully_shard in a loop of "
            'your own, fsdp_config={"version": 2} in Transformers, fsdp_version: 2 in Accelerate.'
        )


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_dtensor(tensor: Tensor) -> bool:
    # By its method: importing the class takes 0.8 s, and its module has moved since torch 2.4.
    return hasattr(tensor, "full_tensor")


def _is_partitioned(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def _is_a(module: nn.Module, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(module).__mro__)


def _full_tensor(tensor: Any) -> Tensor:
    # Shards that are kept on the CPU travel through the accelerators: NCCL knows no other.
    if tensor.device.type != tensor.device_mesh.device_type:
        tensor = tensor.to(tensor.device_mesh.device_type)
    return tensor.full_tensor()
