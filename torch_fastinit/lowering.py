"""Entries of the tape as fills: what one operation writes, and what a whole storage holds.

A storage whose live writes are all fills (:func:`lowered`) needs no replay: the fills go straight to where the tensor
will live. Copies of such a storage are the same fills again, and a cast is folded into them where that changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from torch_fastinit.initializers import (
    Constant,
    Dirac,
    Eye,
    Initializer,
    Kind,
    Normal,
    Sparse,
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


# --- what an entry writes ---------------------------------------------------------------------------------------------


def _argument(entry: Entry, position: int, name: str, default: Any = None) -> Any:
    return entry.args[position] if position < len(entry.args) else entry.kwargs.get(name, default)


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
    if len(tensors) != 1 or recipe[4] != 0:
        return None
    kind = Kind(recipe[0])
    if kind is Kind.EYE:
        return Eye()
    return Dirac(int(params[0])) if kind is Kind.DIRAC else None


_LOWERINGS: dict[Any, Callable[[Entry], Initializer | None]] = {
    aten.zero_.default: lambda e: Constant(0),
    aten.fill_.Scalar: lambda e: Constant(e.args[1]),
    aten.fill_.Tensor: _fill_tensor,
    aten.normal_.default: lambda e: Normal(float(_argument(e, 1, "mean", 0.0)), float(_argument(e, 2, "std", 1.0))),
    aten.uniform_.default: lambda e: Uniform(float(_argument(e, 1, "from", 0.0)), float(_argument(e, 2, "to", 1.0))),
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
    if initializer is None or shadow.is_conj() or shadow.is_neg():
        return None
    anywhere = isinstance(initializer, Constant) or (isinstance(initializer, Normal) and shadow.is_complex())
    if shadow.dtype not in RANDOM_DTYPES and not anywhere:
        return None
    if isinstance(initializer, Normal) and not initializer.std >= 0:
        return None
    if not shadow.is_contiguous() and any(s == 0 < n - 1 for n, s in zip(shadow.shape, shadow.stride(), strict=True)):
        return None
    return initializer


# --- what a storage holds, as fills -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FillStep:
    """One fill of a part of a storage (in elements). ``entry`` is the draw, for random values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    initializer: Initializer
    entry: Entry


def _step(entry: Entry, initializer: Initializer) -> FillStep:
    shadow = entry.writes[0].shadow
    return FillStep(
        tuple(shadow.shape), shadow.stride(), int(shadow.storage_offset()), shadow.dtype, initializer, entry
    )


def cast_step(step: FillStep, dtype: torch.dtype) -> FillStep | None:
    """``step`` followed by a cast, as one fill, if that gives the same bits."""
    if step.dtype is dtype:
        return step
    initializer = step.initializer
    if isinstance(initializer, Constant):
        value = torch.empty((), dtype=step.dtype, device="cpu").fill_(initializer.value).to(dtype).item()
        return FillStep(step.shape, step.stride, step.offset, dtype, Constant(value), step.entry)
    if isinstance(initializer, (Eye, Dirac)) and dtype in RANDOM_DTYPES:
        return FillStep(step.shape, step.stride, step.offset, dtype, initializer, step.entry)
    if isinstance(initializer, Normal) and step.dtype is torch.float32 and dtype in _NARROW:
        return FillStep(step.shape, step.stride, step.offset, dtype, initializer, step.entry)
    return None


def _copied(entry: Entry) -> tuple[Value, Value] | None:
    """Source and target of an entry that copies or casts, if their elements lie in memory in the same order."""
    if entry.func in (aten.clone.default, aten._to_copy.default, aten.contiguous.default):
        source, target = entry.args[0], entry.outs[0]
    elif entry.func is aten.copy_.default:
        target, source = entry.args[:2]
    else:
        return None
    if not (isinstance(source, Value) and isinstance(target, Value) and source.whole):
        return None
    a, b = source.shadow, target.shadow
    if a.shape != b.shape or a.stride() != b.stride() or source.storage is target.storage:
        return None
    return source, target


def fill_steps(storage: Storage, time: float = math.inf) -> list[FillStep] | str:
    """What ``storage`` holds at ``time`` as fills in order, or why it cannot be said so."""
    steps: list[FillStep] = []
    for entry in reversed(list(live_writes(storage, time))):
        initializer = lowered(entry)
        if initializer is not None:
            steps.append(_step(entry, initializer))
            continue
        if entry.random:
            how = "read by the constructor" if entry.state is not None else "seeded by the constructor"
            return f"{_name(entry)}: {how}" if entry.constant else f"{_name(entry)}: no fill has this distribution"
        copied = _copied(entry)
        if copied is None:
            return _name(entry)
        source, target = copied
        if source.storage.constant is not None:
            return "copy of a value"
        origin = fill_steps(source.storage, entry.time)
        if isinstance(origin, str):
            return origin
        if not origin:
            continue
        same = source.shadow.dtype is target.shadow.dtype
        for step in origin:
            if not same and step.dtype is not source.shadow.dtype:
                return _name(entry)
            cast = step if same else cast_step(step, target.shadow.dtype)
            if cast is None:
                return f"{_name(entry)} to {short_name(target.shadow.dtype)} after {short_name(source.shadow.dtype)}"
            scale = source.shadow.element_size() / torch.empty((), dtype=step.dtype, device="meta").element_size()
            offset = cast.offset + int(target.shadow.storage_offset() * scale)
            steps.append(FillStep(cast.shape, cast.stride, offset, cast.dtype, cast.initializer, cast.entry))
    return steps


def _name(entry: Entry) -> str:
    name = getattr(entry.func, "overloadpacket", entry.func)
    return str(getattr(name, "__name__", name))


def short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
