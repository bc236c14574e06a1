"""torch's default generators, one a device, their states, and private ones that stand in for them.

Default generators belong to the process: whatever thread draws, draws from them. So nothing here moves one to get a
value that a constructor reads: the draws before it run on private generators (`OwnGenerators`).

Everything here calls the methods that `torch.Generator` has by itself, also while patches/generators.py redirects them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from torch_fastinit._torch import CPU_KERNELS, OpOverload, TorchDispatchMode, pop_dispatch_mode, push_dispatch_mode
from torch_fastinit.forks import give_way, lock_before_forks
from torch_fastinit.recording.originals import manual_seed
from torch_fastinit.recording.schema import signature_of

#: Default generators' states by device. Treat as immutable.
State = dict[torch.device, torch.Tensor]

_CPU = torch.device("cpu")
_get_state = torch.Generator.get_state
set_state = torch.Generator.set_state
_manual_seed = torch.Generator.manual_seed


def generator_of(device: torch.device) -> torch.Generator:
    """The default generator that random operations on `device` use."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generator: torch.Generator = torch.cuda.default_generators[index]
        return generator
    return torch.default_generator


def _defaults() -> Iterator[tuple[torch.device, torch.Generator]]:
    """Those that exist: GPUs have theirs once CUDA is initialised."""
    yield _CPU, torch.default_generator
    if torch.cuda.is_initialized():
        for index, generator in enumerate(torch.cuda.default_generators):
            yield torch.device("cuda", index), generator


def is_default(generator: torch.Generator) -> bool:
    """Whether this is the generator of operations that name none."""
    return generator is torch.default_generator or (
        generator.device.type == "cuda" and any(generator is known for _, known in _defaults())
    )


def get_state(generator: torch.Generator) -> torch.Tensor:
    return _get_state(generator)


def states() -> State:
    """The states of all default generators."""
    return {device: _get_state(generator) for device, generator in _defaults()}


def restore(state: State) -> None:
    """Set the default generators that are in `state`."""
    for device, one in state.items():
        set_state(generator_of(device), one)


def same_state(a: State, b: State) -> bool:
    """Whether the generators that are in both have the same states."""
    return all(torch.equal(one, b[device]) for device, one in a.items() if device in b)


#: Held by whoever determines draws, and where a kernel draws from the default generator alone.
lock = lock_before_forks()


class OwnGenerators(TorchDispatchMode):
    """Generators that stand in for the default ones: what runs here draws from these, and no other thread sees it.

    `start` is their states (a device that it lacks starts from its default generator's), or a seed for all of them.

    As a mode, it gives each random operation a private generator, since every one that the CPU has takes one or is
    made of those that do. Some fused kernels on GPUs (dropout, attention with dropout) draw from the default generator
    alone: while such a kernel is launched that has the private state, under `lock`.
    """

    def __init__(self, start: State | int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._start = start
        self._own: dict[torch.device, torch.Generator] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it imports all of it

    def of(self, device: torch.device) -> torch.Generator:
        """The one for operations on `device`."""
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        own = self._own.get(device)
        if own is None:
            default = generator_of(device)
            own = torch.Generator(default.device)
            if isinstance(self._start, int):
                _manual_seed(own, self._start)
            else:
                set_state(own, self._start[device] if device in self._start else _get_state(default))
            self._own[device] = own
        return own

    def states(self) -> State:
        known = {} if isinstance(self._start, int) else self._start
        return {**known, **{device: _get_state(own) for device, own in self._own.items()}}

    def run(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """`func(*args, **kwargs)`, with these generators for the default ones."""
        if isinstance(func, OpOverload):
            return self._operate(func, args, kwargs)
        if func is manual_seed:  # of every device
            for device, _ in _defaults():
                _manual_seed(self.of(device), args[0])
            return None
        keywords = {name: self._instead(item) for name, item in kwargs.items()}
        return self._as_mode(func, *map(self._instead, args), **keywords)

    def _as_mode(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        push_dispatch_mode(self)
        try:
            return func(*args, **kwargs)
        finally:
            pop_dispatch_mode(None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._operate(func, args, kwargs or {})

    def _instead(self, item: Any) -> Any:
        """A private generator for a default one, anything else as it is."""
        if isinstance(item, torch.Generator):
            return next((self.of(device) for device, default in _defaults() if default is item), item)
        return item

    def _operate(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        if not signature_of(func).random:
            return func(*args, **kwargs)
        device = _CPU if func.namespace == "fastinit" else _device_of_draw(args, kwargs)
        takes = with_generator(func)
        if takes is None:
            return self._operate_without(func, device, args, kwargs)
        func, place = takes
        if place < len(args):
            own = self._instead(args[place])
            return func(*args[:place], self.of(device) if own is None else own, *args[place + 1 :], **kwargs)
        own = self._instead(kwargs.get("generator"))
        return func(*args, **{**kwargs, "generator": self.of(device) if own is None else own})

    def _operate_without(self, func: OpOverload, device: torch.device, args: Any, kwargs: dict[str, Any]) -> Any:
        if device.type == "cpu":
            return self._as_mode(func.redispatch, CPU_KERNELS, *args, **kwargs)  # what it calls comes back here
        own, default = self.of(device), generator_of(device)
        give_way()
        with lock:
            saved = _get_state(default)
            try:
                set_state(default, _get_state(own))
                result = func(*args, **kwargs)
                set_state(own, _get_state(default))
            finally:
                set_state(default, saved)
        return result


def _device_of_draw(args: Any, kwargs: dict[str, Any]) -> torch.device:
    for item in (*args, *kwargs.values()):
        for one in item if isinstance(item, (list, tuple)) else (item,):
            if isinstance(one, torch.Tensor):
                return one.device
    device = kwargs.get("device")
    return _CPU if device is None else torch.device(device)


@functools.cache
def with_generator(func: OpOverload) -> tuple[OpOverload, int] | None:
    """A random operator's overload that takes a generator, and which argument that is; None if it has none."""
    for name in (func._overloadname, *func.overloadpacket.overloads()):
        overload = getattr(func.overloadpacket, name)
        arguments = overload._schema.arguments
        place = next((i for i, a in enumerate(arguments) if a.name == "generator"), None)
        if place is not None and (overload is func or _same_but(place, arguments, func._schema.arguments)):
            return overload, len(arguments) if arguments[place].kwarg_only else place
    return None


def generator_by_name(func: OpOverload, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a random operator, with a generator that came by position among those by name."""
    takes = with_generator(func)
    if takes is None or len(args) <= takes[1]:
        return args, kwargs
    return args[: takes[1]], {**kwargs, "generator": args[takes[1]]}  # in every schema it is the last of its kind


def _same_but(place: int, arguments: Any, others: Any) -> bool:
    rest = [*arguments[:place], *arguments[place + 1 :]]
    return [(a.name, str(a.type)) for a in rest] == [(a.name, str(a.type)) for a in others]
