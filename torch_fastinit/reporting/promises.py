"""From what was written to a tensor to what its statistics are expected to be."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_fastinit.initializers import (
    Constant,
    Dirac,
    Eye,
    Initializer,
    Normal,
    Program,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from torch_fastinit.ops import Fill, fill
from torch_fastinit.planning.fills import PlannedFill
from torch_fastinit.planning.planner import Assignment, Filled, Zeros
from torch_fastinit.recording.memory import View
from torch_fastinit.reporting.laws import CACHED, FARTHEST, FARTHEST_64, Law, law_of, point

#: What torch itself draws coarsely in dtypes of two bytes: uniforms of few values, bounds that are rounded outwards,
#: and before torch 2.12 normals that are made of such uniforms.
_COARSE: tuple[type[Initializer], ...] = (Uniform, TruncatedNormal)
if torch.__version__ < "2.12":  # as versions are compared
    _COARSE += (Normal,)
#: So many values, each of a law.
Part = tuple[Law, int]


@dataclass(slots=True, eq=False)
class Expected:
    """What a tensor's statistics are expected to be: those of independent values, `count` of them in all.

    A value's mean is `mean`; `std` is that of the values about it, and so that of a value picked at random. It is one
    object for all tensors of which the same is expected, so that what follows from it is found once.
    """

    parts: tuple[Part, ...]
    count: int
    mean: float
    std: float
    zeros: float
    low: float
    high: float

    @staticmethod
    @functools.lru_cache(maxsize=CACHED)
    def of(parts: tuple[Part, ...]) -> Expected:
        count = sum(n for _, n in parts)
        mean = sum(law.mean * (n / count) for law, n in parts)
        apart = (x * math.sqrt(n / count) for law, n in parts for x in (law.std, law.mean - mean))
        return Expected(
            parts,
            count,
            mean,
            math.hypot(*apart),
            sum(law.zero * n for law, n in parts),
            min(law.low for law, _ in parts),
            max(law.high for law, _ in parts),
        )

    @functools.lru_cache(maxsize=CACHED)  # noqa: B019
    def shares(self, low: float, high: float, parts: int) -> tuple[float, ...]:
        """The expected share of the values in each of equal parts of [low, high], the ends with all outside."""
        of_parts = [(law.shares(low, high, parts), n / self.count) for law, n in self.parts]
        return tuple(sum(shares[i] * weight for shares, weight in of_parts) for i in range(parts))


def expected(one: Assignment, of_stream: bool) -> Expected | None:
    """What the tensor of `one` is expected to be like; None where nothing says so: what is replayed, copied, kept."""
    numel = math.prod(one.view.shape)
    if numel == 0:
        return None
    if isinstance(one.source, Zeros):
        return Expected.of(((point(0.0), numel * (1 + one.dtype.is_complex)),))
    if not isinstance(one.source, Filled) or not one.source.fills:
        return None
    if any(planned.view.dtype is not one.dtype for planned in one.source.fills):
        return _of_a_view(one.source.fills, numel, one.dtype, of_stream)
    counts = _counts(one.source.fills, one.view)
    parts: list[Part] = []
    for planned, count in zip(one.source.fills, counts or (), strict=False):
        some = _parts(planned, count, one.dtype, of_stream) if count else ()
        if some is None:
            return None
        parts += some
    return Expected.of(tuple(parts)) if parts else None


def _of_a_view(fills: Sequence[PlannedFill], numel: int, dtype: torch.dtype, of_stream: bool) -> Expected | None:
    """What was written as another dtype is only known of a complex tensor whose parts are one real fill."""
    real = fills[0].view
    if len(fills) > 1 or not dtype.is_complex or real.dtype is not dtype.to_real():
        return None
    parts = _parts(fills[0], 2 * numel, real.dtype, of_stream) if math.prod(real.shape) == 2 * numel else None
    return Expected.of(tuple(parts)) if parts else None


def differing(one: Assignment, tensor: torch.Tensor) -> int:
    """How many elements are not the constants that were written, in the tensor's own dtype; 0 of what is random."""
    if isinstance(one.source, Zeros):
        return int(tensor.count_nonzero())
    fills = one.source.fills if isinstance(one.source, Filled) else ()
    values = [fill.initializer.value for fill in fills if isinstance(fill.initializer, Constant)]
    if not values or len(values) < len(fills) or any(fill.view.dtype is not one.dtype for fill in fills):
        return 0
    last = _last(fills, one.view)
    if last is None:
        return 0
    wrong = torch.zeros(tensor.shape, dtype=torch.bool, device="cpu")
    for number, value in enumerate(values, 1):
        constant = torch.empty((), dtype=one.dtype, device="cpu").fill_(value)
        wrong |= (last == number) & _unlike(tensor.cpu(), constant)
    return int(wrong.sum())


