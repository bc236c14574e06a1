"""`fastinit.mixture_`: what a component may be, what is refused, the law, and the same bits deferred and in rules."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from support.bits import bits_of, expected
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import torch_fastinit as fastinit
from torch_fastinit import init, like, mixture
from torch_fastinit.codes import Kind
from torch_fastinit.initializers import Constant, Initializer, Mixture, Normal, Uniform

#: The chance of a false alarm, for each statistic, when the seeds were chosen.
P_VALUE = 1e-6
D2L = [(0.25, partial(init.uniform_, a=-10, b=-5)), (0.5, 0), (0.25, partial(init.uniform_, a=5, b=10))]
D2L_LAW = Mixture(((0.25, Uniform(-10.0, -5.0)), (0.5, Constant(0.0)), (0.25, Uniform(5.0, 10.0))))


def seeded(tensor: torch.Tensor, components: Any, seed: int = 7) -> torch.Tensor:
    return fastinit.mixture_(tensor, components, generator=torch.Generator().manual_seed(seed))


def seed_of(seed: int) -> int:
    generator = torch.Generator().manual_seed(seed)
    return int(torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=generator).item())


#: Initialisers that write one fill to a weight of shape (30, 40), and which.
XAVIER = math.sqrt(6 / 70)
ONE_FILL: dict[str, tuple[Any, Initializer]] = {
    "a number": (3, Constant(3.0)),
    "uniform_": (init.uniform_, Uniform(0.0, 1.0)),
    "a partial": (partial(init.normal_, std=0.5), Normal(0.0, 0.5)),
    "zeros_": (init.zeros_, Constant(0.0)),
    "constant_": (lambda t: init.constant_(t, 0.25), Constant(0.25)),
    "by fans": (init.xavier_uniform_, Uniform(-XAVIER, XAVIER)),
    "torch's own": (nn.init.xavier_uniform_, Uniform(-XAVIER, XAVIER)),
    "torch's normal_": (partial(nn.init.normal_, mean=2.0), Normal(2.0, 1.0)),
    "a method": (lambda t: t.uniform_(-2, to=3), Uniform(-2.0, 3.0)),
    "by keywords": (lambda t: t.normal_(std=2), Normal(0.0, 2.0)),
    "zero_": (torch.Tensor.zero_, Constant(0.0)),
    "through a view": (lambda t: init.normal_(t.data.view(-1)), Normal(0.0, 1.0)),
    "another framework's": (like.mxnet.Uniform(0.07), Uniform(-0.07, 0.07)),
}


@pytest.mark.parametrize("name", ONE_FILL)
def test_a_component_is_what_a_rule_is(name: str) -> None:
    value, law = ONE_FILL[name]
    before = torch.get_rng_state()
    tensor = seeded(torch.empty(30, 40), [(0.5, 7), (0.5, value)])
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn to find out
    want = expected(Mixture(((0.5, Constant(7.0)), (0.5, law))), (30, 40), torch.float32, None, seed_of(7), 0)
    np.testing.assert_array_equal(bits_of(tensor), want)


FLOAT64 = torch.float64
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "none": ([], ValueError, r"1 to 256 components, but found 0"),
    "too many": ([(1 / 257, 0)] * 257, ValueError, r"1 to 256 components, but found 257"),
    "no components": (0, TypeError, r"components must be pairs of a probability and what is drawn, not 0"),
    "huge probability": ([(10**400, 1)], OverflowError, r"components\[0\]: a probability is an integer that is too"),
    "no probability": ([(None, 1)], TypeError, r"components\[0\]: a probability must be a float, not NoneType"),
    "huge constant": ([(1, 10**400)], RuntimeError, r"components\[0\]: a constant is an integer that is too large"),
    "no pair": ([0.5, (0.5, 1)], TypeError, r"components\[0\] is 0.5, but a component is a pair"),
    "sum": ([(0.5, 0), (0.4, 1)], ValueError, r"sum to 0\.9, "),
    "a little too much": ([(0.5, 0), (0.500002, 1)], ValueError, r"sum to 1\.000002, "),
    "negative": ([(1.5, 0), (-0.5, 1)], ValueError, r"components\[1\] has the probability -0.5"),
    "nan probability": ([(math.nan, 0)], ValueError, r"components\[0\] has the probability nan"),
    "probability of no number": ([("1", 0)], TypeError, r"components\[0\]: a probability must be a float"),
    "a tensor": ([(1, torch.zeros(30, 40))], TypeError, r"components\[0\] draws tensor"),
    "a string": ([(1, "zeros")], TypeError, r"components\[0\] draws 'zeros'"),
    "nan bound": ([(1, partial(init.uniform_, a=math.nan))], RuntimeError, r"components\[0\]: uniform_: a .*a=nan"),
    "infinite bound": ([(1, partial(init.uniform_, b=math.inf))], RuntimeError, r"components\[0\]: .*b=inf"),
    "a > b": ([(0.5, 0), (0.5, partial(init.uniform_, a=2))], RuntimeError, r"components\[1\]: .*a=2.0 > b=1.0"),
    "negative std": ([(1, partial(init.normal_, std=-1))], RuntimeError, r"components\[0\], .*std=-1"),
    "nan mean": ([(1, partial(init.normal_, mean=math.nan))], RuntimeError, r"components\[0\]: .*found nan, 1.0"),
    "infinite std": ([(1, partial(init.normal_, std=math.inf))], RuntimeError, r"components\[0\]: .*found 0.0, inf"),
    "nan constant": ([(1, math.nan)], RuntimeError, r"components\[0\]: a constant is nan"),
    "complex constant": ([(1, 1j)], RuntimeError, r"components\[0\]: a constant must be a float"),
    "constant past the dtype": ([(1, 1e39)], RuntimeError, r"components\[0\]: .*without overflow"),
    "truncated": ([(1, init.trunc_normal_)], RuntimeError, r"components\[0\], <function trunc_normal_.* is not one"),
    "orthogonal": ([(1, init.orthogonal_)], RuntimeError, r"components\[0\], <function orthogonal_"),
    "two fills": ([(1, lambda t: t.normal_().mul_(2))], RuntimeError, r"components\[0\], .* is not one uniform"),
    "into itself": ([(1, lambda t: torch.mul(t.normal_(), 2, out=t))], RuntimeError, r"components\[0\], .* is not one"),
    "a part": ([(1, lambda t: t[0].normal_())], RuntimeError, r"components\[0\], .* whole tensor"),
    "nothing": ([(1, torch.randn_like)], RuntimeError, r"components\[0\], .* is not one uniform"),
    "reads": ([(1, lambda t: t.normal_() if t.sum() > 0 else t)], RuntimeError, r"components\[0\], .*meta"),
    "own generator": (
        [(1, like.keras.RandomUniform(seed=3))],
        RuntimeError,
        r"components\[0\], .*generator of its own",
    ),
    "a mixture": ([(1, partial(fastinit.mixture_, components=D2L))], RuntimeError, r"components\[0\], .* is not one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_names_the_component_and_writes_nothing(name: str) -> None:
    components, error, message = WRONG[name]
    tensor = torch.full((30, 40), 5.0)
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        fastinit.mixture_(tensor, components)
    assert bool((tensor == 5.0).all())
    assert torch.equal(torch.get_rng_state(), state)


def test_fans_of_a_vector() -> None:
    with pytest.raises(RuntimeError, match=r"components\[0\], .*Fan in and fan out"):
        fastinit.mixture_(torch.empty(3), [(1, init.xavier_normal_)])


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_dtypes_that_no_mixture_has(dtype: torch.dtype) -> None:
    with pytest.raises(NotImplementedError, match=f"mixture fill is not implemented for {dtype}"):
        fastinit.mixture_(torch.empty(3, dtype=dtype), D2L)


def test_manners() -> None:
    parameter = nn.Parameter(torch.empty(5, 5))
    version = parameter._version
    assert fastinit.mixture_(parameter, D2L) is parameter
    assert parameter._version > version
    assert parameter.requires_grad
    torch.manual_seed(3)
    a = fastinit.mixture_(torch.empty(50), D2L)
    torch.manual_seed(3)
    assert torch.equal(a, fastinit.mixture_(torch.empty(100)[::2], D2L))
    fastinit.mixture_(torch.empty(0), D2L)
    meta = torch.empty(4, device="meta")
    assert fastinit.mixture_(meta, D2L) is meta


def test_the_first_call_imports_no_compiler() -> None:
    code = (
        "import sys, torch, torch_fastinit as f; f.mixture_(torch.empty(9), [(0.5, 0), (0.5, f.init.normal_)]);"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_a_compiled_call() -> None:
    call = torch.compile(lambda t: fastinit.mixture_(t, D2L) + 0, backend="eager")
    torch.manual_seed(3)
    a = call(torch.empty(50))
    torch.manual_seed(3)
    assert torch.equal(a, fastinit.mixture_(torch.empty(50), D2L))


def test_no_graph_holds_one() -> None:
    call = torch.compile(lambda t: fastinit.mixture_(t, D2L) + 1, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"fastinit.mixture_ runs its initialisers, .*compile without fullgraph=True"):
        call(torch.empty(50))


@pytest.mark.parametrize("params", [[], [2.0, 1.0, 0.0], [4.0, 1.0, 0.0, 1.0], [2.5, 1.0, 0.0, 1.0]])
def test_what_the_op_is_given(params: list[float]) -> None:
    tensor = torch.zeros(3)
    with pytest.raises(ValueError, match="four numbers a component"):
        torch.ops.fastinit.fill_(tensor, int(Kind.MIXTURE), params)
    assert not tensor.any()


# --- the law ----------------------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_often_each_component(dtype: torch.dtype) -> None:
    chances = [0.4, 0.0, 0.3, 0.2, 0.09, 0.01]
    x = seeded(torch.empty(200_000, dtype=dtype), [(p, n) for n, p in enumerate(chances)]).long()
    counts = np.bincount(x, minlength=6)
    assert counts[1] == 0
    possible = np.array(chances) > 0
    assert stats.chisquare(counts[possible], 200_000 * np.array(chances)[possible]).pvalue > P_VALUE


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_each_component_has_its_law(dtype: torch.dtype) -> None:
    components: Sequence[tuple[float, Callable[..., Any]]] = [
        (0.2, partial(init.uniform_, a=-30, b=-20)),
        (0.5, partial(init.normal_, mean=0.0, std=2.0)),
        (0.3, partial(init.uniform_, a=20, b=50)),
    ]
    x = seeded(torch.empty(200_000, dtype=dtype), components).double().numpy()
    laws = [stats.uniform(-30, 10), stats.norm(0, 2), stats.uniform(20, 30)]
    for part, law in zip((x[x < -15], x[np.abs(x) < 15], x[x > 15]), laws, strict=True):
        assert stats.kstest(part, law.cdf).pvalue > P_VALUE


def test_normals_have_their_tails() -> None:
    x = seeded(torch.empty(2**22), [(0.5, 100), (0.5, init.normal_)])
    x = x[x != 100]
    for z in (3.0, 4.0, 4.5):
        for side in (x > z, x < -z):
            assert stats.binomtest(int(side.sum()), x.numel(), special.ndtr(-z)).pvalue > P_VALUE


def test_neighbours_are_independent() -> None:
    x = seeded(torch.empty(200_000), [(0.25, n) for n in range(4)]).long().numpy()
    for lag in (1, 2, 4, 64):
        assert stats.chisquare(np.bincount(x[:-lag] * 4 + x[lag:], minlength=16)).pvalue > P_VALUE


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_bounds_hold_in_the_dtype(dtype: torch.dtype) -> None:
    pieces = [(0.5, partial(init.uniform_, a=-1.01, b=-0.99)), (0.5, partial(init.uniform_, a=0.25, b=1))]
    x = seeded(torch.empty(50_000, dtype=dtype), pieces).double()
    assert bool(((x >= -1.01) & (x < -0.99) | (x >= 0.25) & (x < 1)).all())
    assert bool((x < 0).any() and (x > 0.8).any())


# --- deferred, and as a rule ------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, law: Callable[[torch.Tensor], object] | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(30, 40))
        if law is not None:
            law(self.weight)


def deferred(law: Callable[[torch.Tensor], object] | None) -> Layer:
    with fastinit.deferred():
        return Layer(law)


def test_deferred_is_eager() -> None:
    law = partial(fastinit.mixture_, components=D2L)
    in_constructor, after, ruled = deferred(law), deferred(None), deferred(None)
    law(after.weight)
    rule = {"weight": law}
    for module, how in ((in_constructor, {}), (after, {}), (ruled, {"init": rule})):
        (row,) = fastinit.plan(module, **how).rows
        assert row.how == "one pass"
        assert row.what == "Mixture(0.25 Uniform(a=-10, b=-5), 0.5 Constant(value=0), 0.25 Uniform(a=5, b=10))"
        fastinit.materialize(module, seed=11, **how)
    stream = fastinit.stream_id("weight")
    want = expected(D2L_LAW, (30, 40), torch.float32, None, 11, stream)
    for module in (in_constructor, after, ruled):
        np.testing.assert_array_equal(bits_of(module.weight.detach()), want)


def test_a_mixture_draws_once() -> None:
    """Its components are asked what they are, which moves no generator and no name's draws."""

    class Two(nn.Module):
        def __init__(self, law: Callable[[torch.Tensor], object]) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.empty(30)), nn.Parameter(torch.empty(30))
            law(self.first)
            init.normal_(self.second)

    for how in ({"seed": 3}, {"replay": "torch"}):
        made = []
        for law in (partial(fastinit.mixture_, components=D2L), init.uniform_):
            torch.manual_seed(5)
            with fastinit.deferred():
                module = Two(law)
            made.append(fastinit.materialize(module, **how).second)
        assert torch.equal(*made)


