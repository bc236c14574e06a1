"""Plain meta modules: their own reset methods, recorded on deferred stand-ins.

What a constructor does on `torch.device("meta")` is lost. What is left are the modules' own methods, which may say
something else, so they run only where somebody asks for it; and what they leave open is an error.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from bisect import bisect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit._torch import mesh_device, spec_of, storage_id
from torch_fastinit.execution.swap import exchange
from torch_fastinit.planning.tensors import PADDING, Target, is_plain_meta
from torch_fastinit.planning.written import contents, is_written
from torch_fastinit.recording.active import active, outside
from torch_fastinit.recording.context import deferred
from torch_fastinit.recording.memory import failure
from torch_fastinit.recording.tape import Entry, Storage, Tape, Value, check_strided, clock, live_writes
from torch_fastinit.recording.tensor import Deferred, adopt, as_subclass, wrap
from torch_fastinit.shards import checked_part, local_part

aten = torch.ops.aten

#: Methods that reset a module. All of a module's are run.
_RESETS = re.compile(r"_?reset_(\w+_)?(parameters|weights|buffers)")
#: Methods that initialise a model. They call one another: the first that needs no arguments is run.
_INITS = ("init_weights", "initialize_weights", "init_parameters", "initialize_parameters", "_init_weights")
_TIES = "tie_weights"


@dataclass(slots=True)
class _Call:
    """A method that ran, and when."""

    module: torch.nn.Module
    name: str
    start: int
    end: int
    parts: set[int]  # the ids of all modules under its own

    def contains(self, other: _Call) -> bool:
        return id(other.module) in self.parts


#: A stand-in that is in place: the name, the tensor of the module, and the object that has become what that was.
_Placed = tuple[str, torch.Tensor, torch.Tensor]


class Reset:
    """Plain meta tensors of `module` as deferred ones, and the module's own methods that wrote to them.

    False if the module has no plain meta tensors, and so nothing is to be done. Whatever `run` raises, and whatever
    follows, `settle` is to be called in the end. Given `ruled`, no methods are run, and the tensors are those alone
    whose parameters have these names: rules write them.
    """

    def __init__(
        self, module: torch.nn.Module, targets: Sequence[Target], ruled: Collection[str] | None = None
    ) -> None:
        self.calls: list[_Call] = []
        self._module = module
        self._methods = ruled is None
        self._meta = [target for target in targets if is_plain_meta(target.tensor) and _is_chosen(target, ruled)]
        chosen = {id(target.tensor) for target in self._meta}
        self._others = [
            target
            for target in targets
            if self._methods
            and id(target.tensor) not in chosen
            and target.spec is None
            and _has_contents(target.tensor)
        ]
        #: DTensors, and the deferred tensors of their logical shapes that the methods write to instead.
        held = [target.tensor if target.holder is None else target.holder for target in targets]
        self._sharded = [tensor for tensor in held if spec_of(tensor) is not None]
        self._logical: dict[int, Deferred] = {}
        self._placed: Sequence[_Placed] = []
        self._kept: list[bool] = []
        # Methods leave marks on modules ("already initialised") and tie tensors: both are undone with the rest.
        self._before = [(d, dict(d)) for m in module.modules() for d in _dictionaries(m)] if self else []
        #: Settle for what the methods did to the module. A function of C.
        self.keep: Callable[[], object] = functools.partial(self._kept.append, True)

    def __bool__(self) -> bool:
        return bool(self._meta)

    def run(self, device: torch.device | None, then: Callable[[], object] = lambda: None) -> None:
        """Make the plain meta tensors deferred ones, and let the methods, and `then`, write to them.

        When a method needs arguments, a tensor is not reset, or is reset in two ways, that is an error.
        """
        for target in self._meta:
            if target.holder is not None and target.spec is None:
                raise RuntimeError(
                    f"{target.name!r} is held by a {type(target.holder).__name__} on the meta device, which the "
                    "module's own methods cannot reset: call materialize(reset=True) before the module is wrapped or "
                    "sharded"
                )
        self._record(device)
        then()
        self._check()

    def settle(self) -> None:
        """Make the module what it was, unless that was to be kept, and drop what stands in for tensors.

        Objects that the module has let go of meanwhile are still deferred: they become what they were in any case.
        Doing it twice does no more than doing it once.
        """
        self._give_back(0)
        if not self._kept:
            for now, before in self._before:
                now.clear()
                now.update(before)

    def _record(self, device: torch.device | None) -> None:
        """Run the methods. Tensors that are real or deferred already have stand-ins meanwhile, which are dropped."""
        with deferred():
            memory: dict[int, Storage] = {}
            placed = []
            for target in (*self._meta, *self._others):
                try:
                    placed.append((target.name, target.tensor, _stand_in(target.tensor, device, memory)))
                except Exception as error:
                    message = f"{target.name!r} could not be replaced while it is reset: {error}"
                    raise failure(message, error) from error
            self._exchange(placed, placed)
            self._logical = {id(held): logical_stand_in(held, device) for held in self._sharded}
            _replace(self._module, self._logical)
            chosen = {id(self._logical.get(id(target.holder), target.tensor)) for target in self._meta}
            for path, module in _children_first(self._module, chosen) if self._methods else ():
                # transformers' mark of what it need not initialise again: that is lost now.
                module.__dict__.pop("_is_hf_initialized", None)
                for name in _methods(module, path):
                    start = next(clock)
                    getattr(module, name)()
                    parts = {id(part) for part in module.modules()}
                    self.calls.append(_Call(module, f"{path}.{name}" if path else name, start, next(clock), parts))
            found = _replace(self._module, {id(self._logical[id(held)]): held for held in self._sharded})
            for target in self._meta:
                if target.spec is not None:
                    logical = self._logical[id(target.holder)]
                    if id(logical) not in found:
                        raise RuntimeError(
                            f"{target.name!r} is sharded, and one of the methods that reset the module puts another "
                            "tensor in its place: build the module inside fastinit.deferred() before it is sharded"
                        )
                    shard(target, logical)
        self._give_back(len(self._meta))

    def _check(self) -> None:
        """Raise if one of the plain meta tensors is not determined by what ran."""
        values = [(target, _logical_value(target.tensor)) for target in self._meta if target.role != "padding"]
        lost = [target.name for target, value in values if not is_written(value)]
        if lost:
            who = "no reset_parameters, init_weights or the like of the module" if self._methods else "no rule of init"
            raise RuntimeError(
                f"{listed(lost)}: on the meta device, and {who} "
                "writes all of it, so what the constructor made of it is lost; build the module inside "
                "fastinit.deferred()"
            )
        for target, value in values:
            found = self._conflict(value.storage)
            if found is not None:
                ties = f" (= {', '.join(target.others)})" if target.others else ""
                raise RuntimeError(
                    f"{target.name!r}{ties}: {found[0].name}() and {found[1].name}() reset it differently, and the "
                    "constructor's choice between them is lost; build the module inside fastinit.deferred()"
                )

    def writers(self, tensor: torch.Tensor) -> str:
        """The methods that a tensor's values come from."""
        if not isinstance(tensor, Deferred):
            return ""
        return ", ".join(self.calls[i].name for i in sorted(self._live(_logical_value(tensor).storage)))

    def _give_back(self, left: int) -> None:
        """Take the stand-ins away, but for the first ones, from objects that have not become real meanwhile."""
        self._exchange([one for one in self._placed[left:] if isinstance(one[1], Deferred)], self._placed[:left])

    def _exchange(self, some: Sequence[_Placed], placed: Sequence[_Placed]) -> None:
        """Exchange these, and note that `placed` is in place then."""
        names, olds, news = [one[0] for one in some], [one[1] for one in some], [one[2] for one in some]
        exchange(names, olds, news, [functools.partial(setattr, self, "_placed", placed)])

    def _call_of(self, entry: Entry) -> int | None:
        """The number of the call that recorded `entry`."""
        i = bisect(self.calls, entry.time, key=_end)
        return i if i < len(self.calls) and self.calls[i].start < entry.time else None

    def _live(self, storage: Storage, time: float = math.inf) -> set[int]:
        """Which calls the contents of `storage` at a time come from."""
        return {i for entry in live_writes(storage, time) if (i := self._call_of(entry)) is not None}

    def _conflict(self, storage: Storage) -> tuple[_Call, _Call] | None:
        """Two calls of which the later one, though not of a module around the other's, wrote other values over it."""
        wrote = sorted({i for entry in storage.writes if (i := self._call_of(entry)) is not None})
        if len(wrote) < 2:
            return None
        ends = {i: self.calls[i].end for i in wrote}
        last = self._live(storage)
        alone = [i for i in wrote if self._live(storage, ends[i]) == {i}]
        for i in wrote:
            if i in last or any(k > i and self.calls[k].contains(self.calls[i]) for k in alone):
                continue
            for j in last:
                if j > i and contents(storage, ends[i]) != contents(storage, ends[j]):
                    return self.calls[i], self.calls[j]
        return None


