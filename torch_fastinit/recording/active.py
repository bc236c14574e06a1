"""Whether this thread is in a context, and stepping out of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from torch_fastinit._torch import DisableTorchFunctionSubclass, disable_current_modes
from torch_fastinit.recording.tape import Tape


class _Active(threading.local):
    tape: Tape | None = None
    shows_meta = True


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
def outside() -> Iterator[None]:
    """Run torch as if no context were active: no recording, no gradients, no default device."""
    with disable_current_modes(), torch.no_grad(), DisableTorchFunctionSubclass():
        yield
