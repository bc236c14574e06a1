"""Entries of the tape as fills: what one operation writes, and what a whole storage holds.

A storage whose live writes are all fills (:func:`lowered`) needs no replay: the fills go straight to where the tensor
will live. Copies of such a storage are the same fills again. Casts and arithmetic with a number are folded into them as
steps of a program, each with its own rounding, so that no bit changes (docs/stream.md, section 11).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from torch_fastinit.codes import MAX_STEPS, Kind, Op
from torch_fastinit.initializers import (
    Constant,
    Dirac,
    Eye,
    Initializer,
    Normal,
    Program,
    Sparse,
    Step,
    TruncatedNormal,
    Uniform,
)
from torch_fastinit.intercept import dirac_, sparse_, trunc_normal_
from torch_fastinit.ops import RANDOM_DTYPES
from torch_fastinit.tape import Entry, Storage, Value, as_real, live_writes

__all__ = ["FillStep", "cast_step", "fill_steps", "lowered", "short_name"]

aten = torch.ops.aten

#: Casts of a float32 normal that are the narrow fill itself: both round the same float32 once, and no bound is clamped.
_NARROW = frozenset({torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2})
#: dtypes of a program's steps, float64 by itself; and those that torch can calculate in.
_REAL = _NARROW | {torch.float32, torch.float64}
_ARITHMETIC_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})


# --- what an entry writes ---------------------------------------------------------------------------------------------


def _two_numbers(entry: Entry, cls: type[Normal | Uniform], *names: str) -> Initializer:
    """What ``normal_`` or ``uniform_`` fills with: two numbers, by position or by name, by default 0 and 1."""
    args = entry.args
    if len(args) == 3:
        return cls(float(args[1]), float(args[2]))
    given = {**dict(zip(names, args[1:], strict=False)), **entry.kwargs}
    return cls(float(given.get(names[0], 0.0)), float(given.get(names[1], 1.0)))


def _fill_tensor(entry: Entry) -> Initializer | None:
    value = entry.args[1]
    if not isinstance(value, Value):
        return Constant(value)
    if value.storage.constant is None:
        return None
    return Constant(as_real(value.shadow, value.storage.constant).item())


def _eye(entry: Entry) -> Initializer | None:
    shape = tuple(entry.kwargs["out"].shadow.shape)
    return Eye() if shape == tuple(entry.args[:2]) else None


def _fastinit_fill(entry: Entry) -> Initializer | None:
    kind, params = Kind(entry.args[1]), entry.args[2]
    if kind is Kind.SPARSE:
        return Sparse(*params)
    kinds: dict[Kind, type[Any]] = {
        Kind.UNIFORM: Uniform,
        Kind.NORMAL: Normal,
        Kind.TRUNCATED_NORMAL: TruncatedNormal,
    }
    return kinds[kind](*params) if kind in kinds else None


def _fastinit_batch(entry: Entry) -> Initializer | None:
    tensors, recipe, params = entry.args
    if len(tensors) != 1 or recipe[4] != 0 or recipe[5] != 0:
        return None
    kind = Kind(recipe[0])
    if kind is Kind.EYE:
        return Eye()
    return Dirac(int(params[0])) if kind is Kind.DIRAC else None


_LOWERINGS: dict[Any, Callable[[Entry], Initializer | None]] = {
    aten.zero_.default: lambda e: Constant(0),
    aten.fill_.Scalar: lambda e: Constant(e.args[1]),
    aten.fill_.Tensor: _fill_tensor,
    aten.normal_.default: lambda e: _two_numbers(e, Normal, "mean", "std"),
    aten.uniform_.default: lambda e: _two_numbers(e, Uniform, "from", "to"),
    aten.eye.m_out: _eye,
    trunc_normal_: lambda e: TruncatedNormal(*(float(e.kwargs[name]) for name in ("mean", "std", "a", "b"))),
    sparse_: lambda e: Sparse(float(e.kwargs["sparsity"]), float(e.kwargs["std"])),
    dirac_: lambda e: Dirac(int(e.kwargs["groups"])),
    torch.ops.fastinit.fill_.default: _fastinit_fill,
    torch.ops.fastinit.fill_batch_.default: _fastinit_batch,
}


def lowered(entry: Entry) -> Initializer | None:
    """The initializer that ``entry`` is one fill of, if it is one and its outcome is not settled otherwise."""
    lowering = _LOWERINGS.get(entry.func)
    if lowering is None or len(entry.writes) != 1 or (entry.random and entry.constant):
        return None
    shadow = entry.writes[0].shadow
    initializer = lowering(entry)
    if initializer is None or shadow.is_neg():
        return None
    if shadow.dtype not in RANDOM_DTYPES:
        anywhere = isinstance(initializer, Constant) or (isinstance(initializer, Normal) and shadow.is_complex())
        if not anywhere or shadow.is_conj():
            return None
    if isinstance(initializer, Normal) and not initializer.std >= 0:
        return None
    if not shadow.is_contiguous() and any(s == 0 < n - 1 for n, s in zip(shadow.shape, shadow.stride(), strict=True)):
        return None
    return initializer


# --- what a storage holds, as fills -----------------------------------------------------------------------------------


@dataclass(slots=True)
class FillStep:
    """One fill of a part of a storage: what ``entry`` wrote first, as ``dtype``, and ``moved`` by so many elements.

    ``entry`` is also the draw, for random values.
    """

    entry: Entry
    initializer: Initializer
    dtype: torch.dtype
    moved: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.writes[0].shadow.shape

    @property
    def stride(self) -> tuple[int, ...]:
        return self.entry.writes[0].shadow.stride()

    @property
    def offset(self) -> int:
        """The first element's place in the storage, in elements."""
        return int(self.entry.writes[0].shadow.storage_offset()) + self.moved


