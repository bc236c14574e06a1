"""Which initializer an entry of the tape is one fill of, if it is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from torch_fastinit.initializers import Constant, Dirac, Eye, Initializer, Normal, Sparse, TruncatedNormal, Uniform
from torch_fastinit.ops import RANDOM_DTYPES, decode
from torch_fastinit.planning.inversion import inversion
from torch_fastinit.recording.memory import as_real, overlaps
from torch_fastinit.recording.originals import dirac_, sparse_, trunc_normal_
from torch_fastinit.recording.tape import Entry, Value

aten = torch.ops.aten
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in RANDOM_DTYPES}
_TwoNumbers = TypeVar("_TwoNumbers", Normal, Uniform)


def _two_numbers(entry: Entry, cls: type[_TwoNumbers], *names: str) -> _TwoNumbers:
    """What `normal_` or `uniform_` fills with: two numbers, by position or by name, by default 0 and 1."""
    args = entry.args
    if len(args) == 3:
        return cls(float(args[1]), float(args[2]))
    given = {**dict(zip(names, args[1:], strict=False)), **entry.kwargs}
    return cls(float(given.get(names[0], 0.0)), float(given.get(names[1], 1.0)))


def _uniform(entry: Entry) -> Initializer:
    uniform = _two_numbers(entry, Uniform, "from", "to")
    found = inversion(entry, uniform)
    return uniform if found is None else found[0]


def _fill_tensor(entry: Entry) -> Initializer | None:
    value = entry.args[1]
    if not isinstance(value, Value):
        return Constant(value)
    if value.storage.captured is None:
        return None
    return Constant(as_real(value.shadow, value.storage.captured).item())


def _eye(entry: Entry) -> Initializer | None:
    shape = tuple(entry.kwargs["out"].shadow.shape)
    return Eye() if shape == tuple(entry.args[:2]) else None


def _fastinit_batch(entry: Entry) -> Initializer | None:
    fill, *others = decode(*entry.args)
    fixed = not others and fill.region is None and isinstance(fill.initializer, (Eye, Dirac))
    return fill.initializer if fixed else None


_RECOGNIZERS: dict[Any, Callable[[Entry], Initializer | None]] = {
    aten.zero_.default: lambda e: Constant(0),
    aten.fill_.Scalar: lambda e: Constant(e.args[1]),
    aten.fill_.Tensor: _fill_tensor,
    aten.normal_.default: lambda e: _two_numbers(e, Normal, "mean", "std"),
    aten.uniform_.default: _uniform,
    aten.eye.m_out: _eye,
    trunc_normal_: lambda e: TruncatedNormal(*(float(e.kwargs[name]) for name in ("mean", "std", "a", "b"))),
    sparse_: lambda e: Sparse(float(e.kwargs["sparsity"]), float(e.kwargs["std"])),
    dirac_: lambda e: Dirac(int(e.kwargs["groups"])),
    torch.ops.fastinit.fill_.default: lambda e: Initializer.of(e.args[1], e.args[2]),
    torch.ops.fastinit.fill_batch_.default: _fastinit_batch,
}


def _is_possible(law: Initializer, dtype: torch.dtype) -> bool:
    """Whether a fill has such parameters. torch checks them when an operation runs, and here none has run."""
    if isinstance(law, Normal):
        return law.std >= 0.0
    if isinstance(law, Sparse):
        return 0.0 <= law.sparsity < math.inf and law.std >= 0.0
    if isinstance(law, Dirac):
        return law.groups >= 1
    if isinstance(law, (Uniform, TruncatedNormal)):
        largest, a, b = _LARGEST[dtype], law.a, law.b
        if isinstance(law, Uniform):
            return -largest <= a <= b <= largest and b - a <= largest
        return math.isfinite(law.mean) and 0.0 < law.std < math.inf and a <= b and a <= largest and b >= -largest
    return True


def recognize(entry: Entry) -> Initializer | None:
    """The initializer that `entry` is one fill of, if it is one and its outcome is not settled otherwise."""
    recognizer = _RECOGNIZERS.get(entry.func)
    if recognizer is None or len(entry.writes) != 1 or (entry.random and entry.determined):
        return None
    shadow = entry.writes[0].shadow
    initializer = recognizer(entry)
    if initializer is None or shadow.is_neg():
        return None
    if shadow.dtype not in RANDOM_DTYPES:
        anywhere = isinstance(initializer, Constant) or (isinstance(initializer, Normal) and shadow.is_complex())
        if not anywhere or shadow.is_conj():
            return None
    if not _is_possible(initializer, shadow.dtype):
        return None  # so the operation is replayed, and says what is wrong
    return None if overlaps(shadow) else initializer


def absorbed(entry: Entry) -> Sequence[Entry]:
    """The entries after `entry` that are part of the fill that it is recognized as."""
    if entry.func is not aten.uniform_.default or not isinstance(recognize(entry), TruncatedNormal):
        return ()
    found = inversion(entry, _two_numbers(entry, Uniform, "from", "to"))
    return () if found is None else found[1]
