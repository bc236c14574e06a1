"""What a constructor did, as data: storages, the operations that wrote them, and every random operation in order.

A tensor that is recorded is a `Value`: a meta tensor (its *shadow*) and a `Storage`. Shadows alias
exactly as the real tensors would, so views, `detach` and `.data` need no entry: a value is memory seen through its
shadow's sizes, strides and offset. Only an operation that writes makes an `Entry`, and the storages that it
writes hold it. What nobody can reach any more is garbage and is collected, with one exception: the tape keeps every
random operation, dead or not, because each moves the generator.
"""

from __future__ import annotations

import bisect
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from torch_fastinit.recording.generators import State, states
from torch_fastinit.recording.memory import View, span

_CPU = torch.device("cpu")

#: One clock for all tapes of the process, so that operations on tensors of several contexts stay in order.
clock = itertools.count()


class NotStridedError(NotImplementedError):
    """A tensor that has no strided memory of its own cannot be recorded."""

    def __init__(self, kind: str, operation: object = None):
        where = "" if operation is None else f"{operation}: "
        super().__init__(
            f"{where}a {kind} tensor cannot be deferred, only strided ones can: do this before the context, or after "
            "`materialize`"
        )
        self.kind = kind


def check_strided(tensor: torch.Tensor) -> None:
    """Raise for tensors of which no storage, strides and dtype say all: sparse, quantized, nested and opaque ones."""
    if tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested:
        return
    raise NotStridedError("quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout))


class Storage:
    """The memory that a recorded tensor would have, and the entries that wrote it, oldest first.

    `shared` is real memory that others may read or write at any time: what Python, NumPy or another tensor brought in,
    or what `.numpy()` gave out. Writes to it run at once; operations that only read it get a copy, `captured`, which
    entries alone refer to. Once a tensor in the storage is materialised, its memory is shared with those that are not:
    `final` finds it, or raises. The writes of an empty shard do not say what it is part of: `part_of` is the value that
    torch's sharding code cut it from, `like` the one that was asked for `new_*` or `*_like` outside a context.
    """

    __slots__ = tuple("_shared base cache captured device final like part_of reads tape writes".split())

    def __init__(self, base: torch.Tensor, device: torch.device, tape: Tape):
        self.base = base
        self.device = device
        self.tape = tape
        self.writes: list[Entry] = []
        self.reads: list[int] = []  # when entries read it
        self._shared: torch.UntypedStorage | None = None
        self.final: Callable[[], torch.UntypedStorage] | None = None
        self.captured: torch.UntypedStorage | None = None
        self.cache: tuple[int, torch.UntypedStorage] | None = None
        self.like: Value | None = None
        self.part_of: Value | None = None

    @property
    def shared(self) -> torch.UntypedStorage | None:
        return self._shared if self.final is None else self.final()

    @shared.setter
    def shared(self, memory: torch.UntypedStorage) -> None:
        self._shared = memory

    @property
    def nbytes(self) -> int:
        return self.base.untyped_storage().nbytes()


class Value:
    """A tensor of the recording: metadata and aliasing in a meta tensor, contents in a storage.

    `parent` is the value that this one is a view of.
    """

    __slots__ = ("_span", "_view", "parent", "shadow", "storage")

    def __init__(self, shadow: torch.Tensor, storage: Storage, parent: Value | None = None):
        check_strided(shadow)
        self.shadow = shadow
        self.storage = storage
        self.parent = parent
        self._span: tuple[int, int, bool] | None = None
        self._view: View | None = None

    @property
    def view(self) -> View:
        """The tensor's place in its storage, as plain data."""
        if self._view is None:
            shadow = self.shadow
            self._view = View(shadow.dtype, shadow.shape, shadow.stride(), int(shadow.storage_offset()))
        return self._view

    @property
    def span(self) -> tuple[int, int, bool]:
        """First byte, last byte plus one, and whether every byte between belongs to the tensor."""
        if self._span is None:
            self._span = span(self.shadow)
        return self._span

    @property
    def whole(self) -> bool:
        """Whether the tensor is all of its storage, and shows what is there."""
        if self.shadow is self.storage.base and self.shadow.is_contiguous():
            return True
        start, end, dense = self.span
        return dense and start == 0 and end >= self.storage.nbytes and not self.lazy

    @property
    def lazy(self) -> bool:
        """Whether the tensor is a view that conjugates or negates: its memory holds other numbers than it shows."""
        return self.shadow.is_conj() or self.shadow.is_neg()


class Entry:
    """One operation. `args` and `kwargs` hold a `Value` wherever the call had a tensor."""

    __slots__ = tuple(
        "args default_dtype func kwargs outs overwrites random reads seeded state tape time writes".split()
    )

    def __init__(
        self,
        tape: Tape,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        reads: tuple[Value, ...] = (),
        writes: tuple[Value, ...] = (),
        outs: tuple[Value | None, ...] = (),
        overwrites: bool = False,
        random: bool = False,
    ):
        self.tape = tape
        self.time = next(clock)
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.default_dtype = torch.get_default_dtype()
        self.reads = reads  # values whose contents it needs, besides those that it changes in place
        self.writes = writes  # values that it changes in place
        self.outs = outs  # values in fresh storages, in the order of the results
        self.overwrites = overwrites  # its writes do not depend on what was there
        self.random = random
        #: The generators' states before the operation, once somebody has read a value that depends on it.
        self.state: State | None = None
        self.seeded = False
        for value in reads:
            value.storage.reads.append(self.time)
        for value in writes:
            value.storage.writes.append(self)
        for out in outs:
            if out is not None:
                out.storage.writes.append(self)
        for value in writes:
            value.storage.cache = None

    @property
    def device(self) -> torch.device:
        """Where it runs, and so whose generator it draws from."""
        for value in self.writes or self.outs:
            if value is not None:
                return value.storage.device
        return _CPU

    @property
    def determined(self) -> bool:
        """Whether the recording alone determines the outcome: not random, or from a known generator state."""
        return not self.random or self.seeded or self.state is not None


#: Records one operation: takes the operator, its positional and its keyword arguments, as `__torch_dispatch__` does.
Dispatch = Callable[[Any, Any, Any], Any]


class Tape:
    """The random operations of one outermost `deferred()`, in order, and the generators' states at its start.

    `dispatch` records an operation on its tensors.
    """

    def __init__(self, dispatch: Dispatch) -> None:
        self.dispatch = dispatch
        self.draws: list[Entry] = []
        self.snapshot = states()
        #: Where the generators' states are known: the number of draws before, and the states.
        self.checkpoints: list[tuple[int, State]] = [(0, self.snapshot)]
        #: Devices (or types) whose generator the constructor seeded: draws are eager's until it restores a state.
        self.seeded: set[torch.device] = set()
        #: `initial_seed()` of generators that the constructor seeded, now and when a state was taken.
        self.initial_seeds: dict[torch.device, int] = {}
        self.initial_seeds_then: dict[Entry, int | None] = {}
        #: The draws that were materialised, by seed, name and number.
        self.taken: dict[tuple[int, str, int], Entry] = {}
        self.warned = False
        #: Names and numbers that draws have once and for all.
        self.pinned: dict[Entry, tuple[str, int]] = {}
        #: A constructor's threads share the tape: times and the order of draws must agree.
        self.lock = threading.RLock()
        self.closed = False

    def append(self, entry: Entry) -> None:
        device = entry.device
        if device.type == "cuda":
            self._know_gpus()
        entry.seeded = bool(self.seeded) and self.seeds(device)
        self.draws.append(entry)

    def seeds(self, device: torch.device) -> bool:
        """Whether the constructor has seeded the generator of `device`."""
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)
        return device in self.seeded or torch.device(device.type) in self.seeded

    def _know_gpus(self) -> None:
        """Before the first draw on a GPU, initialise CUDA, as eager construction would."""
        if not torch.cuda.is_available():
            return
        torch.cuda.init()
        for device, state in states().items():
            for _, known in self.checkpoints:
                known.setdefault(device, state)


