"""What looks at or moves a default generator."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import torch

from torch_fastinit._torch import dispatch_depth
from torch_fastinit.recording.active import active, outside
from torch_fastinit.recording.generators import get_state, is_default
from torch_fastinit.recording.originals import manual_seed
from torch_fastinit.recording.recorder import record
from torch_fastinit.recording.replay import closure, evaluate
from torch_fastinit.recording.tape import Storage, Tape, Value, need
from torch_fastinit.recording.tensor import Deferred, read, value_of_tensor, wrap

#: The methods of `torch.Generator` that are redirected, as torch has them.
_METHODS: dict[str, Callable[..., Any]] = {
    name: getattr(torch.Generator, name)
    for name in ("manual_seed", "seed", "initial_seed", "get_state", "set_state", "clone_state")
}


def _tape_of(generator: torch.Generator) -> Tape | None:
    """The tape to record an operation on `generator` into, unless it is our own."""
    tape = active.tape
    if tape is None or not dispatch_depth() or not is_default(generator):
        return None
    return tape


def _record_seed(tape: Tape, generator: torch.Generator, seed: int) -> None:
    tried = torch.Generator(generator.device).manual_seed(seed)  # raises what torch would
    record(tape, _METHODS["manual_seed"], (generator, seed), {}, [], random=True)
    tape.seeded.add(generator.device)
    tape.initial_seeds[generator.device] = tried.initial_seed()


def _record_state(tape: Tape, generator: torch.Generator) -> Value:
    like = get_state(generator)
    shadow = torch.empty(like.shape, dtype=like.dtype, device="meta")
    value = Value(shadow, Storage(shadow, torch.device("cpu"), tape))
    entry = record(tape, _METHODS["get_state"], (generator,), {}, [], outs=(value,), random=True)
    entry.seeded = tape.seeds(generator.device)
    tape.initial_seeds_then[entry] = tape.initial_seeds.get(generator.device)
    return value


_REPLACED_METHODS: dict[str, Callable[..., Any]] = {}


def _redirected(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(tape, generator, ...)` instead of the method of that name, where there is a tape to record it into."""
    name = function.__name__.removeprefix("_generator_")

    def method(self: torch.Generator, /, *args: Any) -> Any:
        tape = _tape_of(self)
        with outside():
            if tape is not None:
                return function(tape, self, *args)
            # A state from a context: its values are needed now.
            args = tuple(read(arg._value) if isinstance(arg, Deferred) else arg for arg in args)
        return _METHODS[name](self, *args)

    _REPLACED_METHODS[name] = method
    return function


@_redirected
def _generator_manual_seed(tape: Tape, generator: torch.Generator, seed: Any, /) -> torch.Generator:
    _record_seed(tape, generator, seed)
    return generator


@_redirected
def _generator_seed(tape: Tape, generator: torch.Generator, /) -> int:
    seed: int = torch.Generator(generator.device).seed()
    _record_seed(tape, generator, seed)
    return seed


@_redirected
def _generator_initial_seed(tape: Tape, generator: torch.Generator, /) -> int:
    known = tape.initial_seeds.get(generator.device)
    return _METHODS["initial_seed"](generator) if known is None else known


@_redirected
def _generator_get_state(tape: Tape, generator: torch.Generator, /) -> torch.Tensor:
    return wrap(_record_state(tape, generator))


@_redirected
def _generator_set_state(tape: Tape, generator: torch.Generator, new_state: torch.Tensor, /) -> torch.Generator:
    value = value_of_tensor(new_state, tape)
    shadow = value.shadow
    private = torch.Generator(generator.device)
    if shadow.dtype is not torch.uint8 or shadow.shape != get_state(private).shape:
        private.set_state(torch.zeros(shadow.shape, dtype=shadow.dtype, device="cpu"))  # raises what torch would
    taken = [entry for entry in closure([need(value)]) if entry in tape.initial_seeds_then]
    if taken:  # a state from before, perhaps copied: what was seeded then is seeded again
        seeded, initial = taken[-1].seeded, tape.initial_seeds_then[taken[-1]]
    else:
        seeded, initial = True, private.set_state(evaluate(value)).initial_seed()
    record(tape, _METHODS["set_state"], (generator, value), {}, [], random=True)
    if seeded:
        tape.seeded.add(generator.device)
    else:
        tape.seeded -= {generator.device, torch.device(generator.device.type)}
    if initial is None:
        tape.initial_seeds.pop(generator.device, None)
    else:
        tape.initial_seeds[generator.device] = initial
    return generator


@_redirected
def _generator_clone_state(tape: Tape, generator: torch.Generator, /) -> torch.Generator:
    clone = torch.Generator(generator.device)
    clone.set_state(evaluate(_record_state(tape, generator)))
    return clone


def switch_methods(redirect: bool) -> None:
    """Put methods into `torch.Generator`, a C type that refuses assignment to its attributes."""
    (namespace,) = gc.get_referents(torch.Generator.__dict__)
    namespace.update(_REPLACED_METHODS if redirect else _METHODS)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(torch.Generator))


def _manual_seed(seed: Any) -> torch.Generator:
    tape = _tape_of(torch.default_generator)
    if tape is None:
        generator: torch.Generator = manual_seed(seed)
        return generator
    with outside():
        tried = torch.Generator().manual_seed(int(seed))  # raises what torch would
        record(tape, manual_seed, (int(seed),), {}, [], random=True)
    for device in (*tape.snapshot, torch.device("cuda")):
        tape.seeded.add(device)
        tape.initial_seeds[device] = tried.initial_seed()
    return torch.default_generator


PATCHES: dict[str, tuple[Any, Callable[..., Any]]] = {"manual_seed": (torch.random.manual_seed, _manual_seed)}
