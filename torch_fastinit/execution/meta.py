"""Modules on the plain meta device: their own initialisers, run under recording on deferred stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit.execution.swap import exchange
from torch_fastinit.planning.tensors import Target
from torch_fastinit.recording.active import active, outside
from torch_fastinit.recording.context import deferred
from torch_fastinit.recording.tensor import Deferred, uninitialized


def was_meta(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a stand-in for a tensor on the meta device."""
    return "_was_meta" in tensor.__dict__


def _is_plain_meta(tensor: torch.Tensor) -> bool:
    return not isinstance(tensor, (Deferred, UninitializedTensorMixin)) and tensor.is_meta


class StandIns:
    """Deferred tensors in the place of a module's plain meta tensors, as the module's initialisers leave them.

    Real tensors are not touched: they, too, have stand-ins, but only while the initialisers run. False if the module
    has no meta tensors, and so nothing is to be done.
    """

    def __init__(self, module: torch.nn.Module, targets: Sequence[Target]) -> None:
        self._module = module
        targets = [target for target in targets if target.role != "attribute"]
        self._meta = [target for target in targets if _is_plain_meta(target.tensor)]
        self._real = [
            target
            for target in targets
            if not target.tensor.is_meta and not isinstance(target.tensor, (Deferred, UninitializedTensorMixin))
        ]
        self._news: dict[int, torch.Tensor] = {}
        # Initialisers leave marks on modules ("already initialised") and tie tensors: both are undone with the rest.
        self._marks = [(d, dict(d)) for m in module.modules() for d in _dictionaries(m)] if self else []

    def __bool__(self) -> bool:
        return bool(self._meta)

    def put(self, device: torch.device | None) -> None:
        """Put them in place and run the initialisers. Whatever this raises, `take_back` is to be called."""
        chosen = {id(target.tensor) for target in self._meta}
        owners = [m for m in _children_first(self._module) if any(id(t) in chosen for t in _own(m))]
        with deferred():
            for target in (*self._meta, *self._real):
                self._news[id(target.tensor)] = _stand_in(target.tensor, device)
            self._exchange((*self._meta, *self._real))
            for owner in owners:  # transformers' mark for what it need not initialise again: that is lost now
                owner.__dict__.pop("_is_hf_initialized", None)
            _initialise(self._module, owners)
        self._exchange(self._real)

    def take_back(self) -> None:
        """Make the module what it was, however far `put` came, unless its tensors are real by now."""
        if self and (isinstance(self._meta[0].tensor, Deferred) or self._meta[0].tensor.is_meta):
            self._exchange([target for target in (*self._meta, *self._real) if isinstance(target.tensor, Deferred)])
            for now, before in self._marks:
                now.clear()
                now.update(before)

    def _exchange(self, targets: Sequence[Target]) -> None:
        tensors = [target.tensor for target in targets]
        exchange([target.name for target in targets], tensors, [self._news[id(t)] for t in tensors])


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
