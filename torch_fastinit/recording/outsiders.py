"""Tensors that are not deferred, in operations of a context: real ones stay real, those on meta stay there."""

from __future__ import annotations

from typing import Any

import torch

from torch_fastinit.recording.active import active, outside
from torch_fastinit.recording.memory import keep_on_meta
from torch_fastinit.recording.tape import NotStridedError, check_strided, transform
from torch_fastinit.recording.tensor import Deferred, adopt, become, expose, tape_of

aten = torch.ops.aten


def set_storage(func: Any, args: Any, kwargs: Any) -> Any:
    """`tensor.set_(storage, ...)`, by which files are loaded: a deferred tensor shares that memory."""
    tensor, storage = args[:2]
    if not isinstance(tensor, Deferred):
        func(*args, **kwargs)
        mark(tensor)
        return tensor
    if storage.device.type == "meta":
        raise NotImplementedError(
            f"set_() of a deferred tensor of shape {tuple(tensor.shape)} to the storage of another one is not "
            "recorded, since nothing is there yet: use a view, or as_strided()"
        )
    with outside():
        real = func(torch.empty(0, dtype=tensor.dtype, device=tensor._value.storage.device), *args[1:], **kwargs)
        become(tensor, adopt(real, tape_of(args)))
    return tensor


def set_tensor(func: Any, args: Any, kwargs: Any) -> Any:
    """`tensor.set_(other)`: both share memory afterwards."""
    tensor, other = args
    if isinstance(tensor, Deferred):
        tensor.data = other
    else:
        func(tensor, expose(other._value) if isinstance(other, Deferred) else other)
        mark(tensor)
    return tensor


def run_on_meta(func: Any, args: Any, kwargs: Any, written: Any) -> Any:
    """An operation that a tensor on meta takes part in, or that makes one: torch's own, on metadata alone."""
    found: list[Deferred] = []
    transform(written, Deferred, found.append)
    if found:
        raise NotImplementedError(
            f"{func} would write to a deferred tensor of shape {tuple(found[0].shape)} what a tensor on the meta "
            "device holds, and that has no contents: make both inside fastinit.deferred()"
        )
    if active.tape is None:
        transform((args, kwargs), Deferred, found.append)
        kept: list[torch.Tensor] = []
        transform(written, torch.Tensor, kept.append)
        if found and kept:
            raise NotImplementedError(
                f"{func} would write a deferred tensor of shape {tuple(found[0].shape)} to one of shape "
                f"{tuple(kept[0].shape)} on the meta device, which has no contents, so its values would be lost: make "
                "that one inside fastinit.deferred(), too, or call fastinit.materialize(module) first"
            )
    args, kwargs = transform((args, kwargs), Deferred, lambda tensor: tensor._value.shadow)
    result = func(*args, **kwargs)
    transform((result, written), torch.Tensor, mark)
    return result


def mark(tensor: torch.Tensor) -> None:
    """Note it if a context made this tensor on meta."""
    if tensor.is_meta and active.tape is not None:
        check_strided(tensor)
        keep_on_meta(tensor)


def _refuse_quantized(func: Any, args: Any, kwargs: Any) -> Any:
    raise NotStridedError("quantized")


#: Operators whose results are quantized, though on meta they are not.
REFUSED = {
    getattr(packet, overload): _refuse_quantized
    for packet in (aten.quantize_per_tensor, aten.quantize_per_tensor_dynamic, aten.quantize_per_channel)
    for overload in packet.overloads()
}
