"""The ranks of a sharded module agree on seed and model before any work, and on success after it."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.fake_ranks import fake_rank
from support.ranks import Ranks
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torch_fastinit as fastinit
from torch_fastinit.execution.executor import Executor

#: The timeout of the groups, in seconds. A rank that waits for another in vain would need that long.
TIMEOUT = 10.0


class Net(nn.Module):
    """Filled, folded, replayed and orthogonal tensors, of which few ranks hold rows of some."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.few = nn.Parameter(torch.rand(1, 4) * 2 - 1)
        self.replayed = nn.Parameter(torch.empty(5, 2).exponential_(2.0))
        self.square = nn.Parameter(nn.init.orthogonal_(torch.empty(6, 6)))
        self.register_buffer("steps", torch.arange(3.0))


class OtherOrder(Net):
    def __init__(self) -> None:
        super().__init__()
        self._parameters = dict(reversed(self._parameters.items()))
        self._modules = dict(reversed(self._modules.items()))


class OtherName(Net):
    def __init__(self) -> None:
        super().__init__()
        self.more = self._parameters.pop("few")


class OtherShape(Net):
    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Parameter(torch.rand(2, 4) * 2 - 1)


class OtherDtype(Net):
    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Parameter(torch.rand(1, 4, dtype=torch.float64) * 2 - 1)


class OtherFill(Net):
    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Parameter(torch.rand(1, 4) * 2 - 1.5)


class OtherReplay(Net):
    def __init__(self) -> None:
        super().__init__()
        self.replayed = nn.Parameter(torch.empty(5, 2).exponential_(3.0))


class OtherBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(3))


#: How a module is sharded over a world: the mesh's shape, and what is done.
LAYOUTS: dict[str, tuple[int, ...]] = {"fsdp": (2,), "fsdp3": (3,), "tp": (2,), "both": (2, 2), "hsdp": (2, 2)}


def world_of(layout: str) -> int:
    return int(torch.tensor(LAYOUTS[layout]).prod())


@functools.cache
def mesh_of(layout: str) -> DeviceMesh:
    """Made once in each worker, by all ranks."""
    shape = LAYOUTS[layout]
    return init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp") if len(shape) == 2 else (layout,))


def sharded(layout: str, kind: Callable[[], nn.Module] = Net) -> Any:
    mesh = mesh_of(layout)
    with fastinit.deferred():
        module = kind()
    if layout in ("tp", "both"):
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(module, mesh["tp"], plan)
    if layout != "tp":
        fully_shard(module, mesh=mesh["dp"] if layout == "both" else mesh)
    return module


