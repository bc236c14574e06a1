"""What random constructors have found, one small case each."""

from __future__ import annotations

import copy

import pytest
import torch
from support.comparison import check_like_eager
from torch import nn

import torch_fastinit as fastinit


class Case(nn.Module):
    def __init__(self, construct):
        super().__init__()
        construct(self)


def shallow_copies(m):
    m.w = nn.Parameter(torch.randn(3))
    m.w.mark = [1]
    m.copied = copy.copy(m.w)
    assert m.copied is not m.w
    assert m.copied.mark is m.w.mark
    with torch.no_grad():
        m.copied[0] = 5  # they have their memory in common
    m.register_buffer("b", copy.copy(torch.ones(2)))
    assert isinstance(copy.copy(nn.LazyLinear(2).weight), nn.UninitializedParameter)


def like_one_element(m):
    for name, t in {
        "view": torch.rand(2)[::2],
        "expanded": torch.ones(()).expand(1),
        "moved": torch.ones(1, 2).T,
    }.items():
        m.register_buffer(name, torch.randn_like(t))
        m.register_buffer(f"{name}_zeros", torch.zeros_like(t))
        m.register_buffer(f"{name}_format", torch.ones_like(t, memory_format=torch.contiguous_format))
    m.register_buffer("cast", torch.zeros_like(torch.ones(2, 3).T, dtype=torch.int64))
    m.register_buffer("gaps", torch.zeros_like(torch.ones(2, 6)[:, ::2]))


def contiguous_draws(m):
    rates = torch.empty_strided((3, 2), (1, 3)).fill_(4)
    m.register_buffer("poisson", torch.poisson(rates))
    m.register_buffer("gamma", torch._standard_gamma(rates))


def overwrites_of_what_is_read(m):
    m.w = nn.Parameter(torch.randn(4))
    torch.mul(m.w.data, 2, out=m.w.data)
    m.register_buffer("part", torch.randn(4))
    torch.mul(m.part[:2], 3, out=m.part[2:])
    m.register_buffer("copied", torch.randn(4))
    m.copied.copy_(m.copied)
    m.register_buffer("drawn", torch.rand(4))
    m.drawn.bernoulli_(m.drawn)


@pytest.mark.parametrize("construct", [overwrites_of_what_is_read, shallow_copies, like_one_element, contiguous_draws])
def test_like_eager(construct):
    check_like_eager(lambda: Case(construct))


def test_a_generator_by_position():
    """`rrelu` hands it on in its place, not by name."""

    def build():
        generator = torch.Generator().manual_seed(3)
        noise = torch.empty(9)
        first = torch.ops.aten.rrelu_with_noise(-torch.ones(9), noise, 0.1, 0.4, True, generator)
        module = nn.Module()
        module.w = nn.Parameter(torch.cat([first, torch.rand(3, generator=generator)]))
        return module

    eager = build()
    with fastinit.deferred():
        ours = build()
    assert torch.equal(fastinit.materialize(ours, seed=0).w, eager.w)


def test_a_view_past_the_end():
    with fastinit.deferred():
        t = torch.zeros(4)
        assert torch.equal(t.as_strided((2,), (2,), 1), torch.zeros(2))
        with pytest.raises(RuntimeError, match="need a storage of 20 bytes, and it has 16"):
            t.as_strided((2,), (3,), 1)
    with pytest.raises(RuntimeError):
        torch.zeros(4).as_strided((2,), (3,), 1)


def conjugated(z):
    return z.conj()


def negated(z):
    return torch.view_as_real(z)._neg_view()


LAZY_COPIES = {
    "all": lambda view: view.clone(),
    "part": lambda view: view[1:3].clone(),
    "joined": lambda view: torch.cat([view, view[1:]]),
    "padded": lambda view: nn.functional.pad(view, (1, 0)),
    "written": lambda view: torch.zeros(view.shape, dtype=view.dtype).copy_(view),
    "in place": lambda view: view.clone().mul_(2.0),
}


@pytest.mark.parametrize("view", [conjugated, negated])
@pytest.mark.parametrize("copied", LAZY_COPIES.values(), ids=LAZY_COPIES)
def test_copies_of_views_that_conjugate_or_negate(view, copied):
    with fastinit.deferred():
        model = nn.Module()
        model.z = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64), requires_grad=False)
        model.register_buffer("copied", copied(view(model.z)))
    fastinit.materialize(model, seed=0)
    assert torch.equal(model.copied, copied(view(model.z)))


LAZY_VIEWS = {
    "imag": lambda z: z.conj().imag,
    "real": lambda z: torch.real(z.conj()),
    "imag of a row": lambda z: torch.imag(z.mH[0]),
    "resolved": lambda z: torch.view_as_real(z.conj().resolve_conj()),
    "negated and resolved": lambda z: z.conj().imag.resolve_neg(),
    "element": lambda z: torch.tensor(z.conj()[0, 0].item()),
    "NumPy's": lambda z: torch.from_numpy(z.detach().conj().resolve_conj().numpy()),
    "what it is": lambda z: torch.tensor([z.conj().is_conj(), z.imag.is_neg(), z.conj().imag.is_neg()]),
    "written": lambda z: z.conj().imag.fill_(3.0) * z,
}


