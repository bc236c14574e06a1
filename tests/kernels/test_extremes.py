"""Arguments at the ends of a dtype: the same bits on every instruction set, infinities and NaN where torch has them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from support.bits import REAL, bits_of, dirty, expected, name_of

from torch_fastinit import _C
from torch_fastinit.initializers import Initializer, Normal, Sparse, TruncatedNormal, Uniform
from torch_fastinit.ops import Fill, fill

INF, NAN = math.inf, math.nan
SHAPE = (5, 37)  # a tile of the widest lanes, and a rest
#: Ordinary numbers, then the largest, smallest and subnormal ones of float32 and float64, and what is past them.
NUMBERS = [0.0, -0.0, 1.0, -3.5, 3e38, 1e39, -1e39, 1e-38, 1e-45, -1e-46, 1.7e308, 2.3e-308, 5e-324, INF, -INF, NAN]
DEVIATIONS = [x for x in NUMBERS if x >= 0 or math.isnan(x)]
BOUNDS = [
    *((0.0, 1.0), (-0.0, 0.0), (-1.0, 1.0), (1.0, 1.0 + 2.0**-20), (-INF, INF), (-INF, -1.0), (1.0, INF)),
    *((-3e38, 3e38), (-1e39, 1e39), (-1.7e308, 1.7e308), (-1e-45, 1e-44), (1e-38, 2e-38), (1e-320, 2e-320)),
]


def everywhere(initializer: Initializer, dtype: torch.dtype) -> np.ndarray:
    """The bits of a fill, the same on every instruction set of this machine."""
    before = _C.instruction_set()
    found = {}
    try:
        for isa in _C.instruction_sets():
            _C.set_instruction_set(isa)
            tensor = dirty(SHAPE, dtype)
            fill([Fill(tensor, initializer, 7, 9)])
            found[isa] = bits_of(tensor)
    finally:
        _C.set_instruction_set(before)
    first, *others = found
    for isa in others:
        np.testing.assert_array_equal(found[isa], found[first], f"{initializer}: {isa} is not {first}")
    return found[first]


@pytest.mark.parametrize("dtype", REAL, ids=name_of)
def test_normal(dtype: torch.dtype) -> None:
    for mean, std in itertools.product(NUMBERS, DEVIATIONS):
        bits = everywhere(Normal(mean, std), dtype)
        np.testing.assert_array_equal(bits, expected(Normal(mean, std), SHAPE, dtype, None, 7, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=name_of)
@pytest.mark.parametrize(("mean", "std"), [(0.0, INF), (-INF, 1.0), (INF, 1.0), (NAN, 1.0), (INF, INF), (0.0, 1e39)])
def test_normal_is_infinite_and_no_number_where_torch_has_it(mean: float, std: float, dtype: torch.dtype) -> None:
    """The share of each: which element is which depends on the seed."""
    ours, theirs = torch.empty(1 << 14, dtype=dtype), torch.empty(1 << 14, dtype=dtype).normal_(mean, std)
    fill([Fill(ours, Normal(mean, std), 7, 9)])
    if dtype is torch.float64 and std == 1e39:
        assert bool(ours.isfinite().all())
        return
    for kind in (torch.isposinf, torch.isneginf, torch.isnan):
        share, wanted = (float(kind(t).float().mean()) for t in (ours, theirs))
        # 0, a half or 1 of them: each estimate is within 5 of its deviations, 0.0039 each
        assert abs(share - wanted) < 0.04


@pytest.mark.parametrize("dtype", REAL, ids=name_of)
def test_uniform(dtype: torch.dtype) -> None:
    for a, b in itertools.product(NUMBERS, NUMBERS):
        if a <= b and b - a < INF:
            bits = everywhere(Uniform(a, b), dtype)
            np.testing.assert_array_equal(bits, expected(Uniform(a, b), SHAPE, dtype, None, 7, 9))


@pytest.mark.parametrize("dtype", REAL, ids=name_of)
def test_sparse(dtype: torch.dtype) -> None:
    for std in DEVIATIONS:
        bits = everywhere(Sparse(0.3, std), dtype)
        np.testing.assert_array_equal(bits, expected(Sparse(0.3, std), SHAPE, dtype, None, 7, 9))


@pytest.mark.parametrize("dtype", REAL, ids=name_of)
def test_truncated_normal(dtype: torch.dtype) -> None:
    means, deviations = [0.0, -0.0, 1.0, -3e38, 1e39, 1e-45, 1.7e308], [x for x in DEVIATIONS if math.isfinite(x)]
    for mean, std, (a, b) in itertools.product(means, deviations, BOUNDS):
        t = TruncatedNormal(mean, std, a, b)
        np.testing.assert_array_equal(everywhere(t, dtype), expected(t, SHAPE, dtype, None, 7, 9))
