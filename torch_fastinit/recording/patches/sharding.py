"""Collectives by which torch distributes a tensor: of a deferred one each rank has the whole recording already."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from torch_fastinit.recording.originals import clone
from torch_fastinit.recording.tensor import Deferred

_MODULE = "torch.distributed.tensor._collective_utils"


def _scatter(original: Callable[..., Any]) -> Callable[..., Any]:
    def scatter(output: Any, scatter_list: Any, mesh: Any, mesh_dim: int = 0, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(output, Deferred):
            return original(output, scatter_list, mesh, mesh_dim, *args, **kwargs)
        with torch.no_grad():
            output.copy_(scatter_list[mesh.get_coordinate()[mesh_dim]])
        return None

    return scatter


def _broadcast(original: Callable[..., Any]) -> Callable[..., Any]:
    def broadcast(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return None if isinstance(tensor, Deferred) else original(tensor, *args, **kwargs)

    return broadcast


def sharding_patches() -> dict[str, tuple[Any, Callable[..., Any]]]:
    """Empty until torch's module of DTensors is loaded."""
    module = sys.modules.get(_MODULE)
    if module is None:
        return {}
    found: dict[str, tuple[Any, Callable[..., Any]]] = {}
    for name, wrapped in (("mesh_scatter", _scatter), ("mesh_broadcast", _broadcast)):
        function = getattr(module, name)
        found[name] = (function, wrapped(clone(function)))
    return found