# --- and what is done to it afterwards --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Change:
    """What an entry does to every element: ``target = source op operand ...``, element by element in memory order.

    ``steps`` are the operations with their operands; none is a copy or a cast.
    """

    source: Value
    target: Value
    steps: tuple[tuple[Op, float], ...]


def cast_step(step: FillStep, dtype: torch.dtype) -> FillStep | None:
    """``step`` followed by a cast, as one fill, if that gives the same bits."""
    return step if step.dtype is dtype else _after(step, dtype, ())


def _after(step: FillStep, dtype: torch.dtype, operations: Sequence[tuple[Op, float]]) -> FillStep | None:
    """``step`` followed by operations, or by a cast, whose result has a dtype, as one fill, if it has the same bits."""
    initializer = step.initializer
    if operations and (step.dtype not in _ARITHMETIC_DTYPES or step.dtype is not dtype):
        return None
    if isinstance(initializer, Constant):
        element = torch.empty((1,), dtype=step.dtype, device="cpu").fill_(initializer.value)
        for op, c in operations:
            element = element * c if op is Op.MUL else element + c if op is Op.ADD else element / c
        return replace(step, dtype=dtype, initializer=Constant(element.to(dtype).item()))
    if not operations:
        if isinstance(initializer, (Eye, Dirac)):
            return replace(step, dtype=dtype) if dtype in RANDOM_DTYPES else None
        if isinstance(initializer, (Normal, Sparse)) and step.dtype is torch.float32 and dtype in _NARROW:
            return replace(step, dtype=dtype)
    if not {step.dtype, dtype} <= _REAL or (step.dtype is torch.float64) != (dtype is torch.float64):
        return None
    steps = tuple(Step(op, operand, dtype) for op, operand in operations or [(Op.CAST, 0.0)])
    if isinstance(initializer, (Uniform, Normal, TruncatedNormal)):
        program = Program(initializer, step.dtype, steps)
    elif isinstance(initializer, Program):
        program = replace(initializer, steps=(*initializer.steps, *steps))
    else:
        return None
    return replace(step, dtype=dtype, initializer=program) if len(program.steps) <= MAX_STEPS else None


