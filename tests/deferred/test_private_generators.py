"""torch's default generators are nobody's alone: what a context reads moves none of them, not even to and fro."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch_fastinit as fastinit
from torch_fastinit.recording.generators import OwnGenerators, generator_by_name, states, with_generator

aten = torch.ops.aten


def with_a_generator_of_ones_own():
    generator = torch.Generator().manual_seed(3)
    sparse = nn.init.sparse_(torch.empty(9, 9), 0.5, generator=generator)  # its zeros are of the default one
    return torch.cat([sparse.flatten(), torch.rand(3, generator=generator), torch.rand(3)])


def seeds_and_restores():
    state = torch.get_rng_state()
    a = torch.rand(3)
    torch.set_rng_state(state)
    b = torch.rand(3)
    torch.manual_seed(5)
    c = torch.rand(3)
    torch.default_generator.manual_seed(6)
    return torch.cat([a, b, c, torch.rand(3)])


#: What a constructor may draw, each to be read at once.
DRAWS = {
    "randn": lambda: torch.randn(20),
    "rand_like": lambda: torch.rand_like(torch.ones(20)),
    "randint": lambda: torch.randint(100, (20,)),
    "randint low": lambda: torch.randint(-5, 100, (20,)),
    "randint_like": lambda: torch.randint_like(torch.ones(20), 100),
    "randperm": lambda: torch.randperm(20),
    "normal": lambda: torch.normal(torch.zeros(20), torch.ones(20)),
    "bernoulli": lambda: torch.bernoulli(torch.full((20,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(20), 10),
    "poisson": lambda: torch.poisson(torch.full((20,), 4.0)),
    "gamma": lambda: torch.distributions.Gamma(torch.ones(20), torch.ones(20)).sample(),
    "exponential_": lambda: torch.empty(20).exponential_(),
    "geometric_": lambda: torch.empty(20).geometric_(0.5),
    "random_": lambda: torch.empty(20).random_(),
    "dropout": lambda: F.dropout(torch.ones(20)),
    "native_dropout": lambda: torch.native_dropout(torch.ones(20), 0.5, True)[0],
    "alpha_dropout": lambda: F.alpha_dropout(torch.ones(20), training=True),
    "dropout2d": lambda: F.dropout2d(torch.ones(2, 9, 2, 2)),
    "rrelu": lambda: F.rrelu(-torch.ones(20), training=True),
    "attention": lambda: F.scaled_dot_product_attention(*torch.ones(3, 1, 1, 4, 4), dropout_p=0.5),
    "gru": lambda: nn.GRU(2, 2, num_layers=2, dropout=0.5)(torch.ones(3, 1, 2))[0],
    "trunc_normal_": lambda: nn.init.trunc_normal_(torch.empty(20)),
    "orthogonal_": lambda: nn.init.orthogonal_(torch.empty(4, 4)),
    "sparse_": lambda: nn.init.sparse_(torch.empty(9, 9), 0.5),
    "fastinit": lambda: fastinit.init.trunc_normal_(torch.empty(20)),
    "a generator": with_a_generator_of_ones_own,
    "seeds": seeds_and_restores,
}


def values(draw):
    module = nn.Module()
    before = torch.rand(2)
    module.read = draw().tolist()
    module.after = nn.Parameter(torch.cat([before, torch.rand(2)]))
    return module


@pytest.mark.parametrize("draw", DRAWS)
def test_reads_leave_the_default_generator_alone(draw):
    """Eager's values, from private generators: no other thread would see the default one in another state."""
    torch.manual_seed(11)
    eager = values(DRAWS[draw])
    end = torch.get_rng_state()
    torch.manual_seed(11)
    start = torch.get_rng_state()
    stop, seen = threading.Event(), []

    def watch():
        while not stop.is_set():
            seen.append(torch.equal(torch.get_rng_state(), start))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with fastinit.deferred():
            ours = values(DRAWS[draw])
    finally:
        stop.set()
        thread.join()
    assert all(seen)
    assert torch.equal(torch.get_rng_state(), start)
    assert ours.read == eager.read
    fastinit.materialize(ours, replay="torch")
    assert torch.equal(ours.after, eager.after)
    assert torch.equal(torch.get_rng_state(), end)


def test_threads_beside_draw_what_they_would():
    torch.manual_seed(7)
    expected = [torch.rand(()).item() for _ in range(3000)]
    stop = threading.Event()

    def construct():
        while not stop.is_set():
            with fastinit.deferred():
                module = nn.Module()
                module.w = nn.Parameter(torch.randn(2000).exponential_())
                assert module.w[0].item() >= 0
                assert torch.randperm(9).sum().item() == 36
            fastinit.materialize(module, seed=0)

    torch.manual_seed(7)
    thread = threading.Thread(target=construct)
    thread.start()
    try:
        got = [torch.rand(()).item() for _ in range(3000)]
    finally:
        stop.set()
        thread.join()
    assert got == expected


def test_verify_moves_nothing():
    for replay in (None, "torch"):
        torch.manual_seed(0)
        with fastinit.deferred():
            module = nn.Linear(2, 2)
            module.bias.data.exponential_()
            module.register_buffer("hole", torch.empty(2))
            module.hole[0] = 1
        before = torch.get_rng_state()
        with pytest.raises(RuntimeError, match=r"'hole' .* nothing writes"):
            fastinit.materialize(module, seed=None if replay else 0, replay=replay, verify=True)
        assert torch.equal(torch.get_rng_state(), before)


RANDOM = [
    op
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("aten::")
    for base, _, overload in [name[6:].partition(".")]
    for op in [getattr(getattr(aten, base), overload or "default", None)]
    if op is not None and torch.Tag.nondeterministic_seeded in op.tags
]


def test_generators_of_operators():
    """Those that take one, whatever the place, and those of which an overload does."""
    assert len(RANDOM) > 100
    for op in RANDOM:
        takes = with_generator(op)
        if takes is not None:
            overload, place = takes
            arguments = [a.name for a in overload._schema.arguments]
            assert "generator" in arguments
            keywords = [a.name for a in overload._schema.arguments if a.kwarg_only]
            assert place == len(arguments) or arguments[place:] == ["generator", *keywords]  # the last by position
            assert [a for a in arguments if a != "generator"] == [
                a.name for a in op._schema.arguments if a.name != "generator"
            ]
    assert with_generator(aten.native_dropout.default) is None
    assert with_generator(aten.randint_like.low_dtype)[0] is aten.randint_like.low_generator_dtype
    assert generator_by_name(aten.binomial.default, (1, 2, None), {}) == ((1, 2), {"generator": None})


def test_a_kernel_that_takes_none_of_a_gpu(monkeypatch):
    """It draws from the default generator while that has the private one's state."""
    own, device = OwnGenerators(5), torch.device("cuda", 0)
    default = torch.Generator().manual_seed(9)
    monkeypatch.setattr(torch.cuda, "default_generators", (default,))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    before = states()
    first = own._operate_without(lambda: torch.rand(3, generator=default), device, (), {})
    again = torch.rand(3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    second = own._operate_without(lambda: torch.rand(3, generator=default), device, (), {})
    assert not torch.equal(second, again)
    with pytest.raises(ZeroDivisionError):
        own._operate_without(lambda: 1 / 0, device, (), {})
    assert all(torch.equal(state, before[device]) for device, state in states().items())
