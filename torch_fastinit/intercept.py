"""Functions of torch that are one entry of the tape, or that look at or move a default generator.

Code everywhere holds early-bound references to them (``from torch.nn.init import trunc_normal_``), so replacing the
attribute of a module is not enough: the function object itself gets another ``__code__`` for as long as a tape is
alive. The new code asks whether a deferred tensor or a context is concerned, and otherwise calls the original. The
methods of ``torch.Generator``, which are C's, are replaced in the type itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torch_fastinit import orthogonal
from torch_fastinit.generators import get_state, is_default, private_state, states
from torch_fastinit.orthogonal import QR_DTYPE
from torch_fastinit.recorder import record, recording
from torch_fastinit.replay import closure, evaluate, outside
from torch_fastinit.tape import Storage, Tape, Value, need
from torch_fastinit.tensor import (
    Deferred,
    active,
    as_subclass,
    current_tape,
    deferred_class,
    read,
    set_class,
    value_of_tensor,
    wrap,
)

__all__ = [
    "ORTHOGONAL",
    "dirac_",
    "interception",
    "manual_seed",
    "orthogonal_",
    "sparse_",
    "trunc_normal_",
]

_lock = threading.RLock()  # a tape may be collected while it is held
_alive = 0


def _clone(function: Callable[..., Any]) -> types.FunctionType:
    assert isinstance(function, types.FunctionType)
    clone = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    clone.__kwdefaults__ = function.__kwdefaults__
    return clone


#: The originals, under their names: these are what entries hold and replay.
trunc_normal_ = _clone(torch.nn.init._no_grad_trunc_normal_)
sparse_ = _clone(torch.nn.init.sparse_)
dirac_ = _clone(torch.nn.init.dirac_)
orthogonal_ = _clone(torch.nn.init.orthogonal_)
_own_orthogonal_ = _clone(orthogonal.orthogonal_)
#: Both write the same matrix when their draw is one of the stream (docs/stream.md, section 12).
ORTHOGONAL = frozenset({orthogonal_, _own_orthogonal_})
manual_seed = _clone(torch.random.manual_seed)


def _initializer(original: Callable[..., Any], *, random: bool) -> Callable[..., Any]:
    """One entry for a whole function of ``torch.nn.init`` whose first argument is a deferred tensor."""

    def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(tensor, Deferred) or tensor._value.storage.shared is not None:
            return original(tensor, *args, **kwargs)
        with outside():
            value = tensor._value
            tape = current_tape() or value.storage.tape
            bound = inspect.signature(original).bind(tensor, *args, **kwargs)
            bound.apply_defaults()
            keywords = dict(bound.arguments)
            del keywords["tensor"]
            record(tape, original, (value,), keywords, [value], overwrites=True, random=random)
        torch.autograd.graph.increment_version(tensor)
        return tensor

    return call


def _sparse(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if tensor.ndimension() != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    return _record_sparse(tensor, *args, **kwargs)


def _dirac(tensor: torch.Tensor, groups: int = 1) -> Any:
    if tensor.ndimension() not in (3, 4, 5) or tensor.size(0) % groups:
        return dirac_(tensor, groups)  # raises
    return _record_dirac(tensor, groups)


def _orthogonal(tensor: torch.Tensor, gain: float = 1, generator: torch.Generator | None = None) -> Any:
    if isinstance(tensor, Deferred):
        if tensor.ndimension() < 2 or tensor.numel() == 0:
            return orthogonal_(tensor, gain, generator)  # raises, or does nothing
        if tensor.dtype not in (torch.float32, torch.float64):
            with outside(), private_state(states()):
                orthogonal_(torch.empty(1, 1, dtype=tensor.dtype, device="cpu"))  # raises what torch does
        tensor._value.shadow.view(tensor.shape[0], -1)
    return _record_orthogonal(tensor, gain, generator)


def _own_orthogonal(tensor: torch.Tensor, gain: float = 1, generator: torch.Generator | None = None) -> Any:
    deferred = isinstance(tensor, Deferred)
    if deferred and (tensor.ndimension() < 2 or tensor.numel() == 0 or tensor.dtype not in QR_DTYPE):
        return _own_orthogonal_(tensor, gain, generator)
    return _record_own_orthogonal(tensor, gain, generator)


_record_orthogonal = _initializer(orthogonal_, random=True)
_record_own_orthogonal = _initializer(_own_orthogonal_, random=True)
_record_sparse = _initializer(sparse_, random=True)
_record_dirac = _initializer(dirac_, random=False)


# --- parameters -------------------------------------------------------------------------------------------------------

_new_parameter = _clone(torch.nn.Parameter.__new__)
_new_uninitialized_parameter = _clone(UninitializedParameter.__new__)
_new_uninitialized_buffer = _clone(UninitializedBuffer.__new__)


def _parameter(cls: Any, data: Any, requires_grad: bool) -> Any:
    if isinstance(data, Deferred):
        return as_subclass(data, cls, requires_grad)
    return _new_parameter(cls, data, requires_grad)


def _uninitialized_parameter(cls: Any, requires_grad: bool, device: Any, dtype: Any) -> Any:
    data = torch.empty(0, device=device, dtype=dtype)
    if isinstance(data, Deferred):
        return as_subclass(data, cls, requires_grad)
    return _new_uninitialized_parameter(cls, requires_grad, device, dtype)


def _uninitialized_buffer(cls: Any, requires_grad: bool, device: Any, dtype: Any, persistent: bool) -> Any:
    data = torch.empty(0, device=device, dtype=dtype)
    if isinstance(data, Deferred):
        buffer: Any = as_subclass(data, cls, requires_grad)
        buffer.persistent, buffer._is_buffer = persistent, True
        return buffer
    return _new_uninitialized_buffer(cls, requires_grad, device, dtype, persistent)


_make_subclass: Callable[..., torch.Tensor] = torch.Tensor._make_subclass
_as_subclass: Callable[..., torch.Tensor] = torch.Tensor.as_subclass


def _tensor_make_subclass(cls: Any, data: torch.Tensor, requires_grad: bool = False, **kwargs: Any) -> torch.Tensor:
    if isinstance(data, Deferred):
        return as_subclass(data, cls, kwargs.get("require_grad", requires_grad))
    if "require_grad" in kwargs:  # its name in C
        return _make_subclass(cls, data, **kwargs)
    return _make_subclass(cls, data, requires_grad, **kwargs)


def _tensor_as_subclass(self: torch.Tensor, cls: Any) -> torch.Tensor:
    if not isinstance(self, Deferred):
        return _as_subclass(self, cls)
    with torch._C.DisableTorchFunctionSubclass():
        view: torch.Tensor = torch.ops.aten.alias.default(self)  # a result of autograd's, as it should be
    if cls is not torch.Tensor:
        set_class(view, cls if issubclass(cls, Deferred) else deferred_class(cls))
    return view


_MAKERS = {"_make_subclass": staticmethod(_tensor_make_subclass), "as_subclass": _tensor_as_subclass}
_POLYFILLS = "torch._dynamo.polyfills.tensor"
_dynamo_knew = False
_dynamo_has_ours = False


def _switch_makers(redirect: bool) -> None:
    """These are C's, and reached through ``torch.Tensor`` or a subclass of it.

    torch._dynamo, which some operations import, registers what it finds there: if that was ours, it stays.
    """
    global _dynamo_knew, _dynamo_has_ours
    redirected = "as_subclass" in vars(torch.Tensor)
    if redirect and not redirected:
        _dynamo_knew = _POLYFILLS in sys.modules
        for name, maker in _MAKERS.items():
            setattr(torch.Tensor, name, maker)
    elif redirected and not redirect:
        _dynamo_has_ours |= not _dynamo_knew and _POLYFILLS in sys.modules
        if not _dynamo_has_ours:
            for name in _MAKERS:
                delattr(torch.Tensor, name)


# --- generators -------------------------------------------------------------------------------------------------------

#: The methods of ``torch.Generator`` that are redirected, as they are by themselves.
_METHODS: dict[str, Callable[..., Any]] = {
    name: getattr(torch.Generator, name)
    for name in ("manual_seed", "seed", "initial_seed", "get_state", "set_state", "clone_state")
}


def _tape_of(generator: torch.Generator) -> Tape | None:
    """The tape that an operation on ``generator`` belongs to: that of the context whose code, not ours, runs now."""
    tape = current_tape()
    if tape is None or not torch._C._len_torch_dispatch_stack() or not is_default(generator):
        return None
    return tape


def _seed_entry(generator: torch.Generator, seed: int) -> None:
    _METHODS["manual_seed"](generator, seed)


def _take_state(generator: torch.Generator) -> torch.Tensor:
    state: torch.Tensor = _METHODS["get_state"](generator)
    return state


def _put_state(generator: torch.Generator, state: torch.Tensor) -> None:
    _METHODS["set_state"](generator, state)


def _record_seed(tape: Tape, generator: torch.Generator, seed: int) -> None:
    tried = torch.Generator(generator.device).manual_seed(seed)  # raises what torch would
    record(tape, _seed_entry, (generator, seed), {}, [], random=True)
    tape.seeded.add(generator.device)
    tape.initial_seeds[generator.device] = tried.initial_seed()


def _record_state(tape: Tape, generator: torch.Generator) -> Value:
    like = get_state(generator)
    shadow = torch.empty(like.shape, dtype=like.dtype, device="meta")
    value = Value(shadow, Storage(shadow, torch.device("cpu"), tape))
    entry = record(tape, _take_state, (generator,), {}, [], outs=(value,), random=True)
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
        if isinstance(new_state, Deferred):  # of a context: its numbers are wanted now
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
        record(tape, _put_state, (self, value), {}, [], random=True)
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


_REPLACED_METHODS: dict[str, Callable[..., Any]] = {
    "manual_seed": _generator_manual_seed,
    "seed": _generator_seed,
    "initial_seed": _generator_initial_seed,
    "get_state": _generator_get_state,
    "set_state": _generator_set_state,
    "clone_state": _generator_clone_state,
}


def _switch_methods(methods: dict[str, Callable[..., Any]]) -> None:
    """Put methods into ``torch.Generator``, a type of C that refuses to have its attributes assigned to."""
    (namespace,) = gc.get_referents(torch.Generator.__dict__)
    namespace.update(methods)
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


# --- threads ----------------------------------------------------------------------------------------------------------

_start = _clone(threading.Thread.start)
_submit = _clone(ThreadPoolExecutor.submit)


def _in_context(tape: Tape, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with recording(tape):
        return function(*args, **kwargs)


def _thread_start(thread: threading.Thread) -> None:
    """A thread that the context starts belongs to it."""
    tape = current_tape()
    if tape is not None:
        run = thread.run

        def run_in_context() -> None:
            vars(thread).pop("run", None)
            _in_context(tape, run)

        thread.run = run_in_context  # type: ignore[method-assign]
    _start(thread)


def _executor_submit(executor: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """In an executor it is the task that belongs to the context: its threads may be older, and live longer."""
    tape = current_tape()
    if tape is None:
        return _submit(executor, function, *args, **kwargs)
    active.tape = None  # a thread that this starts is the executor's
    try:
        return _submit(executor, functools.partial(_in_context, tape, function), *args, **kwargs)
    finally:
        active.tape = tape


def _pool_method(original: Callable[..., Any]) -> Callable[..., Any]:
    """A task for a ``ThreadPool`` belongs to the context, too. (Other processes are no concern of it.)"""

    def call(pool: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tape = current_tape()
        if tape is not None and isinstance(pool, sys.modules["multiprocessing.pool"].ThreadPool):
            function = functools.partial(_in_context, tape, function)
        return original(pool, function, *args, **kwargs)

    return call


def _intercept_pools() -> None:
    """Where ``multiprocessing.pool`` is loaded: else there is no pool yet, and its threads will be the context's."""
    module = sys.modules.get("multiprocessing.pool")
    for method in ("apply_async", "_map_async", "imap", "imap_unordered") if module else ():
        name = f"Pool.{method}"
        if name not in _INTERCEPTED:
            function = getattr(module.Pool, method)  # type: ignore[union-attr]
            _INTERCEPTED[name] = function, _pool_method(_clone(function))
            _codes[name] = function.__code__, _redirect(name, function)


