"""fastinit.init against torch.nn.init: values where they are fixed, distributions where they are random, and manners.

Statistical tests have fixed seeds, and each fails with probability 1e-6 or less for a seed chosen at random, so a
change that moves the stream is not expected to break one.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch.nn import init as torch_init

from torch_fastinit import eager, init

REAL = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NARROW = [torch.float8_e4m3fn, torch.float8_e5m2]
PUBLIC = [name for name in dir(torch_init) if name.endswith("_") and not name.startswith("_")]
P_VALUE = 1e-6

#: One call of every function that draws random numbers, on a matrix.
RANDOM: dict[str, Callable[..., torch.Tensor]] = {
    "uniform_": lambda m, t, **k: m.uniform_(t, **k),
    "normal_": lambda m, t, **k: m.normal_(t, **k),
    "trunc_normal_": lambda m, t, **k: m.trunc_normal_(t, **k),
    "xavier_uniform_": lambda m, t, **k: m.xavier_uniform_(t, **k),
    "xavier_normal_": lambda m, t, **k: m.xavier_normal_(t, **k),
    "kaiming_uniform_": lambda m, t, **k: m.kaiming_uniform_(t, **k),
    "kaiming_normal_": lambda m, t, **k: m.kaiming_normal_(t, **k),
    "orthogonal_": lambda m, t, **k: m.orthogonal_(t, **k),
    "sparse_": lambda m, t, **k: m.sparse_(t, 0.5, **k),
}
OURS: dict[str, Callable[..., torch.Tensor]] = {
    "lecun_normal_": lambda m, t, **k: m.lecun_normal_(t, **k),
    "lecun_uniform_": lambda m, t, **k: m.lecun_uniform_(t, **k),
    "variance_scaling_": lambda m, t, **k: m.variance_scaling_(t, **k),
}
FIXED: dict[str, Callable[..., torch.Tensor]] = {
    "constant_": lambda m, t: m.constant_(t, 1.5),
    "ones_": lambda m, t: m.ones_(t),
    "zeros_": lambda m, t: m.zeros_(t),
    "eye_": lambda m, t: m.eye_(t),
}


def is_uniform(t: torch.Tensor, a: float, b: float) -> bool:
    return bool(stats.kstest(t.double().flatten().numpy(), stats.uniform(a, b - a).cdf).pvalue > P_VALUE)


def is_normal(t: torch.Tensor, mean: float, std: float) -> bool:
    return bool(stats.kstest(t.double().flatten().numpy(), stats.norm(mean, std).cdf).pvalue > P_VALUE)


def is_truncated(t: torch.Tensor, mean: float, std: float, a: float, b: float) -> bool:
    law = stats.truncnorm((a - mean) / std, (b - mean) / std, mean, std)
    return bool(stats.kstest(t.double().flatten().numpy(), law.cdf).pvalue > P_VALUE)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(20)


# ---- The surface ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PUBLIC, "calculate_gain"])
def test_signature_is_torchs(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (init, torch_init))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]
    assert name in init.__all__


@pytest.mark.parametrize("name", ["normal", "xavier_uniform", "sparse"])
def test_deprecated_names_warn_as_torchs_do(name: str) -> None:
    arguments = (0.5,) if name == "sparse" else ()
    with pytest.warns(FutureWarning, match=f"nn.init.{name}_") as caught:
        getattr(init, name)(torch.empty(2, 2), *arguments)
    assert caught[0].filename == __file__


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="gaussian_"):
        init.gaussian_  # noqa: B018


@pytest.mark.parametrize("name", [*RANDOM, *OURS, *FIXED])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_manners(name: str, dtype: torch.dtype) -> None:
    """A leaf that requires gradients is written in place, stays a leaf, comes back, and has a new version."""
    function = (RANDOM | OURS | FIXED)[name]
    leaf = torch.nn.Parameter(torch.full((6, 5), 7.0, dtype=dtype))
    version = leaf._version
    assert function(init, leaf) is leaf
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert leaf.grad_fn is None
    assert leaf._version > version
    assert not bool((leaf == 7).any())


@pytest.mark.parametrize("name", RANDOM)
def test_saved_tensor_notices(name: str) -> None:
    x = torch.ones(4, 4, requires_grad=True)
    weight = torch.ones(4, 4)
    y = (x * weight).sum()
    RANDOM[name](init, weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_history_of_an_intermediate_stays() -> None:
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    with pytest.warns(UserWarning, match="computed from others"):
        init.normal_(y)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))


@pytest.mark.parametrize("name", [*RANDOM, *OURS, *FIXED])
def test_meta_tensor_is_left_alone(name: str) -> None:
    t = torch.empty(4, 4, device="meta")
    assert (RANDOM | OURS | FIXED)[name](init, t) is t
    assert init.dirac_(torch.empty(4, 4, 3, device="meta")).is_meta


class Noting(torch.Tensor):
    seen: list[Any]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append((func, set(kwargs or {})))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", ["uniform_", "normal_", "kaiming_uniform_", "constant_"])
def test_torch_function_sees_the_whole_call(name: str) -> None:
    Noting.seen = []
    t = torch.zeros(3, 3).as_subclass(Noting)
    arguments = (0.5,) if name == "constant_" else ()
    assert getattr(init, name)(t, *arguments) is t
    function, keywords = Noting.seen[0]
    assert function is getattr(init, name)
    assert keywords == set(inspect.signature(function).parameters)
    assert bool((torch.Tensor(t) != 0).all())


# ---- Seeds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RANDOM, *OURS])
def test_generator_governs(name: str) -> None:
    function = (RANDOM | OURS)[name]
    before = torch.get_rng_state()
    a, b, c = (function(init, torch.empty(8, 8), generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())  # sparse_ too draws from the generator given alone
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    torch.manual_seed(5)
    assert torch.equal(function(init, torch.empty(8, 8)), a)
    assert not torch.equal(function(init, torch.empty(8, 8)), a)


@pytest.mark.parametrize("dtype", [*REAL, *NARROW], ids=str)
def test_memory_layout_does_not_matter(dtype: torch.dtype) -> None:
    def values(t: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return init.normal_(t).float()

    expected = values(torch.empty(6, 4, dtype=dtype))
    assert torch.equal(values(torch.empty(4, 6, dtype=dtype).T), expected)
    assert torch.equal(values(torch.empty(12, 8, dtype=dtype)[::2, ::2]), expected)


def test_neighbours_of_a_view_stay() -> None:
    whole = torch.full((6, 6), 9.0)
    init.uniform_(whole[1:5:2, ::3])
    outside = torch.ones(6, 6, dtype=torch.bool)
    outside[1:5:2, ::3] = False
    assert bool((whole[outside] == 9).all())
    assert bool((whole[~outside] < 1).all())


# ---- Distributions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (4999,), (63, 65), (7, 8, 9, 10)], ids=str)
def test_plain_distributions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    t = torch.empty(shape, dtype=dtype)
    assert is_uniform(init.uniform_(t, -1.5, 2.0), -1.5, 2.0)
    assert is_normal(init.normal_(t, 3.0, 0.25), 3.0, 0.25)
    assert is_truncated(init.trunc_normal_(t, 0.5, 2.0, -1.0, 3.0), 0.5, 2.0, -1.0, 3.0)


@pytest.mark.parametrize("dtype", [*REAL, *NARROW], ids=str)
def test_bounds_hold_in_the_dtype(dtype: torch.dtype) -> None:
    u = init.uniform_(torch.empty(20_000, dtype=dtype), -0.7, 1.1).double()
    assert float(u.min()) >= -0.7
    assert float(u.max()) < 1.1
    v = init.trunc_normal_(torch.empty(20_000, dtype=dtype), 0.0, 1.0, -0.7, 1.1).double()
    assert float(v.min()) >= -0.7
    assert float(v.max()) <= 1.1
    # 0.025 is six standard errors of the mean of 20,000; rounding and the clamp at the bounds are worth a quarter ulp.
    assert abs(float(u.mean()) - 0.2) < 0.025 + torch.finfo(dtype).eps / 4


@pytest.mark.filterwarnings("ignore:mean is more than 2 std")
@pytest.mark.parametrize(("a", "b"), [(4.0, 8.0), (8.0, 9.0), (-9.0, -8.0), (3.0, math.inf), (-math.inf, -3.0)])
def test_truncated_normal_in_the_tail(a: float, b: float) -> None:
    t = init.trunc_normal_(torch.empty(5000), 0.0, 1.0, a, b)
    assert is_truncated(t, 0.0, 1.0, a, b)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32], ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_complex_parts(dtype: torch.dtype) -> None:
    u = torch.view_as_real(init.uniform_(torch.empty(4000, dtype=dtype), 1.0, 3.0)).double()
    n = torch.view_as_real(init.normal_(torch.empty(4000, dtype=dtype), 1.0, 2.0)).double()
    assert float(u.min()) >= 1
    assert float(u.max()) < 3
    for part in (0, 1):
        assert abs(float(u[:, part].mean()) - 2.0) < 6 * 2 / math.sqrt(12 * 4000)
        assert abs(float(n[:, part].mean()) - 1.0) < 6 * math.sqrt(2 / 4000)
        assert abs(float(n[:, part].var()) - 2.0) < 6 * 2 * math.sqrt(2 / 4000)
    assert abs(float(torch.corrcoef(n.T)[0, 1])) < 6 / math.sqrt(4000)


@pytest.mark.parametrize("view", ["conj", "neg"])
def test_lazy_views(view: str) -> None:
    base = torch.zeros(4000, dtype=torch.complex64)
    t = base.conj() if view == "conj" else base.conj().imag
    assert t.is_conj() or t.is_neg()
    values = torch.view_as_real(init.normal_(t, 5.0).resolve_conj()) if view == "conj" else init.normal_(t, 5.0)
    assert abs(float(values.mean()) - 5) < 6 / math.sqrt(4000)
    assert abs(float(base.imag.mean()) + 5) < 6 / math.sqrt(4000)


def fans(shape: tuple[int, ...]) -> dict[str, float]:
    field = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * field, shape[0] * field
    return {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}


SHAPES = [(60, 90), (20, 30, 9), (12, 18, 5, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_xavier(shape: tuple[int, ...], gain: float) -> None:
    std = gain / math.sqrt(fans(shape)["fan_avg"])
    assert is_uniform(init.xavier_uniform_(torch.empty(shape), gain), -math.sqrt(3) * std, math.sqrt(3) * std)
    assert is_normal(init.xavier_normal_(torch.empty(shape), gain), 0.0, std)


NONLINEARITIES = ["linear", "conv1d", "conv_transpose3d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["fan_in", "FAN_OUT"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_kaiming(shape: tuple[int, ...], mode: Any, nonlinearity: str) -> None:
    gain = torch_init.calculate_gain(nonlinearity, 0.4)  # type: ignore[arg-type]
    assert init.calculate_gain(nonlinearity, 0.4) == gain  # type: ignore[arg-type]
    std = gain / math.sqrt(fans(shape)[mode.lower()])
    t = torch.empty(shape)
    assert is_uniform(init.kaiming_uniform_(t, 0.4, mode, nonlinearity), -math.sqrt(3) * std, math.sqrt(3) * std)
    assert is_normal(init.kaiming_normal_(t, 0.4, mode, nonlinearity), 0.0, std)


@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"])
def test_scale_is_torchs_to_the_last_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the fill is what torch gives to uniform_ and normal_."""
    ours: list[tuple[float, ...]] = []
    theirs: list[tuple[float, ...]] = []
    monkeypatch.setattr(eager, "fill", lambda tensor, initializer, generator: ours.append(initializer.params))

    class Tensor(torch.Tensor):
        def uniform_(self, a: float, b: float, generator: Any = None) -> Any:
            theirs.append((a, b))

        normal_ = uniform_

        __torch_function__ = torch._C._disabled_torch_function_impl

    for shape in [(3, 7), (5, 11, 3), (1, 1), (128, 4096)]:
        getattr(init, name)(torch.empty(shape), 0.7)
        getattr(torch_init, name)(torch.empty(shape).as_subclass(Tensor), 0.7)
    assert ours == theirs
    assert len(ours) == 4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_variance_scaling(shape: tuple[int, ...], mode: Any) -> None:
    std = math.sqrt(2.5 / fans(shape)[mode])
    t = torch.empty(shape)
    wide = std / math.sqrt(stats.truncnorm(-2, 2).var())
    assert is_truncated(init.variance_scaling_(t, 2.5, mode), 0.0, wide, -2 * wide, 2 * wide)
    assert is_normal(init.variance_scaling_(t, 2.5, mode, "normal"), 0.0, std)
    assert is_uniform(init.variance_scaling_(t, 2.5, mode, "uniform"), -math.sqrt(3) * std, math.sqrt(3) * std)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32], ids=str)
