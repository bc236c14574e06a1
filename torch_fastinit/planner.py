"""From a recording to fills: what is one pass over final memory, what is replayed, and which draw is whose.

A storage whose live writes are all fills (:func:`lowered`) needs no replay: the fills go straight to where the tensor
will live. Copies of such a storage are the same fills again, and a cast is folded into them where that changes no bit.
Everything else is run as it was recorded, with random draws from the stream (docs/stream.md, sections 2 and 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit.deferred import Deferred
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
from torch_fastinit.meta import stand_in
from torch_fastinit.ops import RANDOM_DTYPES
from torch_fastinit.replay import closure, outside
from torch_fastinit.stream import canonical_name, draw_stream, stream_id
from torch_fastinit.tape import Entry, Storage, Value, covers_all, live_writes

__all__ = ["FillStep", "Plan", "Row", "Target", "lowered", "make_plan", "plan", "targets_of"]

aten = torch.ops.aten
DtypeRule = torch.dtype | Callable[[str, torch.Tensor], "torch.dtype | None"] | None

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
    from torch_fastinit.tape import as_real

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
                return f"{_name(entry)} to {_short(target.shadow.dtype)} after {_short(source.shadow.dtype)}"
            scale = source.shadow.element_size() / torch.empty((), dtype=step.dtype, device="meta").element_size()
            offset = cast.offset + int(target.shadow.storage_offset() * scale)
            steps.append(FillStep(cast.shape, cast.stride, offset, cast.dtype, cast.initializer, cast.entry))
    return steps


def _name(entry: Entry) -> str:
    name = getattr(entry.func, "overloadpacket", entry.func)
    return str(getattr(name, "__name__", name))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- what a module holds ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Target:
    """A tensor of a module: its first name in root order, and what it is there."""

    name: str
    tensor: torch.Tensor
    role: str  # "parameter", "buffer" or "attribute"
    others: list[str] = field(default_factory=list)


#: Classes of attributes that hold no tensor: looked at first, since modules have many of them.
_PLAIN = frozenset({bool, int, float, str, type(None)})


def _attributes(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in other attributes than parameters and buffers, depth first."""
    skip = {"_parameters", "_buffers", "_modules"}
    seen: set[int] = set()

    def walk(name: str, item: Any) -> Iterator[tuple[str, torch.Tensor]]:
        if isinstance(item, torch.Tensor):
            yield name, item
        elif isinstance(item, (dict, list, tuple)) and item and id(item) not in seen:
            seen.add(id(item))
            for key, inner in item.items() if isinstance(item, dict) else enumerate(item):
                yield from walk(f"{name}.{key}", inner)

    for prefix, child in module.named_modules():
        for name, item in child.__dict__.items():
            if item.__class__ in _PLAIN or name in skip:
                continue
            if isinstance(item, torch.Tensor) or (isinstance(item, (dict, list, tuple)) and item):
                yield from walk(f"{prefix}.{name}" if prefix else name, item)


def targets_of(module: torch.nn.Module) -> list[Target]:
    """Every tensor of ``module`` in root order, tied ones once."""
    found: dict[int, Target] = {}
    for role, named in (
        ("parameter", module.named_parameters(remove_duplicate=False)),
        ("buffer", module.named_buffers(remove_duplicate=False)),
        ("attribute", _attributes(module)),
    ):
        for name, tensor in named:
            known = found.get(id(tensor))
            if known is None:
                found[id(tensor)] = Target(name, tensor, role)
            else:
                known.others.append(name)
    return list(found.values())


def own_draws(targets: Sequence[Target], names: Callable[[str], str] | None) -> dict[Entry, tuple[str, int]]:
    """The name and number of every live draw: it belongs to the first name whose value depends on it."""
    owned: dict[Entry, tuple[str, int]] = {}
    for target in targets:
        storage = target.tensor._value.storage  # type: ignore[attr-defined]
        if storage.shared is not None:
            continue
        number = 0
        name: str | None = None
        for entry in _dependencies(storage):
            if entry.random and not entry.constant and entry not in owned:
                if name is None:
                    name = canonical_name(target.name)
                    if names is not None:
                        name = names(name)
                initializer = lowered(entry)
                owned[entry] = name, number
                number += 1 if initializer is None else initializer.draws
    return owned