def test_what_follows_a_mixture_is_replayed() -> None:
    module = deferred(lambda w: fastinit.mixture_(w.data, D2L).mul_(0.5))
    (row,) = fastinit.plan(module).rows
    assert row.how == "replayed"
    plain = deferred(partial(fastinit.mixture_, components=D2L))
    a, b = (fastinit.materialize(m, seed=11).weight for m in (module, plain))
    assert torch.equal(a, b * 0.5)


@pytest.mark.parametrize(
    "law",
    [
        lambda t: t.view(torch.int32).fill_(5),
        lambda t: t[:1].expand(4).fill_(5),
        lambda t: t.as_strided((4, 1), (0, 1)).normal_(),
    ],
    ids="dtype expanded overlapping".split(),
)
def test_what_is_not_the_whole_tensor_once(law: Any) -> None:
    with pytest.raises(RuntimeError, match=r"components\[0\].*is not one uniform, normal or constant fill of"):
        fastinit.mixture_(torch.empty(4), [(1, law)])


def test_a_constant_that_the_dtype_cannot_hold() -> None:
    with pytest.raises(RuntimeError, match=r"components\[0\]: .*without overflow"):
        fastinit.mixture_(torch.empty(2, dtype=torch.float16), [(1, 70000)])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("other", [1.0, init.normal_], ids=["a constant", "a normal"])