def _is_chosen(target: Target, ruled: Collection[str] | None) -> bool:
    """Whether the tensor is one of those to be written; the memory around a shard goes with it."""
    return ruled is None or target.name in ruled or target.name.removesuffix(f".{PADDING}") in ruled


def _logical_value(tensor: Any) -> Value:
    """What is recorded of a deferred tensor; of a shard, of the logical tensor that it was cut from."""
    value: Value = tensor._value
    return value if value.storage.part_of is None else value.storage.part_of


def _end(call: _Call) -> int:
    return call.end


def _dictionaries(module: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    return module.__dict__, module._parameters, module._buffers, module._modules


def _has_contents(tensor: torch.Tensor) -> bool:
    if isinstance(tensor, UninitializedTensorMixin) or hasattr(tensor, "__tensor_flatten__"):
        return False
    return isinstance(tensor, Deferred) or not tensor.is_meta


# --- stand-ins --------------------------------------------------------------------------------------------------------


def _stand_in(tensor: torch.Tensor, device: torch.device | None, memory: dict[int, Storage]) -> Deferred:
    """A deferred tensor in place of `tensor`: not written yet if that is on the meta device, else a copy of it."""
    tape = active.tape
    assert tape is not None
    with outside():
        check_strided(tensor)
        if isinstance(tensor, Deferred):
            new = wrap(_copy(tensor._value, tape), type(tensor))
            new.requires_grad_(tensor.requires_grad)
        else:
            if tensor.is_meta:  # its own storage says what shares memory with it
                shadow = tensor.detach()
                empty = Storage(_all_memory(shadow), device or torch.device("cpu"), tape)
                value = Value(shadow, memory.setdefault(storage_id(shadow.untyped_storage()), empty))
            else:
                value = _copy(adopt(tensor.detach(), tape), tape)
            cls = type(tensor)
            new = wrap(value) if cls is torch.Tensor else as_subclass(wrap(value), cls, False)
            new.requires_grad_(tensor.requires_grad)
    new.__dict__.update({name: item for name, item in tensor.__dict__.items() if name != "_value"})
    return new


def _all_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A meta tensor of all the memory that `tensor` is in: itself, if that is all of it."""
    storage = tensor.untyped_storage()
    count = storage.nbytes() // tensor.itemsize
    if count == tensor.numel():
        return tensor
    return torch.empty(0, dtype=tensor.dtype, device="meta").set_(storage, 0, (count,), (1,))


def logical_stand_in(held: torch.Tensor, device: torch.device | None) -> Deferred:
    """A deferred tensor of a DTensor's logical shape, not written yet."""
    tape = active.tape
    assert tape is not None
    meta = spec_of(held).tensor_meta
    with outside():
        shadow = torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device="meta")
        new = wrap(Value(shadow, Storage(shadow, device or mesh_device(spec_of(held)), tape)))
        if isinstance(held, torch.nn.Parameter):
            new = as_subclass(new, torch.nn.Parameter, False)
        new.requires_grad_(held.requires_grad)
    new.__dict__.update(held.__dict__)
    return new


