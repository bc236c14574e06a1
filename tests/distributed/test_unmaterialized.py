"""Sharded models before `materialize`: what is kept, what is refused, and what the error says."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.ranks import Ranks
from support.sharded import deferred, different, local, on_meta, twice_in_memory, whole, with_indices
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torch_fastinit as fastinit


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5))


PLAN: dict[str, Any] = {"0": ColwiseParallel(), "2": RowwiseParallel()}


def data_parallel(model: Any, mesh: DeviceMesh) -> Any:
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model: Any, mesh: DeviceMesh) -> Any:
    return parallelize_module(model, mesh, {name: style for name, style in PLAN.items() if int(name) < len(model)})


WAYS: dict[str, Callable[[Any, DeviceMesh], Any]] = {"fsdp": data_parallel, "tp": tensor_parallel}


def line() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def sharded(way: str, inside: bool = False) -> Any:
    if inside:
        return deferred(lambda: WAYS[way](layers(), line()))
    return WAYS[way](deferred(layers), line())


def message(call: Callable[[], object]) -> str:
    """What the error says, without torch's warning that its own random numbers differ on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except RuntimeError as error:
            return str(error)
    return "no error"


def on_both(function: Callable[[str], Any]) -> dict[str, Any]:
    return {way: function(way) for way in WAYS}


# --- computing --------------------------------------------------------------------------------------------------------


def check_forward(way: str) -> list[str]:
    return [
        message(lambda: sharded(way)(torch.ones(2, 6))),
        message(lambda: sharded(way, inside=True)(torch.ones(2, 6))),
        message(lambda: sharded(way)[0].weight.full_tensor()),
        message(lambda: sharded(way)[0].bias.sum()),
    ]


def test_a_forward_or_a_collective_says_what_is_missing(ranks: Ranks) -> None:
    for found in ranks.run(2, on_both, check_forward):
        for way, messages in found.items():
            assert all(re.search(r"fastinit\.materialize|materialized from meta", said) for said in messages), messages
            assert "fastinit.materialize(module) first" in messages[2], way


def check_collectives_inside(way: str) -> list[str]:
    def functional() -> None:
        with fastinit.deferred(), torch.no_grad():
            model = WAYS[way](layers(), line())
            model[0].weight.div_(model[0].weight.norm())

    def plain() -> None:
        with fastinit.deferred():
            dist.all_reduce(torch.ones(2))

    return [message(functional), message(plain)]


def test_collectives_inside_a_context(ranks: Ranks) -> None:
    for found in ranks.run(2, on_both, check_collectives_inside):
        for messages in found.values():
            for said in messages:
                assert re.match(r"a deferred tensor of shape .*all_?reduce.*call fastinit\.materialize", said), said


# --- what is refused --------------------------------------------------------------------------------------------------

RANDOM: dict[str, Callable[[Any], object]] = {
    "normal_": lambda model: model[0].weight.data.normal_(),
    "torch.nn.init": lambda model: nn.init.xavier_uniform_(model[0].weight),
    "reset_parameters": lambda model: model[0].reset_parameters(),
    "to_empty": lambda model: model.to_empty(device="cpu"),
    "_apply": lambda model: model._apply(lambda tensor: torch.empty_like(tensor, device="cpu")),
    "fastinit.init": lambda model: fastinit.init.xavier_uniform_(model[0].weight),
}


def check_random(way: str) -> dict[str, str]:
    """In `materialize`, or earlier; then the model is as it was."""
    found = {}
    for name, change in RANDOM.items():
        model = sharded(way)
        found[name] = message(lambda: (change(model), fastinit.materialize(model, seed=0)))  # noqa: B023
    return found


def test_drawing_for_a_shard_is_refused(ranks: Ranks) -> None:
    for found in ranks.run(2, on_both, check_random):
        for messages in found.values():
            for name in ("normal_", "torch.nn.init", "reset_parameters"):
                assert messages[name].startswith("'0.weight': its shard was drawn by itself"), messages
                assert "before it is sharded, or by fastinit.init after fastinit.materialize" in messages[name]
            for name in ("to_empty", "_apply"):
                assert "to_empty() would lose what was recorded: call fastinit.materialize" in messages[name], messages
            assert "before it is sharded, or after fastinit.materialize(module)" in messages["fastinit.init"]


# --- what is kept -----------------------------------------------------------------------------------------------------


def zero(model: Any) -> None:
    model[0].weight.zero_()


def fill(model: Any) -> None:
    model[0].weight.fill_(3.0)
    nn.init.ones_(model[0].bias)


def scale(model: Any) -> None:
    model[0].weight.mul_(3.0)


def freeze(model: Any) -> None:
    model[0].weight.requires_grad_(False)


def narrow(model: Any) -> None:
    model.bfloat16()


def widen(model: Any) -> None:
    model.double()


CHANGES = (zero, fill, scale, freeze, narrow, widen)


def check_kept(way: str) -> list[str]:
    found = []
    for change in CHANGES:
        for inside in (False, True) if change in (zero, fill) else (False,):
            expected, model, indices = whole(layers), sharded(way, inside), WAYS[way](with_indices(layers), line())
            before = list(model.parameters())
            if inside:  # and there changed

                def build(change: Callable[[Any], None] = change) -> Any:
                    model = WAYS[way](layers(), line())
                    with torch.no_grad():
                        change(model)
                    return model

                model = deferred(build)
                before = list(model.parameters())
            else:
                with torch.no_grad():
                    change(model)
            with torch.no_grad():
                change(expected)
            assert fastinit.is_deferred(model) and fastinit.is_deferred(model[0].weight)
            fastinit.materialize(model, seed=0)
            assert not fastinit.is_deferred(model)
            found += [f"{change.__name__}: {name}" for name in different(model, indices, expected)]
            found += [
                f"{change.__name__}: requires_grad of {name}"
                for (name, one), other in zip(model.named_parameters(), expected.parameters(), strict=True)
                if one.requires_grad is not other.requires_grad or one.dtype is not local(one).dtype
            ]
            if any(a is not b for a, b in zip(before, model.parameters(), strict=True)):
                found.append(f"{change.__name__}: other parameters")
            if change is not freeze:
                weight = model[2].weight
                model(torch.ones(2, 6, dtype=weight.dtype)).sum().backward()
                assert weight.grad is not None
    return found


