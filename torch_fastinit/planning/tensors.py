"""Which tensors a module holds, by what names."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import filterfalse
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit._torch import attribute, fsdp_parameters, local_of, spec_of
from torch_fastinit.ops import Region
from torch_fastinit.recording.memory import kept_on_meta
from torch_fastinit.recording.tape import Value
from torch_fastinit.recording.tensor import Deferred


@dataclass(slots=True)
class Target:
    """A tensor of a module: its first name in root order, and what it is there."""

    name: str
    tensor: torch.Tensor
    role: str  # "parameter", "buffer", "attribute", or "padding": the memory that `fully_shard` keeps for a shard
    others: list[str] = field(default_factory=list)
    #: Whether it is a parameter of a module that still holds parameters without a shape.
    lazy: bool = False
    #: The wrapper that holds this one (`unwrap`). Of a DTensor, which has a `spec`, the target has the name, and is the
    #: shard of this rank.
    holder: torch.Tensor | None = None
    spec: Any = None
    #: The part of a larger tensor that it was built as, where somebody says so (`materialize(shards=)`).
    region: Region | None = None
    #: What a shard was cut from, once that is known (draws.py).
    logical: Value | None = None
    #: Whether it is a shard that stays in the CPU's memory, whatever the mesh's device (`CPUOffloadPolicy`).
    on_cpu: bool = False


#: Classes of attributes that hold no tensor: looked at first, since modules have many of them.
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size})
_CONTAINERS = frozenset({dict, list, tuple, set, OrderedDict})
#: What every module has of its own. Its parameters, buffers and modules are looked at elsewhere; the rest are hooks.
_OF_EVERY_MODULE = frozenset(torch.nn.Module().__dict__)
_MEMBERS = frozenset({"_parameters", "_buffers", "_modules"})
#: What belongs to more than one object, and what deferred tensors are made of.
_ENDS = (
    *(type, types.ModuleType, types.FrameType, types.CodeType),
    *(weakref.ref, weakref.ProxyType, weakref.CallableProxyType, Value),
)
#: Where classes written in C are from that hold objects but have no attributes: caches, iterators, generators.
_OPAQUE = frozenset({"builtins", "functools", "itertools"})
#: Classes from there whose objects say by what names they hold others.
_OPEN = (dict, list, tuple, deque, set, frozenset, types.FunctionType, types.MethodType, functools.partial)
#: What runs in a frame of its own, by the attribute that has it.
_FRAMES = {types.GeneratorType: "gi_frame", types.CoroutineType: "cr_frame", types.AsyncGeneratorType: "ag_frame"}
#: Where classes are from whose tensors describe ranks, not a model; or are found elsewhere (`fsdp_parameters`).
_OF_RANKS = ("torch.distributed.device_mesh", "torch.distributed.tensor._dtensor_spec", "torch.distributed.fsdp._fully")
_BY_IDENTITY: tuple[Any, ...] = (object.__hash__, torch.Tensor.__hash__)

_WITHOUT_SLOTS = frozenset({torch.Tensor, torch.nn.Parameter, Deferred})
_OF_EVERY_DEFERRED = frozenset({"_value", "_is_param", "_was_meta"})

#: What FSDP calls the memory around a shard.
PADDING = "_sharded_param_data"

#: Objects and the names of their paths.
_Named = Iterator[tuple[str, Any]]
#: Objects that were visited, by their `id`, which would be given to others if they died meanwhile.
_Seen = dict[int, Any]


def _members(
    module: torch.nn.Module, modules: Sequence[tuple[str, torch.nn.Module]], what: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """`module.named_parameters()` or `named_buffers()`, given its `named_modules()`; all with duplicates."""
    for name in (f"named_{what}", "_named_members"):
        if getattr(getattr(module, name), "__func__", None) is not getattr(torch.nn.Module, name):
            yield from getattr(module, f"named_{what}")(remove_duplicate=False)
            return
    for path, child in modules:
        for name, tensor in getattr(child, f"_{what}").items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _walk(items: _Named, seen: _Seen, named: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that objects hold, whatever these are, depth first.

    How an opaque object holds others differs between versions of Python. So the tensors that are found behind one, and
    nowhere before, have numbers of their own. Where `named` is False, who asks puts what is found in an order: then
    what an opaque object or a set holds has no names that last.
    """
    stack = [items]
    while stack:
        for path, item in stack[-1]:
            if item.__class__ in _PLAIN or issubclass(type(item), _ENDS) or _is_of_ranks(item.__class__):
                continue
            if isinstance(item, torch.Tensor):
                yield path, item
            if id(item) not in seen:
                seen[id(item)] = item
                below = _below(path, item, seen, named)
                if named and _is_opaque(item):
                    behind = [tensor for _, tensor in _walk(below, seen, named=False) if id(tensor) not in seen]
                    below = iter([(f"{path}.{i}", tensor) for i, tensor in enumerate(sorted(behind, key=_order))])
                stack.append(below)
                break
        else:
            stack.pop()


