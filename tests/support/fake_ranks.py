"""Every rank of a fake process group, one after another in this process: shapes and boxes without communication."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import debug
from torch.testing._internal.distributed.fake_pg import FakeStore

T = TypeVar("T")


def _clear_sharding_prop_cache() -> None:
    """Its own name from torch 2.11 on; two names before."""
    if hasattr(debug, "_clear_sharding_prop_cache"):
        debug._clear_sharding_prop_cache()
        return
    debug._clear_fast_path_sharding_prop_cache()
    debug._clear_python_sharding_prop_cache()


@contextlib.contextmanager
def fake_rank(rank: int, world_size: int) -> Iterator[None]:
    """This process is one rank of a fake process group, whose collectives do nothing."""
    _clear_sharding_prop_cache()  # it holds meshes that are equal, but at the coordinate of the rank before
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        _clear_sharding_prop_cache()
        dist.destroy_process_group()


def on_fake_ranks(
    mesh: Sequence[int],
    function: Callable[[DeviceMesh], T],
    ranks: Sequence[int] | None = None,
    names: tuple[str, ...] | None = None,
) -> dict[int, T]:
    """What `function` returns on each rank (or on some) of a mesh of this shape, by rank."""
    world = int(torch.tensor(mesh).prod())
    found: dict[int, Any] = {}
    for rank in range(world) if ranks is None else ranks:
        with fake_rank(rank, world):
            found[rank] = function(init_device_mesh("cpu", tuple(mesh), mesh_dim_names=names))
    return found
