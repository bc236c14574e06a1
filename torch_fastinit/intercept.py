"""Python functions of torch that are one entry of the tape, or that move the generator.

Code everywhere holds early-bound references to them (``from torch.nn.init import trunc_normal_``), so replacing the
attribute of a module is not enough: the function object itself gets another ``__code__`` for as long as a tape is
alive. The new code asks whether a deferred tensor or a context is concerned, and otherwise calls the original.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torch_fastinit import init
from torch_fastinit.orthogonal import QR_DTYPE
from torch_fastinit.recorder import record
from torch_fastinit.replay import outside, private_state
from torch_fastinit.tape import Storage, Tape, Value
from torch_fastinit.tensor import Deferred, as_subclass, current_tape, value_of_tensor, wrap

__all__ = [
    "ORTHOGONAL",
    "dirac_",
    "get_rng_state",
    "interception",
    "manual_seed",
    "orthogonal_",
    "set_rng_state",
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
_own_orthogonal_ = _clone(init.orthogonal_)
#: Both write the same matrix when their draw is one of the stream (docs/stream.md, section 12).
ORTHOGONAL = frozenset({orthogonal_, _own_orthogonal_})
manual_seed = _clone(torch.random.manual_seed)
get_rng_state = _clone(torch.random.get_rng_state)
set_rng_state = _clone(torch.random.set_rng_state)


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
            with outside(), private_state(torch.default_generator.get_state()):
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


# --- the generator ----------------------------------------------------------------------------------------------------


def _manual_seed(seed: Any) -> torch.Generator:
    tape = current_tape()
    if tape is None:
        generator: torch.Generator = manual_seed(seed)
        return generator
    with outside():
        torch.Generator().manual_seed(int(seed))  # raises what torch would
        record(tape, manual_seed, (int(seed),), {}, [], random=True)
        tape.seeded = True
    return torch.default_generator


def _get_rng_state() -> torch.Tensor:
    tape = current_tape()
    if tape is None:
        state: torch.Tensor = get_rng_state()
        return state
    with outside():
        shadow = torch.empty(tape.snapshot.shape, dtype=torch.uint8, device="meta")
        value = Value(shadow, Storage(shadow, torch.device("cpu"), tape))
        entry = record(tape, get_rng_state, (), {}, [], outs=(value,), random=True)
        entry.seeded = tape.seeded
    return wrap(value)


def _set_rng_state(new_state: torch.Tensor) -> None:
    tape = current_tape()
    if tape is None:
        set_rng_state(new_state)
        return
    with outside():
        value = value_of_tensor(new_state, tape)
        record(tape, set_rng_state, (value,), {}, [], random=True)
        origin = value.storage.writes[-1] if value.storage.writes else None
        tape.seeded = origin.seeded if origin is not None and origin.func is get_rng_state else True


_INTERCEPTED: dict[str, tuple[Any, Callable[..., Any]]] = {
    "trunc_normal_": (torch.nn.init._no_grad_trunc_normal_, _initializer(trunc_normal_, random=True)),
    "sparse_": (torch.nn.init.sparse_, _sparse),
    "dirac_": (torch.nn.init.dirac_, _dirac),
    "orthogonal_": (torch.nn.init.orthogonal_, _orthogonal),
    "fastinit.init.orthogonal_": (init.orthogonal_, _own_orthogonal),
    "Parameter": (torch.nn.Parameter.__new__, _parameter),
    "UninitializedParameter": (UninitializedParameter.__new__, _uninitialized_parameter),
    "UninitializedBuffer": (UninitializedBuffer.__new__, _uninitialized_buffer),
    "manual_seed": (torch.random.manual_seed, _manual_seed),
    "get_rng_state": (torch.random.get_rng_state, _get_rng_state),
    "set_rng_state": (torch.random.set_rng_state, _set_rng_state),
}


def intercepted(name: str) -> Callable[..., Any]:
    """What runs instead of the function of this name."""
    return _INTERCEPTED[name][1]


def _redirect(name: str, function: Any) -> types.CodeType:
    """Code with the function's own parameters that calls :func:`intercepted`."""
    parameters = ", ".join(inspect.signature(function).parameters)
    source = (
        f"def redirected({parameters}):\n"
        f"    from torch_fastinit.intercept import intercepted\n"
        f"    return intercepted({name!r})({parameters})\n"
    )
    scope: dict[str, Any] = {}
    exec(compile(source, __file__, "exec"), scope)
    code: types.CodeType = scope["redirected"].__code__
    return code


_codes = {name: (function.__code__, _redirect(name, function)) for name, (function, _) in _INTERCEPTED.items()}


def _switch(change: int) -> None:
    global _alive
    with _lock:
        _alive += change
        for name, (function, _) in _INTERCEPTED.items():
            function.__code__ = _codes[name][_alive > 0]


@contextlib.contextmanager
def interception() -> Iterator[Tape]:
    """A new tape; the functions above stay redirected until the last tape is gone."""
    tape = Tape()
    _switch(+1)
    weakref.finalize(tape, _switch, -1)
    yield tape
