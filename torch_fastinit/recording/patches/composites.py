"""Composite operators whose C++ goes for memory itself, past every mode: the quasi-random engines' ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_fastinit.recording.active import outside
from torch_fastinit.recording.recorder import dispatch
from torch_fastinit.recording.tensor import Deferred

_NAMES = ("_sobol_engine_draw", "_sobol_engine_ff_", "_sobol_engine_initialize_state_", "_sobol_engine_scramble_")
_ORIGINALS: dict[str, Callable[..., Any]] = {name: getattr(torch, name) for name in _NAMES}


def _dispatched(name: str) -> Callable[..., Any]:
    operator = getattr(torch.ops.aten, name).default

    def call(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(arg, Deferred) for arg in (*args, *kwargs.values())):
            return _ORIGINALS[name](*args, **kwargs)
        with outside():
            return dispatch(operator, args, kwargs)

    return call


_REPLACED = {name: _dispatched(name) for name in _NAMES}


def switch_composites(redirect: bool) -> None:
    """Put them into `torch`, where `torch.quasirandom` looks them up at each call."""
    vars(torch).update(_REPLACED if redirect else _ORIGINALS)
