"""Functions of torch that are one entry of the tape, or that look at or move a default generator.

Code everywhere holds early-bound references to them (`from torch.nn.init import trunc_normal_`), so replacing the
attribute of a module is not enough: the function object itself gets another `__code__` for as long as a tape is
alive. The new code asks whether a deferred tensor or a context is concerned, and otherwise calls the original. The
methods of `torch.Generator`, which are C's, are replaced in the type itself.
"""

from __future__ import annotations

import atexit
import inspect
import types
import weakref
from collections.abc import Callable
from typing import Any

from torch_fastinit.forks import lock_before_forks
from torch_fastinit.recording.patches import (
    capsules,
    composites,
    generators,
    initializers,
    parameters,
    sharding,
    threads,
)
from torch_fastinit.recording.recorder import BEFORE_SHARDING
from torch_fastinit.recording.tape import Tape

_lock = lock_before_forks()  # a tape may be collected while it is held
_tapes: list[weakref.ref[Tape]] = []
_INTERCEPTED: dict[str, tuple[Any, Callable[..., Any]]] = {}
_codes: dict[str, tuple[types.CodeType, types.CodeType]] = {}


def intercepted(name: str) -> Callable[..., Any]:
    """The replacement of the function of this name."""
    return _INTERCEPTED[name][1]


def _redirect(name: str, function: Any) -> types.CodeType:
    """Code with the function's own parameters that calls its replacement."""
    parameters = list(inspect.signature(function).parameters.values())
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    arguments = ", ".join(
        f"{p.name}={p.name}" if p.kind is p.KEYWORD_ONLY else stars.get(p.kind, "") + p.name for p in parameters
    )
    source = (
        f"def redirected{inspect.Signature(bare)}:\n"
        f"    from torch_fastinit.recording.patches.switch import intercepted\n"
        f"    return intercepted({name!r})({arguments})\n"
    )
    scope: dict[str, Any] = {}
    exec(compile(source, __file__, "exec"), scope)
    code: types.CodeType = scope["redirected"].__code__
    return code


def _add(patches: dict[str, tuple[Any, Callable[..., Any]]]) -> None:
    for name in patches.keys() - _INTERCEPTED.keys():
        function = patches[name][0]
        _INTERCEPTED[name] = patches[name]
        _codes[name] = function.__code__, _redirect(name, function)


for _module in (initializers, parameters, generators, threads):
    _add(_module.PATCHES)


def _settle(_: object = None) -> None:
    """Redirect the functions if a tape is alive; let them be what torch has otherwise."""
    with _lock:
        _tapes[:] = [tape for tape in _tapes if tape() is not None]
        for name, (function, _) in _INTERCEPTED.items():
            function.__code__ = _codes[name][bool(_tapes)]
        generators.switch_methods(bool(_tapes))
        parameters.switch_makers(bool(_tapes))
        capsules.switch_capsules(bool(_tapes))
        composites.switch_composites(bool(_tapes))


def patch_while_alive(tape: Tape) -> None:
    """Keep the functions redirected until the last tape is gone."""
    with _lock:
        _add(threads.pool_patches())
        _add(sharding.sharding_patches(_INTERCEPTED))
        # Two of them: should a signal handler raise within a weak reference's callback, Python drops that call.
        _tapes.extend(weakref.ref(tape, _settle) for _ in range(2))
        _settle()


def _patch_sharding() -> None:
    """Redirect torch's sharding code if it has been loaded meanwhile."""
    patches = sharding.sharding_patches(_INTERCEPTED)
    if patches:
        with _lock:
            _add(patches)
            _settle()


BEFORE_SHARDING.append(_patch_sharding)


def _settle_at_exit() -> None:
    _tapes.clear()
    _settle()


atexit.register(_settle_at_exit)