@functools.lru_cache(maxsize=1 << 12)
def _is_of_ranks(cls: Any) -> bool:
    return str(cls.__module__).startswith(_OF_RANKS)


def _below(path: str, item: Any, seen: _Seen, named: bool = True) -> _Named:
    if isinstance(item, torch.nn.Module):
        yield from item.named_parameters(path, remove_duplicate=False)
        yield from item.named_buffers(path, remove_duplicate=False)
        for name, child in item.named_modules(prefix=path):
            if child is item or id(child) not in seen:
                seen[id(child)] = child
                yield from _of_module(name, child)
    else:
        for name, inner in _of_tensor(item) if isinstance(item, torch.Tensor) else _of_object(item, named):
            if inner.__class__ not in _PLAIN:
                yield f"{path}.{name}", inner


def _of_module(path: str, module: torch.nn.Module) -> _Named:
    """What a module holds besides parameters, buffers and modules."""
    for name in filterfalse(_MEMBERS.__contains__, module.__dict__):
        item = module.__dict__[name]
        if item.__class__ in _PLAIN or (item.__class__ in _CONTAINERS and not item):
            continue
        if name in _OF_EVERY_MODULE and isinstance(item, dict):  # by number, not by the hook's id
            item = list(item.values())
        yield f"{path}.{name}" if path else name, item
    for name, item in _slots(module):
        yield f"{path}.{name}" if path else name, item


def _of_tensor(tensor: torch.Tensor) -> _Named:
    if not hasattr(tensor, "__tensor_flatten__"):  # see `unwrap`
        yield from list(tensor.__dict__.items())
    yield from _slots(tensor)
    if tensor.is_leaf and tensor.grad is not None:
        yield "grad", tensor.grad


def _is_bare(tensor: torch.Tensor) -> bool:
    """Whether it is quickly seen that nothing is behind a tensor, as with nearly all."""
    return (
        type(tensor) in _WITHOUT_SLOTS
        and tensor.__dict__.keys() <= _OF_EVERY_DEFERRED
        and tensor.is_leaf
        and tensor.grad is None
    )


