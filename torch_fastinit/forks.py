"""Locks that a fork waits for, so that the child finds them free, and whole what they guard."""

from __future__ import annotations

import os
import threading
from typing import Any

#: In the order in which they are taken. There is one registration: while a fork waits, a module may be imported.
_locks: list[Any] = []
_taken: list[Any] = []
_gate = threading.Lock()  # closed while a fork waits or runs


def lock_before_forks() -> Any:
    """A new `threading.RLock`. Whoever holds it may take those that are made later, not those made before."""
    lock = threading.RLock()
    _locks.append(lock)
    return lock


def give_way() -> None:
    """Let a fork that waits go first: a thread that takes a lock again and again would keep it from ever doing so."""
    if _gate.locked() and not _has_one():
        with _gate:
            pass


def _has_one() -> bool:
    return any(lock._is_owned() for lock in _locks)


def _take() -> None:
    if not _has_one():
        _gate.acquire()
        _taken.append(_gate)
    for lock in _locks:  # waiting for one may make the list longer
        lock.acquire()
        _taken.append(lock)


def _release() -> None:
    for _ in range(len(_taken)):  # another fork begins when the last of them is free
        _taken.pop().release()


os.register_at_fork(before=_take, after_in_parent=_release, after_in_child=_release)
