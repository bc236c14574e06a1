"""Real memory, and places in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_fastinit._torch import conj, free_weak_pointer, neg_view, storage_at, weak_pointer


@dataclass(slots=True)
class View:
    """Part of a storage, seen as a strided tensor. `offset` and `stride` count elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def span(self) -> tuple[int, int]:
        """First byte and last byte plus one."""
        item = self.dtype.itemsize
        if 0 in self.shape:
            return self.offset * item, self.offset * item
        reach = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return self.offset * item, (self.offset + reach + 1) * item


def span(t: torch.Tensor) -> tuple[int, int, bool]:
    size, item = t.numel(), t.element_size()
    start = int(t.storage_offset()) * item
    if size == 0:
        return start, start, True
    if t.is_contiguous():
        return start, start + size * item, True
    extent = 1 + sum((n - 1) * int(s) for n, s in zip(t.shape, t.stride(), strict=True))
    expected = 1
    for s, n in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1):
        if s != expected:
            return start, start + extent * item, False
        expected *= n
    return start, start + extent * item, True


def overlaps(t: torch.Tensor) -> bool:
    """Whether some of a tensor's elements are one place in memory, as those of an expanded one are."""
    return not t.is_contiguous() and any(n > 1 and step == 0 for n, step in zip(t.shape, t.stride(), strict=True))


def as_real(shadow: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
    """Real memory seen as `shadow`."""
    real = torch.empty(0, dtype=shadow.dtype, device=storage.device)
    real.set_(storage, shadow.storage_offset(), shadow.shape, shadow.stride())
    if shadow.is_conj():
        real = conj(real)
    if shadow.is_neg():
        real = neg_view(real)
    return real


def keep_on_meta(tensor: torch.Tensor) -> None:
    """Note that a constructor inside a context put `tensor` on the meta device: it stays there, as in eager code."""
    tensor.untyped_storage()._kept_on_meta = True  # type: ignore[attr-defined]


def kept_on_meta(tensor: torch.Tensor) -> bool:
    """Whether `keep_on_meta` was told of `tensor`, or of one with the same memory."""
    return tensor.layout is torch.strided and hasattr(tensor.untyped_storage(), "_kept_on_meta")


def allocate(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Fresh memory for one tensor: all memory that `materialize` gives out comes from here."""
    new = torch.empty_strided(shape, stride, dtype=dtype, device=device)
    if _poison.byte is not None:
        torch.empty(0, dtype=torch.uint8, device=device).set_(new.untyped_storage()).fill_(_poison.byte)
    return new


class _Poison(threading.local):
    byte: int | None = None


_poison = _Poison()


def poisoned_with() -> int | None:
    """What fresh memory on this thread is filled with."""
    return _poison.byte


def poison(byte: int | None) -> None:
    """Fill fresh memory on this thread with `byte`, to expose reads of what nothing wrote; None: do not."""
    _poison.byte = byte


class FinalMemory:
    """Finds the memory in which a storage was materialised, and keeps it alive no longer than others do.

    `name` is the tensor that it was materialised for; `memory` is None if that is in another dtype or elsewhere.
    """

    __slots__ = ("_name", "_pointer")

    def __init__(self, name: str, memory: torch.UntypedStorage | None) -> None:
        self._name = name
        self._pointer: Any = None if memory is None else weak_pointer(memory)

    def __del__(self, free: Callable[[int], None] = free_weak_pointer) -> None:
        pointer = getattr(self, "_pointer", None)  # an interrupt may have come before there is one
        if pointer is not None:
            free(pointer)

    def __call__(self) -> torch.UntypedStorage:
        memory: torch.UntypedStorage | None = None
        if self._pointer is not None:
            memory = storage_at(self._pointer)
        if memory is None:
            what = "in another dtype or on another device" if self._pointer is None else "and freed"
            raise RuntimeError(
                f"a deferred tensor shares memory with {self._name!r}, which was materialised before, {what}: "
                "call fastinit.materialize(module) once, with a module that holds both"
            )
        return memory


def allocate_bytes(count: int, device: torch.device) -> torch.UntypedStorage:
    return allocate((count,), (1,), torch.uint8, device).untyped_storage()


def failure(message: str, error: Exception) -> Exception:
    """An error with this message, caused by `error`: a `RuntimeError`, unless memory ran out, which keeps its type."""
    kind = type(error) if isinstance(error, (torch.OutOfMemoryError, MemoryError)) else RuntimeError
    return kind(message)
