"""What is off: whether statistics are what is expected, at a stated probability of saying so of a model that is right.

No test assumes that a sum is normal. Bernstein's inequality bounds the probability that a sum of `n` independent values
is `t` or more from its mean, whatever `n`, by `exp(-t**2 / 2 / (V + b t / 3))`, where `V` is the sum of their variances
and no value is more than `b` from its mean on that side. (Boucheron, Lugosi, Massart, Concentration Inequalities, 2013,
section 2.8.) It is applied to the values, to their squares and to whether they are zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch_fastinit.planning.report import plural
from torch_fastinit.reporting.laws import Law, unit_of
from torch_fastinit.reporting.memory import Statistics
from torch_fastinit.reporting.promises import Expected

#: The one-sided tests of a tensor: mean, deviation, zeros, and extremes that are too near.
TESTS = 8
#: What a law's own arithmetic may be off by: of the deviation, for a mean; of the variance; of the share of zeros. And
#: the zeros that a grid of 24 bits may add, as a share of all values.
_MEAN, _VARIANCE, _ZEROS, _GRID = 1e-5, 1e-5, 1e-3, 2.0**-22


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
    if found.min < expected.low:
        yield f"minimum {found.min:.4g} below {expected.low:.4g}"
    if found.max > expected.high:
        yield f"maximum {found.max:.4g} above {expected.high:.4g}"
    if found.nonfinite:
        return
    if differing:
        yield f"{plural(differing, 'element')} not the constant"
    n, unit = found.count, unit_of(found.min, found.max, expected.low, expected.high)
    mean, std, apart = expected.mean * unit, expected.std * unit, found.mean * unit - expected.mean * unit
    spread = sum((law.std * unit) * (law.std * unit) * count for law, count in expected.parts)
    away = n * apart
    reach = unit * max(law.high - law.mean if away > 0 else law.mean - law.low for law, _ in expected.parts)
    if _exponent(abs(away) - n * (_MEAN * std + 1e-9 * abs(mean)), spread, reach) > limit:
        yield f"mean {found.mean:.4g}, not {expected.mean:.4g}"
    squares = n * ((found.std * unit) ** 2 + apart**2)
    of_parts = [(law, *law.squares(expected.mean, unit), count) for law, count in expected.parts]
    away = squares - n * std**2
    reach = max(_reach(law, expected.mean, unit, average, up=away > 0) for law, average, _, _ in of_parts)
    spread = sum(variance * count for _, _, variance, count in of_parts)
    rounding = n * (_VARIANCE * std**2 + 1e-12 * mean**2)
    if _exponent(abs(away) - rounding, spread, reach) > limit:
        yield f"deviation {math.sqrt(squares / n) / unit:.4g}, not {expected.std:.4g}"
    away = found.zeros - expected.zeros
    random = [(law.zero, count) for law, count in expected.parts if law.std > 0]
    spread = sum(max(zero, _GRID) * (1 - zero) * count for zero, count in random)
    rounding = sum((_ZEROS * zero + _GRID) * count for zero, count in random)
    if _exponent(abs(away) - rounding, spread, 1.0 if random else 0.0) > limit:
        yield f"{plural(found.zeros, 'zero')}, not {expected.zeros:,.0f}"
    if -sum(count * math.log(max(law.up_to(found.max), 1e-300)) for law, count in expected.parts) > limit:
        yield f"maximum {found.max:.4g}, too near"
    if -sum(count * math.log(max(law.from_(found.min), 1e-300)) for law, count in expected.parts) > limit:
        yield f"minimum {found.min:.4g}, too near"


def _reach(law: Law, centre: float, unit: float, average: float, *, up: bool) -> float:
    """How far above, or below, its average `(x * unit - centre * unit)**2` may be."""
    ends = [(end * unit - centre * unit) ** 2 for end in (law.low, law.high)]
    if up:
        return max(ends) - average
    return average - (0.0 if law.low <= centre <= law.high else min(ends))


def _exponent(away: float, spread: float, reach: float) -> float:
    """Minus the logarithm of Bernstein's bound."""
    if away <= 0:
        return 0.0
    scale = spread + reach * away / 3
    return away * away / 2 / scale if scale > 0 else math.inf
