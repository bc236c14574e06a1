"""What materialize will do with each tensor of a module, and which random draw is whose.

A tensor is filled in one pass where its storage is nothing but fills (:mod:`torch_fastinit.lowering`). Everything else
is run as it was recorded, with random draws from the stream (docs/stream.md, sections 2 and 5).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import filterfalse
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit.codes import Op
from torch_fastinit.initializers import Initializer, Program
from torch_fastinit.lowering import FillStep, cast_step, fill_steps, lowered, short_name
from torch_fastinit.meta import stand_in
from torch_fastinit.replay import closure, outside
from torch_fastinit.stream import canonical_name, stream_id
from torch_fastinit.tape import Entry, Storage, Value, covers_all, need
from torch_fastinit.tensor import Deferred

__all__ = ["Plan", "Row", "Target", "Work", "make_plan", "own_draws", "plan", "streams_of", "targets_of"]

DtypeRule = torch.dtype | Callable[[str, torch.Tensor], "torch.dtype | None"] | None

# --- what a module holds ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Target:
    """A tensor of a module: its first name in root order, and what it is there."""

    name: str
    tensor: torch.Tensor
    role: str  # "parameter", "buffer" or "attribute"
    others: list[str] = field(default_factory=list)
    #: The tensor that holds this one, where a subclass keeps its contents in other tensors.
    holder: torch.Tensor | None = None


#: Classes of attributes that hold no tensor: looked at first, since modules have many of them.
_PLAIN = frozenset({bool, int, float, str, type(None)})
_CONTAINERS = frozenset({dict, list, tuple, set, OrderedDict})
#: What every module has of its own: parameters, buffers and modules, which are looked at elsewhere, and hooks.
_OF_EVERY_MODULE = frozenset(torch.nn.Module().__dict__)


def _members(
    module: torch.nn.Module, modules: Sequence[tuple[str, torch.nn.Module]], what: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """``module.named_parameters()`` or ``named_buffers()``, given its ``named_modules()``; all with duplicates."""
    for name in (f"named_{what}", "_named_members"):
        if getattr(getattr(module, name), "__func__", None) is not getattr(torch.nn.Module, name):
            yield from getattr(module, f"named_{what}")(remove_duplicate=False)
            return
    for path, child in modules:
        for name, tensor in getattr(child, f"_{what}").items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _attributes(modules: Sequence[tuple[str, torch.nn.Module]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in other attributes than parameters and buffers, depth first; modules in plain lists have some too."""
    seen: set[int] = {id(child) for _, child in modules}

    def walk(name: str, item: Any) -> Iterator[tuple[str, torch.Tensor]]:
        if isinstance(item, torch.Tensor):
            yield name, item
        elif isinstance(item, (dict, list, tuple, torch.nn.Module)) and id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, torch.nn.Module):
                yield from item.named_parameters(name, remove_duplicate=False)
                yield from item.named_buffers(name, remove_duplicate=False)
                for path, child in item.named_modules(prefix=name):
                    yield from own(path, child)
            else:
                for key, inner in item.items() if isinstance(item, dict) else enumerate(item):
                    if inner.__class__ not in _PLAIN:
                        yield from walk(f"{name}.{key}", inner)

    def own(path: str, child: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        for name in filterfalse(_OF_EVERY_MODULE.__contains__, child.__dict__):
            item = child.__dict__[name]
            if item.__class__ in _PLAIN or (item.__class__ in _CONTAINERS and not item):
                continue
            if isinstance(item, (torch.Tensor, dict, list, tuple, torch.nn.Module)):
                yield from walk(f"{path}.{name}" if path else name, item)

    left = set(seen)
    for path, child in modules:
        if id(child) in left:  # not again by another name
            left.remove(id(child))
            yield from own(path, child)


def targets_of(module: torch.nn.Module) -> list[Target]:
    """Every tensor of ``module`` in root order, tied ones once."""
    found: dict[int, Target] = {}
    modules = list(module.named_modules(remove_duplicate=False))
    for role, named in (
        ("parameter", _members(module, modules, "parameters")),
        ("buffer", _members(module, modules, "buffers")),
        ("attribute", _attributes(modules)),
    ):
        for name, tensor in named:
            known = found.get(id(tensor))
            if known is None:
                found[id(tensor)] = Target(name, tensor, role)
                if hasattr(tensor, "__tensor_flatten__"):
                    for path, inner in _held(name, tensor):
                        found.setdefault(id(inner), Target(path, inner, "attribute", holder=tensor))
            else:
                known.others.append(name)
    return list(found.values())


def _held(name: str, tensor: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a wrapper subclass keeps its contents in."""
    for attribute in tensor.__tensor_flatten__()[0]:
        inner = getattr(tensor, attribute)
        yield f"{name}.{attribute}", inner
        if hasattr(inner, "__tensor_flatten__"):
            yield from _held(f"{name}.{attribute}", inner)


def own_draws(targets: Sequence[Target], names: Callable[[str], str] | None) -> dict[Entry, tuple[str, int]]:
    """The name and number of every live draw: it belongs to the first name whose value depends on it."""
    owned: dict[Entry, tuple[str, int]] = {}
    for target in targets:
        value = target.tensor._value  # type: ignore[attr-defined]
        if value.storage.shared is not None:
            continue
        number = 0
        name: str | None = None
        previous: Entry | None = None
        for entry in _dependencies(value):
            if entry.random and not entry.constant and entry not in owned:
                if name is None:
                    name = canonical_name(target.name)
                    if names is not None:
                        name = names(name)
                        if not isinstance(name, str):
                            raise TypeError(f"names({target.name!r}) must be a string, not {name!r}")
                if previous is not None:
                    number += _streams_taken(previous)
                owned[entry] = name, number
                previous = entry
    return owned


def _streams_taken(entry: Entry) -> int:
    initializer = lowered(entry)
    return 1 if initializer is None else initializer.draws


def _dependencies(value: Value) -> Sequence[Entry]:
    writes = value.storage.writes
    if writes and covers_all(writes[-1]):
        return writes[-1:]
    return closure([need(value)])


def streams_of(draws: dict[Entry, tuple[str, int]]) -> dict[Entry, tuple[int, int]]:
    """The stream of its name's draw 0 and its number, for each draw."""
    first: dict[str, int] = {}
    for name, _ in draws.values():
        if name not in first:
            first[name] = stream_id(name)
    return {entry: (first[name], number) for entry, (name, number) in draws.items()}


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
            lines.append((name, shape, short_name(row.dtype), row.what, f"{row.nbytes:,}", how))
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
    """How each deferred tensor among ``targets`` comes about. To be called :func:`outside`."""
    cache: dict[Storage, list[FillStep] | str] = {}
    works: list[Work] = []
    for target in targets:
        tensor = target.tensor
        if not isinstance(tensor, Deferred):
            continue
        value = tensor._value
        storage = value.storage
        shadow = value.shadow
        wanted = shadow.dtype if dtype is None else result_dtype(dtype, target.name, tensor)
        where = device or storage.device
        if target.holder is not None and (wanted is not shadow.dtype or where != storage.device):
            raise RuntimeError(
                f"{target.name!r} is held by a {type(target.holder).__name__}, which says that it is "
                f"{shadow.dtype} on {storage.device}, and so cannot be made "
                f"{wanted} on {where}: call module.to() afterwards"
            )
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
                why = f"cast to {short_name(wanted)} after {short_name(shadow.dtype)}"
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
    targets = targets_of(module)
    undo = stand_in(module, targets, where)
    try:
        return Plan(tuple(_rows(targets_of(module) if undo else targets, where, dtype)))
    finally:
        if undo:
            undo()


def _rows(targets: Sequence[Target], device: torch.device | None, dtype: DtypeRule) -> Iterator[Row]:
    with outside():
        works = {id(work.target.tensor): work for work in make_plan(targets, device, dtype)}
    for target in targets:
        work = works.get(id(target.tensor))
        tensor = target.tensor if work is None else work.value.shadow
        if work is None:
            shape = () if isinstance(tensor, UninitializedTensorMixin) else tuple(tensor.shape)
            yield Row(target.name, shape, tensor.dtype, tensor.device, "", tensor.nbytes if shape else 0, "kept")
        else:
            size = torch.empty((), dtype=work.dtype, device="meta").element_size()
            random = work.how != "shared" and any(e.random for e in _dependencies(work.value))
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


_OPERATIONS = {Op.MUL: " times {:.6g}", Op.ADD: " plus {:.6g}", Op.DIV: " divided by {:.6g}", Op.CAST: ""}


def _describe_initializer(initializer: Initializer) -> str:
    if isinstance(initializer, Program):
        text, now = _describe_initializer(initializer.draw), initializer.dtype
        for step in initializer.steps:
            text += _OPERATIONS[step.op].format(step.operand)
            if step.dtype is not now:
                text, now = f"{text} as {short_name(step.dtype)}", step.dtype
        return text
    values = (f"{f.name}={getattr(initializer, f.name):.6g}" for f in fields(initializer))
    return f"{type(initializer).__name__}({', '.join(values)})"


def _device(device: torch.device | str | int | None) -> torch.device | None:
    return None if device is None else torch.device(device)
