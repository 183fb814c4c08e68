"""Whole weights out of sharded parameters: two gloo processes, and DeepSpeed's interface."""

from __future__ import annotations

import enum
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from spectra.recording.gathering import (
    agreed,
    gathered,
    is_sharded,
    is_writer,
    refuse_unsupported,
    settle,
    whole_shape,
)
from tests.helpers import gaussian, seeded
from tests.ranks import Ranks


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(__name__) as launcher:
        yield launcher


# What is not sharded.


@pytest.mark.parametrize("trained", [True, False])
def test_a_plain_tensor_is_given_as_it_is(trained: bool) -> None:
    weight = nn.Parameter(gaussian(4, 3), requires_grad=trained)
    assert not is_sharded(weight)
    assert whole_shape(weight) == (4, 3)
    with gathered(weight) as whole:
        assert whole.data_ptr() == weight.data_ptr()
        assert not whole.requires_grad
    assert torch.is_grad_enabled()
    assert weight.requires_grad == trained


def test_without_a_process_group_the_process_decides_and_writes() -> None:
    assert is_writer()
    assert agreed(7) == 7


def test_an_ordinary_model_is_not_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    refuse_unsupported(model)
    settle(model)


# DTensors.

# Of two processes; 5 rows are not divided evenly.
PLACEMENTS: list[list[Placement]] = [[Shard(0)], [Shard(1)], [Replicate()]]


def _dtensors() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    expected = gaussian(5, 4)
    for placements in PLACEMENTS:
        weight = nn.Parameter(distribute_tensor(expected, mesh, placements))
        assert is_sharded(weight)
        assert whole_shape(weight) == (5, 4)
        with gathered(weight) as whole:
            assert type(whole) is Tensor
            assert torch.equal(whole, expected)
            assert not whole.requires_grad
        assert weight.requires_grad and weight.grad is None


def test_a_dtensor_is_gathered_from_any_placement(ranks: Ranks) -> None:
    ranks(_dtensors)


def _shards_of_two_axes() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    expected = gaussian(6, 4)
    for placements in ([Replicate(), Shard(1)], [Shard(0), Shard(1)], [Shard(0), Shard(0)]):
        with gathered(distribute_tensor(expected, mesh, placements)) as whole:
            assert torch.equal(whole, expected)
    # FSDP2 over tensor parallelism cuts shards of shards, which do not lie in order.
    linear = nn.Linear(4, 6, bias=False)
    linear.weight = nn.Parameter(expected.clone())
    model = nn.Sequential(linear)
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    with gathered(next(model.parameters())) as whole:
        assert torch.equal(whole, expected)


def test_a_dtensor_of_two_mesh_axes_is_gathered() -> None:
    with Ranks(__name__, size=4) as four:
        four(_shards_of_two_axes)


def _mlp(**options: Any) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """Two layers under FSDP2, and their weights before."""
    with seeded(0):
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model, weights


def _fully_sharded() -> None:
    model, weights = _mlp()
    for name, parameter in model.named_parameters():
        assert is_sharded(parameter)
        assert whole_shape(parameter) == tuple(weights[name].shape)
        with gathered(parameter) as whole:
            assert torch.equal(whole, weights[name])


def test_a_fully_sharded_model_is_gathered(ranks: Ranks) -> None:
    ranks(_fully_sharded)


def _after_an_evaluation() -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model, weights = _mlp(reshard_after_forward=False, mp_policy=policy)
    with torch.no_grad():
        expected = model(torch.ones(1, 6))
    # Without this the test below would show nothing: whole, but rounded.
    rounded = next(model.parameters())
    assert not is_sharded(rounded) and rounded.dtype == torch.bfloat16
    settle(model)
    for name, parameter in model.named_parameters():
        assert is_sharded(parameter)
        with gathered(parameter) as whole:
            assert torch.equal(whole, weights[name])
    with torch.no_grad():
        assert torch.equal(model(torch.ones(1, 6)), expected)


def test_after_an_evaluation_the_exact_weights_are_gathered(ranks: Ranks) -> None:
    ranks(_after_an_evaluation)