def _of_object(item: Any, named: bool) -> _Named:
    """What an object holds, and by what names, in an order that is the same in every process."""
    if isinstance(item, dict):  # a key that is hashed by identity has no name that lasts
        for i, (key, inner) in enumerate(item.items()):
            yield str(i if type(key).__hash__ in _BY_IDENTITY else key), inner
    elif isinstance(item, (list, tuple, deque)):
        yield from _numbered(item)
    elif isinstance(item, (set, frozenset)):
        items = [inner for inner in item if inner.__class__ not in _PLAIN]
        yield from _numbered(sorted(items, key=_order_in_set)) if named else (("", inner) for inner in items)
    elif isinstance(item, types.FunctionType):
        for name, cell in zip(item.__code__.co_freevars, item.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # nothing is in the cell yet
                yield name, cell.cell_contents
        yield from (item.__kwdefaults__ or {}).items()
        yield from _numbered(item.__defaults__ or ())
    elif isinstance(item, types.MethodType):
        yield from (("__self__", item.__self__), ("__func__", item.__func__))
    elif isinstance(item, functools.partial):
        yield from (("func", item.func), ("args", item.args), ("keywords", item.keywords))
    elif _is_opaque(item):
        yield from _numbered(_referents(item))
    yield from _slots(item)
    attributes = getattr(item, "__dict__", None)
    if isinstance(attributes, dict):
        yield from list(attributes.items())


def _numbered(items: Iterable[Any]) -> _Named:
    return ((str(i), item) for i, item in enumerate(items) if item.__class__ not in _PLAIN)


def _slots(item: Any) -> _Named:
    for cls in type(item).__mro__:
        if "__slots__" in cls.__dict__:
            for name, slot in list(cls.__dict__.items()):
                if isinstance(slot, types.MemberDescriptorType):
                    with contextlib.suppress(AttributeError):  # nothing is in it
                        yield name, slot.__get__(item)


def _is_opaque(item: Any) -> bool:
    return type(item).__module__ in _OPAQUE and not isinstance(item, _OPEN)


def _referents(item: Any) -> Iterable[Any]:
    """What an opaque object holds; of a frame its variables and its stack, which are the same in each Python."""
    frame = getattr(item, _FRAMES[type(item)]) if type(item) in _FRAMES else None
    if frame is None:
        return gc.get_referents(item)
    others = {id(frame.f_globals), id(frame.f_builtins)}  # (To ask for its f_locals would keep the variables alive.)
    return [
        inner
        for inner in gc.get_referents(item, frame)
        if id(inner) not in others and not (isinstance(inner, types.FunctionType) and inner.__code__ is frame.f_code)
    ]


#: When a tensor was written, and which part of its memory it is.
_Order = tuple[list[float], Any]


def _order(tensor: torch.Tensor) -> list[_Order]:
    """Where a deferred tensor comes among others, by the recording alone."""
    places: list[_Order] = []
    for _, inner in unwrap("", tensor):
        if isinstance(inner, Deferred):
            value = inner._value
            times: list[float] = [entry.time for entry in value.storage.writes]
            view = value.view
            places.append((times or [math.inf], (view.offset, view.shape, view.stride, str(view.dtype))))
    return places or [([math.inf], ())]


def _order_in_set(item: Any) -> list[Any]:
    """Where an element of a set comes: elements have no order but that of the deferred tensors in them."""
    found = sorted((_order(tensor), path) for path, tensor in _walk(iter((("", item),)), {}, named=False))
    return found or [([([math.inf], ())], "")]


def _attributes(
    modules: Sequence[tuple[str, torch.nn.Module]], members: Sequence[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors elsewhere than among the `members` of `modules`, but for what is behind the members: that comes last."""
    left = {id(child) for _, child in modules}
    seen: _Seen = {id(item): item for named in (modules, members) for _, item in named}
    for path, child in modules:
        if id(child) in left:  # not again by another name
            left.remove(id(child))
            yield from _walk(_of_module(path, child), seen)
    for name, tensor in members:
        if not _is_bare(tensor):
            yield from _walk(_below(name, tensor, seen), seen)


def targets_of(module: torch.nn.Module) -> list[Target]:
    """Every tensor of `module` in root order, tied ones once."""
    found: dict[int, Target] = {}
    shards: set[int] = set()
    modules = list(module.named_modules(remove_duplicate=False))
    members: list[tuple[str, torch.Tensor]] = []
    for role, named in (
        ("parameter", _members(module, modules, "parameters")),
        ("buffer", _members(module, modules, "buffers")),
        ("attribute", _attributes(modules, members)),
    ):
        for name, tensor in named:
            known = found.get(id(tensor))
            if known is not None:
                if name != known.name and name not in known.others and id(tensor) not in shards:
                    known.others.append(name)
                continue
            if role != "attribute":
                members.append((name, tensor))
            plain = tensor.__class__ in _WITHOUT_SLOTS
            spec = None if plain else spec_of(tensor)
            if spec is not None and local_of(tensor).is_meta:
                local = local_of(tensor)
                shards.add(id(local))
                found[id(tensor)] = found[id(local)] = Target(name, local, role, holder=tensor, spec=spec)
                continue
            found[id(tensor)] = Target(name, tensor, role)
            if not plain and hasattr(tensor, "__tensor_flatten__"):
                for path, inner in unwrap(name, tensor):
                    found.setdefault(id(inner), Target(path, inner, "attribute", holder=tensor))
    targets = list({id(target): target for target in found.values()}.values())
    for parameter in fsdp_parameters(module):
        known = found.get(id(parameter.sharded_param))
        padded = attribute(parameter, "_sharded_param_data")
        if known is not None and known.spec is not None and padded.is_meta:
            known.on_cpu = parameter.offload_to_cpu
            targets.append(Target(f"{known.name}.{PADDING}", padded, "padding"))
    waiting = [target.name for target in targets if isinstance(target.tensor, UninitializedTensorMixin)]
    if waiting:
        for target in targets:
            owner = target.name[: target.name.rfind(".") + 1]
            target.lazy = target.role == "parameter" and any(name.startswith(owner) for name in waiting)
    return targets


def is_plain_meta(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on the meta device without a `deferred()` context having seen it.

    A wrapper is not: the tensors that it holds may be.
    """
    if isinstance(tensor, (Deferred, UninitializedTensorMixin)) or hasattr(tensor, "__tensor_flatten__"):
        return False
    return tensor.is_meta and not kept_on_meta(tensor)


def unwrap(name: str, tensor: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors that hold the contents of `tensor`, and their names.

    An ordinary tensor holds its own; what a wrapper subclass holds is `name.attribute`.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        return [(name, tensor)]
    return [
        found
        for attribute in tensor.__tensor_flatten__()[0]
        if isinstance(getattr(tensor, attribute), torch.Tensor)  # a DTensor also names its mesh
        for found in unwrap(f"{name}.{attribute}", getattr(tensor, attribute))
    ]