def shard(target: Target, logical: Deferred) -> None:
    """Record the cut of the logical tensor into the shard `target`, by its placements, and zeros around that."""
    local = target.tensor
    assert isinstance(local, Deferred)
    storage = local._value.storage
    storage.part_of = logical._value
    part = checked_part(target.spec, local, repr(target.name))
    with torch.no_grad():
        if not local._value.whole:
            wrap(Value(storage.base, storage)).zero_()
        if part.partial:
            raise NotImplementedError(
                f"{target.name!r} has placements {target.spec.placements}: a Partial one is not reset, since its terms "
                "are not the module's business; redistribute it first, or initialise it by fastinit.init afterwards"
            )
        if local.numel():
            local.copy_(local_part(logical, part))


def _replace(module: torch.nn.Module, new: Mapping[int, torch.Tensor]) -> set[int]:
    """Put other tensors in place of those of these `id`s that modules hold by name; which of them were found."""
    found: set[int] = set()
    for child in module.modules():
        for dictionary in _dictionaries(child):
            for name, item in dictionary.items():
                if id(item) in new:
                    found.add(id(item))
                    dictionary[name] = new[id(item)]
    return found


def _copy(source: Value, tape: Tape) -> Value:
    """A copy of `source`, made when somebody needs it: nobody changes shared memory while stand-ins are there."""
    old = source.storage
    if old.shared is not None:
        source = Value(source.shadow, Storage(old.base, old.device, tape))
        source.storage.captured = old.shared
    shadow = torch.empty_strided(source.shadow.shape, source.shadow.stride(), dtype=source.shadow.dtype, device="meta")
    target = Value(shadow, Storage(shadow, old.device, tape))
    reads = (source,) if source.storage.captured is None else ()
    Entry(tape, aten.copy_.default, (target, source), {}, reads=reads, writes=(target,), overwrites=True)
    return target