class _Offloaded:
    """A DTensor whose shard is kept on the CPU and whose process group is the GPUs'."""

    device = torch.device("cpu")
    device_mesh = types.SimpleNamespace(device_type="cuda")

    def to(self, device: str) -> _Offloaded:
        moved = _Offloaded()
        moved.device = torch.device(device)
        return moved

    def full_tensor(self) -> Tensor:
        assert self.device.type == "cuda", "No backend type associated with device type cpu"
        return gaussian(2, 2)


def test_an_offloaded_shard_travels_by_its_own_device() -> None:
    offloaded: Any = _Offloaded()
    with gathered(offloaded) as whole:
        assert torch.equal(whole, gaussian(2, 2))
    assert offloaded.device.type == "cpu"


def _rank_zero_decides() -> None:
    rank = dist.get_rank()
    assert is_writer() == (rank == 0)
    assert agreed(rank) == 0
    assert agreed(None if rank else "reason") == "reason"


def test_all_ranks_agree_on_what_rank_zero_says(ranks: Ranks) -> None:
    ranks(_rank_zero_decides)


def _flattened() -> None:
    for original in (True, False):
        for inner in (True, False):
            model = nn.Sequential(nn.Linear(4, 4))
            with warnings.catch_warnings():
                # It says itself that it is to be given up.
                warnings.simplefilter("ignore")
                wrapped = FullyShardedDataParallel(
                    model, use_orig_params=original, device_id=torch.device("cpu")
                )
            with pytest.raises(ValueError, match="fully_shard"):
                refuse_unsupported(model if inner else wrapped)


def test_the_first_fsdp_is_refused(ranks: Ranks) -> None:
    ranks(_flattened)


# DeepSpeed ZeRO-3, by its documented interface; tests/benchmarks/zero3.py runs the real one.


class _Status(enum.Enum):
    AVAILABLE = 1
    NOT_AVAILABLE = 2


class _Zero3:
    """What `deepspeed.zero` does to a parameter, in one process."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}
        self.gathers = 0

    def partition(self, parameter: Any) -> None:
        parameter.ds_id = id(parameter)
        parameter.ds_shape = parameter.shape
        self.kept[parameter.ds_id] = parameter.data
        self.release(parameter)

    def release(self, parameter: Any) -> None:
        parameter.data = torch.empty(0, dtype=parameter.dtype)
        parameter.ds_status = _Status.NOT_AVAILABLE

    def GatheredParameters(  # noqa: N802
        self, params: Sequence[Any], modifier_rank: int | None = None
    ) -> _Gathered:
        assert modifier_rank is None, "a modifier is broadcast, and recording modifies nothing"
        return _Gathered(self, list(params))


class _Gathered:
    def __init__(self, zero: _Zero3, params: list[Any]) -> None:
        self.zero, self.params = zero, params

    def __enter__(self) -> None:
        for parameter in self.params:
            assert parameter.ds_status is _Status.NOT_AVAILABLE, "contexts must not overlap"
            parameter.data = self.zero.kept[parameter.ds_id]
            parameter.ds_status = _Status.AVAILABLE
            self.zero.gathers += 1

    def __exit__(self, *_: object) -> None:
        for parameter in self.params:
            self.zero.release(parameter)


@pytest.fixture
def zero(monkeypatch: pytest.MonkeyPatch) -> _Zero3:
    fake: Any = types.ModuleType("deepspeed")
    fake.zero = _Zero3()
    monkeypatch.setitem(sys.modules, "deepspeed", fake)
    return fake.zero


def test_a_partitioned_parameter_is_gathered_and_released_again(zero: _Zero3) -> None:
    expected = gaussian(4, 3)
    weight = nn.Parameter(expected.clone())
    zero.partition(weight)
    assert tuple(weight.shape) == (0,)
    assert is_sharded(weight)
    assert whole_shape(weight) == (4, 3)
    with gathered(weight) as whole:
        assert torch.equal(whole, expected)
        assert not whole.requires_grad
    assert tuple(weight.shape) == (0,)
    assert zero.gathers == 1


def test_a_parameter_that_stays_whole_is_not_gathered_again(zero: _Zero3) -> None:
    weight = nn.Parameter(gaussian(4, 3))
    zero.partition(weight)
    with zero.GatheredParameters([weight]):
        # Small parameters always are; a second context would be refused.
        assert is_sharded(weight)
        with gathered(weight) as whole:
            assert torch.equal(whole, gaussian(4, 3))
        assert tuple(weight.shape) == (4, 3)
    assert zero.gathers == 1
