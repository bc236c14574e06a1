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

#: Words that are made at a time, of all streams together; and of each stream, at least.
_BUFFER, _LEAST = 1 << 19, 1 << 6
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
    """Word 0 of each stream, word 1 of each, and so on: a tensor after another, in memory that is used again."""

    def __init__(self, which: Sequence[Stream]) -> None:
        self._each = max(_LEAST, _BUFFER // len(which))
        self._alone = len(which) == 1
        self._rows = torch.empty(len(which), self._each, dtype=torch.int32)
        self._fills = [Fill(row, Bits(), *one) for row, one in zip(self._rows, which, strict=True)]
        self._run = provider_for(self._rows.device).run
        self._offset = 0

    def new(self) -> torch.Tensor:
        """Memory for `into`."""
        return torch.empty(self._each, len(self._fills), dtype=torch.int32)

    def into(self, words: torch.Tensor) -> torch.Tensor:
        """The next words, in row-major order."""
        bits = Bits(self._offset)
        for fill in self._fills:
            fill.initializer = bits
            if self._alone:
                fill.tensor = words.view(-1)
        self._run(self._fills, False)
        self._offset += self._each
        return words if self._alone else words.copy_(self._rows.t())


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
