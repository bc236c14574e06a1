"""Models for tests on several ranks, and what each rank has to hold of them, by torch's own cuts of index tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import torch_fastinit as fastinit
from torch_fastinit._torch import fsdp_parameters


class Corners(nn.Module):
    """What named models have not: beside them in every test."""

    def __init__(self) -> None:
        super().__init__()
        self.two_draws = nn.Parameter(torch.empty(10, 4))
        with torch.no_grad():
            self.two_draws[:2].normal_()
            self.two_draws[2:].uniform_()
        self.embedding = nn.Embedding(11, 4, padding_idx=3)
        self.program = nn.Parameter(torch.randn(7, 4) * 0.02)
        self.truncated = nn.Parameter(nn.init.trunc_normal_(torch.empty(6, 4), std=0.02))
        self.sparse = nn.Parameter(nn.init.sparse_(torch.empty(9, 6), 0.3))
        self.orthogonal = nn.Parameter(nn.init.orthogonal_(torch.empty(8, 6)))
        self.gamma = nn.Parameter(torch.distributions.Gamma(2.0, 1.0).sample((4, 4)))
        self.few = nn.Parameter(torch.randn(2, 6))
        self.one = nn.Parameter(torch.randn(1, 6))
        self.linear = nn.Linear(12, 12)
        self.tied = self.linear.weight
        self.rows = nn.Parameter(torch.randn(12, 8)[2:10].clone())
        self.register_buffer("range", torch.arange(5) * 2)
        self.register_buffer("noise", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Beside(nn.Module):
    """A model, and the corners."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.model = build()
        self.corners = Corners()

    def forward(self, *args: Any) -> Any:
        return self.model(*args)


def deferred(build: Callable[[], nn.Module]) -> Any:
    with fastinit.deferred():
        return build()


def on_meta(build: Callable[[], nn.Module]) -> Any:
    with torch.device("meta"):
        return build()


def whole(build: Callable[[], nn.Module], **how: Any) -> Any:
    """What one process has."""
    return fastinit.materialize(on_meta(build) if how.get("reset") else deferred(build), seed=0, **how)


def with_indices(build: Callable[[], nn.Module]) -> Any:
    """The model with each element's number among those of its tensor: what torch makes of these is who holds what."""
    model = deferred(build)
    fastinit.materialize(model, seed=0, dtype=torch.float64, unwritten="zeros")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape))
    return model


def local(tensor: Tensor) -> Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _can_gather(tensor: DTensor) -> bool:
    if any("Strided" in str(placement) for placement in tensor.placements):
        return False
    return torch.__version__ >= (2, 12) or tensor.device_mesh.ndim == 1


def different(model: nn.Module, indices: nn.Module, expected: nn.Module, strip: str = "") -> list[str]:
    """The names of tensors of `model` that are not what `indices`, sharded alike, says of `expected`.

    `full_tensor()` is compared, too, where torch can gather: it cannot where the mesh does not divide strided shards,
    and torch 2.10 and 2.11 not always on a mesh of several dimensions.
    """
    want = {**dict(expected.named_parameters(remove_duplicate=False)), **dict(expected.named_buffers())}
    where = dict(indices.named_parameters(remove_duplicate=False))
    found = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        value = want[name.replace(strip, "")].detach()
        own, at = local(parameter).detach(), local(where[name]).detach().long()
        same = own.shape == at.shape and own.dtype is value.dtype
        same = same and torch.equal(own.flatten(), value.flatten()[at.flatten()])
        if isinstance(parameter, DTensor) and _can_gather(parameter):
            same = same and torch.equal(parameter.full_tensor(), value)
        if not same:
            found.append(name)
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, want[name.replace(strip, "")]):
            found.append(name)
    return found + [f"ties of {name}" for name, tie in ties(indices).items() if ties(model)[name] != tie]


def twice_in_memory(model: nn.Module) -> list[str]:
    """Parameters whose padded memory, which `fully_shard` keeps, is not that of the shard."""
    found = []
    for one in fsdp_parameters(model):
        shard, padded = one.sharded_param._local_tensor, one._sharded_param_data
        if shard.untyped_storage().data_ptr() != padded.untyped_storage().data_ptr():
            found.append(one._module_info.param_name)
    return found


def ties(model: nn.Module) -> dict[str, int]:
    """By name, the place of the first parameter that is the same object."""
    first: dict[int, int] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), i) for i, (name, parameter) in enumerate(named)}
