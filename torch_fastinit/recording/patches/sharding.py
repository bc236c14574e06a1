"""torch's sharding code, of deferred tensors: each rank has the whole recording, and needs one chunk of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Sequence
from typing import Any

import torch

from torch_fastinit._torch import attribute, local_of, spec_of
from torch_fastinit.recording.originals import clone
from torch_fastinit.recording.tensor import Deferred


def _mesh_scatter(original: Callable[..., Any]) -> Callable[..., Any]:
    """No rank has to send what all have: torch takes a deferred tensor for one on meta, and does nothing."""

    def scatter(output: Any, scatter_list: Any, mesh: Any, mesh_dim: int = 0, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(output, Deferred):
            return original(output, scatter_list, mesh, mesh_dim, *args, **kwargs)
        with torch.no_grad():
            output.copy_(scatter_list[mesh.get_coordinate()[mesh_dim]])
        return None

    return scatter


def _mesh_broadcast(original: Callable[..., Any]) -> Callable[..., Any]:
    def broadcast(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return None if isinstance(tensor, Deferred) else original(tensor, *args, **kwargs)

    return broadcast


def _partition_value(original: Callable[..., Any]) -> Callable[..., Any]:
    """The terms of a sum: in place, since outside a context nothing else is recorded."""

    def partition(self: Any, tensor: torch.Tensor, mesh: Any, mesh_dim: int) -> Any:
        if not isinstance(tensor, Deferred) or self.reduce_op != "sum":
            return original(self, tensor, mesh, mesh_dim)
        with torch.no_grad():
            return tensor.clone().div_(mesh.size(mesh_dim=mesh_dim))

    return partition


class _Chunks(Sequence[torch.Tensor]):
    """What `torch.chunk` gives, and after that empty tensors: each made when it is asked for, of thousands of ranks."""

    def __init__(self, tensor: torch.Tensor, count: int, dim: int) -> None:
        self._tensor, self._count, self._dim = tensor, count, dim

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        i = range(self._count)[index]
        size = self._tensor.size(self._dim)
        each = -(-size // self._count)
        start = i * each
        if start >= size:
            return self._tensor.new_empty(0)
        return self._tensor.narrow(self._dim, start, min(each, size - start))


def _chunk_with_empty(original: Callable[..., Any]) -> Callable[..., Any]:
    def chunk(tensor: torch.Tensor, num_chunks: int, dim: int) -> Any:
        if isinstance(tensor, Deferred) and tensor.size(dim):
            return _Chunks(tensor, num_chunks, dim)
        return original(tensor, num_chunks, dim)

    return chunk


def _distribute_tensor(original: Callable[..., Any]) -> Callable[..., Any]:
    def distribute(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(tensor, *args, **kwargs)
        _note(result, tensor)
        return result

    return distribute


def _init_sharded_param(original: Callable[..., Any]) -> Callable[..., Any]:
    def init(self: Any, param: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, param, *args, **kwargs)
        _note(self.sharded_param, param)
        return result

    return init


def _note(sharded: Any, whole: Any) -> None:
    """Note what a shard was cut from, if it has memory of its own: it may be empty, or look like the whole tensor."""
    local = local_of(sharded) if spec_of(sharded) is not None else None
    source = whole if spec_of(whole) is None else local_of(whole)
    if isinstance(local, Deferred) and isinstance(source, Deferred):
        value = source._value
        storage = local._value.storage
        if storage is not value.storage:
            storage.part_of = value if source is whole else value.storage.part_of


#: By the module and the name there.
_WRAPPED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch.distributed.tensor._collective_utils", "mesh_scatter"): _mesh_scatter,
    ("torch.distributed.tensor._collective_utils", "mesh_broadcast"): _mesh_broadcast,
    ("torch.distributed.tensor.placement_types", "Partial._partition_value"): _partition_value,
    ("torch.distributed.tensor._api", "distribute_tensor"): _distribute_tensor,
    ("torch.distributed.fsdp._fully_shard._fsdp_common", "_chunk_with_empty"): _chunk_with_empty,
    ("torch.distributed.fsdp._fully_shard._fsdp_param", "FSDPParam._init_sharded_param.__wrapped__"): (
        _init_sharded_param  # within `torch.no_grad()`
    ),
}


def sharding_patches(known: Container[str]) -> dict[str, tuple[Any, Callable[..., Any]]]:
    """Those of modules that are loaded, but for `known` ones."""
    found: dict[str, tuple[Any, Callable[..., Any]]] = {}
    for (module, name), wrapped in _WRAPPED.items():
        function: Any = None if name in known else sys.modules.get(module)
        if function is not None:
            for part in name.split("."):
                function = attribute(function, part)
            found[name] = (function, wrapped(clone(function)))
    return found
