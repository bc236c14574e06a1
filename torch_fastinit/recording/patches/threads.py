"""Threads that a constructor starts, and tasks that it gives to others, belong to its context."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch_fastinit.recording.active import active
from torch_fastinit.recording.originals import clone
from torch_fastinit.recording.recorder import recording
from torch_fastinit.recording.tape import Tape

_start = clone(threading.Thread.start)
_submit = clone(ThreadPoolExecutor.submit)


def _in_context(tape: Tape, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with recording(tape):
        return function(*args, **kwargs)


def _thread_start(thread: threading.Thread) -> None:
    """A thread started inside a context belongs to it."""
    tape = active.tape
    if tape is not None:
        run = thread.run

        def run_in_context() -> None:
            vars(thread).pop("run", None)
            _in_context(tape, run)

        thread.run = run_in_context  # type: ignore[method-assign]
    _start(thread)


def _executor_submit(executor: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """With an executor, the task belongs to the context: the executor's threads may be older, and outlive it."""
    tape = active.tape
    if tape is None:
        return _submit(executor, function, *args, **kwargs)
    active.tape = None  # threads started by this call belong to the executor
    try:
        return _submit(executor, functools.partial(_in_context, tape, function), *args, **kwargs)
    finally:
        active.tape = tape


def _pool_method(original: Callable[..., Any]) -> Callable[..., Any]:
    """Tasks for a `ThreadPool` belong to the context, too; other processes do not."""

    def call(pool: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tape = active.tape
        if tape is not None and isinstance(pool, sys.modules["multiprocessing.pool"].ThreadPool):
            function = functools.partial(_in_context, tape, function)
        return original(pool, function, *args, **kwargs)

    return call


PATCHES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "Thread.start": (threading.Thread.start, _thread_start),
    "ThreadPoolExecutor.submit": (ThreadPoolExecutor.submit, _executor_submit),
}


def pool_patches() -> dict[str, tuple[Any, Callable[..., Any]]]:
    """Empty until `multiprocessing.pool` is loaded: a pool made later starts its threads inside the context."""
    module = sys.modules.get("multiprocessing.pool")
    methods = ("apply_async", "_map_async", "imap", "imap_unordered") if module else ()
    functions = {f"Pool.{method}": getattr(module.Pool, method) for method in methods}  # type: ignore[union-attr]
    return {name: (function, _pool_method(clone(function))) for name, function in functions.items()}
