"""Which logical tensor a shard is part of: read off the copies and views that sharding made of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from torch_fastinit.planning.cut import copies_of
from torch_fastinit.recording.tape import Value


def origin(local: Value, shape: Sequence[int]) -> Value | None:
    """The value of this shape that `local` was cut from, if there is one.

    Its contents are what one process would have: names, draws and liveness are those of this value.
    """
    waiting, seen = deque([local]), {id(local)}
    padding: Value | None = None
    while waiting:
        value = waiting.popleft()
        noted = value.storage.part_of
        if noted is not None and tuple(noted.shadow.shape) == tuple(shape):
            return noted
        if tuple(value.shadow.shape) == tuple(shape):
            if local.shadow.numel() or value.storage.like is None or value is local:
                return value
            padding = padding or value  # of an empty shard: as large as the whole, if that is one row
        before = [value.parent, value.storage.like]
        for entry in value.storage.writes:
            before += [copy.source for copy in copies_of(entry) or () if isinstance(copy.source, Value)] or list(
                entry.reads
            )
        for source in before:
            if source is not None and id(source) not in seen:
                seen.add(id(source))
                waiting.append(source)
    return padding
