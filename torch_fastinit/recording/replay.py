"""Running a recording: which operations a value needs, and running them on real memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from torch_fastinit._torch import set_default_dtype
from torch_fastinit.forks import give_way
from torch_fastinit.recording.active import outside
from torch_fastinit.recording.generators import OwnGenerators, lock
from torch_fastinit.recording.memory import allocate_bytes, as_real
from torch_fastinit.recording.tape import (
    Entry,
    Need,
    Storage,
    Tape,
    Value,
    clock,
    covers_all,
    live_writes,
    need,
    transform,
)

#: Values up to this size stay cached once read.
CACHE_BYTES = 1 << 20

#: Runs an entry as recorded, drawing from these generators.
Call = Callable[[OwnGenerators], Any]
#: Runs one random entry: takes the entry, a function from values to real tensors, and one that runs it as recorded.
Randomness = Callable[[Entry, Callable[[Value], torch.Tensor], Call], Any]


def closure(needs: Iterable[Need], entries: Iterable[Entry] = ()) -> list[Entry]:
    """`entries`, and all entries that they and `needs` depend on, in the order recorded."""
    found: dict[int, Entry] = {}
    stack = list(needs)
    asked: set[tuple[int, float, float, float]] = set()

    def add(entry: Entry) -> None:
        if entry.time not in found:
            found[entry.time] = entry
            stack.extend(need(value, entry.time) for value in entry.reads)
            if not entry.overwrites:
                stack.extend(need(value, entry.time) for value in entry.writes)

    for entry in entries:
        add(entry)
    while stack:
        wanted = stack.pop()
        storage, time, start, end = wanted
        key = (id(storage), time, start, end)
        if storage.captured is None and key not in asked:
            asked.add(key)
            for entry in live_writes(*wanted):
                add(entry)
    return [found[time] for time in sorted(found)]


def copy_of(storage: Storage) -> torch.UntypedStorage | None:
    """The captured memory that the last write copies to all of `storage`, if it can be had instead.

    It has the same layout, is on the same device, and no entry reads the storage afterwards, which would copy again.
    """
    entry = storage.writes[-1] if storage.writes else None
    if entry is None or entry.func is not torch.ops.aten.copy_.default or not covers_all(entry):
        return None
    target, source = entry.args[:2]
    captured: torch.UntypedStorage | None = source.storage.captured
    if captured is None or captured.device != storage.device or (storage.reads and storage.reads[-1] > entry.time):
        return None
    a, b = target.view, source.view
    return captured if (a.dtype, a.shape, a.stride, a.offset) == (b.dtype, b.shape, b.stride, b.offset) else None


class Replay:
    """Runs entries in order on real memory, on the devices on which they were recorded.

    `randomness` runs the random ones; by default all must be determined by the recording.
    """

    def __init__(self, randomness: Randomness | None = None) -> None:
        self.memory: dict[Storage, torch.UntypedStorage] = {}
        self.left_out: dict[Storage, Entry] = {}
        self.randomness = randomness or from_state

    def tensor(self, value: Value) -> torch.Tensor:
        storage = value.storage
        real = storage.captured
        if storage in self.left_out:
            raise RuntimeError(f"{self.left_out[storage].func} has left out a result, or given it another shape")
        if real is None:
            real = self.memory.get(storage)
            if real is None:
                real = self.memory[storage] = allocate_bytes(storage.nbytes, storage.device)
            elif real.nbytes() < storage.nbytes:  # it was resized since
                larger = allocate_bytes(storage.nbytes, storage.device)
                larger[: real.nbytes()].copy_(real)
                real = self.memory[storage] = larger
        return as_real(value.shadow, real)

    def run(self, entries: Sequence[Entry], done: Callable[[Storage], None] = lambda storage: None) -> None:
        """Run `entries`. A storage is freed after the last entry that needs it; `done` is called just before."""
        last: dict[Storage, int] = {}
        for entry in entries:
            for value in (*entry.reads, *entry.writes, *entry.outs):
                if value is not None:
                    last[value.storage] = entry.time
        drop: dict[int, list[Storage]] = {}
        for storage, time in last.items():
            drop.setdefault(time, []).append(storage)
        default_dtype = torch.get_default_dtype()
        with outside():
            try:
                for entry in entries:
                    if entry.random:
                        self._bind(entry, self.randomness(entry, self.tensor, functools.partial(self._call, entry)))
                    else:
                        self._bind(entry, self._call(entry))
                    for storage in drop.get(entry.time, ()):
                        done(storage)
                        self.memory.pop(storage, None)
            finally:
                if torch.get_default_dtype() is not default_dtype:
                    set_default_dtype(default_dtype)

    def _call(self, entry: Entry, generators: OwnGenerators | None = None) -> Any:
        if torch.get_default_dtype() is not entry.default_dtype:
            torch.set_default_dtype(entry.default_dtype)
        args = transform(entry.args, Value, self.tensor)
        kwargs = transform(entry.kwargs, Value, self.tensor)
        return entry.func(*args, **kwargs) if generators is None else generators.run(entry.func, args, kwargs)

    def _bind(self, entry: Entry, result: Any) -> None:
        if not entry.outs:
            return
        results = result if isinstance(result, (list, tuple)) else (result,)
        for out, real in zip(entry.outs, results, strict=True):
            if out is None or out.storage in self.memory:
                continue
            if real is None or real.shape != out.shadow.shape:  # a kernel may leave out what only a gradient needs
                self.left_out[out.storage] = entry
                continue
            shadow, storage = out.shadow, real.untyped_storage()
            same = real.stride() == shadow.stride() and real.storage_offset() == shadow.storage_offset()
            if same and storage.nbytes() >= out.storage.nbytes:
                self.memory[out.storage] = storage
            else:  # the kernel's layout differs from its meta function's
                self.tensor(out).copy_(real)


def from_state(entry: Entry, _: Callable[[Value], torch.Tensor], call: Call) -> Any:
    """A random entry that the recording determines."""
    assert entry.state is not None
    return call(OwnGenerators(entry.state))


def run_alone(entry: Entry) -> Any:
    """The results of one entry now, of which nothing is kept: as its place among the draws would have them."""
    freeze([entry])
    args = transform(entry.args, Value, evaluate)
    kwargs = transform(entry.kwargs, Value, evaluate)
    if not entry.random:
        return entry.func(*args, **kwargs)
    return from_state(entry, evaluate, lambda own: own.run(entry.func, args, kwargs))


def freeze(entries: Iterable[Entry]) -> None:
    """Find the generators' states before each of these random entries, by running the tape up to them."""
    give_way()
    with lock:
        wanted: dict[Tape, set[Entry]] = {}
        for entry in entries:
            if entry.random and entry.state is None:
                wanted.setdefault(entry.tape, set()).add(entry)
        for tape, some in wanted.items():
            _play(tape, some)


