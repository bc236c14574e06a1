"""A copy of part of a tensor, as fills of the part: each is a box of what the fill of the whole would have written.

Places are compared in a *frame*: a view that covers memory densely, in which others are boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from torch_fastinit.initializers import Constant
from torch_fastinit.ops import Region
from torch_fastinit.planning.fills import PlannedFill
from torch_fastinit.recording.memory import View
from torch_fastinit.recording.tape import Entry, Storage, Value

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Copy:
    """What an entry copies: the elements of `source`, or one number, to those of `target`, which has its shape."""

    source: Value | complex
    target: View


_WHOLE = frozenset({aten.clone.default, aten._to_copy.default, aten.contiguous.default})


def copies_of(entry: Entry) -> list[Copy] | None:
    """The entry as copies into the storage that it writes, if it is nothing but copies. A copy may be a cast, too."""
    args = entry.args
    if entry.func is aten.copy_.default:
        if _overlap(args[1], args[0]):  # in what order torch goes counts
            return None
        pairs = [(args[1], args[0].view)]
    elif entry.func in _WHOLE:
        out = entry.outs[0]
        pairs = [(args[0], out.view)] if out is not None else []
    elif entry.func is aten.cat.default:
        pairs = _concatenated(entry)
    elif entry.func is aten.constant_pad_nd.default:
        pairs = _padded(entry)
    else:
        return None
    if isinstance(args[0], Value) and args[0].lazy:
        return None
    for source, target in pairs:
        if not isinstance(source, (Value, int, float, complex)):
            return None
        if isinstance(source, Value) and (source.lazy or tuple(source.shadow.shape) != tuple(target.shape)):
            return None
    return [Copy(source, target) for source, target in pairs] or None


def _overlap(a: object, b: Value) -> bool:
    """Whether two values may have elements in common."""
    if not isinstance(a, Value) or a.storage is not b.storage:
        return False
    if a.span[1] <= b.span[0] or b.span[1] <= a.span[0]:
        return False
    frame = _all_of(b.storage)
    one, other = (_place(value.view, frame) if value.view.dtype is frame.dtype else None for value in (a, b))
    if one is None or other is None:
        return True
    starts, ends = map(max, one.start, other.start), map(min, one.end, other.end)
    return all(start < end for start, end in zip(starts, ends, strict=True))


def _concatenated(entry: Entry) -> list[tuple[Any, View]]:
    sources, out = entry.args[0], entry.outs[0]
    if out is None or not all(isinstance(source, Value) for source in sources):
        return []
    dim = entry.args[1] if len(entry.args) > 1 else entry.kwargs.get("dim", 0)
    dim %= out.shadow.dim()
    pairs, start = [], 0
    for source in sources:
        if source.shadow.dim() == out.shadow.dim():  # torch skips tensors of shape (0,)
            length = source.shadow.shape[dim]
            pairs.append((source, narrow(out.view, dim, start, length)))
            start += length
    return pairs


def _padded(entry: Entry) -> list[tuple[Any, View]]:
    (source, pads, *value), out = entry.args, entry.outs[0]
    if out is None or min(pads) < 0:
        return []
    inner = out.view
    for i in range(len(pads) // 2):
        dim = len(inner.shape) - 1 - i
        inner = narrow(inner, dim, pads[2 * i], source.shadow.shape[dim])
    return [(value[0] if value else entry.kwargs.get("value", 0), out.view), (source, inner)]


def narrow(view: View, dim: int, start: int, length: int) -> View:
    """What `torch.narrow` gives."""
    shape = (*view.shape[:dim], length, *view.shape[dim + 1 :])
    return replace(view, shape=shape, offset=view.offset + start * view.stride[dim])


def cut(fills: Sequence[PlannedFill], storage: Storage, source: View, target: View) -> list[PlannedFill] | None:
    """What a copy writes to `target` from `source`, a view of `storage`, which `fills` wrote; None if it is unclear."""
    found: list[PlannedFill] = []
    if 0 in target.shape:
        return found
    whole = _all_of(storage)
    for fill in fills:
        parts = next(
            (p for frame in (whole, source, fill.view) if (p := _cut(fill, source, target, frame)) is not None), None
        )
        if parts is None:
            return None
        found += parts
    return found


def _all_of(storage: Storage) -> View:
    """What was allocated, as it was."""
    base = storage.base
    return View(base.dtype, base.shape, base.stride(), int(base.storage_offset()))


def _cut(fill: PlannedFill, source: View, target: View, frame: View) -> list[PlannedFill] | None:
    if not fill.view.dtype is source.dtype is frame.dtype:
        return None
    written, read = _place(fill.view, frame), _place(source, frame)
    if written is None or read is None:
        return None
    low = [max(a, b) for a, b in zip(written.start, read.start, strict=True)]
    high = [min(a, b) for a, b in zip(written.end, read.end, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return []
    strides = {d: stride for d, stride in zip(read.dims, target.stride, strict=True) if d is not None}
    view = View(
        target.dtype,
        tuple(1 if d is None else high[d] - low[d] for d in written.dims),
        tuple(1 if d is None else strides.get(d, 1) for d in written.dims),
        target.offset + sum((low[d] - read.start[d]) * stride for d, stride in strides.items()),
    )
    at = tuple(0 if d is None else low[d] - written.start[d] for d in written.dims)
    box = fill.box
    if box is not None:
        box = Region(box.shape, tuple(a + b for a, b in zip(box.offsets, at, strict=True)))
    elif view.shape != tuple(fill.view.shape) and not isinstance(fill.initializer, Constant):
        box = Region(tuple(fill.view.shape), at)
    return [replace(fill, view=view, box=box)]


@dataclass(frozen=True, slots=True)
class _Place:
    """A box of a frame: where it starts and ends, and the frame's dimension for each of the view's (size 1: None)."""

    start: list[int]
    end: list[int]
    dims: list[int | None]


def _place(view: View, frame: View) -> _Place | None:
    rest = view.offset - frame.offset
    if rest < 0:
        return None
    wide = {d: frame.stride[d] for d, size in enumerate(frame.shape) if size > 1}
    start, reach = [0] * len(frame.shape), 0
    for d in sorted(wide, key=wide.__getitem__):
        if wide[d] <= reach:  # two indices for one place
            return None
        reach += (frame.shape[d] - 1) * wide[d]
    for d in sorted(wide, key=lambda d: -wide[d]):
        start[d], rest = divmod(rest, wide[d])
    end = [first + 1 for first in start]
    dims: list[int | None] = []
    of = {stride: d for d, stride in wide.items()}
    for size, stride in zip(view.shape, view.stride, strict=True):
        if size == 1:
            dims.append(None)
        elif stride in of:
            d = of.pop(stride)
            end[d] = start[d] + size
            dims.append(d)
        else:
            return None
    if rest or any(last > size for last, size in zip(end, frame.shape, strict=True)):
        return None
    return _Place(start, end, dims)
