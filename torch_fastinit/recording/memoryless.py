"""A deferred tensor has no memory: which operations are recorded outside a context, and what the others say."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_fastinit._torch import storage_id
from torch_fastinit.recording.active import active
from torch_fastinit.recording.schema import signature_of

_FIRST = "call fastinit.materialize(module) first"


def no_memory(shape: Sequence[int], what: str, or_else: str = "") -> RuntimeError:
    """The error of whoever asks a deferred tensor for memory or results."""
    return RuntimeError(f"a deferred tensor of shape {tuple(shape)} has no memory yet, so {what}: {_FIRST}{or_else}")


#: Operators that only move or cast what they read.
_COPIES = frozenset({"clone", "_to_copy", "_unsafe_view", "_reshape_copy", "cat", "constant_pad_nd"})
#: Operators that read nothing but the metadata of their arguments.
_ALLOCATIONS = frozenset(
    f"{prefix}{what}{suffix}"
    for what in ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "empty_strided")
    for prefix, suffix in (("", "_like"), ("new_", ""))
)


@functools.cache
def is_recorded_outside(func: Any) -> bool:
    """Whether an operator is recorded outside a context: all but those that compute new tensors.

    Views, copies, casts, allocations and writes in place are. What returns a number reads contents, if they are known.
    """
    if func.namespace not in ("aten", "prims", "fastinit"):  # collectives, for one
        return False
    name = func._schema.name.partition("::")[2]
    returns = func._schema.returns
    return (
        name in _COPIES
        or name in _ALLOCATIONS
        or all(result.alias_info is not None for result in returns if "Tensor" in str(result.type))
    )


def makes_real(func: Any, kwargs: Any) -> bool:
    """Whether an operation asks for fresh memory on a device, as loading a checkpoint does; outside a context."""
    if func is not torch.ops.aten.empty_like.default or not kwargs or kwargs.get("device") is None:
        return False
    return torch.device(kwargs["device"]).type != "meta"


#: Namespaces of collectives.
_COLLECTIVES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor"})


@functools.cache
def is_collective(func: Any) -> bool:
    """Whether an operator sends contents, which a recording cannot: those of other ranks are not there."""
    return func.namespace in _COLLECTIVES and func._schema.name != "c10d::barrier"


def check_outside(func: Any, kwargs: Any, tensors: Sequence[torch.Tensor]) -> None:
    """Refuse an operation of a forward or backward pass, an optimizer or a collective on deferred `tensors`."""
    shape = tensors[0].shape
    if not is_recorded_outside(func):
        raise no_memory(shape, f"{func} cannot run on it", ", or do this inside fastinit.deferred()")
    if makes_real(func, kwargs):
        if active.applies:  # `Module.to_empty`, also as FSDP1 calls it
            raise no_memory(shape, "to_empty() would lose what was recorded")
        # But a fill is outside of the history that autograd keeps.
    elif torch.is_grad_enabled() and signature_of(func).writes and func.namespace != "fastinit":
        for tensor in tensors:
            if tensor.requires_grad:
                raise no_memory(tensor.shape, f"autograd cannot record {func} on it")


class DeferredStorage(torch.UntypedStorage):
    """Stands for the memory of a deferred tensor: it has a size and an identity, but no contents and no address."""

    def data_ptr(self) -> int:
        """Inside a context, a number that identifies the memory, as an address would."""
        if active.tape is None:
            raise _no_storage(self, "data_ptr")
        return storage_id(self)

    def is_shared(self) -> bool:
        return False


def _no_storage(storage: torch.UntypedStorage, method: str) -> RuntimeError:
    return RuntimeError(
        f"the storage of a deferred tensor ({storage.nbytes()} bytes) has no memory yet, so no {method}(): {_FIRST}"
    )


def _refusal(method: str) -> Callable[..., Any]:
    def refuse(self: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
        raise _no_storage(self, method)

    return refuse


_METADATA = "device element_size from_buffer from_file get_device is_pinned nbytes new resizable size untyped".split()
_PRIVATE = "__copy__ __deepcopy__ __getitem__ __iter__ __reduce_ex__ __setitem__ _byteswap _write_file".split()

for _name in (*(name for name in dir(torch.UntypedStorage) if not name.startswith("_")), *_PRIVATE):
    if _name not in (*_METADATA, *vars(DeferredStorage)) and callable(getattr(torch.UntypedStorage, _name)):
        setattr(DeferredStorage, _name, _refusal(_name))


def storage_of(shadow: torch.Tensor) -> torch.UntypedStorage:
    """The storage object of a shadow, which says that it has no memory."""
    storage = shadow.untyped_storage()
    if type(storage) is torch.UntypedStorage:
        storage.__class__ = DeferredStorage
    return storage
