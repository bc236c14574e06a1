"""The context in which everything that is created is deferred."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from torch_fastinit.recording.active import active
from torch_fastinit.recording.patches.switch import patch_while_alive
from torch_fastinit.recording.recorder import dispatch, recording
from torch_fastinit.recording.tape import Tape
from torch_fastinit.recording.tensor import holds_deferred


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A context in which every tensor that is created is deferred: no memory, no random numbers.

    Modules built inside have parameters and buffers of the right shape, dtype, stride, `requires_grad`, names and
    ties, and `torch_fastinit.materialize` gives them their memory and values. Code inside believes that it runs
    on the device that it asked for (the CPU by default), and may read any value: that evaluates it on the spot, from a
    private copy of torch's generator. Outside, a deferred tensor reports `meta`.

    A context inside another one belongs to it. Each thread has its own; threads that are started inside, and tasks that
    are given to a thread pool inside, record into the same context until it is left.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> with fastinit.deferred():
        ...     layer = torch.nn.Linear(3, 2)
        >>> layer.weight.device, fastinit.is_deferred(layer)
        (device(type='meta'), True)
        >>> fastinit.materialize(layer, seed=0).weight.device
        device(type='cpu')
    """
    if active.tape is not None and not active.tape.closed:
        yield
        return
    tape = Tape(dispatch)
    patch_while_alive(tape)
    try:
        with recording(tape):
            yield
    finally:
        tape.closed = True


def skip_init(cls: type[torch.nn.Module], /, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """Construct a module with deferred tensors: `torch.nn.utils.skip_init`, with a way to initialise it afterwards.

    Args:
        cls: a subclass of `torch.nn.Module`.
        args, kwargs: what its constructor takes. `device=` is where `torch_fastinit.materialize` puts it.

    Returns:
        The module, deferred.

    Raises:
        RuntimeError: `cls` is not a module class.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> layer = fastinit.skip_init(torch.nn.Linear, 3, 2, bias=False)
        >>> fastinit.is_deferred(layer.weight)
        True
    """
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise RuntimeError(f"Expected a Module; got {cls}")
    with deferred():
        return cls(*args, **kwargs)


def is_deferred(x: torch.Tensor | torch.nn.Module) -> bool:
    """Whether a tensor is deferred (of a DTensor: its shard), or a module has a parameter or buffer that is.

    Raises:
        TypeError: `x` is neither a tensor nor a module.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> fastinit.is_deferred(torch.zeros(2))
        False
    """
    if isinstance(x, torch.Tensor):
        return holds_deferred(x)
    if isinstance(x, torch.nn.Module):
        return any(holds_deferred(t) for ts in (x.parameters(), x.buffers()) for t in ts)
    raise TypeError(f"is_deferred() takes a tensor or a module, not {type(x).__name__}")