@pytest.mark.parametrize("distribution", ["truncated_normal", "normal", "uniform"])
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_variance_scaling_of_complex_weights(distribution: Any, dtype: torch.dtype) -> None:
    parts = torch.view_as_real(
        init.variance_scaling_(torch.empty(200, 300, dtype=dtype), 2.5, distribution=distribution)
    )
    parts = parts.double().reshape(-1, 2)
    # E|w|^2 = scale / fan_in, half of it in each part; x^2 of unit variance has a variance of 2 at most
    for part in parts.T:
        assert abs(float((part**2).mean()) * 300 / 2.5 - 0.5) < 6 * 0.5 * math.sqrt(2 / part.numel())
    assert abs(float(torch.corrcoef(parts.T)[0, 1])) < 6 / math.sqrt(parts.shape[0])


def test_lecun_of_complex_weights() -> None:
    for function in (init.lecun_normal_, init.lecun_uniform_):
        w = function(torch.empty(200, 300, dtype=torch.complex64))
        assert abs(float((w.abs().double() ** 2).mean()) * 300 - 1) < 6 * math.sqrt(1 / w.numel())


def test_lecun_is_variance_scaling() -> None:
    for function, distribution in ((init.lecun_normal_, "truncated_normal"), (init.lecun_uniform_, "uniform")):
        g = [torch.Generator().manual_seed(1) for _ in range(2)]
        a = function(torch.empty(30, 20), generator=g[0])
        assert torch.equal(a, init.variance_scaling_(torch.empty(30, 20), 1.0, "fan_in", distribution, generator=g[1]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", [{"scale": 0.0}, {"scale": math.nan}, {"mode": "fan"}, {"distribution": "cauchy"}]
)
def test_variance_scaling_errors(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments.keys())) + "|Mode|Distribution"):
        init.variance_scaling_(torch.empty(2, 2), **arguments)


