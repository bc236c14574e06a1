"""What a storage holds, as fills.

A storage whose live writes are all fills needs no replay: the fills go straight to where the tensor will live. Copies
of such a storage are the same fills again, and copies of part of it are boxes of them (cut.py). Casts and arithmetic
with a number are folded into them as steps of a program, each with its own rounding, so that no bit changes
(docs/stream.md, section 11).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from torch_fastinit._torch import float8_saturates
from torch_fastinit.codes import MAX_STEPS, Op
from torch_fastinit.initializers import PROGRAMMABLE, Constant, Dirac, Eye, Initializer, Normal, Program, Sparse, Step
from torch_fastinit.ops import RANDOM_DTYPES
from torch_fastinit.planning.cut import Copy, copies_of, cut
from torch_fastinit.planning.fills import Draw, PlannedFill
from torch_fastinit.planning.inversion import number_of
from torch_fastinit.planning.recognize import absorbed, recognize
from torch_fastinit.recording.tape import Entry, Storage, Value, live_writes

aten = torch.ops.aten

#: Casts of a float32 normal that are the narrow fill itself: both round the same float32 once, and no bound is clamped.
_NARROW = frozenset({torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2})
#: dtypes of a program's steps, float64 by itself; and those that torch can calculate in.
_REAL = _NARROW | {torch.float32, torch.float64}
_ARITHMETIC_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})


def fold(storage: Storage, draws: Mapping[Entry, Draw], time: float = math.inf) -> list[PlannedFill] | str:
    """What `storage` holds at `time` as fills in order, without draws of no tensor; or why that cannot be said."""
    fills: list[PlannedFill] = []
    done: set[Entry] = set()
    for entry in reversed(live_writes(storage, time)):
        if entry in done:
            continue
        initializer = recognize(entry)
        if initializer is not None:
            done.update(absorbed(entry))
            draw = draws.get(entry) if entry.random else None
            if draw is not None or not entry.random:
                fills.append(PlannedFill(initializer, entry.writes[0].view, draw))
            continue
        if entry.random:
            how = "read by the constructor" if entry.state is not None else "seeded by the constructor"
            return f"{_name(entry)}: {how}" if entry.determined else f"{_name(entry)}: no fill has this distribution"
        change = _change(entry)
        if change is None:
            copies = copies_of(entry)
            cuts = [_cut(copy, draws, entry.time) for copy in copies or ()]
            if copies is None or None in cuts:
                return _name(entry)
            fills += [fill for some in cuts for fill in some or ()]
            continue
        if change.source is change.target:
            folded = [_changed_in_place(fill, change) for fill in fills]
        elif change.source.storage.captured is not None:
            return _name(entry) if change.operations else "copy of a value"
        else:
            origin = fold(change.source.storage, draws, entry.time)
            if isinstance(origin, str):
                return origin
            folded = [_copied(fill, change) for fill in origin]
        if None in folded:
            before, after = change.source.view.dtype, change.target.view.dtype
            cast = "" if before is after else f" to {short_name(after)} after {short_name(before)}"
            return _name(entry) + cast
        kept = [] if change.source is change.target else fills
        fills = kept + [fill for fill in folded if fill is not None]
    return fills


def _cut(copy: Copy, draws: Mapping[Entry, Draw], time: float) -> list[PlannedFill] | None:
    """What a copy of part of a storage writes, as fills."""
    if not isinstance(copy.source, Value):
        return [PlannedFill(Constant(copy.source), copy.target)]
    if copy.source.storage.captured is not None:
        return None
    origin = fold(copy.source.storage, draws, time)
    source, target = copy.source.view, copy.target
    if isinstance(origin, str):
        return None
    if source.dtype is not target.dtype:
        casts = [_after(fill, target.dtype, ()) if fill.view.dtype is source.dtype else None for fill in origin]
        if None in casts:
            return None
    fills = cut(origin, copy.source.storage, source, replace(target, dtype=source.dtype))
    if fills is None or source.dtype is target.dtype:
        return fills
    return [fill for part in fills if (fill := _after(part, target.dtype, ())) is not None]


def cast_fill(fill: PlannedFill, dtype: torch.dtype) -> PlannedFill | None:
    """`fill` followed by a cast, as one fill, if that gives the same bits."""
    return fill if fill.view.dtype is dtype else _after(fill, dtype, ())


# --- entries that change every element --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Change:
    """What an entry does to every element: `target = source op operand ...`, element by element in memory order.

    `operations` come with their operands; none is a copy or a cast.
    """

    source: Value
    target: Value
    operations: tuple[tuple[Op, float], ...]


def _changed_in_place(fill: PlannedFill, change: _Change) -> PlannedFill | None:
    """`fill` after a change of part of its storage: all of the fill's elements, or none of them, must be in it."""
    start, end, dense = change.target.span
    first, last = fill.view.span
    if last <= start or end <= first:
        return fill
    changed = change.target.view
    if fill.view.dtype is not changed.dtype or not (fill.view == changed or (dense and start <= first and last <= end)):
        return None
    return _after(fill, changed.dtype, change.operations)


def _copied(fill: PlannedFill, change: _Change) -> PlannedFill | None:
    """`fill` of the source's storage, changed, as a fill of the target's storage."""
    before, after = change.source.view.dtype, change.target.view
    moved = after.offset * before.itemsize // fill.view.dtype.itemsize
    if change.operations or before is not after.dtype:
        if fill.view.dtype is not before:
            return None
        changed = _after(fill, after.dtype, change.operations)
        if changed is None:
            return None
        fill = changed
    return replace(fill, view=replace(fill.view, offset=fill.view.offset + moved)) if moved else fill


