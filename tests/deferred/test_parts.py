"""Parts: copies of part of a tensor, parts of a model that are materialised alone, parts of larger tensors."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit import Region
from torch_fastinit.planning import fold

# --- copies of part of a tensor ---------------------------------------------------------------------------------------


def rows(big):
    return big[2:5].clone()


def columns(big):
    return big[:, 3:6].contiguous()


def concatenated(big):
    return torch.cat([big[1:3], big[5:8]])


def side_by_side(big):
    return torch.cat([big[:, :2], big[:, 4:]], dim=-1)


def into_zeros(big):
    t = torch.zeros(5, 7)
    t[1:4].copy_(big[3:6])
    return t


def one_row(big):
    return big[4].clone()


def one_column(big):
    return big[:, 2].clone()


def transposed(big):
    return big.t()[2:4].clone()


def transposed_target(big):
    t = torch.empty(7, 9).t()
    t[2:5].copy_(big[2:5])
    t[:2].copy_(big[:2])
    t[5:].copy_(big[5:])
    return t


def narrower(big):
    return big[1:4].to(torch.bfloat16)


def padded(big):
    return nn.functional.pad(big[:3, :4], (1, 2, 0, 1), value=0.5)


def part_of_a_part(big):
    return big[1:8].clone()[2:5, 1:4].clone()


def scaled_part(big):
    return (big[2:4].clone() * 0.1)[:, 3:].clone()


def of_two_draws(big):
    w = torch.empty(8, 3)
    w[:3].normal_()
    w[3:].uniform_()
    return w[2:6].clone()


def past_a_constant(big):
    return nn.Embedding(6, 4, padding_idx=3).weight.data[2:5].clone()


def strided(big):
    return big[::2, 1:3].clone()


def flattened(big):
    return big.flatten()[5:20].clone()


PARTS = [value for value in list(globals().values()) if getattr(value, "__module__", None) == __name__]


class Part(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.part = nn.Parameter(make(torch.randn(9, 7) * 0.3))


@pytest.mark.parametrize("make", PARTS, ids=lambda make: make.__name__)
def test_a_copy_of_part_of_a_tensor(make, monkeypatch):
    with fastinit.deferred():
        model = Part(make)
    (row,) = fastinit.plan(model).rows
    assert row.how == ("replayed" if make in (strided, flattened) else "one pass"), row.why
    fastinit.materialize(model, seed=3)
    monkeypatch.setattr(fold, "copies_of", lambda entry: None)  # now the whole is made and copied
    with fastinit.deferred():
        replayed = Part(make)
    assert fastinit.plan(replayed).rows[0].how == "replayed"
    assert torch.equal(model.part, fastinit.materialize(replayed, seed=3).part)


# --- names that are pinned --------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def deferred(build):
    with fastinit.deferred():
        return build()


def test_pinned_parts_have_the_values_of_the_whole():
    whole = fastinit.materialize(deferred(Tied), seed=0)
    model = deferred(Tied)
    assert fastinit.pin_names(model) is model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in reversed(model.blocks):
            fastinit.materialize(block, seed=0)
        fastinit.materialize(model.head, seed=0, names=lambda name: "something.else")
    for (name, a), b in zip(whole.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert model.head.weight is model.embedding.weight


def test_names_of_a_stage_built_alone():
    whole = fastinit.materialize(deferred(Tied), seed=0)
    head = deferred(lambda: nn.Embedding(7, 4))
    fastinit.materialize(head, seed=0, names=lambda name: f"embedding.{name}")
    assert torch.equal(head.weight, whole.head.weight)


def test_what_is_recorded_after_pinning_has_names_of_its_own():
    model = fastinit.pin_names(deferred(lambda: nn.Linear(4, 4)))
    nn.init.normal_(model.weight)
    model.adapter = deferred(lambda: nn.Linear(4, 4))
    names = []
    fastinit.materialize(model, seed=0, names=lambda name: names.append(name) or name)
    assert names == ["weight", "adapter.weight", "adapter.bias"]


def test_pinned_by_names():
    whole = fastinit.materialize(deferred(Tied), seed=0, names=lambda name: "model." + name)
    model = fastinit.pin_names(deferred(Tied), names=lambda name: "model." + name)
    assert torch.equal(fastinit.materialize(model.blocks[1], seed=0).weight, whole.blocks[1].weight)


def test_pinning_what_is_no_module():
    with pytest.raises(TypeError, match=r"pin_names\(\) takes a torch.nn.Module, not Tensor"):
        fastinit.pin_names(torch.zeros(2))
    with pytest.raises(TypeError, match="must be a string"):
        fastinit.pin_names(deferred(Tied), names=lambda name: 3)


# --- shards= ----------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Rows of a layer, as Megatron builds them: `part` of 3."""

    def __init__(self, rows, cast=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, 5))
        self.scaled = nn.Parameter((torch.randn(rows, 4) * 0.02).to(cast))
        self.experts = nn.Parameter(torch.empty(rows, 2, 3))
        self.gain = nn.Parameter(torch.ones(rows))
        self.register_buffer("buffer", torch.zeros(rows))
        nn.init.xavier_uniform_(self.weight)
        nn.init.trunc_normal_(self.experts, std=0.02)