def snapshot(module: nn.Module) -> list[Any]:
    """What a module is, but for the bits of its tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return [(name, id(t), type(t), dict(vars(t))) for (name, t) in zip(module.state_dict(), tensors, strict=False)]


def all_deferred(module: nn.Module) -> bool:
    """Whether nothing of it is real."""
    tensors = [*module.parameters(), *module.buffers()]
    return all((t.to_local() if isinstance(t, DTensor) else t).is_meta for t in tensors)


def bits(module: nn.Module) -> dict[str, list[float]]:
    """What this rank holds, by name."""
    return {name: (t.to_local() if isinstance(t, DTensor) else t).tolist() for name, t in module.state_dict().items()}


def refused(module: nn.Module, **arguments: Any) -> str:
    """The error of a `materialize` that fails soon and leaves the module as it was."""
    groups = len(dist.distributed_c10d._world.pg_map)
    before, start = snapshot(module), time.monotonic()
    try:
        fastinit.materialize(module, **arguments)
    except Exception as error:
        assert time.monotonic() - start < TIMEOUT / 2
        assert snapshot(module) == before and all_deferred(module)
        assert len(dist.distributed_c10d._world.pg_map) == groups
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


def expected(layout: str, seed: int) -> dict[str, list[float]]:
    """What this rank should hold, from a module that is materialised without a word to others."""
    return bits(fastinit.materialize(sharded(layout), seed=seed, check=False))


# ---- Seeds ----------------------------------------------------------------------------------------------------------


def different_seeds(layout: str) -> str:
    module = sharded(layout)
    message = refused(module, seed=7 if dist.get_rank() == 1 else -3)
    assert bits(fastinit.materialize(module, seed=5)) == expected(layout, 5)
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_different_seeds(ranks: Ranks, layout: str) -> None:
    messages = ranks.run(world_of(layout), different_seeds, layout, group_timeout=TIMEOUT)
    others = {2: "rank 0", 3: "ranks 0, 2", 4: "ranks 0, 2, 3"}[world_of(layout)]
    for message in messages:
        assert message == (
            f"RuntimeError: the ranks of the module's mesh were given different seeds: -3 on {others}; 7 on rank 1; "
            "no rank has changed its module"
        )


def a_seed_on_one_rank() -> str:
    module = sharded("fsdp")
    message = refused(module, seed=None if dist.get_rank() else 2)
    assert bits(fastinit.materialize(module, seed=5)) == expected("fsdp", 5)
    return message


def test_a_seed_on_one_rank_alone(ranks: Ranks) -> None:
    for message in ranks.run(2, a_seed_on_one_rank, group_timeout=TIMEOUT):
        assert "given different seeds: 2 on rank 0; none on rank 1;" in message


def extreme_seeds() -> None:
    for seed in (2**63 - 1, -(2**63), 2**64 - 1, 0):
        assert bits(fastinit.materialize(sharded("both"), seed=seed)) == expected("both", seed)


def test_any_seed(ranks: Ranks) -> None:
    ranks.run(4, extreme_seeds, group_timeout=TIMEOUT)


def no_seed(layout: str) -> torch.Tensor:
    torch.manual_seed(100 + dist.get_rank())
    module = fastinit.materialize(sharded(layout))
    after = torch.get_rng_state()
    torch.manual_seed(100 + dist.get_rank())
    torch.empty((), dtype=torch.int64).random_(-(2**63), None)  # once
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(100)
    seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    assert bits(module) == expected(layout, seed)
    return after


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_seed_that_of_the_first_rank_is_used(ranks: Ranks, layout: str) -> None:
    """And every rank's own generator draws once."""
    after = ranks.run(world_of(layout), no_seed, layout, group_timeout=TIMEOUT)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(after, 2))


def the_first_by_the_mesh() -> None:
    mesh = DeviceMesh("cpu", [2, 0, 1])
    torch.manual_seed(100 + dist.get_rank())
    with fastinit.deferred():
        module = Net()
    fastinit.materialize(fully_shard(module, mesh=mesh))
    with fastinit.deferred():
        other = Net()
    torch.manual_seed(102)
    seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    assert bits(fastinit.materialize(fully_shard(other, mesh=mesh), seed=seed, check=False)) == bits(module)


def test_the_first_rank_is_that_of_the_mesh(ranks: Ranks) -> None:
    ranks.run(3, the_first_by_the_mesh, group_timeout=TIMEOUT)


# ---- Models ---------------------------------------------------------------------------------------------------------


def another_model(layout: str, kind: type[Net]) -> str:
    odd = dist.get_rank() == 1
    module = sharded(layout, kind if odd else Net)
    message = refused(module, seed=5)
    assert bits(fastinit.materialize(sharded(layout) if odd else module, seed=5)) == expected(layout, 5)
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "kind, what",
    [
        (OtherName, "names"),
        (OtherShape, "logical shapes or dtypes"),
        (OtherDtype, "logical shapes or dtypes"),
        (OtherFill, "initial values"),
        (OtherReplay, "initial values"),
        (OtherBuffer, "initial values"),
    ],
)
def test_another_model_on_one_rank(ranks: Ranks, layout: str, kind: type[Net], what: str) -> None:
    others = {2: "rank 0", 3: "ranks 0, 2", 4: "ranks 0, 2, 3"}[world_of(layout)]
    for message in ranks.run(world_of(layout), another_model, layout, kind, group_timeout=TIMEOUT):
        if world_of(layout) > 2:
            assert f"hold different models: rank 1 with other {what} than {others}. Build" in message
        else:
            assert f"with other {what} than" in message