def _after(fill: PlannedFill, dtype: torch.dtype, operations: Sequence[tuple[Op, float]]) -> PlannedFill | None:
    """`fill` followed by operations, or by a cast, whose result has a dtype, as one fill, if it has the same bits."""
    before, initializer = fill.view.dtype, fill.initializer
    if operations and (before not in _ARITHMETIC_DTYPES or before is not dtype):
        return None
    changed = _initializer_after(initializer, before, dtype, operations)
    view = fill.view if dtype is before else replace(fill.view, dtype=dtype)
    return None if changed is None else replace(fill, initializer=changed, view=view)


def _initializer_after(
    initializer: Initializer, before: torch.dtype, dtype: torch.dtype, operations: Sequence[tuple[Op, float]]
) -> Initializer | None:
    if isinstance(initializer, Constant):
        element = torch.empty((1,), dtype=before, device="cpu").fill_(initializer.value)
        for op, c in operations:
            element = element * c if op is Op.MUL else element + c if op is Op.ADD else element / c
        return Constant(element.to(dtype).item())
    if torch.float8_e4m3fn in (before, dtype) and not float8_saturates():
        return None
    if not operations:
        if isinstance(initializer, (Eye, Dirac)):
            return initializer if dtype in RANDOM_DTYPES else None
        if isinstance(initializer, (Normal, Sparse)) and before is torch.float32 and dtype in _NARROW:
            return initializer
    if not {before, dtype} <= _REAL or (before is torch.float64) != (dtype is torch.float64):
        return None
    steps = tuple(Step(op, operand, dtype) for op, operand in operations or [(Op.CAST, 0.0)])
    if isinstance(initializer, PROGRAMMABLE):
        program = Program(initializer, before, steps)
    elif isinstance(initializer, Program):
        program = replace(initializer, steps=(*initializer.steps, *steps))
    else:
        return None
    return program if len(program.steps) <= MAX_STEPS else None


def _mul(entry: Entry, c: float) -> tuple[tuple[Op, float], ...]:
    return ((Op.MUL, c),)


def _add(entry: Entry, c: float) -> tuple[tuple[Op, float], ...]:
    # A number that is added is rounded to the tensor's dtype first; one that multiplies or divides is not.
    return ((Op.ADD, torch.tensor(c, dtype=entry.args[0].shadow.dtype, device="cpu").item()),)


def _sub(entry: Entry, c: float) -> tuple[tuple[Op, float], ...]:
    return _add(entry, -c)


def _rsub(entry: Entry, c: float) -> tuple[tuple[Op, float], ...]:
    return ((Op.MUL, -1.0), *_add(entry, c))


def _div(entry: Entry, c: float) -> tuple[tuple[Op, float], ...]:
    return ((Op.DIV, c),)


_ARITHMETIC: dict[Any, Callable[[Entry, float], tuple[tuple[Op, float], ...]]] = {
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar, aten.mul_.Tensor, aten.mul_.Scalar), _mul),
    **dict.fromkeys((aten.add.Tensor, aten.add.Scalar, aten.add_.Tensor, aten.add_.Scalar), _add),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar, aten.sub_.Tensor, aten.sub_.Scalar), _sub),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor, aten.div_.Scalar), _div),
    **dict.fromkeys((aten.rsub.Tensor, aten.rsub.Scalar), _rsub),
}
_NEGATIONS = frozenset({aten.neg.default, aten.neg_.default})
_COPIES = frozenset({aten.clone.default, aten._to_copy.default, aten.contiguous.default})


def _arithmetic(entry: Entry) -> tuple[tuple[Op, float], ...] | None:
    """The entry's operations, if torch's have the bits of a program's steps."""
    value, c = entry.args[0], number_of(entry)
    alpha = entry.kwargs.get("alpha", 1) if len(entry.args) < 3 else entry.args[2]
    if c is None or alpha != 1 or not isinstance(value, Value):
        return None
    how = _ARITHMETIC[entry.func]
    if how is _div and c == 0:
        return None
    # On a GPU, torch divides by multiplying with the reciprocal, and adds to a narrow dtype what is not rounded to it.
    if value.storage.device.type != "cpu" and (how is _div or value.shadow.dtype in _NARROW):
        return None
    return how(entry, c)


def _change(entry: Entry) -> _Change | None:
    """The entry as a change of every element, if it is one and elements lie in memory in the same order."""
    target = entry.outs[0] if entry.outs else entry.writes[0]
    source = entry.args[0]
    operations: tuple[tuple[Op, float], ...] | None = ()
    if entry.func is aten.copy_.default:
        target, source = entry.args[:2]
    elif entry.func in _NEGATIONS:
        operations = ((Op.MUL, -1.0),)
    elif entry.func in _ARITHMETIC:
        operations = _arithmetic(entry)
    elif entry.func not in _COPIES:
        return None
    if operations is None or not (isinstance(source, Value) and isinstance(target, Value)):
        return None
    if source.lazy or target.lazy:
        return None
    if source is not target:
        a, b = source.shadow, target.shadow
        if not source.whole or a.shape != b.shape or a.stride() != b.stride() or source.storage is target.storage:
            return None
    return _Change(source, target, operations)


def _name(entry: Entry) -> str:
    name = getattr(entry.func, "overloadpacket", entry.func)
    return str(getattr(name, "__name__", name))


def short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
