"""What is off: whether statistics are what is expected, at a stated probability of saying so of a model that is right.

No test assumes that a sum is normal. Bernstein's inequality bounds the probability that a sum of `n` independent values
is `t` or more from its mean, whatever `n`, by `exp(-t**2 / 2 / (V + b t / 3))`, where `V` is the sum of their variances
and no value is more than `b` from its mean on that side. (Boucheron, Lugosi, Massart, Concentration Inequalities, 2013,
section 2.8.) It is applied to the values, to their squares and to whether they are zero.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from torch_fastinit.planning.report import plural
from torch_fastinit.reporting.laws import CACHED, Law, unit_of
from torch_fastinit.reporting.memory import Statistics
from torch_fastinit.reporting.promises import Expected, Part

#: The one-sided tests of a tensor: mean, deviation, zeros, and extremes that are too near.
TESTS = 8
#: What a law's own arithmetic may be off by: of the deviation, for a mean; of the variance; of the share of zeros. And
#: the zeros that a grid of 24 bits may add, as a share of all values.
_MEAN, _VARIANCE, _ZEROS, _GRID = 1e-5, 1e-5, 1e-3, 2.0**-22


@dataclass(slots=True)
class Allowed:
    """Between which numbers each statistic of a tensor is, unless something is off.

    `deviation` is the root of the values' mean square about their promised mean. The least and the largest value are in
    `min` and `max`: not beyond what the law can be, nor too near.
    """

    mean: tuple[float, float]
    deviation: tuple[float, float]
    zeros: tuple[float, float]
    min: tuple[float, float]
    max: tuple[float, float]


def faults(found: Statistics, expected: Expected | None, limit: float, differing: int = 0) -> Iterator[str]:
    """What is off, in words; `exp(-limit)` is the probability of each test's failing by chance.

    `differing` elements are not the constants that were promised, whatever their statistics are.
    """
    if found.nonfinite:
        yield f"{found.nonfinite:,} not finite"
    if expected is None:
        return
    if found.count != expected.count:
        yield f"{plural(found.count, 'element')}, not {expected.count:,}"
        return
    allowed = allow(expected, limit)
    if found.min < allowed.min[0]:
        yield f"minimum {found.min:.4g} below {expected.low:.4g}"
    if found.max > allowed.max[1]:
        yield f"maximum {found.max:.4g} above {expected.high:.4g}"
    if found.nonfinite:
        return
    if differing:
        yield f"{plural(differing, 'element')} not the constant"
    deviation = math.hypot(found.std, found.mean - expected.mean)
    if _outside(found.mean, allowed.mean):
        yield f"mean {found.mean:.4g}, not {expected.mean:.4g}"
    if _outside(deviation, allowed.deviation):
        yield f"deviation {deviation:.4g}, not {expected.std:.4g}"
    if _outside(found.zeros, allowed.zeros):
        yield f"{plural(found.zeros, 'zero')}, not {expected.zeros:,.0f}"
    if found.max < allowed.max[0]:
        yield f"maximum {found.max:.4g}, too near"
    if found.min > allowed.min[1]:
        yield f"minimum {found.min:.4g}, too near"


def _outside(x: float, bounds: tuple[float, float]) -> bool:
    return not bounds[0] <= x <= bounds[1]


@functools.lru_cache(maxsize=CACHED)
def allow(expected: Expected, limit: float) -> Allowed:
    """What is allowed of a tensor at `limit`."""
    n, laws, unit = expected.count, expected.parts, unit_of(expected.low, expected.high)
    mean, std = expected.mean, expected.std * unit  # squares are of values times `unit`

    spread = sum((law.std * unit) ** 2 * count for law, count in laws)
    near = _MEAN * expected.std + 1e-9 * abs(mean)
    down = near + farthest(limit, spread, unit * max(law.mean - law.low for law, _ in laws)) / n / unit
    up = near + farthest(limit, spread, unit * max(law.high - law.mean for law, _ in laws)) / n / unit

    squares = [law.squares(mean, unit) for law, _ in laws]
    spread = sum(variance * count for (_, variance), (_, count) in zip(squares, laws, strict=True))
    near = _VARIANCE * std**2 + 1e-12 * (mean * unit) ** 2
    reaches = [_reach(law, mean, unit, average) for (law, _), (average, _) in zip(laws, squares, strict=True)]
    fewer, more = (near + farthest(limit, spread, max(reach)) / n for reach in zip(*reaches, strict=True))

    random = [(law.zero, count) for law, count in laws if law.std > 0]
    spread = sum(max(zero, _GRID) * (1 - zero) * count for zero, count in random)
    near = sum((_ZEROS * zero + _GRID) * count for zero, count in random)
    apart = near + farthest(limit, spread, 1.0 if random else 0.0)

    least, largest = _nearest(laws, limit)
    return Allowed(
        (mean - down, mean + up),
        (math.sqrt(max(0.0, std**2 - fewer)) / unit, math.sqrt(std**2 + more) / unit),
        (expected.zeros - apart, expected.zeros + apart),
        (expected.low, least),
        (largest, expected.high),
    )


def _reach(law: Law, centre: float, unit: float, average: float) -> tuple[float, float]:
    """How far below and above its average `(x * unit - centre * unit)**2` may be."""
    ends = [(end * unit - centre * unit) ** 2 for end in (law.low, law.high)]
    return average - (0.0 if law.low <= centre <= law.high else min(ends)), max(ends) - average


def farthest(limit: float, spread: float, reach: float) -> float:
    """How far from its mean a sum is, where Bernstein's bound is `exp(-limit)`."""
    half = limit * reach / 3
    return half + math.sqrt(half * half + 2 * limit * spread)


def _nearest(parts: Sequence[Part], limit: float) -> tuple[float, float]:
    """How large the least of all values may be, and how small the largest."""
    points = [-math.inf, *torch.cat([law.points for law, _ in parts]).sort().values.tolist(), math.inf]

    def likely(chance: Callable[[Law, float], float], x: float) -> bool:
        return -sum(count * math.log(max(chance(law, x), 1e-300)) for law, count in parts) <= limit

    least = bisect_left(points, True, lo=1, key=lambda x: not likely(Law.from_, x)) - 1
    largest = bisect_left(points, True, hi=len(points) - 1, key=lambda x: likely(Law.up_to, x))
    return points[least], points[largest]
