"""Tensors of a module wherever its constructor keeps them: real afterwards, with names that last."""

from __future__ import annotations

import collections
import functools
import gc
import itertools
import types
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support.comparison import same_bits
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit.planning import tensors


class Slots:
    __slots__ = ("__hidden", "empty", "w")

    def __init__(self) -> None:
        self.w = torch.randn(3)
        self.__hidden = torch.randn(2)

    def all(self) -> list[torch.Tensor]:
        return [self.w, self.__hidden]


@dataclass
class Data:
    w: torch.Tensor = field(default_factory=lambda: torch.randn(3))
    more: dict[str, Any] = field(default_factory=lambda: {"x": (torch.ones(2), [torch.randn(1)])})


class Helper:
    def __init__(self, owner: nn.Module) -> None:
        self.net = nn.Linear(3, 3)
        self.owner = owner  # a circle

    def scale(self) -> torch.Tensor:
        return self.net.weight


class SlottedModule(nn.Module):
    __slots__ = ("w",)

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.randn(3)


def closure() -> Callable[[], torch.Tensor]:
    window, later = torch.randn(3), None

    def use() -> torch.Tensor:
        return window if later is None else later

    return use


def default() -> Callable[..., list[torch.Tensor]]:
    def use(a: torch.Tensor = torch.randn(2), *, b: torch.Tensor = torch.randn(3)) -> list[torch.Tensor]:  # noqa: B008
        return [a, b]

    return use


def counted() -> Iterator[torch.Tensor]:
    w = torch.randn(3)
    while True:
        yield w


class Once:
    def __await__(self) -> Iterator[None]:
        yield


async def awaited(use: list[torch.Tensor]) -> None:
    w = torch.randn(3)
    await Once()
    use.append(w)


async def counted_later() -> AsyncIterator[torch.Tensor]:
    b, w = torch.randn(2), torch.randn(3)
    while True:
        yield w + b.sum()


def outer() -> Iterator[torch.Tensor]:
    late, early = None, torch.randn(1)
    for _ in itertools.repeat(torch.randn(2)):
        late = torch.randn(3)
        yield from counted()
        yield early * late


def begun(kind: Callable[..., Any], *args: Any) -> Any:
    """What runs in a frame of its own, as far as its first stop."""
    made = kind(*args)
    step(made)
    return made


def step(made: Any) -> Any:
    if isinstance(made, types.GeneratorType):
        return next(made)
    try:
        return (made if isinstance(made, types.CoroutineType) else made.asend(None)).send(None)
    except StopIteration as stop:
        return stop.value


def finished(made: Any) -> list[torch.Tensor]:
    step(made)
    return [USED.pop()]


USED: list[torch.Tensor] = []


def cached(m: nn.Module) -> Callable[[int], torch.Tensor]:
    table = functools.lru_cache(maxsize=4)(torch.randn)
    table(2), table(3)
    return table


def hooked(m: nn.Module) -> Callable[[], torch.Tensor]:
    shift = torch.randn(3)
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda module, inputs, output: output + shift)
    layer.register_forward_pre_hook(functools.partial(lambda scale, module, inputs: inputs[0] * scale, torch.rand(3)))
    m.layer = layer
    return layer


def attribute_of_a_tensor() -> torch.Tensor:
    w = nn.Parameter(torch.randn(3))
    w.scale = types.SimpleNamespace(s=torch.randn(2))  # type: ignore[attr-defined]
    return w


def with_gradient() -> torch.Tensor:
    w = nn.Parameter(torch.randn(3))
    (w * torch.randn(3)).sum().backward()
    return w


