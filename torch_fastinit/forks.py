"""Locks that a fork waits for, so that the child finds them free, and whole what they guard."""

from __future__ import annotations

import os
import threading
from typing import Any

#: In the order in which they are taken. There is one registration: while a fork waits, a module may be imported.
_locks: list[Any] = []
_taken: list[Any] = []


def lock_before_forks() -> Any:
    """A new `threading.RLock`. Whoever holds it may take those that are made later, not those made before."""
    lock = threading.RLock()
    _locks.append(lock)
    return lock


def _take() -> None:
    for lock in _locks:  # waiting for one may make the list longer
        lock.acquire()
        _taken.append(lock)


def _release() -> None:
    for _ in range(len(_taken)):  # another fork begins when the first of them is free
        _taken.pop().release()


os.register_at_fork(before=_take, after_in_parent=_release, after_in_child=_release)
