"""What an initializer promises, against the formulas in SciPy, and against what fills write."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from support.samples import TRUNCATED, sample

import torch_fastinit as fastinit
from torch_fastinit import init
from torch_fastinit.codes import DTYPE_CODES, Op
from torch_fastinit.initializers import Constant, Initializer, Mixture, Normal, Program, Step, TruncatedNormal, Uniform
from torch_fastinit.reporting.laws import FARTHEST, FARTHEST_64, law_of, point, values_of

DTYPES = [dtype for dtype in DTYPE_CODES if dtype.is_floating_point]
F32, BF16 = torch.float32, torch.bfloat16
LAWS: dict[str, Initializer] = {
    "uniform": Uniform(-0.1, 0.3),
    "normal": Normal(0.0, 0.02),
    "normal around 1": Normal(1.0, 0.1),
    **TRUNCATED,
}
PROGRAMS = {
    "scaled": Program(Normal(0.0, 1.0), F32, (Step(Op.MUL, -0.02, F32), Step(Op.ADD, 0.5, F32))),
    "divided in bfloat16": Program(Uniform(0.0, 1.0), BF16, (Step(Op.DIV, 3.0, BF16),)),
    "cast": Program(Uniform(-1.0, 1.0), F32, (Step(Op.MUL, 0.1, F32), Step(Op.CAST, 0.0, BF16))),
}
#: A fill of each kind, and of each form of a truncated normal.
WRITTEN = ["uniform", "normal", "normal around 1", "default", "skew", "8 to 9", "below -4", "wide deviation", *PROGRAMS]


@pytest.mark.parametrize("name", [name for name in LAWS if name != "wide deviation"])  # of which SciPy's is NaN
def test_moments_are_those_of_scipy(name: str) -> None:
    one = LAWS[name]
    if isinstance(one, Uniform):
        true = stats.uniform(one.a, one.b - one.a)
    elif isinstance(one, Normal):
        true = stats.norm(one.mean, one.std)
    else:
        assert isinstance(one, TruncatedNormal)
        true = stats.truncnorm((one.a - one.mean) / one.std, (one.b - one.mean) / one.std, one.mean, one.std)
    law = law_of(one, torch.float64, FARTHEST_64)
    assert law is not None
    assert abs(law.mean - true.mean()) < 5e-6 * true.std()
    assert law.std**2 == pytest.approx(true.var(), rel=5e-6)
    at = law.mean + 0.3 * math.sqrt(law.std**2)
    assert true.cdf(at) <= law.up_to(at) < true.cdf(at) + 0.01
    assert true.sf(at) <= law.from_(at) < true.sf(at) + 0.01


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WRITTEN)
def test_fills_have_the_law(name: str, dtype: torch.dtype) -> None:
    """Moments, bounds and zeros within five deviations: a wrong law of rounding to 8 bits is off by far more."""
    one = LAWS.get(name) or PROGRAMS[name]
    if isinstance(one, Program) and one.steps[-1].dtype is not dtype:
        one = Program(one.draw, one.dtype, (*one.steps[:-1], Step(one.steps[-1].op, one.steps[-1].operand, dtype)))
    if isinstance(one, Program) and dtype is torch.float64:  # it is in float64 throughout, or not at all
        one = Program(one.draw, dtype, tuple(Step(step.op, step.operand, dtype) for step in one.steps))
    law = law_of(one, dtype, FARTHEST if dtype is not torch.float64 else FARTHEST_64)
    assert law is not None
    n = 1 << 16
    values = sample(one, (n,), dtype)
    mean, variance = law.squares(law.mean)
    assert mean == pytest.approx(law.std**2)
    assert abs(values.mean() - law.mean) <= 5 * math.sqrt(law.std**2 / n) + 1e-7 * abs(law.mean)
    assert abs(((values - law.mean) ** 2).mean() - law.std**2) <= 5 * math.sqrt(variance / n) + 2e-5 * law.std**2
    assert law.low <= values.min() and values.max() <= law.high
    assert abs((values == 0).sum() - n * law.zero) <= 5 * math.sqrt(n * law.zero) + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_narrow_values_are_all_that_there_are(dtype: torch.dtype) -> None:
    values = values_of(dtype)
    assert torch.equal(values.to(dtype).double(), values) and bool((values.diff() > 0).all())
    assert values[-1] == torch.finfo(dtype).max and values[0] == torch.finfo(dtype).min
    law = law_of(Normal(0.0, 1.0), dtype, FARTHEST)
    assert law is not None and law.edges is None and float(law.masses.sum()) == pytest.approx(1)
    assert np.isin(sample(Normal(0.0, 1.0), (4096,), dtype), law.points.numpy()).all()


def test_what_has_no_law() -> None:
    assert law_of(Normal(1.0, 1e-7), F32, FARTHEST) is None  # its last bits are what it is
    assert law_of(Uniform(math.nan, 1.0), F32, FARTHEST) is None
    assert law_of(Program(Normal(), F32, (Step(Op.MUL, math.inf, F32),)), F32, FARTHEST) is None


def test_a_law_may_be_one_value() -> None:
    for one in (
        Uniform(0.5, 0.5),
        Normal(0.5, 0.0),
        TruncatedNormal(0.5, 0.0, 0.0, 1.0),
        TruncatedNormal(0.0, 1.0, 0.5, 0.5),
    ):
        law = law_of(one, F32, FARTHEST)
        assert law is not None and (law.mean, law.std**2, law.low, law.high) == (0.5, 0.0, 0.5, 0.5)
    assert point(0.0).zero == 1


def test_shares_are_the_masses_of_equal_parts() -> None:
    law = law_of(Uniform(0.0, 1.0), F32, FARTHEST)
    assert law is not None
    assert law.shares(0.25, 0.75, 2) == pytest.approx([0.5, 0.5])
    assert law.shares(-1.0, 1.0, 4) == pytest.approx([0, 0, 0.5, 0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_mixture(dtype: torch.dtype) -> None:
    parts = ((0.25, Uniform(-10.0, -5.0)), (0.5, Constant(0.0)), (0.25, Normal(6.0, 1.0)))
    law = law_of(Mixture(parts), dtype, FARTHEST)
    assert law is not None
    assert law.mean == pytest.approx(0.25 * -7.5 + 0.25 * 6.0, abs=8 * torch.finfo(dtype).eps * 0.02 + 2e-3)
    assert law.std**2 == pytest.approx(0.25 * (25 / 12 + 7.5**2) + 0.25 * (1 + 6.0**2) - law.mean**2, rel=0.01)
    assert law.zero == pytest.approx(0.5)
    assert law.low == -10.0
    assert law.high >= 6.0 + 6.5
    assert law_of(Mixture(((1.0, Normal(0.0, math.inf)),)), dtype, FARTHEST) is None


def test_a_mixture_is_as_promised() -> None:
    components = [(0.25, functools.partial(init.uniform_, a=-10, b=-5)), (0.5, 0), (0.25, init.normal_)]
    with fastinit.deferred():
        layer = torch.nn.Linear(300, 300)
        fastinit.mixture_(layer.weight, components)
    fastinit.materialize(layer, seed=0)
    assert not fastinit.report(layer).flagged
    with torch.no_grad():
        layer.weight[0] = 0.0
        layer.weight.mul_(1.03)
    assert [row.name for row in fastinit.report(layer).flagged] == ["weight"]