def covers_all(entry: Entry) -> bool:
    """Whether the entry determines all of its storage by itself, as most initialisers do."""
    return entry.overwrites and not entry.reads and len(entry.writes) == 1 and entry.writes[0].whole


#: Some bytes of a storage at a time: the storage, the time, the first byte and the last plus one.
Need = tuple[Storage, float, float, float]


def need(value: Value, time: float = math.inf) -> Need:
    """What `value` shows at a time."""
    start, end, _ = value.span
    return value.storage, time, start, end


def live_writes(storage: Storage, time: float = math.inf, start: float = 0, end: float = math.inf) -> list[Entry]:
    """The entries before `time` that these bytes of `storage` depend on, latest first.

    A write is dead if one later overwrite covers all of it before anything reads it.
    """
    last = storage.writes[-1:]
    if last and time > last[0].time and covers_all(last[0]):
        return last
    return list(_live_writes(storage, time, start, end))


def _live_writes(storage: Storage, time: float, start: float, end: float) -> Iterator[Entry]:
    writes = storage.writes
    last = bisect.bisect_left(writes, time, key=_time) if writes and writes[-1].time >= time else len(writes)
    covers: list[tuple[int, int]] = []
    for entry in reversed(writes[:last]):
        here = [value for value in entry.writes if value.storage is storage]
        if not here:  # it made the storage
            yield entry
            return
        spans = [value.span for value in here]
        if all(b <= start or end <= a or any(c <= a and b <= d for c, d in covers) for a, b, _ in spans):
            continue
        yield entry
        touched = [value.span for value in entry.reads if value.storage is storage]
        if entry.overwrites:
            covers += [(a, b) for a, b, dense in spans if dense]
        else:
            touched += spans
        for a, b, _ in touched:
            start, end = min(start, a), max(end, b)
            covers = [(c, d) for c, d in covers if b <= c or d <= a]
        if any(c <= start and min(end, storage.nbytes) <= d for c, d in covers):
            return


def _time(entry: Entry) -> int:
    return entry.time


def transform(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """`tree` (lists, tuples, dictionaries) with `function` applied to every `kind`."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)([i if i.__class__ in _LEAVES else transform(i, kind, function) for i in tree])
    if isinstance(tree, dict):
        return {key: transform(item, kind, function) for key, item in tree.items()}
    return tree


_LEAVES = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})
