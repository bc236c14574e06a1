"""The distribution that an initializer promises, in a dtype: masses at points.

For a dtype of one or two bytes the points are its values, each with the probability of what is rounded to it, so that
moments, bounds and the share of zeros are those of the rounded values. For wider ones they are the middles of small
cells, whose width changes no moment by what a tensor could show. A step of a program moves the points.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_fastinit.codes import Op
from torch_fastinit.initializers import Constant, Initializer, Mixture, Normal, Program, Step, TruncatedNormal, Uniform

#: How many deviations the most distant normals are from the mean, in float32 and float64 (docs/stream.md, section 6).
FARTHEST, FARTHEST_64 = math.sqrt(64 * math.log(2)), math.sqrt(126 * math.log(2))
#: What laws are made of, whatever the defaults are.
_REAL: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
#: So many laws are remembered, and of what follows from them: more than most models have.
CACHED = 1 << 8
#: Cells of a law in float32 or float64.
CELLS = 1 << 13
#: A float32 is as good as a real number here, but for the last bits of a bound,
_LAST_BITS = 2.0**-21
#: and where all values are so near to one another, or to zero (where a fill's steps are subnormal: `_resolved`), that
#: their last bits make the distribution.
_RESOLVED = {torch.float32: 2.0**-13, torch.float64: 2.0**-42}


def unit_of(*numbers: float) -> float:
    """A power of two in which these are at most 1, so that their squares are neither infinite nor lost."""
    exponent = math.frexp(max(map(abs, numbers)))[1]
    return math.ldexp(1.0, max(-1000, min(-exponent, 1000)))


@dataclass(slots=True, eq=False)
class Law:
    """Masses at ascending points, in float64, and what follows from them. `low` and `high` bound every value."""

    points: torch.Tensor
    masses: torch.Tensor
    low: float
    high: float
    #: Of cells around the points, over which their masses are spread; None if the points are all the values there are.
    edges: torch.Tensor | None = None
    mean: float = field(init=False)
    std: float = field(init=False)
    #: The probability of a zero.
    zero: float = field(init=False)
    _below: torch.Tensor = field(init=False)  # the mass up to each point

    def __post_init__(self) -> None:
        unit = unit_of(self.low, self.high)
        moments = self.masses * (self.points * unit)
        mean = float((moments + moments.flip(0)).sum() / 2)  # of a symmetric law 0, in whatever order it is summed
        self.mean, self.std = mean / unit, math.sqrt(float(self.masses @ (self.points * unit - mean) ** 2)) / unit
        self.zero = float(self.masses[self.points == 0].sum()) if self.edges is None else 0.0
        self._below = self.masses.cumsum(0)

    def squares(self, centre: float, unit: float = 1.0) -> tuple[float, float]:
        """Mean and variance of `(x * unit - centre * unit)**2`."""
        squares = (self.points * unit - centre * unit) ** 2
        mean = float(self.masses @ squares)
        return mean, float(self.masses @ (squares - mean) ** 2)

    def up_to(self, x: float) -> float:
        """The probability of a value of at most `x`, or that and a point more."""
        place = int(torch.searchsorted(self.points, x, right=True))
        return float(self._below[min(place, len(self.points) - 1)])

    def from_(self, x: float) -> float:
        """The probability of a value of at least `x`, or that and a point more."""
        place = int(torch.searchsorted(self.points, x)) - 2
        return 1.0 if place < 0 else 1.0 - float(self._below[place])

    def shares(self, low: float, high: float, parts: int) -> list[float]:
        """The mass in each of equal parts of [low, high]; what lies outside is given to the ends."""
        right = torch.linspace(0.0, 1.0, parts + 1, **_REAL)
        edges = low * (1 - right) + high * right
        place = torch.searchsorted(edges, self.points, right=True).sub_(1).clamp_(0, parts - 1)
        found: list[float] = torch.zeros(parts, **_REAL).index_add_(0, place, self.masses).tolist()
        return found


@functools.lru_cache(maxsize=CACHED)
def point(value: float) -> Law:
    """All mass at one value."""
    at = torch.tensor([value], **_REAL)
    return Law(at, torch.ones(1, **_REAL), value, value)


@functools.lru_cache(maxsize=CACHED)
def law_of(initializer: Initializer, dtype: torch.dtype, farthest: float) -> Law | None:
    """The law of one random value; None for an initializer that has none, or one that is not finite.

    Args:
        initializer: a draw, or a program around one.
        dtype: the real, floating-point dtype that is written.
        farthest: how many deviations the most distant normals are from the mean.
    """
    if isinstance(initializer, Program):
        law = law_of(initializer.draw, initializer.dtype, farthest)
        for step in initializer.steps:
            law = law and _after(law, step)
        return law
    if isinstance(initializer, Mixture):
        return _mixed(initializer, dtype, farthest)
    if isinstance(initializer, Constant):
        return point(torch.full((), initializer.value, dtype=dtype, device="cpu").double().item())
    bounds = _bounds(initializer, farthest)
    if bounds is None or not all(map(math.isfinite, bounds)):
        return None
    low, high = bounds
    if low >= high:
        return point(float(torch.tensor(low, **_REAL).to(dtype)))
    if not _resolved(low, high, dtype):
        return None
    if dtype.itemsize > 2:
        edges = torch.linspace(low, high, CELLS + 1, **_REAL)
    else:
        points = values_of(dtype)
        if not isinstance(initializer, Normal):  # whose most distant values may be rounded outwards
            under = points < high if isinstance(initializer, Uniform) else points <= high
            points = points[(points >= low) & under]
        if len(points) == 0:
            return point(float(torch.tensor(low, **_REAL).to(dtype)))
        return _of_values(points, _masses(initializer, _rounded_between(points), low, high))
    masses = _masses(initializer, edges, low, high)
    wide = 0.0 if dtype is torch.float64 else _LAST_BITS * max(abs(low), abs(high))
    if isinstance(initializer, (Uniform, TruncatedNormal)):
        wide = 0.0  # a bound is one: what is written is within it
    return Law(_middles(edges), masses, low - wide, high + wide, edges)


@functools.cache
def values_of(dtype: torch.dtype) -> torch.Tensor:
    """The finite values of a dtype of one or two bytes, ascending."""
    integer = torch.uint8 if dtype.itemsize == 1 else torch.int16
    count = 1 << 8 * dtype.itemsize
    values = torch.arange(count, device="cpu").to(integer).view(dtype).double()
    found: torch.Tensor = values[values.isfinite()].unique()
    return found


def _middles(x: torch.Tensor) -> torch.Tensor:
    return (x[:-1] + x[1:]) / 2


def _rounded_between(values: torch.Tensor) -> torch.Tensor:
    """Between which two of these each of `values` is what is rounded to it."""
    return torch.cat([values.new_tensor([-math.inf]), _middles(values), values.new_tensor([math.inf])])


def _of_values(values: torch.Tensor, masses: torch.Tensor) -> Law:
    values, masses = values[masses > 0], masses[masses > 0]
    return Law(values, masses, float(values[0]), float(values[-1]))


def _mixed(mixture: Mixture, dtype: torch.dtype, farthest: float) -> Law | None:
    """The components' laws, each by its probability."""
    laws = [(share, law_of(component, dtype, farthest)) for share, component in mixture.components if share > 0]
    known = [(share, law) for share, law in laws if law is not None]
    if len(known) < len(laws):
        return None
    points, place = torch.cat([law.points for _, law in known]).unique(return_inverse=True)
    masses = torch.cat([law.masses * share for share, law in known])
    mixed = Law(
        points,
        torch.zeros_like(points).index_add_(0, place, masses / masses.sum()),
        min(law.low for _, law in known),
        max(law.high for _, law in known),
    )
    mixed.zero = sum(share * law.zero for share, law in known)
    return mixed


