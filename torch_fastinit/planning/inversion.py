"""The truncated normal that model libraries write out: a uniform draw through the inverse of the distribution function.

`uniform_`, `erfinv_`, `mul_`, `add_`, `clamp_` on the same elements are one draw of the law that they mean in real
arithmetic (docs/stream.md, section 11). They are followed in exact terms: the elements are `scale * erfinv(x) + shift`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from torch_fastinit.initializers import TruncatedNormal, Uniform
from torch_fastinit.recording.memory import as_real
from torch_fastinit.recording.tape import Entry, Value

aten = torch.ops.aten

#: How far the uniform's bounds may be from those of the law, as a share of its probability.
TOLERANCE = 1e-6

#: Multiplication by a number, then addition of one.
_Affine = tuple[float, float]

_AFFINE: dict[Any, Callable[[float], _Affine]] = {
    **dict.fromkeys((aten.mul_.Tensor, aten.mul_.Scalar), lambda c: (c, 0.0)),
    **dict.fromkeys((aten.div_.Tensor, aten.div_.Scalar), lambda c: (1 / c if c else 0.0, 0.0)),
    **dict.fromkeys((aten.add_.Tensor, aten.add_.Scalar), lambda c: (1.0, c)),
    **dict.fromkeys((aten.sub_.Tensor, aten.sub_.Scalar), lambda c: (1.0, -c)),
}
_CLAMPS = frozenset({aten.clamp_.default, aten.clip_.default})


def number_of(entry: Entry, position: int = 1) -> float | None:
    """An argument that is a number, whether Python's or in a real tensor of no dimensions."""
    item = entry.args[position]
    if isinstance(item, Value) and item.storage.captured is not None and item.shadow.dim() == 0:
        item = as_real(item.shadow, item.storage.captured).item()
    if isinstance(item, bool) or not isinstance(item, (int, float)) or not abs(item) <= 2**53:
        return None  # also not a number, or infinite: what becomes of that is best left to torch
    return float(item)


def inversion(entry: Entry, uniform: Uniform) -> tuple[TruncatedNormal, list[Entry]] | None:
    """The law that `entry`, a draw of `uniform`, and the operations right after it mean; and these operations."""
    low, high = uniform.a, uniform.b
    scale, shift = 1.0, 0.0
    inverted = False
    bounds: tuple[float, float] | None = None
    rest: list[Entry] = []
    for later in _same_elements(entry):
        affine = _affine(later)
        if affine is not None and inverted:
            scale, shift = scale * affine[0], shift * affine[0] + affine[1]
            bounds = None if bounds is None else _mapped(bounds, affine)
        elif affine is not None:
            low, high = _mapped((low, high), affine)
        elif later.func is aten.erfinv_.default and not inverted:
            inverted = True
        elif later.func in _CLAMPS and inverted and bounds is None:
            bounds = _clamp(later)
            if bounds is None or not _agree((low, high), bounds, scale, shift):
                return None
        else:
            break
        rest.append(later)
    if bounds is None or not bounds[0] < bounds[1]:
        return None
    return TruncatedNormal(shift, abs(scale) / math.sqrt(2.0), *bounds), rest


def _same_elements(entry: Entry) -> Iterator[Entry]:
    """The operations on just the elements that `entry` wrote, up to the first that is of others, or a read."""
    value = entry.writes[0]
    storage = value.storage
    start = bisect.bisect_right(storage.writes, entry.time, key=_time)
    reads = storage.reads[bisect.bisect_right(storage.reads, entry.time) :]
    for later in storage.writes[start:]:
        if (reads and later.time > reads[0]) or len(later.writes) != 1 or later.writes[0].view != value.view:
            return
        yield later


def _time(entry: Entry) -> int:
    return entry.time


def _affine(entry: Entry) -> _Affine | None:
    if entry.func is aten.neg_.default:
        return -1.0, 0.0
    affine = _AFFINE.get(entry.func)
    if affine is None or len(entry.args) != 2 or entry.kwargs:
        return None
    c = number_of(entry)
    if c is None:
        return None
    factor, term = affine(c)
    return (factor, term) if factor else None


def _mapped(bounds: tuple[float, float], affine: _Affine) -> tuple[float, float]:
    a, b = (bound * affine[0] + affine[1] for bound in bounds)
    return (a, b) if a <= b else (b, a)


def _clamp(entry: Entry) -> tuple[float, float] | None:
    given = {**dict(zip(("min", "max"), entry.args[1:], strict=False)), **entry.kwargs}
    low, high = given.get("min"), given.get("max")
    bounds = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return bounds if bounds[0] < bounds[1] else None


def _agree(uniform: tuple[float, float], bounds: tuple[float, float], scale: float, shift: float) -> bool:
    """Whether values below a bound of the law are as probable as values below one of the uniform's."""
    if not -1 <= uniform[0] < uniform[1] <= 1:
        return False
    wanted = sorted(math.erf((bound - shift) / scale) for bound in bounds)
    allowed = TOLERANCE * (uniform[1] - uniform[0])
    return all(abs(a - b) <= allowed for a, b in zip(uniform, wanted, strict=True))