def test_a_negative_zero_keeps_its_sign(dtype: torch.dtype, other: Any) -> None:
    whole = seeded(torch.empty(999, dtype=dtype), [(0.5, -0.0), (0.5, -0.0)]).double()
    assert bool((whole == 0).all() and whole.signbit().all())
    x = seeded(torch.empty(999, dtype=dtype), [(0.3, -0.0), (0.3, 0.0), (0.4, other)]).double()
    zeros = x[x == 0]
    assert 200 < int(zeros.signbit().sum()) < 400 and 200 < int((~zeros.signbit()).sum()) < 400


def test_an_answer_is_kept_for_what_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """`init`'s functions are asked once for a shape, a dtype and arguments; any other function each time."""
    asked: list[float] = []

    def own(t: torch.Tensor) -> None:
        asked.append(t.fill_(float(len(asked))).numel())

    one, other = torch.empty(40, 8), torch.empty(400, 2)
    for value in (0.0, 1.0):
        assert bool((fastinit.mixture_(one, [(1, own)]) == value).all())
    zeros = [fastinit.mixture_(one, [(1, partial(init.constant_, val=val))]).clone() for val in (-0.0, 0.0, -0.0)]
    assert [bool(torch.signbit(t).all()) for t in zeros] == [True, False, True]
    bounds = [float(fastinit.mixture_(t, [(1, init.kaiming_uniform_)]).abs().max()) for t in (one, other, one)]
    assert max(bounds[0], bounds[2]) <= 0.75**0.5 < bounds[1] <= 3**0.5  # of 8 inputs, and of 2
    calls = []
    monkeypatch.setattr(mixture, "_Asked", lambda t, real=mixture._Asked: calls.append(t.shape) or real(t))
    for shape in ((40, 8), (41, 8), (41, 8)):
        fastinit.mixture_(torch.empty(shape), [(0.5, init.kaiming_uniform_), (0.5, 0)])
    assert calls == [(41, 8)]


def test_a_function_that_wraps_one_of_inits_is_asked_each_time() -> None:
    bound = [1.0]

    @wraps(init.uniform_)
    def own(t: torch.Tensor) -> torch.Tensor:
        return init.uniform_(t, -bound[0], bound[0])

    fastinit.mixture_(torch.empty(40, 8), [(1, own)])
    bound[0] = 100.0
    assert fastinit.mixture_(torch.empty(40, 8), [(1, own)]).abs().max() > 1


def test_sizes_that_are_symbols() -> None:
    graph = make_fx(lambda t: fastinit.mixture_(t, [(1, init.uniform_)]), tracing_mode="symbolic")(torch.empty(5, 7))
    assert "fastinit.fill_" in graph.code