@pytest.mark.parametrize("made", LAZY_VIEWS.values(), ids=LAZY_VIEWS)
def test_what_a_view_that_conjugates_shows(made):
    def build():
        torch.manual_seed(0)
        model = nn.Module()
        model.z = torch.randn(4, 3, dtype=torch.complex64)
        model.made = made(model.z)
        return model

    eager = build()
    with fastinit.deferred():
        ours = build()
    fastinit.materialize(ours, replay="torch")
    assert torch.equal(ours.made, eager.made) and torch.equal(ours.z, eager.z)


@pytest.mark.parametrize("view", [conjugated, negated])
def test_writes_through_views_that_conjugate_or_negate(view):
    def write(target, source):
        view(target)[1:].copy_(view(source).resolve_conj().resolve_neg()[1:])
        return target

    with fastinit.deferred():
        model = nn.Module()
        model.register_buffer("source", torch.randn(4, 3, dtype=torch.complex64))
        model.register_buffer("written", write(torch.zeros_like(model.source), model.source))
    fastinit.materialize(model, seed=0)
    assert torch.equal(model.written, write(torch.zeros_like(model.source), model.source))


@pytest.mark.parametrize("view", [conjugated, negated])
@pytest.mark.parametrize("cast", [False, True])
def test_views_that_conjugate_or_negate_alone(view, cast):
    def build(view):
        with fastinit.deferred():
            model = nn.Module()
            model.w = nn.Parameter(view(torch.randn(4, 3, dtype=torch.complex64)), requires_grad=False)
        return model

    def double(name, tensor):
        return torch.promote_types(tensor.dtype, torch.float64) if cast else None

    model = fastinit.materialize(build(view), seed=0, dtype=double)
    plain = fastinit.materialize(build(lambda z: z), seed=0)
    assert torch.equal(model.w, view(plain.w).to(model.w.dtype))
    assert model.w.dtype.itemsize == view(plain.w).dtype.itemsize * (1 + cast)


@pytest.mark.parametrize("columns", [slice(None, None, 2), slice(2, 5)], ids=["every other", "next"])
def test_a_copy_that_overlaps_itself(columns):
    """In what order torch goes is nobody's business, so torch does it."""

    def build():
        model = nn.Module()
        w = nn.functional.pad(torch.zeros(3, 3, dtype=torch.bfloat16), (2, 0), value=0.5)
        w[:2, columns].copy_(w[:2, :3])
        model.register_buffer("w", w)
        return model

    with fastinit.deferred():
        model = build()
    assert torch.equal(fastinit.materialize(model, seed=0).w, build().w)


REFUSALS = (RuntimeError, ValueError, OverflowError, TypeError, ZeroDivisionError)
INF, NAN = float("inf"), float("nan")
#: What torch refuses when it runs, and so here, where it runs by `materialize`, or at once.
IMPOSSIBLE = {
    "uniform": [
        (lambda t, ab=ab: t.uniform_(*ab)) for ab in ((NAN, 1), (0, NAN), (1, 0), (-INF, 0), (0, 1e39), (-3e38, 3e38))
    ],
    "half": [lambda t: t.half().uniform_(0, 1e5)],
    "normal": [lambda t: t.normal_(0, -1), lambda t: t.normal_(0, NAN)],
    "truncated": [
        (lambda t, args=args: nn.init.trunc_normal_(t, *args))
        for args in ((0, 1, NAN, 2), (0, 1, -2, NAN), (0, 1, 2, -2), (0, 0), (0, 1, 1e39, 2e39))
    ],
    "sparse": [
        lambda t: nn.init.sparse_(t, NAN),
        lambda t: nn.init.sparse_(t, INF),
        lambda t: nn.init.sparse_(t, 0.5, -1),
    ],
    "dirac": [lambda t: nn.init.dirac_(t.new_ones(4, 4, 1), 2.0), lambda t: nn.init.dirac_(t.new_ones(4, 4, 1), "x")],
}


@pytest.mark.filterwarnings("ignore:mean is more than 2 std")
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_parameters_that_torch_refuses(name):
    for write in IMPOSSIBLE[name]:
        with pytest.raises(REFUSALS):
            write(torch.ones(4, 4))
        with pytest.raises((RuntimeError, TypeError), match=r"'w' \(shape .* could not be materialised: |integer|%"):
            materialized(write)


def materialized(write):
    with fastinit.deferred():
        model = nn.Module()
        model.w = write(torch.ones(4, 4))
    return fastinit.materialize(model, seed=0).w


def test_fewer_groups_than_one():
    assert not materialized(lambda t: nn.init.dirac_(t.new_ones(4, 4, 1), -1)).any()
