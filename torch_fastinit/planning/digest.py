"""What ranks that hold shards of one model have in common: names, logical shapes, initial values, as three numbers.

Views and boxes of shards differ between ranks, so all is said of logical tensors, and in no order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from torch_fastinit.planning.draws import dependencies, logical_value
from torch_fastinit.planning.fills import Draw
from torch_fastinit.planning.planner import Assignment, Planner
from torch_fastinit.planning.tensors import Target
from torch_fastinit.recording.tape import Entry, Value, transform
from torch_fastinit.stream import canonical_name

#: What the digests are of, as messages call it.
COMPARED = ("names", "logical shapes or dtypes", "initial values")
#: A line of text for each of them.
Lines = tuple[str, str, str]


def lines_of(target: Target, one: Assignment, planner: Planner, draws: Mapping[Entry, Draw]) -> Lines | None:
    """What the digests say of a tensor; None of one that is neither sharded nor a parameter or buffer."""
    if target.role == "padding" or (target.role == "attribute" and target.spec is None):
        return None
    name = "=".join(sorted({canonical_name(name) for name in (target.name, *target.others)}))
    shape = one.view.shape if one.shard is None else one.shard.shape
    return name, f"{name} {tuple(shape)} {one.dtype}", f"{name} {_values(target, tuple(shape), planner, draws)}"


def digests_of(lines: Iterable[Lines]) -> tuple[int, ...]:
    """A number of 62 bits for each of `COMPARED`."""
    columns = list(zip(*lines, strict=True)) or [()] * len(COMPARED)
    return tuple(_digest(column) for column in columns)


def _digest(lines: Sequence[str]) -> int:
    text = "\n".join(sorted(lines)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 2


def _values(target: Target, shape: tuple[int, ...], planner: Planner, draws: Mapping[Entry, Draw]) -> str:
    value = logical_value(target)
    storage = value.storage
    if tuple(value.shadow.shape) != shape:  # what is recorded is of this rank's part alone
        return "part"
    entries = dependencies(value)
    if storage.shared is not None or any(map(_reads_memory, entries)):
        return "memory"
    fills = planner.fills_of(storage)
    if isinstance(fills, str):
        return "; ".join(f"{_name(entry)} {_numbers(entry)} {draws.get(entry)}" for entry in entries)
    return "; ".join(
        f"{fill.initializer} {fill.draw} {fill.box} {fill.view.offset} {tuple(fill.view.shape)} {fill.view.stride}"
        for fill in fills
    )


def _reads_memory(entry: Entry) -> bool:
    """Whether it reads real memory: a checkpoint, say, which one rank may have had and others been sent."""
    found: list[Value] = []
    transform((entry.args, entry.kwargs), Value, found.append)
    return any(value.storage.captured is not None for value in found)


def _name(entry: Entry) -> str:
    return str(getattr(entry.func, "__name__", type(entry.func).__name__))


def _numbers(entry: Entry) -> list[object]:
    """Its arguments that are numbers, also in lists: those of sizes apart, which ranks may have different ones of."""
    arguments = [*entry.args, *entry.kwargs.values()]
    listed = [number for one in arguments if isinstance(one, (list, tuple)) for number in one if type(number) is float]
    return [*(one for one in arguments if isinstance(one, (bool, int, float, complex, str))), *listed]
