"""What the contents of a tensor come from: whether all of it was written, and whether twice the same."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from torch_fastinit.planning.recognize import recognize
from torch_fastinit.recording.memory import View
from torch_fastinit.recording.tape import Entry, Storage, Value, live_writes, transform


def is_written(value: Value) -> bool:
    """Whether `value`, and all that its values come from, was written before it was read."""
    asked: set[tuple[int, int, float]] = set()
    stack: list[tuple[Value, float]] = [(value, math.inf)]
    while stack:
        value, time = stack.pop()
        key = (id(value.storage), id(value.shadow), time)
        if key in asked or value.storage.captured is not None or value.storage.shared is not None:
            continue
        asked.add(key)
        start, end, _ = value.span
        writes = live_writes(value.storage, time, start, end)
        if not _covered(value, writes):
            return False
        stack += [(read, entry.time) for entry in writes for read in entry.reads]
    return True


def _covered(value: Value, writes: Iterable[Entry]) -> bool:
    """Whether `writes` leave no byte of `value` as memory happened to be."""
    start, end, _ = value.span
    views: list[View] = []
    for entry in writes:
        here = [written for written in entry.writes if written.storage is value.storage]
        if not here:  # it made the storage
            return True
        if entry.overwrites:
            views += [written.view for written in here]
            if any(a <= start and end <= b and dense for a, b, dense in (written.span for written in here)):
                return True
    if start == end:
        return True
    mask = torch.zeros(value.storage.nbytes, dtype=torch.uint8, device="cpu")
    for view in views:
        _bytes(view, mask).fill_(1)
    return bool(_bytes(value.view, mask).all())


def _bytes(view: View, memory: torch.Tensor) -> torch.Tensor:
    """The bytes of `view` in `memory`."""
    item = view.dtype.itemsize
    strides = (*(stride * item for stride in view.stride), 1)
    return memory.as_strided((*view.shape, item), strides, view.offset * item)


def contents(storage: Storage, time: float) -> list[Any]:
    """What wrote the contents of `storage` at a time: equal if it was the same for sure."""

    def plain(value: Value) -> Any:
        return value.view if value.storage is storage else (id(value.storage), value.view)

    return [
        (recognize(entry) or transform((entry.func, entry.args, entry.kwargs), Value, plain), entry.writes[0].view)
        if entry.writes
        else entry
        for entry in live_writes(storage, time)
    ]
