"""Whether this thread is in a context, stepping out of it, and coming back from an interrupt as one was."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch._C import (  # type: ignore[attr-defined]
    _get_dispatch_stack_at,
    _get_torch_function_state,
    _len_torch_dispatch_stack,
    _pop_torch_dispatch_stack,
    _push_on_torch_dispatch_stack,
    _set_grad_enabled,
    _set_torch_function_state,
    _TorchFunctionState,
)

from torch_fastinit.recording.tape import Tape


class _Active(threading.local):
    tape: Tape | None = None


#: The tape of the context that this thread is in.
active = _Active()


def surroundings() -> Callable[[], None]:
    """What torch does on this thread besides running operations: modes, gradients, `__torch_function__`.

    The function that this returns makes it so again. Called once more, it changes nothing: where a signal handler
    may raise, call it twice, `try: back() finally: back()`, and one of them runs to its end.
    """
    modes = [_get_dispatch_stack_at(i) for i in range(_len_torch_dispatch_stack())]
    gradients = torch.is_grad_enabled()
    functions = _get_torch_function_state()

    def back() -> None:
        now = _len_torch_dispatch_stack()
        if now != len(modes) or any(_get_dispatch_stack_at(i) is not mode for i, mode in enumerate(modes)):
            for _ in range(now):
                _pop_torch_dispatch_stack(None)
            for mode in modes:
                _push_on_torch_dispatch_stack(mode)
        _set_grad_enabled(gradients)
        _set_torch_function_state(functions)

    return back


class outside:  # noqa: N801 (a context manager, and a class since a generator's cleanup may come much too late)
    """Run torch as if no context were active: no recording, no gradients, no `__torch_function__` of subclasses."""

    __slots__ = ("_back",)

    def __enter__(self) -> None:
        self._back = surroundings()
        try:
            for _ in range(_len_torch_dispatch_stack()):
                _pop_torch_dispatch_stack(None)
            _set_grad_enabled(False)
            if _get_torch_function_state() == _TorchFunctionState.ENABLED:
                _set_torch_function_state(_TorchFunctionState.SUBCLASSES_DISABLED)
        except BaseException:
            self._back()
            raise

    def __exit__(self, *_: object) -> None:
        self._back()
