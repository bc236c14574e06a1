"""Modules on the plain meta device: their own initialisers, run under recording on deferred stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit.execution.swap import swap
from torch_fastinit.planning.tensors import Target
from torch_fastinit.recording.active import active, outside
from torch_fastinit.recording.context import deferred
from torch_fastinit.recording.memory import kept_on_meta
from torch_fastinit.recording.tensor import Deferred, uninitialized


def was_meta(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a stand-in for a tensor on the meta device."""
    return "_was_meta" in tensor.__dict__


def _is_plain_meta(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is on meta, and not because a constructor inside a context wanted it there."""
    return not isinstance(tensor, (Deferred, UninitializedTensorMixin)) and tensor.is_meta and not kept_on_meta(tensor)


def stand_in(
    module: torch.nn.Module, targets: Sequence[Target], device: torch.device | None
) -> Callable[[], None] | None:
    """Make plain meta tensors of `module` deferred ones, as the module's initialisers leave them.

    Returns a function that makes them what they were, or None if there were none. Real tensors are not touched: they,
    too, have stand-ins while the initialisers run.
    """
    tensors = [target.tensor for target in targets if target.role != "attribute"]
    meta = [t for t in tensors if _is_plain_meta(t)]
    if not meta:
        return None
    swapped: list[tuple[torch.Tensor, torch.Tensor]] = []
    # Initialisers leave marks on modules ("already initialised") and tie tensors: both are undone with the rest.
    marks = [(d, dict(d)) for m in module.modules() for d in _dictionaries(m)]

    def undo() -> None:
        for old, new in reversed(swapped):
            if isinstance(old, Deferred):
                swap(old, new)
        swapped.clear()
        for now, before in marks:
            now.clear()
            now.update(before)

    chosen = {id(t) for t in meta}
    real = [t for t in tensors if not t.is_meta and not isinstance(t, (Deferred, UninitializedTensorMixin))]
    owners = [m for m in _children_first(module) if any(id(t) in chosen for t in _own(m))]
    try:
        with deferred():
            for tensor in (*meta, *real):
                new = _stand_in(tensor, device)
                swap(tensor, new)
                swapped.append((tensor, new))
            for owner in owners:  # transformers' mark for what it need not initialise again: that is lost now
                owner.__dict__.pop("_is_hf_initialized", None)
            _initialise(module, owners)
    except BaseException:
        undo()
        raise
    for tensor, kept in swapped[len(meta) :]:
        swap(tensor, kept)
    del swapped[len(meta) :]
    return undo


def _dictionaries(module: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    return module.__dict__, module._parameters, module._buffers


def _stand_in(tensor: torch.Tensor, device: torch.device | None) -> Deferred:
    tape = active.tape
    assert tape is not None
    where = device or (torch.device("cpu") if tensor.is_meta else tensor.device)
    with outside():
        new = uninitialized(tensor, where, tape)
        new.requires_grad_(tensor.requires_grad)
    new.__dict__.update(tensor.__dict__)
    if isinstance(tensor, torch.nn.Parameter):
        new._is_param = True
    if tensor.is_meta:
        new._was_meta = True
    return new


def _initialise(module: torch.nn.Module, owners: list[torch.nn.Module]) -> None:
    """What constructors do: each layer resets itself, then models go over their layers and tie weights."""
    for owner in owners:
        for name in ("reset_parameters", "_reset_parameters", "reset_buffers"):
            method = getattr(owner, name, None)
            if callable(method):
                method()
    for name in ("init_weights", "tie_weights"):
        for method in _outermost(module, name):
            method()


def _outermost(module: torch.nn.Module, name: str) -> Iterator[Callable[[], None]]:
    """The methods of this name, of modules that lie in no other module that has one."""
    method = getattr(module, name, None)
    if callable(method):
        yield method
    else:
        for child in module.children():
            yield from _outermost(child, name)


def _children_first(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Every module under `module`, in the order in which their constructors end."""
    seen: set[torch.nn.Module] = set()

    def walk(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
        if module not in seen:
            seen.add(module)
            for child in module.children():
                yield from walk(child)
            yield module

    return list(walk(module))


def _own(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
