"""Rules for sharded parameters: each rank has its part of what one process gets (docs/rules.md)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.fake_ranks import on_fake_ranks
from support.sharded import deferred, local, on_meta, with_indices
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torch_fastinit as fastinit
from torch_fastinit import init

RULES: dict[Any, Any] = {
    "embed.weight": partial(init.trunc_normal_, std=0.02),
    "out.weight": init.orthogonal_,
    "up.weight": lambda w: init.kaiming_normal_(w).mul_(0.5),
    "down.bias": 0.5,
    nn.Linear: {"bias": partial(fastinit.mixture_, components=[(0.5, 0), (0.3, init.normal_), (0.2, init.uniform_)])},
    nn.LayerNorm: {"weight": torch.tensor(2.0)},
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(12, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.out = nn.Linear(8, 12, bias=False)


def shard(model: Any, mesh: DeviceMesh) -> Any:
    if mesh.ndim == 2:
        parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()}, src_data_rank=None)
        mesh = mesh["dp"]
    return fully_shard(model, mesh=mesh)


def whole() -> nn.Module:
    return fastinit.materialize(deferred(Model), seed=0, init=RULES)


def assert_parts(model: nn.Module, indices: nn.Module) -> None:
    """Every parameter's local part has the elements whose numbers `indices`, sharded alike, holds."""
    want, where = dict(whole().named_parameters()), dict(indices.named_parameters())
    for name, parameter in model.named_parameters():
        at = local(where[name]).detach().long().flatten()
        assert torch.equal(local(parameter).detach().flatten(), want[name].detach().flatten()[at]), name


@pytest.mark.parametrize(("shape", "names"), [((3,), ("dp",)), ((2, 2), ("dp", "tp"))])
def test_each_rank_has_its_part(shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    def check(mesh: DeviceMesh) -> None:
        indices = shard(with_indices(Model), mesh)
        model = shard(deferred(Model), mesh)
        placements = [row.placements for row in fastinit.plan(model, init=RULES).rows if row.rule == "Linear['bias']"]
        assert all(placements)
        fastinit.materialize(model, seed=0, init=RULES, check=False)
        assert_parts(model, indices)

    on_fake_ranks(shape, check, names=names)


def test_plain_meta_modules_that_were_sharded() -> None:
    def check(mesh: DeviceMesh) -> None:
        indices = shard(with_indices(Model), mesh)
        model = shard(on_meta(Model), mesh)
        rules = {**RULES, "down.weight": None}
        with pytest.raises(RuntimeError, match=r"'norm.bias', 'down.weight': on the meta device"):
            fastinit.materialize(model, seed=0, init=rules, check=False)
        assert all(local(parameter).is_meta for parameter in model.parameters())
        fastinit.materialize(model, seed=0, reset=True, init=rules, check=False)
        assert_parts(model, indices)

    on_fake_ranks((3,), check)


def test_initialize_writes_to_real_shards() -> None:
    def check(mesh: DeviceMesh) -> None:
        indices, model = shard(with_indices(Model), mesh), shard(with_indices(Model).float(), mesh)
        before = dict(model.named_parameters())
        rules = {name: value for name, value in RULES.items() if name != nn.Linear}
        other = local(model.up.bias).clone()
        fastinit.initialize(model, rules, seed=0)
        assert all(before[name] is parameter for name, parameter in model.named_parameters())
        assert torch.equal(local(model.up.bias), other)
        fastinit.initialize(model, {**RULES, "*": None}, seed=0)
        fastinit.initialize(model, {"down.weight": lambda w: w.uniform_(-0.25, 0.25), "norm.bias": 0}, seed=0)
        assert_parts(model, indices)

    on_fake_ranks((3,), check)


def test_a_rule_that_reads_a_shard_is_refused() -> None:
    rules = {"up.*": lambda w: w.mul_(2)}

    def check(mesh: DeviceMesh) -> None:
        for wait in (True, False):
            model = deferred(Model) if wait else Model()
            shard(model, mesh)
            before = [local(parameter).clone() for parameter in model.parameters()] if not wait else []
            call = partial(fastinit.materialize, init=rules, check=False) if wait else fastinit.initialize
            with pytest.raises(RuntimeError, match=r"'up.weight' .*init\['up.\*'\]: it is sharded, and"):
                call(model, **({} if wait else {"rules": rules}), seed=0)  # type: ignore[operator]
            assert wait is fastinit.is_deferred(model)
            assert all(torch.equal(local(p), q) for p, q in zip(model.parameters(), before, strict=not wait))

    on_fake_ranks((2,), check, ranks=(0,))


def test_a_dtensor_alone() -> None:
    def check(mesh: DeviceMesh) -> None:
        model = nn.Linear(6, 5)
        model.weight = nn.Parameter(distribute_tensor(torch.zeros(5, 6), mesh, [Shard(1)], src_data_rank=None))
        version = model.weight._version
        fastinit.initialize(model, {"*": init.uniform_}, seed=0)
        expected = fastinit.initialize(nn.Linear(6, 5), {"*": init.uniform_}, seed=0)
        start = 3 * mesh.get_local_rank()
        assert torch.equal(local(model.weight), expected.weight[:, start : start + 3])
        assert model.weight._version > version
        assert torch.equal(model.bias, expected.bias)

    on_fake_ranks((2,), check)
