"""Which logical tensor a shard is part of: read off the copies and views that sharding made of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from torch_fastinit.planning.cut import copies_of
from torch_fastinit.recording.tape import Entry, Value


def origin(local: Value, shape: Sequence[int]) -> Value | None:
    """The value of this shape that `local` was cut from, if there is one.

    Its contents are what one process would have: names, draws and liveness are those of this value.
    """
    waiting, seen = deque([local]), {id(local)}
    own: Value | None = None  # of this shape, but in the shard's own memory: a shard of one row may be all of it
    cut = _is_cut(local)
    while waiting:
        value = waiting.popleft()
        noted = value.storage.part_of
        if noted is not None and tuple(noted.shadow.shape) == tuple(shape):
            return noted
        if tuple(value.shadow.shape) == tuple(shape):
            if not cut or value.storage is not local.storage:
                return value
            own = own or value
        before = [value.parent, value.storage.like]
        for entry in value.storage.writes:
            before += _sources(entry) or list(entry.reads)
        for source in before:
            if source is not None and id(source) not in seen:
                seen.add(id(source))
                waiting.append(source)
    return own


def _is_cut(local: Value) -> bool:
    """Whether the memory of `local` was made for part of what it is like."""
    like = local.storage.like
    if like is None:
        return False
    copied = (source for entry in local.storage.writes for source in _sources(entry))
    return not local.shadow.numel() or any(source.storage is like.storage for source in copied)


def _sources(entry: Entry) -> list[Value]:
    return [copy.source for copy in copies_of(entry) or () if isinstance(copy.source, Value)]
