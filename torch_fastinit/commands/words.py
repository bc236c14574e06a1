"""The words of the stream, as fast as a pipe takes them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import math
import os
import queue
import sys
import threading
from collections.abc import Sequence

import torch

from torch_fastinit.backend import provider_for
from torch_fastinit.initializers import Bits
from torch_fastinit.ops import Fill
from torch_fastinit.stream import stream_id

#: Words that are made at a time, of all streams together; and of each stream, at least: a fill takes its time, too.
_BUFFER, _LEAST = 1 << 19, 1 << 10
#: So many streams can be written side by side.
_FEW = 64
#: Linux lets anybody ask for so many bytes of a pipe.
_PIPE = 1 << 20

#: A seed and a stream under it.
Stream = tuple[int, int]


def streams(seed: int, name: str, names: int | None = None, seeds: int | None = None) -> list[Stream]:
    """One stream, or those of several names or under several seeds."""
    if names is not None:
        return [(seed, stream_id(f"{name}.{number}")) for number in range(names)]
    first = stream_id(name)
    return [(seed + number, first) for number in range(seeds or 1)]


class Words:
    """Word 0 of each stream, word 1 of each, and so on: a tensor after another, in memory that is used again.

    A row is one word of each stream. A few streams are written where they belong; of more, whose words would be too far
    apart, the columns are written one after another and then turned.
    """

    def __init__(self, which: Sequence[Stream]) -> None:
        self._shape = (max(_LEAST, _BUFFER // len(which)), len(which))
        self._turned = None if len(which) <= _FEW else torch.empty(self._shape[::-1], dtype=torch.int32).t()
        columns = (self.new() if self._turned is None else self._turned).unbind(1)
        self._fills = [Fill(column, Bits(), *one) for column, one in zip(columns, which, strict=True)]
        self._run = provider_for(columns[0].device).run
        self._offset = 0

    def new(self) -> torch.Tensor:
        """Memory for `into`."""
        return torch.empty(self._shape, dtype=torch.int32)

    def into(self, words: torch.Tensor) -> torch.Tensor:
        """The next words, in row-major order."""
        bits = Bits(self._offset)
        for fill in self._fills:
            fill.initializer = bits
        if self._turned is None:
            for fill, column in zip(self._fills, words.unbind(1), strict=True):
                fill.tensor = column
        self._run(self._fills, False)
        self._offset += len(words)
        return words if self._turned is None else words.copy_(self._turned)


def write(descriptor: int, which: Sequence[Stream], count: int | None = None) -> None:
    """Write words to a file descriptor, little-endian, while the next are made.

    Raises:
        OSError: they cannot be written; a `BrokenPipeError` where nobody reads any more.
    """
    if sys.byteorder != "little":
        raise NotImplementedError("words are written as they lie in memory, and this machine is not little-endian")
    with contextlib.suppress(OSError):  # no pipe, or no larger one to be had
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)
    words = Words(which)
    free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
    ready: queue.SimpleQueue[torch.Tensor | None] = queue.SimpleQueue()
    failed: list[OSError] = []
    for _ in range(3):  # one is made, one is written, one waits
        free.put(words.new())

    def write_all() -> None:
        while (made := ready.get()) is not None:
            if not failed:
                try:
                    _write(descriptor, made)
                except OSError as error:
                    failed.append(error)
            free.put(made)

    writer = threading.Thread(target=write_all, daemon=True)
    writer.start()
    left = math.inf if count is None else count
    while left > 0 and not failed:
        made = words.into(free.get())
        ready.put(made if made.numel() <= left else made.view(-1)[: int(left)])
        left -= made.numel()
    ready.put(None)
    writer.join()
    if failed:
        raise failed[0]


def _write(descriptor: int, words: torch.Tensor) -> None:
    size = words.numel() * 4
    left = memoryview((ctypes.c_char * size).from_address(words.data_ptr()))
    while left:
        left = left[os.write(descriptor, left) :]