Build = Callable[[nn.Module], Any]
Use = Callable[[Any], list[torch.Tensor]]
#: What a constructor keeps, the tensors in it, and their names in the stream.
CASES: dict[str, tuple[Build, Use, list[str]]] = {
    "slots": (lambda m: Slots(), Slots.all, ["_Slots__hidden", "w"]),
    "dataclass": (lambda m: Data(), lambda d: [d.w, d.more["x"][1][0]], ["w", "more.x.0", "more.x.1.0"]),
    "namespace": (lambda m: types.SimpleNamespace(a=torch.randn(3)), lambda n: [n.a], ["a"]),
    "distribution": (
        lambda m: torch.distributions.Normal(torch.randn(3), torch.ones(3)),
        lambda d: [d.mean, d.stddev],
        ["loc", "scale"],
    ),
    "transformed": (
        lambda m: torch.distributions.LogNormal(torch.randn(2), torch.rand(2)),
        lambda d: [d.loc, d.scale],
        ["base_dist.loc", "base_dist.scale"],
    ),
    "set": (lambda m: {torch.randn(3)}, lambda s: [*s], ["0"]),
    "frozenset": (lambda m: (3, frozenset([(torch.randn(3), "x")])), lambda t: [next(iter(t[1]))[0]], ["1.0.0"]),
    "deque": (lambda m: collections.deque([torch.randn(1), torch.randn(2)]), list, ["0", "1"]),
    "ordered": (lambda m: collections.OrderedDict(z=torch.randn(1), a=torch.randn(2)), lambda d: [d["z"]], ["z", "a"]),
    "keys": (lambda m: {object(): torch.randn(1), (1, "a"): torch.rand(1)}, lambda d: [*d.values()], ["0", "(1, 'a')"]),
    "helper": (lambda m: Helper(m), lambda h: [h.net.bias], ["net.weight", "net.bias"]),
    "bound method": (lambda m: Helper(m).scale, lambda f: [f()], ["__self__.net.weight", "__self__.net.bias"]),
    "closure": (lambda m: closure(), lambda f: [f()], ["window"]),
    "defaults": (lambda m: default(), lambda f: f(), ["b", "0"]),
    "partial": (
        lambda m: functools.partial(torch.add, torch.randn(2), other=torch.rand(2)),
        lambda f: [f()],
        ["args.0", "keywords.other"],
    ),
    "method of a tensor": (lambda m: torch.randn(3).add, lambda f: [f(1)], ["0"]),
    "generator": (lambda m: begun(counted), lambda g: [next(g)], ["0"]),
    "generator in a generator": (lambda m: begun(outer), lambda g: [next(g)], ["0", "1", "2", "3"]),
    "coroutine": (lambda m: begun(awaited, USED), finished, ["0"]),
    "asynchronous generator": (lambda m: begun(counted_later), lambda g: [step(g)], ["0", "1"]),
    "cycle": (lambda m: itertools.cycle([torch.randn(3)]), lambda c: [next(c)], ["0"]),
    "cache": (cached, lambda f: [f(2), f(3)], ["0", "1"]),
    "hooks": (
        hooked,
        lambda f: [f(torch.ones(2, 3))],
        ["layer.weight", "layer.bias", "layer._forward_pre_hooks.0.args.0", "layer._forward_hooks.0.shift"],
    ),
    "slots of a module": (lambda m: SlottedModule(), lambda s: [s.w], ["w"]),
    "attribute of a tensor": (lambda m: attribute_of_a_tensor(), lambda w: [w, w.scale.s], ["", "scale.s"]),
    "gradient": (lambda m: with_gradient(), lambda w: [w, w.grad], ["", "grad"]),
}


class Case(nn.Module):
    def __init__(self, build: Build) -> None:
        super().__init__()
        self.held = build(self)


@pytest.mark.parametrize("name", CASES)
def test_everything_is_real(name: str) -> None:
    build, use, names = CASES[name]
    torch.manual_seed(0)
    eager = Case(build)
    torch.manual_seed(0)
    with fastinit.deferred():
        ours = Case(build)
    found = [row.name for row in fastinit.plan(ours).rows]
    want = [n if n.startswith("layer.") else f"held.{n}".rstrip(".") for n in names]
    assert sorted(found) == sorted(want)
    fastinit.materialize(ours, replay="torch")
    for want_one, got in zip(use(eager.held), use(ours.held), strict=True):
        assert not fastinit.is_deferred(got)
        assert type(got) is type(want_one)
        assert got.requires_grad == want_one.requires_grad
        assert same_bits(got.detach(), want_one.detach())


def test_names_of_a_set_are_those_of_the_order_of_creation() -> None:
    def held() -> list[Any]:
        helpers = [Slots() if i % 2 else torch.randn(2) for i in range(20)]
        module.held = {*reversed(helpers)}
        return helpers

    module = nn.Module()
    with fastinit.deferred():
        helpers = held()
    fastinit.materialize(module, seed=3)
    for i, helper in enumerate(helpers):
        with fastinit.deferred():
            alone = Case(lambda m, i=i: Slots() if i % 2 else torch.randn(2))  # type: ignore[misc]
        fastinit.materialize(alone, seed=3, names=lambda name, i=i: name.replace("held", f"held.{i}"))  # type: ignore[misc]
        assert torch.equal(alone.held.w if i % 2 else alone.held, helper.w if i % 2 else helper)