def _play(tape: Tape, wanted: set[Entry]) -> None:
    index = {entry: i for i, entry in enumerate(tape.draws)}
    last = max(index[entry] for entry in wanted)
    while True:
        first = min(index[entry] for entry in wanted)
        start, state = max((c for c in tape.checkpoints if c[0] <= first), key=lambda c: c[0])
        segment = tape.draws[start : last + 1]
        entries = closure((), segment)
        inside = set(segment)
        earlier = {e for e in entries if e.random and e not in inside and e.state is None}
        if not earlier:
            break
        wanted = wanted | {e for e in earlier if e.tape is tape}
        freeze(e for e in earlier if e.tape is not tape)

    generators = OwnGenerators(state)

    def randomness(entry: Entry, _: Callable[[Value], torch.Tensor], call: Call) -> Any:
        if entry not in inside:
            return from_state(entry, _, call)
        if entry in wanted:
            entry.state = generators.states()
        return call(generators)

    Replay(randomness).run(entries)
    tape.checkpoints.append((last + 1, generators.states()))


def evaluate(value: Value) -> torch.Tensor:
    """The contents of `value` now. The random draws that it depends on are determined from then on."""
    storage = value.storage
    real = storage.shared
    if real is None and storage.cache is not None and storage.cache[0] == len(storage.writes):
        real = storage.cache[1]
    if real is None:
        with outside():
            entries = closure([(storage, next(clock), 0, math.inf)])
            freeze(entries)
            replay = Replay()
            found: list[torch.UntypedStorage] = []
            replay.run(entries, lambda done: found.append(replay.memory[done]) if done is storage else None)
            real = found[0] if found else storage.captured or allocate_bytes(storage.nbytes, storage.device)
        if storage.nbytes <= CACHE_BYTES:
            storage.cache = (len(storage.writes), real)
    with outside():
        return as_real(value.shadow, real)