def _dependencies(storage: Storage) -> Sequence[Entry]:
    writes = storage.writes
    if writes and covers_all(writes[-1]):
        return writes[-1:]
    return closure([(storage, math.inf)])


def streams_of(draws: dict[Entry, tuple[str, int]]) -> dict[Entry, int]:
    """The stream of each draw."""
    first: dict[str, int] = {}
    streams: dict[Entry, int] = {}
    for entry, (name, number) in draws.items():
        if name not in first:
            first[name] = stream_id(name)
        streams[entry] = draw_stream(first[name], number)
    return streams


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """What happens to one tensor.

    ``how`` is ``"one pass"``, ``"replayed"``, ``"kept"`` (already real), ``"shared"`` (memory that the constructor got
    from elsewhere), ``"zeros"`` (a buffer that nothing writes) or ``"unwritten"``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    what: str
    nbytes: int
    how: str
    why: str = ""
    tied: tuple[str, ...] = ()
    random: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``materialize`` would do: one :class:`Row` a tensor, in root order. Prints as a table."""

    rows: tuple[Row, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that would be materialised."""
        return sum(row.nbytes for row in self.rows if row.how != "kept")

    def share(self, how: str = "one pass", *, random: bool = True) -> float:
        """The share of (random) bytes that is materialised in this way; 1 if there are none."""
        rows = [row for row in self.rows if row.how != "kept" and (row.random or not random)]
        total = sum(row.nbytes for row in rows)
        return sum(row.nbytes for row in rows if row.how == how) / total if total else 1.0

    def __str__(self) -> str:
        lines = [("name", "shape", "dtype", "what", "bytes", "how")]
        for row in self.rows:
            name = row.name + (f" (= {', '.join(row.tied)})" if row.tied else "")
            how = f"{row.how}: {row.why}" if row.why else row.how
            shape = "x".join(map(str, row.shape)) or "scalar"
            lines.append((name, shape, _short(row.dtype), row.what, f"{row.nbytes:,}", how))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        table.insert(1, "  ".join("-" * width for width in widths))
        table.append(f"{len(self.rows)} tensors, {self.nbytes:,} bytes; {self.share(random=False):.1%} in one pass")
        return "\n".join(table)


@dataclass(slots=True)
class Work:
    """One deferred tensor to materialise: its target, and where, as what and how it will be."""

    target: Target
    value: Value
    dtype: torch.dtype
    device: torch.device
    steps: list[FillStep] | None  # None: replayed (or shared)
    how: str
    why: str


def result_dtype(dtype: DtypeRule, name: str, tensor: torch.Tensor) -> torch.dtype:
    """The dtype that ``materialize(dtype=)`` asks for."""
    if dtype is None:
        return tensor.dtype
    if isinstance(dtype, torch.dtype):
        wanted: Any = dtype if tensor.is_floating_point() or tensor.is_complex() else None
    else:
        wanted = dtype(name, tensor)
    if wanted is not None and not isinstance(wanted, torch.dtype):
        raise TypeError(f"dtype for {name!r} must be a torch.dtype or None, not {wanted!r}")
    return tensor.dtype if wanted is None else wanted


def make_plan(
    targets: Sequence[Target], device: torch.device | None = None, dtype: DtypeRule = None, *, fold: bool = True
) -> list[Work]:
    """How each deferred tensor among ``targets`` comes about."""
    cache: dict[Storage, list[FillStep] | str] = {}
    works: list[Work] = []
    with outside():
        for target in targets:
            tensor = target.tensor
            if not isinstance(tensor, Deferred):
                continue
            value = tensor._value
            storage = value.storage
            shadow = value.shadow
            wanted = shadow.dtype if dtype is None else result_dtype(dtype, target.name, tensor)
            where = device or storage.device
            if storage.shared is not None:
                works.append(Work(target, value, wanted, where, None, "shared", ""))
                continue
            steps = cache.get(storage)
            if steps is None:
                steps = cache[storage] = fill_steps(storage) if fold or not storage.writes else "fold=False"
            if not steps and not storage.writes and shadow.numel() > 0:
                how = "unwritten" if target.role == "parameter" else "zeros"
                works.append(Work(target, value, wanted, where, [], how, "nothing writes it"))
                continue
            if isinstance(steps, str):
                works.append(Work(target, value, wanted, where, None, "replayed", steps))
            elif wanted is shadow.dtype:
                works.append(Work(target, value, wanted, where, steps, "one pass", ""))
            else:
                casts = [cast_step(step, wanted) if step.dtype is shadow.dtype else None for step in steps]
                if value.whole and None not in casts:
                    works.append(Work(target, value, wanted, where, casts, "one pass", ""))  # type: ignore[arg-type]
                else:
                    why = f"cast to {_short(wanted)} after {_short(shadow.dtype)}"
                    works.append(Work(target, value, wanted, where, None, "replayed", why))
    return works


def plan(
    module: torch.nn.Module,
    *,
    device: torch.device | str | int | None = None,
    dtype: DtypeRule = None,
) -> Plan:
    """What :func:`torch_fastinit.materialize` would do with ``module``, tensor by tensor.

    Args:
        module: any module.
        device, dtype: as for :func:`torch_fastinit.materialize`.

    Returns:
        A :class:`Plan`: one row a tensor, in root order (parameters, buffers, other attributes). It prints as a table.

    Raises:
        TypeError: ``module`` is not a module, or ``dtype`` is not a dtype or a function that returns one.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> layer = fastinit.skip_init(torch.nn.Linear, 3, 2)
        >>> print(fastinit.plan(layer))  # doctest: +NORMALIZE_WHITESPACE
        name    shape  dtype    what                            bytes  how
        ------  -----  -------  ------------------------------  -----  --------
        weight  2x3    float32  Uniform(a=-0.57735, b=0.57735)  24     one pass
        bias    2      float32  Uniform(a=-0.57735, b=0.57735)  8      one pass
        2 tensors, 32 bytes; 100.0% in one pass
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"plan() takes a torch.nn.Module, not {type(module).__name__}")
    where = _device(device)
    undo = stand_in(module, where)
    try:
        return Plan(tuple(_rows(targets_of(module), where, dtype)))
    finally:
        undo()