def _number(entry: Entry, position: int = 1) -> float | None:
    """An argument that is a number, whether Python's or in a real tensor of no dimensions."""
    item = entry.args[position]
    if isinstance(item, Value) and item.storage.constant is not None and item.shadow.dim() == 0:
        item = as_real(item.shadow, item.storage.constant).item()
    if isinstance(item, bool) or not isinstance(item, (int, float)) or not abs(item) <= 2**53:
        return None  # also not a number, or infinite: what becomes of that is best left to torch
    return float(item)


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
    value, c = entry.args[0], _number(entry)
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
    steps: tuple[tuple[Op, float], ...] | None = ()
    if entry.func is aten.copy_.default:
        target, source = entry.args[:2]
    elif entry.func in _NEGATIONS:
        steps = ((Op.MUL, -1.0),)
    elif entry.func in _ARITHMETIC:
        steps = _arithmetic(entry)
    elif entry.func not in _COPIES:
        return None
    if steps is None or not (isinstance(source, Value) and isinstance(target, Value)):
        return None
    if source is not target:
        a, b = source.shadow, target.shadow
        if not source.whole or a.shape != b.shape or a.stride() != b.stride() or source.storage is target.storage:
            return None
    return _Change(source, target, steps)


def fill_steps(storage: Storage, time: float = math.inf) -> list[FillStep] | str:
    """What ``storage`` holds at ``time`` as fills in order, or why it cannot be said so."""
    steps: list[FillStep] = []
    for entry in reversed(live_writes(storage, time)):
        initializer = lowered(entry)
        if initializer is not None:
            steps.append(FillStep(entry, initializer, entry.writes[0].shadow.dtype))
            continue
        if entry.random:
            how = "read by the constructor" if entry.state is not None else "seeded by the constructor"
            return f"{_name(entry)}: {how}" if entry.constant else f"{_name(entry)}: no fill has this distribution"
        change = _change(entry)
        if change is None:
            return _name(entry)
        source, target = change.source, change.target
        if source is target:
            changed = [_changed_in_place(step, change) for step in steps]
            if None in changed:
                return _name(entry)
            steps = [step for step in changed if step is not None]
            continue
        if source.storage.constant is not None:
            return _name(entry) if change.steps else "copy of a value"
        origin = fill_steps(source.storage, entry.time)
        if isinstance(origin, str):
            return origin
        before, after = source.shadow.dtype, target.shadow.dtype
        for step in origin:
            moved: FillStep | None = step
            if change.steps or before is not after:
                moved = _after(step, after, change.steps) if step.dtype is before else None
            if moved is None:
                return (
                    _name(entry)
                    if before is after
                    else f"{_name(entry)} to {short_name(after)} after {short_name(before)}"
                )
            scale = source.shadow.element_size() / torch.empty((), dtype=step.dtype, device="meta").element_size()
            steps.append(replace(moved, moved=moved.moved + int(target.shadow.storage_offset() * scale)))
    return steps


def _changed_in_place(step: FillStep, change: _Change) -> FillStep | None:
    """``step`` after a change of part of its storage: all of the step's elements, or none of them, must be in it."""
    target = change.target
    shadow = target.shadow
    start, end, dense = target.span
    at = _step_span(step)
    if at[1] <= start or end <= at[0]:
        return step
    same = (step.shape, step.stride, step.offset) == (shadow.shape, shadow.stride(), shadow.storage_offset())
    if step.dtype is not shadow.dtype or not (same or (dense and start <= at[0] and at[1] <= end)):
        return None
    return _after(step, shadow.dtype, change.steps)


def _step_span(step: FillStep) -> tuple[int, int]:
    """First byte of a step's elements in its storage, and the last one plus one."""
    item = step.dtype.itemsize
    if 0 in step.shape:
        return step.offset * item, step.offset * item
    reach = sum((size - 1) * stride for size, stride in zip(step.shape, step.stride, strict=True))
    return step.offset * item, (step.offset + reach + 1) * item


def _name(entry: Entry) -> str:
    name = getattr(entry.func, "overloadpacket", entry.func)
    return str(getattr(name, "__name__", name))


def short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