def test_changes_that_every_rank_makes_alike_are_kept(ranks: Ranks) -> None:
    assert ranks.run(3, on_both, check_kept) == [{"fsdp": [], "tp": []}] * 3


# --- plans ------------------------------------------------------------------------------------------------------------


def check_plan(way: str) -> tuple[dict[str, tuple[Any, ...]], str]:
    plans = (fastinit.plan(sharded(way)), fastinit.plan(WAYS[way](on_meta(layers), line()), reset=True))
    rows = [{row.name: (row.shape, row.how) for row in plan.rows} for plan in plans]
    assert rows[0] == rows[1]
    return rows[0], str(plans[0])


def test_a_plan_is_of_logical_tensors(ranks: Ranks) -> None:
    """`DTensor.__tensor_flatten__` also names the mesh, which is no tensor; names are those of one process."""
    expected = {row.name: (row.shape, row.how) for row in fastinit.plan(deferred(layers)).rows}
    for found in ranks.run(2, on_both, check_plan):
        for rows, printed in found.values():
            assert rows == expected
            assert "_local_tensor" not in printed


# --- distribute_tensor inside a context -------------------------------------------------------------------------------


def check_distributed_inside() -> list[str]:
    mesh = init_device_mesh("cpu", (2, 2))
    found = []
    for source in (0, None):
        for placements in ([Shard(0), Shard(1)], [Replicate(), Shard(0)], [Shard(0), Shard(0)]):

            def distributed(model: Any, source: int | None = source, placements: Any = placements) -> Any:
                for layer in (model[0], model[2]):
                    weight = distribute_tensor(layer.weight, mesh, placements, src_data_rank=source)
                    layer.weight = nn.Parameter(weight)
                return model

            model = deferred(lambda: distributed(layers()))
            indices = distributed(with_indices(layers))
            fastinit.materialize(model, seed=0)
            assert all(isinstance(layer.weight, DTensor) for layer in (model[0], model[2]))
            found += [f"{source}, {placements}: {name}" for name in different(model, indices, whole(layers))]
    return found


def test_distribute_tensor_inside_a_context(ranks: Ranks) -> None:
    assert ranks.run(4, check_distributed_inside) == [[]] * 4


# --- in another dtype -------------------------------------------------------------------------------------------------


class Hard(nn.Module):
    """Rows that 3 does not divide: of a matrix that is replayed, of one that nothing writes, and of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(nn.init.orthogonal_(torch.empty(7, 12)))
        self.unwritten = nn.Parameter(torch.empty(4, 12))
        self.row = nn.Parameter(torch.randn(1, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.matrix.mT).sum() + (x @ self.unwritten.mT).sum() + (x * self.row).sum()


def with_hard() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), Hard())


def one_by_one(name: str, tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if name == "0.bias" else torch.bfloat16


CASTS: list[dict[str, Any]] = [
    {"dtype": torch.bfloat16},
    {"dtype": torch.bfloat16, "reset": True},
    {"dtype": torch.bfloat16, "unwritten": "zeros"},
    {"unwritten": "zeros"},
    {"dtype": one_by_one, "unwritten": "zeros"},
]


def check_cast(way: str) -> list[str]:
    """The DTensor, its spec and its memory agree, and training runs; from a recording, and from plain meta."""
    found = []
    for how in CASTS:
        build = with_hard if "unwritten" in how else layers
        model = WAYS[way](on_meta(build) if how.get("reset") else deferred(build), line())
        indices = WAYS[way](with_indices(build), line())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        fastinit.materialize(model, seed=0, **how)
        bad = different(model, indices, whole(build, **how))
        for name, parameter in model.named_parameters():
            spec = parameter._spec.tensor_meta.dtype if isinstance(parameter, DTensor) else parameter.dtype
            if not parameter.dtype is local(parameter).dtype is spec:
                bad.append(f"dtype of {name}")
        bad += [f"memory of {name}" for name in twice_in_memory(model)]
        one_dtype = how.get("dtype") is not one_by_one  # as FSDP wants it
        if one_dtype and (way == "fsdp" or build is layers):
            before = [local(parameter).clone() for parameter in model.parameters()]
            model(torch.ones(2, 6, dtype=next(model.parameters()).dtype)).sum().backward()
            optimizer.step()
            after = [local(parameter) for parameter in model.parameters()]
            bad += [
                f"{i} is not trained"
                for i, (a, b) in enumerate(zip(before, after, strict=True))
                if a.numel() and torch.equal(a, b)
            ]
            bad += [f"memory of {name}, trained" for name in twice_in_memory(model)]
        found += [f"{how}: {one}" for one in bad]
    return found


def test_casts_and_zeros(ranks: Ranks) -> None:
    assert ranks.run(3, on_both, check_cast) == [{"fsdp": [], "tp": []}] * 3


@pytest.mark.parametrize("way", WAYS)
def test_is_deferred(ranks: Ranks, way: str) -> None:
    assert ranks.run(1, check_is_deferred, way) == [(True, False)]


def check_is_deferred(way: str) -> tuple[bool, bool]:
    model = sharded(way)
    before = fastinit.is_deferred(model)
    return before, fastinit.is_deferred(fastinit.materialize(model, seed=0))