# --- methods ----------------------------------------------------------------------------------------------------------


def _children_first(root: torch.nn.Module, chosen: set[int]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module with one of the `chosen` tensors under it, in the order in which their constructors end."""
    paths = {id(module): path for path, module in root.named_modules()}
    seen: set[int] = set()
    found: list[torch.nn.Module] = []

    def walk(module: torch.nn.Module) -> bool:
        if id(module) in seen:
            return id(module) in concerned
        seen.add(id(module))
        below = [walk(child) for child in module.children()]
        if any(below) or any(id(tensor) in chosen for tensor in _own(module)):
            concerned.add(id(module))
            found.append(module)
        return id(module) in concerned

    concerned: set[int] = set()
    walk(root)
    for module in found:
        yield paths[id(module)], module


def _own(module: torch.nn.Module) -> Iterator[Any]:
    for dictionary in (module._parameters, module._buffers, module.__dict__):
        yield from dictionary.values()


def _methods(module: torch.nn.Module, path: str) -> list[str]:
    """The names of the methods of `module` that give its tensors their values, in the order to run them."""
    names = {name for source in (*type(module).__mro__, module) for name in vars(source)}
    resets = [name for name in names if _RESETS.fullmatch(name) and callable(getattr(module, name))]
    resets.sort(key=lambda name: (name != "reset_parameters", name))
    inits = [name for name in _INITS if callable(getattr(module, name, None))]
    ready = [name for name in inits if not _arguments(getattr(module, name))][:1]
    for name in (*resets, *(ready or inits)):
        arguments = _arguments(getattr(module, name))
        if arguments:
            raise RuntimeError(
                f"{f'{path}.{name}' if path else name}() of a {type(module).__name__} needs arguments "
                f"({', '.join(arguments)}), which only its constructor knows; build the module inside "
                "fastinit.deferred()"
            )
    return [*resets, *ready, *([_TIES] if callable(getattr(module, _TIES, None)) else [])]


def _arguments(method: Callable[..., Any]) -> list[str]:
    """The arguments that `method` cannot be called without."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def listed(names: Sequence[str]) -> str:
    """Names as a message shows them: the first ten."""
    shown = ", ".join(repr(name) for name in names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