_INTERCEPTED: dict[str, tuple[Any, Callable[..., Any]]] = {
    "trunc_normal_": (torch.nn.init._no_grad_trunc_normal_, _initializer(trunc_normal_, random=True)),
    "sparse_": (torch.nn.init.sparse_, _sparse),
    "dirac_": (torch.nn.init.dirac_, _dirac),
    "orthogonal_": (torch.nn.init.orthogonal_, _orthogonal),
    "fastinit.orthogonal.orthogonal_": (orthogonal.orthogonal_, _own_orthogonal),
    "Parameter": (torch.nn.Parameter.__new__, _parameter),
    "UninitializedParameter": (UninitializedParameter.__new__, _uninitialized_parameter),
    "UninitializedBuffer": (UninitializedBuffer.__new__, _uninitialized_buffer),
    "manual_seed": (torch.random.manual_seed, _manual_seed),
    "Thread.start": (threading.Thread.start, _thread_start),
    "ThreadPoolExecutor.submit": (ThreadPoolExecutor.submit, _executor_submit),
}


def intercepted(name: str) -> Callable[..., Any]:
    """What runs instead of the function of this name."""
    return _INTERCEPTED[name][1]


def _redirect(name: str, function: Any) -> types.CodeType:
    """Code with the function's own parameters that calls :func:`intercepted`."""
    parameters = list(inspect.signature(function).parameters.values())
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    arguments = ", ".join(stars.get(p.kind, "") + p.name for p in parameters)
    source = (
        f"def redirected{inspect.Signature(bare)}:\n"
        f"    from torch_fastinit.intercept import intercepted\n"
        f"    return intercepted({name!r})({arguments})\n"
    )
    scope: dict[str, Any] = {}
    exec(compile(source, __file__, "exec"), scope)
    code: types.CodeType = scope["redirected"].__code__
    return code


_codes = {name: (function.__code__, _redirect(name, function)) for name, (function, _) in _INTERCEPTED.items()}


def _switch(change: int) -> None:
    global _alive
    with _lock:
        _intercept_pools()
        _alive += change
        for name, (function, _) in _INTERCEPTED.items():
            function.__code__ = _codes[name][_alive > 0]
        _switch_methods(_REPLACED_METHODS if _alive else _METHODS)
        _switch_makers(_alive > 0)


@contextlib.contextmanager
def interception() -> Iterator[Tape]:
    """A new tape; the functions above stay redirected until the last tape is gone."""
    tape = Tape()
    _switch(+1)
    weakref.finalize(tape, _switch, -1)
    yield tape