# ---- Fixed values ---------------------------------------------------------------------------------------------------

EVERY_DTYPE = [*REAL, *NARROW, torch.complex64, torch.int8, torch.int32, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 1), (0, 3), (3, 0)], ids=str)
def test_fixed_values_are_torchs(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ours, theirs = (FIXED[name](m, torch.empty(shape, dtype=dtype)) for m in (init, torch_init))
    assert torch.equal(ours.to(torch.complex64), theirs.to(torch.complex64))
    transposed = FIXED[name](init, torch.empty(shape[::-1], dtype=dtype).T)
    assert torch.equal(transposed.to(torch.complex64), theirs.to(torch.complex64))


@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize(
    "shape", [(6, 2, 3), (6, 7, 4), (6, 3, 3, 3), (12, 2, 2, 5), (6, 2, 1, 3, 3), (0, 2, 3)], ids=str
)
def test_dirac_is_torchs(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:
    ours, theirs = (m.dirac_(torch.empty(shape, dtype=dtype), groups) for m in (init, torch_init))
    assert torch.equal(ours.to(torch.complex64), theirs.to(torch.complex64))


def test_dirac_keeps_channels() -> None:
    x = torch.randn(2, 3, 8, 8)
    y = torch.nn.functional.conv2d(x, init.dirac_(torch.empty(5, 3, 3, 3)), padding=1)
    assert torch.equal(y[:, :3], x)
    assert not bool(y[:, 3:].any())


@pytest.mark.parametrize("dtype", [*REAL, torch.complex64], ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.999, 1.0, 1.5])
@pytest.mark.parametrize("shape", [(1, 4), (10, 30), (301, 7), (5, 0), (0, 5)], ids=str)
def test_sparse_counts(shape: tuple[int, int], sparsity: float, dtype: torch.dtype) -> None:
    w = init.sparse_(torch.empty(shape, dtype=dtype), sparsity, std=1.0)
    zeros = (w == 0).sum(0)
    assert torch.equal(zeros, torch.full_like(zeros, min(math.ceil(sparsity * shape[0]), shape[0])))


def test_sparse_values_and_places() -> None:
    w = init.sparse_(torch.empty(40, 4000), 0.3, std=0.5)
    assert is_normal(w[w != 0], 0.0, 0.5)
    # Zeros a row: 4000 draws of 12 places in 40. Six deviations: 1 seed in 1e7 fails.
    rows = (w == 0).sum(1).double()
    assert bool(((rows - 1200).abs() < 6 * math.sqrt(4000 * 0.3 * 0.7)).all())
    # Neighbouring rows: without replacement, so the covariance of two indicators is -0.3 * 0.7 / 39.
    both = ((w[:-1] == 0) & (w[1:] == 0)).sum(1).double()
    p = 0.3 * 11 / 39
    assert bool(((both - 4000 * p).abs() < 6 * math.sqrt(4000 * p * (1 - p))).all())


# ---- Errors and warnings: run both ----------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
F16, C64, I32 = torch.float16, torch.complex64, torch.int32

SAME_ERROR: list[Callable[[Any], Any]] = [
    lambda m: m.uniform_(torch.zeros(2), 1.0, 0.0),
    lambda m: m.uniform_(torch.zeros(0), 1.0, 0.0),
    lambda m: m.uniform_(torch.zeros(2, dtype=C64), 1.0, 0.0),
    lambda m: m.uniform_(torch.zeros(2), NAN, 0.0),
    lambda m: m.uniform_(torch.zeros(2), 0.0, INF),
    lambda m: m.uniform_(torch.zeros(2), -3e38, 3e38),
    lambda m: m.uniform_(torch.zeros(2), 0.0, 3.5e38),
    lambda m: m.uniform_(torch.zeros(2, dtype=F16), 0.0, 7e4),
    lambda m: m.uniform_(torch.zeros(2, dtype=F16), -6e4, 6e4),
    lambda m: m.uniform_(torch.zeros(2, dtype=I32)),
    lambda m: m.uniform_(torch.zeros(0, dtype=I32)),
    lambda m: m.uniform_(torch.zeros(2, dtype=torch.float8_e4m3fnuz)),
    lambda m: m.uniform_(torch.zeros(3, 1).expand(3, 2)),
    lambda m: m.uniform_(torch.eye(3).to_sparse()),
    lambda m: m.normal_(torch.zeros(2), 0.0, -1.0),
    lambda m: m.normal_(torch.zeros(2), 0.0, NAN),
    lambda m: m.normal_(torch.zeros(0), 0.0, -1.0),
    lambda m: m.normal_(torch.zeros(2, device="meta"), 0.0, -1.0),
    lambda m: m.normal_(torch.zeros(2, dtype=torch.bool)),
    lambda m: m.normal_(torch.zeros(1, 3).expand(2, 3)),
    lambda m: m.normal_(torch.zeros(2), "1"),
    lambda m: m.normal_(torch.zeros(2), None),
    lambda m: m.normal_(torch.zeros(2), 1j),
    lambda m: m.normal_(torch.zeros(2), torch.ones(1)),
    lambda m: m.normal_(torch.zeros(2), torch.ones((), requires_grad=True)),
    lambda m: m.normal_(torch.zeros(2), 10**400),
    lambda m: m.normal_(torch.zeros(2), generator=5),
    lambda m: m.normal_([0.0]),
    lambda m: m.trunc_normal_(torch.zeros(2), 0.0, 0.0),
    lambda m: m.trunc_normal_(torch.zeros(2), 0.0, 1.0, NAN, 1.0),
    lambda m: m.trunc_normal_(torch.zeros(2, dtype=torch.int64)),
    lambda m: m.trunc_normal_(torch.zeros(2, dtype=C64)),
    lambda m: m.trunc_normal_(torch.zeros(2), 0.0, 1.0, "a", 2.0),
    lambda m: m.xavier_uniform_(torch.zeros(2)),
    lambda m: m.xavier_uniform_(torch.zeros(())),
    lambda m: m.xavier_uniform_(torch.zeros(0, 0)),
    lambda m: m.xavier_uniform_(torch.zeros(2, 2), -1.0),
    lambda m: m.xavier_normal_(torch.zeros(2)),
    lambda m: m.xavier_normal_(torch.zeros(2, 2), -1.0),
    lambda m: m.kaiming_uniform_(torch.zeros(2)),
    lambda m: m.kaiming_normal_(torch.zeros(())),
    lambda m: m.kaiming_normal_(torch.zeros(2, 2), mode="fan_avg"),
    lambda m: m.kaiming_normal_(torch.zeros(2, 2), mode=3),
    lambda m: m.kaiming_normal_(torch.zeros(2, 2), nonlinearity="gelu"),
    lambda m: m.kaiming_uniform_(torch.zeros(2, 2), a=True),
    lambda m: m.kaiming_uniform_(torch.zeros(2), mode="unknown"),
    lambda m: m.calculate_gain("leaky_relu", [1]),
    lambda m: m.calculate_gain("swish"),
    lambda m: m.orthogonal_(torch.zeros(3)),
    lambda m: m.orthogonal_(torch.zeros(3, 3, dtype=I32)),
    lambda m: m.orthogonal_(torch.zeros(3, 1).expand(3, 3)),
    lambda m: m.orthogonal_(torch.zeros(3, 3), "a"),
    lambda m: m.sparse_(torch.zeros(3), 0.5),
    lambda m: m.sparse_(torch.zeros(3, 3, 3), 0.5),
    lambda m: m.sparse_(torch.zeros(3, 3), NAN),
    lambda m: m.sparse_(torch.zeros(3, 3), INF),
    lambda m: m.sparse_(torch.zeros(3, 3), 0.5, -1.0),
    lambda m: m.sparse_(torch.zeros(3, 3, dtype=I32), 0.5),
    lambda m: m.sparse_(torch.zeros(3, 1).expand(3, 3), 0.5),
    lambda m: m.eye_(torch.zeros(3)),
    lambda m: m.eye_(torch.zeros(3, 3, 3)),
    lambda m: m.dirac_(torch.zeros(3, 3)),
    lambda m: m.dirac_(torch.zeros(1, 1, 1, 1, 1, 1)),
    lambda m: m.dirac_(torch.zeros(4, 4, 4), 3),
    lambda m: m.dirac_(torch.zeros(4, 4, 4), 0),
    lambda m: m.dirac_(torch.zeros(4, 4, 4), 2.0),
    lambda m: m.dirac_(torch.zeros(4, 4, 0)),
    lambda m: m.constant_(torch.zeros(2), "a"),
    lambda m: m.constant_(torch.zeros(2), 1j),
]


@pytest.mark.parametrize("number", range(len(SAME_ERROR)))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:mean is more than 2 std")
def test_error_is_torchs(number: int) -> None:
    call = SAME_ERROR[number]
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        call(torch_init)
    with pytest.raises(theirs.type) as ours:
        call(init)
    assert issubclass(ours.type, theirs.type)


@pytest.mark.parametrize(
    "call",
    [
        lambda t: init.uniform_(t, 1.0, 0.0),
        lambda t: init.normal_(t, 0.0, -1.0),
        lambda t: init.trunc_normal_(t, 0.0, 1.0, 2.0, -2.0),
        lambda t: init.trunc_normal_(t, 0.0, -1.0),
        lambda t: init.trunc_normal_(t, math.nan, 1.0),
        lambda t: init.trunc_normal_(t, 0.0, 1.0, 1e39, 1e40),
        lambda t: init.sparse_(t, -0.5),
        lambda t: init.sparse_(t, 0.5, -1.0),
        lambda t: init.normal_(t, generator="cpu"),
    ],
)
@pytest.mark.filterwarnings("ignore:mean is more than 2 std")
def test_error_leaves_the_tensor(call: Callable[[torch.Tensor], torch.Tensor]) -> None:
    t = torch.full((4, 4), 3.0)
    state, version = torch.get_rng_state(), t._version
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        call(t)
    assert bool((t == 3).all())
    assert t._version == version
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [*RANDOM, *OURS])
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fnuz, torch.float8_e8m0fnu], ids=str)
def test_dtype_error_names_the_dtype(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(NotImplementedError, match=str(dtype)):
        (RANDOM | OURS)[name](init, torch.empty(4, 4, dtype=dtype))


@pytest.mark.parametrize("name", [*RANDOM, *OURS, "eye_"])
def test_expanded_tensor_is_refused(name: str) -> None:
    t = torch.full((4, 1), 3.0)
    with pytest.raises(RuntimeError, match="more than one element"):
        (RANDOM | OURS | FIXED)[name](init, t.expand(4, 4))
    assert bool((t == 3).all())


SAME_WARNING: list[Callable[[Any], Any]] = [
    lambda m: m.kaiming_uniform_(torch.empty(0, 1)),
    lambda m: m.kaiming_normal_(torch.empty(3, 0)),
    lambda m: m.trunc_normal_(torch.empty(3), 0.0, 1.0, 4.0, 6.0),
    lambda m: m.trunc_normal_(torch.empty(3), 0.0, 1.0, -6.0, -4.0),
]


@pytest.mark.parametrize("number", range(len(SAME_WARNING)))
def test_warning_is_torchs(number: int) -> None:
    caught = []
    for module in (torch_init, init):
        with warnings.catch_warnings(record=True) as log:
            warnings.simplefilter("always")
            SAME_WARNING[number](module)
        caught.append(log)
    theirs, ours = caught
    assert [w.category for w in theirs] == [w.category for w in ours] == [UserWarning]
    assert str(ours[0].message)[:40] == str(theirs[0].message)[:40]
    assert ours[0].filename == __file__


@pytest.mark.parametrize("call", [init.lecun_normal_, init.lecun_uniform_, init.variance_scaling_])
def test_our_own_warn_of_no_elements(call: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.warns(UserWarning, match="zero-element") as caught:
        call(torch.empty(0, 3))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", [n for n in (*RANDOM, *FIXED) if not n.startswith("kaiming")])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
def test_no_elements(name: str, shape: tuple[int, ...]) -> None:
    t = torch.empty(shape)
    assert (RANDOM | FIXED)[name](init, t) is t


def test_no_warning_in_the_middle() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init.trunc_normal_(torch.empty(3))
        init.trunc_normal_(torch.empty(3), 2.0, 1.0, 0.0, 1.0)


def test_patching_torch_does_not_recurse(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PUBLIC:
        monkeypatch.setattr(torch_init, name, getattr(init, name))
    assert torch.equal(torch_init.eye_(torch.empty(2, 2, dtype=torch.int64)), torch.eye(2, dtype=torch.int64))
    assert int(torch_init.dirac_(torch.empty(2, 2, 3, dtype=torch.int64)).sum()) == 2
    assert bool((torch.nn.Linear(3, 3).weight != 0).all())


def test_helpers_that_others_import() -> None:
    """Private in torch.nn.init, and imported from there by libraries all the same."""
    weight = torch.empty(6, 4, 3)
    assert init._calculate_fan_in_and_fan_out(weight) == (12, 18)
    assert init._calculate_correct_fan(weight, "fan_out") == 18
    with pytest.warns(FutureWarning, match="deprecated in favor of `nn.init.orthogonal_`"):
        init.orthogonal(torch.empty(3, 3))
