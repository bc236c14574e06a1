"""What looks at or moves a default generator."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import torch

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
    if tape is None or not torch._C._len_torch_dispatch_stack() or not is_default(generator):
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


def _generator_manual_seed(self: torch.Generator, seed: Any, /) -> torch.Generator:
    tape = _tape_of(self)
    if tape is None:
        return _METHODS["manual_seed"](self, seed)  # type: ignore[no-any-return]
    with outside():
        _record_seed(tape, self, seed)
    return self


def _generator_seed(self: torch.Generator, /) -> int:
    tape = _tape_of(self)
    if tape is None:
        return _METHODS["seed"](self)  # type: ignore[no-any-return]
    with outside():
        seed: int = torch.Generator(self.device).seed()
        _record_seed(tape, self, seed)
    return seed


def _generator_initial_seed(self: torch.Generator, /) -> int:
    tape = _tape_of(self)
    known = None if tape is None else tape.initial_seeds.get(self.device)
    return _METHODS["initial_seed"](self) if known is None else known


def _generator_get_state(self: torch.Generator, /) -> torch.Tensor:
    tape = _tape_of(self)
    if tape is None:
        return get_state(self)
    with outside():
        value = _record_state(tape, self)
    return wrap(value)


def _generator_set_state(self: torch.Generator, new_state: torch.Tensor, /) -> torch.Generator:
    tape = _tape_of(self)
    if tape is None:
        if isinstance(new_state, Deferred):  # from a context: its values are needed now
            with outside():
                new_state = read(new_state._value)
        return _METHODS["set_state"](self, new_state)  # type: ignore[no-any-return]
    with outside():
        value = value_of_tensor(new_state, tape)
        shadow = value.shadow
        private = torch.Generator(self.device)
        if shadow.dtype is not torch.uint8 or shadow.shape != get_state(private).shape:
            private.set_state(torch.zeros(shadow.shape, dtype=shadow.dtype, device="cpu"))  # raises what torch would
        taken = [entry for entry in closure([need(value)]) if entry in tape.initial_seeds_then]
        if taken:  # a state from before, perhaps copied: what was seeded then is seeded again
            seeded, initial = taken[-1].seeded, tape.initial_seeds_then[taken[-1]]
        else:
            seeded, initial = True, private.set_state(evaluate(value)).initial_seed()
        record(tape, _METHODS["set_state"], (self, value), {}, [], random=True)
    if seeded:
        tape.seeded.add(self.device)
    else:
        tape.seeded -= {self.device, torch.device(self.device.type)}
    if initial is None:
        tape.initial_seeds.pop(self.device, None)
    else:
        tape.initial_seeds[self.device] = initial
    return self


def _generator_clone_state(self: torch.Generator, /) -> torch.Generator:
    tape = _tape_of(self)
    if tape is None:
        return _METHODS["clone_state"](self)  # type: ignore[no-any-return]
    with outside():
        clone = torch.Generator(self.device)
        clone.set_state(evaluate(_record_state(tape, self)))
    return clone


_REPLACED_METHODS = {name: globals()[f"_generator_{name}"] for name in _METHODS}


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