def scrambled(*items: Any, referents: Callable[..., list[Any]] = gc.get_referents) -> list[Any]:
    """What another Python might say that objects hold: in another order, some twice, some by way of more objects."""
    found = referents(*items)[::-1]
    return found if isinstance(items[0], type(iter(()))) else [*found[:1], *(iter((one,)) for one in found)]


@pytest.mark.parametrize("name", ["generator in a generator", "asynchronous generator", "cache", "cycle"])
def test_values_do_not_depend_on_how_python_holds_objects(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, use, _ = CASES[name]
    values = []
    for referents in (gc.get_referents, scrambled):
        monkeypatch.setattr(tensors, "gc", types.SimpleNamespace(get_referents=referents))
        with fastinit.deferred():
            module = Case(build)
        values.append(use(fastinit.materialize(module, seed=3).held))
    for first, second in zip(*values, strict=True):
        assert torch.equal(first, second)


def test_what_a_generator_has_dropped_is_not_kept_alive() -> None:
    def steps() -> Iterator[weakref.ref[Any]]:
        w = torch.randn(3)
        kept = weakref.ref(w)
        yield kept
        del w
        yield kept

    with fastinit.deferred():
        module = Case(lambda m: begun(steps))
    fastinit.materialize(module, seed=0)
    assert next(module.held)() is None


def test_views_of_one_tensor_in_a_set() -> None:
    def build(m: nn.Module) -> set[torch.Tensor]:
        return {piece.normal_() for piece in torch.empty(36).split([*range(1, 9)])}

    with fastinit.deferred():
        module = Case(build)
    assert {row.name: row.shape for row in fastinit.plan(module).rows} == {f"held.{i}": (i + 1,) for i in range(8)}


def test_elements_of_a_set_that_know_the_set() -> None:
    """To put a set in order, its elements are walked; so the set is, again."""

    class Listener:
        def __init__(self, model: nn.Module) -> None:
            self.model, self.scale = model, torch.empty(3).normal_()

    with fastinit.deferred():
        model = nn.Linear(2, 2)
        model.listeners = {Listener(model) for _ in range(3)}
    names = [f"listeners.{i}.scale" for i in range(3)]
    assert [row.name for row in fastinit.plan(model).rows] == ["weight", "bias", *names]


def test_sets_in_sets() -> None:
    def build(m: nn.Module) -> frozenset[Any]:
        held = frozenset([torch.empty(1).normal_()])
        for i in range(2, 40):
            held = frozenset([held, (held, torch.empty(i).normal_())])
        return held

    with fastinit.deferred():
        module = Case(build)
    assert sorted(row.shape[0] for row in fastinit.plan(module).rows) == [*range(1, 40)]


def test_what_is_behind_two_plain_modules_that_know_each_other() -> None:
    def build() -> nn.Module:
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        first.friends, second.friends = [second], [first]
        module = nn.Module()
        module.held = (first,)
        return module

    with fastinit.deferred():
        module = build()
    fastinit.materialize(module, seed=0)
    first = module.held[0]
    assert not fastinit.is_deferred(first) and not fastinit.is_deferred(first.friends[0])


def test_a_long_chain() -> None:
    class Link:
        def __init__(self, after: Any) -> None:
            self.after = after

    with fastinit.deferred():
        module = nn.Module()
        chain: Any = torch.randn(2)
        for _ in range(5000):
            chain = Link(chain)
        module.held = chain
    fastinit.materialize(module, seed=0)
    while isinstance(chain, Link):
        chain = chain.after
    assert type(chain) is torch.Tensor


CACHE: dict[str, torch.Tensor] = {}


def test_what_is_not_reached_says_so_when_it_is_used() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            CACHE["angles"] = torch.rand(3)

    with fastinit.deferred():
        module = Rotary()
    fastinit.materialize(module, seed=0)
    with pytest.raises(RuntimeError, match=r"shape \(3,\).*fastinit\.materialize\(module\)"):
        module.layer(torch.ones(3)) + CACHE["angles"]
    holder = nn.Module()
    holder.cache = CACHE
    fastinit.materialize(holder, seed=0)
    assert type(module.layer(torch.ones(3)) + CACHE.pop("angles")) is torch.Tensor


def test_nothing_is_walked_twice_and_globals_are_not() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.function = test_a_long_chain
            self.cls, self.library = Module, torch
            self.me = [self]

    module = Module()
    assert [row.name for row in fastinit.plan(module).rows] == ["layer.weight", "layer.bias"]