def _bounds(initializer: Initializer, farthest: float) -> tuple[float, float] | None:
    """Between which numbers the values are, but for what can never be seen."""
    if isinstance(initializer, Uniform):
        return initializer.a, initializer.b
    if isinstance(initializer, Normal):
        reach = farthest * abs(initializer.std)
        return initializer.mean - reach, initializer.mean + reach
    if isinstance(initializer, TruncatedNormal):
        mean, std = initializer.mean, initializer.std
        if not std > 0:
            at = min(max(mean, initializer.a), initializer.b)
            return at, at
        # From the likeliest value on, the density has fallen by exp(-40) there.
        likeliest = (min(max(mean, initializer.a), initializer.b) - mean) / std
        reach = math.sqrt(likeliest**2 + 80) * std
        return max(initializer.a, mean - reach), min(initializer.b, mean + reach)
    return None


def _masses(initializer: Initializer, edges: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The probability between each two neighbours of `edges`, given that a value is in [low, high]."""
    edges = edges.clamp(low, high)
    if isinstance(initializer, Uniform):
        masses = edges.diff()
    else:
        assert isinstance(initializer, (Normal, TruncatedNormal))
        masses = _normal_masses((edges - initializer.mean) / abs(initializer.std))
    return masses / masses.sum()


def _normal_masses(z: torch.Tensor) -> torch.Tensor:
    """What the standard normal density gives to each interval, up to a factor, which keeps far tails from vanishing."""
    if z[-1] < 0:
        return _normal_masses(-z.flip(0)).flip(0)
    if z[0] >= 0:
        tail: torch.Tensor = torch.special.erfcx(z / math.sqrt(2)) * torch.exp((z[0] ** 2 - z**2) / 2)
        return -tail.diff()
    lower, upper = torch.special.ndtr(z), torch.special.ndtr(-z)
    return torch.where(z[:-1] >= 0, -upper.diff(), lower.diff())


def _after(law: Law, step: Step) -> Law | None:
    """The law of a value after a step."""
    dtype, c = step.dtype, step.operand

    def moved(x: torch.Tensor) -> torch.Tensor:
        return x * c if step.op is Op.MUL else x + c if step.op is Op.ADD else x / c if step.op is Op.DIV else x

    ends = moved(torch.tensor([law.low, law.high], **_REAL))
    low, high = float(ends.min()), float(ends.max())
    if not (math.isfinite(low) and math.isfinite(high)) or not (low == high or _resolved(low, high, dtype)):
        return None
    if low == high:
        return point(torch.tensor(low, **_REAL).to(dtype).double().item())
    wide = 0.0 if dtype.itemsize <= 2 else _LAST_BITS * max(abs(low), abs(high))
    if law.edges is None:
        points = moved(law.points)
        if dtype.itemsize <= 2:
            points = points.float().to(dtype).double()
            low, high = float(points.min()), float(points.max())
        points, place = points.unique(return_inverse=True)
        return Law(points, torch.zeros_like(points).index_add_(0, place, law.masses), low - wide, high + wide)
    edges, masses = moved(law.edges), law.masses
    if edges[0] > edges[-1]:
        edges, masses = edges.flip(0), masses.flip(0)
    if dtype.itemsize > 2:
        return Law(_middles(edges), masses, low - wide, high + wide, edges)
    values = values_of(dtype)
    at = _rounded_between(values).clamp(edges[0], edges[-1])
    cell = torch.searchsorted(edges, at, right=True).sub_(1).clamp_(0, len(masses) - 1)
    inside = (at - edges[cell]) / (edges[cell + 1] - edges[cell])
    return _of_values(values, (masses.cumsum(0)[cell] - masses[cell] * (1 - inside)).diff())


def _resolved(low: float, high: float, dtype: torch.dtype) -> bool:
    made = torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32)
    near = _RESOLVED.get(dtype, 0.0) * max(abs(low), abs(high))
    return max(near, made.tiny / made.eps) <= high - low < math.inf