def region(shape, first):
    return Region(shape, (first, *[0] * (len(shape) - 1)))


@pytest.mark.parametrize("cast", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_function", [False, True])
def test_shards_are_parts_of_the_whole(by_function, cast):
    whole = fastinit.materialize(deferred(lambda: Layer(9, cast)), seed=5)
    fans = {"weight": fastinit.materialize(deferred(lambda: Layer(3)), seed=5).weight}
    for first in (0, 3, 6):
        model = deferred(lambda: Layer(3, cast))
        regions = {name: region(tuple(t.shape), first) for name, t in whole.state_dict().items() if name != "weight"}
        shards = regions.get if by_function else regions
        row = next(row for row in fastinit.plan(model, shards=shards).rows if row.name == "experts")
        assert (row.shape, row.local_shape, row.nbytes) == ((9, 2, 3), (3, 2, 3), 72)
        fastinit.materialize(model, seed=5, shards=shards)
        for name, t in model.state_dict().items():
            assert torch.equal(t, fans[name] if name == "weight" else whole.state_dict()[name][first : first + 3]), name


def test_a_fan_is_that_of_the_part():
    part = deferred(lambda: Layer(3))
    fastinit.materialize(part, seed=5, shards={"weight": Region((9, 5), (3, 0))})
    as_built = fastinit.materialize(deferred(lambda: Layer(9)), seed=5).weight[3:6]
    ratio = ((9 + 5) / (3 + 5)) ** 0.5
    torch.testing.assert_close(part.weight, as_built * ratio)


class TwoDraws(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.empty(4, 3))
        with torch.no_grad():
            self.w[:2].normal_()
            self.w[2:].uniform_()


class Orthogonal(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(nn.init.orthogonal_(torch.empty(4, 4)))


REFUSED = {
    "unknown": (Tied, {"nothing": Region((9, 4), (0, 0))}, "no deferred tensor of the module has the name 'nothing'"),
    "outside": (
        lambda: Layer(3),
        {"weight": Region((9, 5), (7, 0))},
        "is no part at (7, 0) of a tensor of shape (9, 5)",
    ),
    "rank": (lambda: Layer(3), {"weight": Region((9,), (0,))}, "is no part at (0,) of a tensor of shape (9,)"),
    "parts": (TwoDraws, {"w": Region((8, 3), (4, 0))}, "'w' is written in parts"),
    "replayed": (Orthogonal, {"w": Region((8, 4), (4, 0))}, "cannot be cut to a part, since it is replayed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_shards_that_are_refused(case):
    build, shards, message = REFUSED[case]
    model = deferred(build)
    for call in (fastinit.plan, fastinit.materialize):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(model, shards=shards)
    assert fastinit.is_deferred(model)
    with pytest.raises(ValueError, match="knows no shards"):
        fastinit.materialize(model, replay="torch", shards={})
