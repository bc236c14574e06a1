"""The law of a truncated normal, in counts: 2^20 values a case against its exact distribution, rounding included.

The cases go over (b - a) / std from 1e-12 (in float64 1e-15) to 80, the nearer bound from -40 to 40 deviations,
|mean| / std from 0 to 1e6 and std over the dtype's normal range. A case has up to 64 bins of about equal probability,
none narrower than 8 last places of max(|mean|, |a|, |b|); where fewer than 8 such bins fit, the share of each bound and
of each half instead.

False alarms: a bin's count and the count up to its end are each held to FAILURE by their binomial distribution, both
tails together. There are 6 dtypes of 50 cases of 64 bins at most, so that all of it fails by chance with a probability
of at most 6 * 50 * 64 * 2 * FAILURE = 7.7e-7. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from support import reference
from support.bits import REAL, name_of
from support.samples import sample

from torch_fastinit.initializers import TruncatedNormal

COUNT, CASES, BINS, PLACES = 1 << 20, 50, 64, 8
FAILURE = 2e-11


def cdf(starts: np.ndarray, before: np.ndarray, t: TruncatedNormal) -> np.ndarray:
    """P(X <= x) half way between values and those before them, up to where rounding brings what is drawn.

    60 digits are enough for any cancellation here, and mpmath's tails have them all.
    """
    with mpmath.workdps(60):
        mean, std = mpmath.mpf(t.mean), mpmath.mpf(t.std)
        alpha, beta = (t.a - mean) / std, (t.b - mean) / std
        sign = 1 if alpha + beta < 0 else -1  # from the side where masses are not differences from 1
        low, high = sorted((mpmath.ncdf(sign * alpha), mpmath.ncdf(sign * beta)))
        points = [(mpmath.mpf(float(x)) + mpmath.mpf(float(y))) / 2 for x, y in zip(starts, before, strict=True)]
        share = [(mpmath.ncdf(sign * (x - mean) / std) - low) / (high - low) for x in points]
        return np.clip([float(s if sign > 0 else 1 - s) for s in share], 0.0, 1.0)


def neighbour(x: np.ndarray, dtype: torch.dtype, towards: float) -> np.ndarray:
    """The next value of the dtype below or above, in float64."""
    if dtype in (torch.float32, torch.float64):
        kind = np.float32 if dtype is torch.float32 else np.float64
        return np.nextafter(x.astype(kind), kind(towards)).astype(np.float64)
    values = reference.narrow_values(name_of(dtype))
    at = np.searchsorted(values, x)
    return values[np.clip(at + (1 if towards > 0 else -1), 0, values.size - 1)]


def cases(dtype: torch.dtype) -> Iterator[TruncatedNormal]:
    """Random ones, evenly over the logarithms, of which those with two values or more in the dtype are taken."""
    rng = np.random.default_rng(18)
    tiny, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    narrowest = 1e-15 if dtype is torch.float64 else 1e-12
    while True:
        width = math.exp(rng.uniform(math.log(narrowest), math.log(80.0)))
        alpha = [0.0, *rng.uniform(-40.0, 40.0, 1), *rng.uniform(-4.0, 4.0, 2)][rng.integers(4)]
        ratio = [0.0, *np.exp(rng.uniform(math.log(1e-2), math.log(1e6), 2))][rng.integers(3)] * rng.choice([-1.0, 1.0])
        top = largest / max(1.0, abs(ratio) + abs(alpha) + width)  # for the largest of mean, a and b to be finite
        if top < tiny:
            continue
        std = math.exp(rng.uniform(math.log(tiny), math.log(top)))
        mean, a, b = ratio * std, (ratio + alpha) * std, (ratio + alpha + width) * std
        if ratio and rng.random() < 0.7:  # so that a narrow interval is not lost to the rounding of a sum
            a = mean + alpha * std
            b = a + width * std
        if rng.random() < 0.5:
            mean, a, b = -mean, -b, -a
        limits = reference.bounds(a, b, name_of(dtype), open_right=False) if a < b else None
        if limits is not None and limits[0] < limits[1]:
            yield TruncatedNormal(float(mean), float(std), float(a), float(b))


def starts_of_bins(t: TruncatedNormal, dtype: torch.dtype) -> np.ndarray:
    """The first value of each bin but the first."""
    lo, hi = reference.bounds(t.a, t.b, name_of(dtype), open_right=False)
    size = min(max(abs(t.mean), abs(t.a), abs(t.b)), torch.finfo(dtype).max)
    size = np.abs(sample(TruncatedNormal(size, 0.0, -math.inf, math.inf), (1,), dtype))
    place = float((size - neighbour(size, dtype, -math.inf))[0])
    pilot = np.sort(sample(t, (BINS * 64,), dtype, seed=99))[::64]  # of the test's own values independent
    starts = [lo]
    for x in pilot[1:]:
        if x - starts[-1] >= PLACES * place and hi - x >= PLACES * place:
            starts.append(x)
    if len(starts) >= 8:
        return np.array(starts[1:])
    half = reference.at_or_above(lo / 2 + hi / 2, name_of(dtype))
    return np.unique([neighbour(np.array([lo]), dtype, math.inf)[0], half, hi])


def failures(t: TruncatedNormal, dtype: torch.dtype) -> list[str]:
    starts = starts_of_bins(t, dtype)
    below = np.concatenate([[0.0], cdf(starts, neighbour(starts, dtype, -math.inf), t), [1.0]])
    x = sample(t, (COUNT,), dtype)
    seen = np.concatenate(
        [[0], np.cumsum(np.bincount(np.searchsorted(starts, x, side="right"), minlength=starts.size + 1))]
    )
    found = []
    for kind, counts, chances in (("bin", np.diff(seen), np.diff(below)), ("up to", seen[1:], below[1:])):
        for n, (count, chance) in enumerate(zip(counts, chances, strict=True)):
            tail = min(stats.binom.cdf(count, COUNT, chance), stats.binom.sf(count - 1, COUNT, chance))
            if 2 * tail < FAILURE:
                found.append(f"{kind} {n} of {counts.size}: {count / COUNT:.6f} instead of {chance:.6f}")
    return found


@pytest.mark.parametrize("dtype", REAL, ids=name_of)
def test_truncated_normal_law(dtype: torch.dtype) -> None:
    wrong = {repr(t): failed for t, _ in zip(cases(dtype), range(CASES)) if (failed := failures(t, dtype))}
    assert not wrong
