"""How parameters, subclasses and the contents of real tensors are made from deferred tensors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torch_fastinit._torch import (
    DisableTorchFunctionSubclass,
    apply_to_all,
    data_in_c,
    load_from_state_dict,
    make_subclass,
)
from torch_fastinit.recording.active import active, applying, hidden_meta
from torch_fastinit.recording.originals import clone
from torch_fastinit.recording.tensor import Deferred, as_subclass, deferred_class, expose, holds_deferred, set_class

_new_parameter = clone(torch.nn.Parameter.__new__)
_new_uninitialized_parameter = clone(UninitializedParameter.__new__)
_new_uninitialized_buffer = clone(UninitializedBuffer.__new__)


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


_make_subclass: Callable[..., torch.Tensor] = make_subclass
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
    with DisableTorchFunctionSubclass():
        view: torch.Tensor = torch.ops.aten.alias.default(self)  # with a grad_fn, as in eager code
    if cls is not torch.Tensor:
        set_class(view, cls if issubclass(cls, Deferred) else deferred_class(cls))
    return view


_data: Any = data_in_c


def _set_data(self: torch.Tensor, new: torch.Tensor) -> None:
    """A real tensor stays one: it gets the contents that are deferred, and shares their memory, as in eager code."""
    if isinstance(new, Deferred):
        new = expose(new._value)
    _data.__set__(self, new)


_MAKERS = {
    "_make_subclass": staticmethod(_tensor_make_subclass),
    "as_subclass": _tensor_as_subclass,
    "data": property(_data.__get__, _set_data),
}
_POLYFILLS = "torch._dynamo.polyfills.tensor"
_dynamo_knew = False
_dynamo_has_ours = False


def switch_makers(redirect: bool) -> None:
    """C methods, reached through `torch.Tensor` or a subclass.

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


_load = clone(load_from_state_dict)


def _load_from_state_dict(self: torch.nn.Module, *args: Any) -> None:
    """Loading into deferred tensors is recorded: a warning that nothing comes of it, as on meta, would be wrong."""
    own = [t for t in chain(self._parameters.values(), self._buffers.values()) if t is not None]
    if active.tape is not None or not any(map(holds_deferred, own)):
        _load(self, *args)
        return
    with hidden_meta(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"for .*: copying from a non-meta parameter", category=UserWarning)
        _load(self, *args)


_apply_to_all = clone(apply_to_all)


def _apply(self: torch.nn.Module, fn: Any, recurse: bool = True) -> Any:
    with applying():
        return _apply_to_all(self, fn, recurse)


PATCHES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "Parameter": (torch.nn.Parameter.__new__, _parameter),
    "UninitializedParameter": (UninitializedParameter.__new__, _uninitialized_parameter),
    "_apply": (apply_to_all, _apply),
    "_load_from_state_dict": (load_from_state_dict, _load_from_state_dict),
    "UninitializedBuffer": (UninitializedBuffer.__new__, _uninitialized_buffer),
}