def _unlike(tensor: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}.get(tensor.dtype)
    if signed is not None:  # torch compares few of the unsigned dtypes
        tensor, constant = tensor.view(signed), constant.view(signed)
    return tensor != constant


def _counts(fills: Sequence[PlannedFill], view: View) -> list[int] | None:
    """How many of a tensor's elements each of its fills wrote last; None if some were written by none."""
    if len(fills) == 1 and _place(fills[0].view) == _place(view):
        return [math.prod(view.shape)]
    seen = _last(fills, view)
    counts = [] if seen is None else [int((seen == number).sum()) for number in range(len(fills) + 1)]
    return None if not counts or counts[0] else counts[1:]


def _last(fills: Sequence[PlannedFill], view: View) -> torch.Tensor | None:
    """The number, from 1 on, of the fill that wrote each of a tensor's elements last: 0 for none. None: not known."""
    views = [view, *(one.view for one in fills)]
    if len({one.dtype.itemsize for one in views[1:]}) > 1 or len(fills) > 127:
        return None
    start = min(one.offset for one in views)
    last = torch.zeros(max(_end(one) for one in views) - start, dtype=torch.int8, device="cpu")
    for number, one in enumerate(fills, 1):
        last.as_strided(one.view.shape, one.view.stride, one.view.offset - start).fill_(number)
    return last.as_strided(view.shape, view.stride, view.offset - start)


def _place(view: View) -> tuple[object, ...]:
    return view.shape, view.stride, view.offset


def _end(view: View) -> int:
    if 0 in view.shape:
        return view.offset
    return view.offset + 1 + sum((n - 1) * step for n, step in zip(view.shape, view.stride, strict=True))


def _parts(planned: PlannedFill, count: int, dtype: torch.dtype, of_stream: bool) -> Sequence[Part] | None:
    """What the laws of `count` elements are that a fill wrote. Of a complex dtype, twice as many real ones."""
    initializer = planned.initializer
    whole = count == math.prod(planned.view.shape)
    if isinstance(initializer, Constant):
        return [(law, count) for law in _constants(initializer.value, dtype)]
    if isinstance(initializer, (Eye, Dirac)):
        if not whole or dtype.is_complex:
            return None
        made = Fill(torch.empty(planned.view.shape, dtype=torch.float32, device="cpu"), initializer, region=planned.box)
        fill([made])
        ones = int(made.tensor.count_nonzero())
        return [(law, n) for law, n in ((point(1.0), ones), (point(0.0), count - ones)) if n]
    if isinstance(initializer, Sparse):
        if not whole or dtype.is_complex or planned.box is not None:
            return None
        rows, columns = planned.view.shape
        zeros = min(rows, math.ceil(initializer.sparsity * rows)) * columns
        law = _law(Normal(0.0, initializer.std), dtype, of_stream)
        return None if law is None else [(part, n) for part, n in ((point(0.0), zeros), (law, count - zeros)) if n]
    if dtype.is_complex:
        initializer = initializer.component() if isinstance(initializer, Normal) else initializer
        dtype, count = dtype.to_real(), 2 * count
    law = _law(initializer, dtype, of_stream)
    return None if law is None else [(law, count)]


@functools.lru_cache(maxsize=CACHED)
def _constants(value: complex, dtype: torch.dtype) -> list[Law]:
    """The laws of a number in a dtype: of a complex one, of both its parts."""
    number = torch.empty(1, dtype=dtype, device="cpu").fill_(value)
    return [point(x) for x in (torch.view_as_real(number).flatten() if dtype.is_complex else number).double().tolist()]


def _law(initializer: Initializer, dtype: torch.dtype, of_stream: bool) -> Law | None:
    """The law of values of the stream, or of torch's own, whose normals may lie as far out as any in float64."""
    if not dtype.is_floating_point:
        return None
    drawn, made = (initializer.draw, initializer.dtype) if isinstance(initializer, Program) else (initializer, dtype)
    if not of_stream and made.itemsize <= 2 and isinstance(drawn, _COARSE):
        return None
    return law_of(initializer, dtype, FARTHEST if of_stream and dtype is not torch.float64 else FARTHEST_64)
