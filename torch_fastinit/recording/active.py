"""Whether this thread is in a context, stepping out of it, and coming back from an interrupt as one was."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch

from torch_fastinit._torch import (
    TorchFunctionState,
    dispatch_depth,
    dispatch_mode_at,
    pop_dispatch_mode,
    push_dispatch_mode,
    set_grad_enabled,
    set_torch_function_state,
    torch_function_state,
)
from torch_fastinit.recording.tape import Tape


class _Active(threading.local):
    tape: Tape | None = None
    shows_meta = True
    applies = False


#: The tape of the context that this thread is in.
active = _Active()


@contextlib.contextmanager
def hidden_meta() -> Iterator[None]:
    """Let deferred tensors not say that they are on meta, to code that takes this for a reason to warn."""
    active.shows_meta = False
    try:
        yield
    finally:
        active.shows_meta = True


@contextlib.contextmanager
def applying() -> Iterator[None]:
    """Note that `Module._apply` is running, which puts other tensors in place of a module's."""
    before, active.applies = active.applies, True
    try:
        yield
    finally:
        active.applies = before


def surroundings() -> Callable[[], None]:
    """What torch does on this thread besides running operations: modes, gradients, `__torch_function__`.

    The function that this returns makes it so again. Called once more, it changes nothing: where a signal handler
    may raise, call it twice, `try: back() finally: back()`, and one of them runs to its end.
    """
    modes = [dispatch_mode_at(i) for i in range(dispatch_depth())]
    gradients = torch.is_grad_enabled()
    functions = torch_function_state()

    def back() -> None:
        now = dispatch_depth()
        if now != len(modes) or any(dispatch_mode_at(i) is not mode for i, mode in enumerate(modes)):
            for _ in range(now):
                pop_dispatch_mode(None)
            for mode in modes:
                push_dispatch_mode(mode)
        set_grad_enabled(gradients)
        set_torch_function_state(functions)

    return back


class outside:  # noqa: N801 (a context manager, and a class since a generator's cleanup may come much too late)
    """Run torch as if no context were active: no recording, no gradients, no `__torch_function__` of subclasses."""

    __slots__ = ("_back",)

    def __enter__(self) -> None:
        self._back = surroundings()
        try:
            for _ in range(dispatch_depth()):
                pop_dispatch_mode(None)
            set_grad_enabled(False)
            if torch_function_state() == TorchFunctionState.ENABLED:
                set_torch_function_state(TorchFunctionState.SUBCLASSES_DISABLED)
        except BaseException:
            self._back()
            raise

    def __exit__(self, *_: object) -> None:
        self._back()