def _rows(targets: Sequence[Target], device: torch.device | None, dtype: DtypeRule) -> Iterator[Row]:
    works = {id(work.target.tensor): work for work in make_plan(targets, device, dtype)}
    for target in targets:
        work = works.get(id(target.tensor))
        tensor = target.tensor if work is None else work.value.shadow
        if work is None:
            shape = () if isinstance(tensor, UninitializedTensorMixin) else tuple(tensor.shape)
            yield Row(target.name, shape, tensor.dtype, tensor.device, "", tensor.nbytes if shape else 0, "kept")
        else:
            size = torch.empty((), dtype=work.dtype, device="meta").element_size()
            random = work.how != "shared" and any(e.random for e in _dependencies(work.value.storage))
            yield Row(
                target.name,
                tuple(tensor.shape),
                work.dtype,
                work.device,
                _describe(work),
                tensor.numel() * size,
                work.how,
                work.why,
                tuple(target.others),
                random,
            )


def _describe(work: Work) -> str:
    if work.how == "zeros":
        return "Constant(value=0)"
    if work.steps is None:
        return "" if work.how == "shared" else "recorded operations"
    return ", then ".join(_describe_initializer(step.initializer) for step in work.steps)


def _describe_initializer(initializer: Initializer) -> str:
    values = (f"{f.name}={getattr(initializer, f.name):.6g}" for f in fields(initializer))
    return f"{type(initializer).__name__}({', '.join(values)})"


def _device(device: torch.device | str | int | None) -> torch.device | None:
    return None if device is None else torch.device(device)
