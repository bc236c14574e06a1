"""The values have the distributions that their names say, and are accurate far beyond what statistics can see.

Seeds are fixed, so these tests give the same answer every time; P_VALUE is what the chance of a false alarm was, for
each test statistic, when a seed was chosen.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from support import reference
from support.bits import name_of
from support.samples import SEED, TRUNCATED_CASES, sample

from torch_fastinit.initializers import Initializer, Normal, Sparse, TruncatedNormal, Uniform
from torch_fastinit.ops import Fill, fill

P_VALUE = 1e-6
INF = math.inf


def truncated_cdf(x: np.ndarray, t: TruncatedNormal) -> np.ndarray:
    """P(X <= x), from the side on which nothing cancels."""
    z, alpha, beta = ((np.asarray(v) - t.mean) / t.std for v in (x, t.a, t.b))
    if alpha < 0 < beta:
        return (special.ndtr(z) - special.ndtr(alpha)) / (special.ndtr(beta) - special.ndtr(alpha))
    if alpha >= 0:
        return 1 - truncated_cdf(-np.asarray(x), TruncatedNormal(-t.mean, t.std, -t.b, -t.a))
    top = special.log_ndtr(beta)  # the mass of the lower tail up to x, relative to that up to b
    low = np.exp(special.log_ndtr(alpha) - top)
    return (np.exp(special.log_ndtr(z) - top) - low) / (1 - low)


WIDE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)


@WIDE
@TRUNCATED_CASES
def test_truncated_normal(initializer: TruncatedNormal, dtype: torch.dtype) -> None:
    x = sample(initializer, (20000,), dtype)
    assert stats.kstest(x, lambda v: truncated_cdf(v, initializer)).pvalue > P_VALUE


@WIDE
def test_uniform(dtype: torch.dtype) -> None:
    assert stats.kstest(sample(Uniform(-1.0, 3.0), (50000,), dtype), stats.uniform(-1, 4).cdf).pvalue > P_VALUE


@WIDE
def test_normal(dtype: torch.dtype) -> None:
    x = sample(Normal(-1.0, 2.0), (100000,), dtype)
    assert stats.kstest(x, stats.norm(-1, 2).cdf).pvalue > P_VALUE
    # and far out, where Kolmogorov and Smirnov do not look: how many beyond 3.5 and 4 deviations
    for z in (3.5, 4.0):
        beyond = int((np.abs((x + 1) / 2) > z).sum())
        assert stats.binomtest(beyond, x.size, 2 * special.ndtr(-z)).pvalue > P_VALUE


def test_complex_normal() -> None:
    tensor = torch.empty(30000, dtype=torch.complex64)
    fill([Fill(tensor, Normal(0.0, 2.0), SEED, 0)])
    parts = torch.view_as_real(tensor).double().numpy()
    for part in parts.T:
        assert stats.kstest(part, stats.norm(0, math.sqrt(2)).cdf).pvalue > P_VALUE
    assert abs(np.corrcoef(parts.T)[0, 1]) < 5 / math.sqrt(30000)  # 5 sigma: 6e-7


def chances(values: np.ndarray, cdf: np.ufunc, low: float, high: float, dtype: torch.dtype) -> np.ndarray:
    """The chance of each value of a narrow dtype between low and high, of numbers with that cdf, rounded.

    A cell reaches half way to its neighbours; the outermost ones take all that is left.
    """
    grid = reference.narrow_values(name_of(dtype))
    grid = np.unique(grid[(grid >= low) & (grid <= high)])
    assert np.isin(values, grid).all()
    edges = np.concatenate([[-INF], (grid[1:] + grid[:-1]) / 2, [INF]])
    return np.diff(cdf(edges))


@pytest.mark.parametrize(
    ("initializer", "cdf"),
    [
        (Uniform(-1.0, 1.0), stats.uniform(-1, 2).cdf),
        (Normal(), special.ndtr),
        (TruncatedNormal(), lambda v: np.clip(truncated_cdf(np.clip(v, -2, 2), TruncatedNormal()), 0, 1)),
    ],
    ids=["uniform", "normal", "truncated"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=name_of)
def test_cells_of_narrow_dtypes(initializer: Initializer, cdf: np.ufunc, dtype: torch.dtype) -> None:
    x = sample(initializer, (60000,), dtype)
    low, high = (-INF, INF)
    if isinstance(initializer, Uniform):
        low, high = reference.bounds(-1.0, 1.0, name_of(dtype), True)
    elif isinstance(initializer, TruncatedNormal):
        low, high = -2.0, 2.0
    chance = chances(x, cdf, low, high, dtype)
    grid = reference.narrow_values(name_of(dtype))
    grid = np.unique(grid[(grid >= low) & (grid <= high)])
    seen = np.bincount(np.searchsorted(grid, x), minlength=grid.size)
    # cells of fewer than 10 expected are put together with their neighbours, as chi-squared wants it
    group = np.floor(np.cumsum(chance) * x.size / 20).astype(int)
    seen, wanted = (np.bincount(group, weights=w) for w in (seen, chance * x.size))
    keep = wanted > 10
    seen, wanted = (np.append(w[keep], w[~keep].sum()) for w in (seen, wanted))
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    assert seen.size > 10
    assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > P_VALUE


@WIDE
def test_pairs_of_a_normal_are_independent(dtype: torch.dtype) -> None:
    x = sample(Normal(), (40000,), dtype).reshape(-1, 2)
    # The two of a pair come from one radius: their squares would show it, and so would their angle.
    for f in (lambda v: v, np.square, np.abs):
        assert abs(np.corrcoef(f(x[:, 0]), f(x[:, 1]))[0, 1]) < 5 / math.sqrt(len(x))  # 5 sigma: 6e-7
        assert abs(np.corrcoef(f(x[:-1, 1]), f(x[1:, 0]))[0, 1]) < 5 / math.sqrt(len(x))
    angle = np.arctan2(x[:, 1], x[:, 0])
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > P_VALUE
    assert stats.kstest((x**2).sum(axis=1), stats.chi2(2).cdf).pvalue > P_VALUE


@pytest.mark.parametrize("initializer", [Uniform(), Normal(), TruncatedNormal()], ids=repr)
def test_streams_and_seeds_are_independent(initializer: Initializer) -> None:
    # Neighbouring seeds, neighbouring streams, either's high word, and seed and stream exchanged
    places = [(0, 0), (1, 0), (0, 1), (1, 1), (2**32, 0), (0, 2**32), (2**63, 0), (0, 2**63), (3, 5), (5, 3)]
    x = np.stack([sample(initializer, (20000,), torch.float32, *place) for place in places])
    correlation = np.corrcoef(x) - np.eye(len(places))
    assert np.abs(correlation).max() < 6 / math.sqrt(20000)  # 6 sigma, 45 pairs: 9e-8
    ranks = np.corrcoef(np.abs(x - np.median(x))) - np.eye(len(places))
    assert np.abs(ranks).max() < 6 / math.sqrt(20000)


def test_a_cell_of_the_square_is_a_pair_of_neighbours() -> None:
    for lag in (1, 2, 4, 64):  # inside a block, to the next one, across a tile
        x = sample(Uniform(), (200000,), torch.float32)
        cell = (x[:-lag] * 16).astype(int) * 16 + (x[lag:] * 16).astype(int)
        assert stats.chisquare(np.bincount(cell, minlength=256)).pvalue > P_VALUE


@pytest.mark.parametrize("rows", [1, 2, 7, 10, 64, 1000])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_sparse_has_exactly_so_many_zeros_in_a_column(sparsity: float, rows: int) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = sample(Sparse(sparsity, 1.0), (rows, 67), dtype)
        # in bfloat16 and float32 a normal number of exactly 0 has a chance below 1e-9
        assert ((x == 0).sum(axis=0) == math.ceil(sparsity * rows)).all()


def test_sparse_chooses_rows_uniformly() -> None:
    # All 10 choices of 2 rows out of 5 are equally likely: 20000 columns, 2000 each
    x = sample(Sparse(0.4, 1.0), (5, 20000), torch.float32) == 0
    choice = (x * (1 << np.arange(5))[:, None]).sum(axis=0)
    counts = np.bincount(choice, minlength=32)
    counts = counts[counts > 0]
    assert counts.size == 10
    assert stats.chisquare(counts).pvalue > P_VALUE
    # and so is each row of many, the first and the last included
    x = sample(Sparse(0.1, 1.0), (100, 20000), torch.float32) == 0
    assert stats.chisquare(x.sum(axis=1)).pvalue > P_VALUE


def test_sparse_values_are_normal() -> None:
    x = sample(Sparse(0.5, 0.01), (400, 100), torch.float64)
    assert stats.kstest(x[x != 0], stats.norm(0, 0.01).cdf).pvalue > P_VALUE


def test_far_tail_of_a_normal() -> None:
    # 2^24 numbers: some 10 beyond 5 deviations, where a generator of 24 bits would begin to thin out
    tensor = torch.empty(2**24)
    fill([Fill(tensor, Normal(), SEED, 9)])
    for z, beyond in ((4.5, int((tensor.abs() > 4.5).sum())), (5.0, int((tensor.abs() > 5.0).sum()))):
        assert stats.binomtest(beyond, 2**24, 2 * special.ndtr(-z)).pvalue > P_VALUE
