"""Which random draw belongs to which name (docs/stream.md, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch_fastinit.planning.fills import Draw
from torch_fastinit.planning.recognize import recognize
from torch_fastinit.planning.shards import origin
from torch_fastinit.planning.tensors import Target
from torch_fastinit.recording.replay import closure
from torch_fastinit.recording.tape import Entry, Tape, Value, covers_all, need
from torch_fastinit.stream import canonical_name


def assign_draws(targets: Sequence[Target], names: Callable[[str], str] | None = None) -> dict[Entry, Draw]:
    """The name and number of every live draw: the pinned ones, or those of the first name whose value depends on it."""
    draws: dict[Entry, Draw] = {}
    for target in targets:
        value = logical_value(target)
        if value.storage.shared is not None:
            continue
        number = 0
        name: str | None = None
        previous: Entry | None = None
        for entry in dependencies(value):
            if entry.random and not entry.determined and entry not in draws:
                pinned = entry.tape.pinned.get(entry)
                if pinned is not None:
                    draws[entry] = pinned
                    continue
                if name is None:
                    name = _stream_name(target.name, names)
                if previous is not None:
                    number += _streams_taken(previous)
                draws[entry] = name, number
                previous = entry
    return draws


def pin(draws: Mapping[Entry, Draw]) -> None:
    """Let these draws have these names and numbers from now on, whatever module they are materialised in."""
    for entry, draw in draws.items():
        entry.tape.pinned[entry] = draw


def logical_value(target: Target) -> Value:
    """What one process would have for a deferred target: itself, or what its shard was cut from."""
    value: Value = target.tensor._value  # type: ignore[attr-defined]
    if target.spec is None:
        return value
    if target.logical is None:
        logical = origin(value, target.spec.shape)
        _refuse_later_draws(target, value, logical)
        target.logical = value if logical is None else logical
    return target.logical


def _refuse_later_draws(target: Target, local: Value, logical: Value | None) -> None:
    if logical is local:  # all ranks draw the same
        return
    known = set() if logical is None else set(dependencies(logical))
    for entry in (*local.storage.writes, *dependencies(local)):
        if entry.random and not entry.determined and entry not in known:
            raise RuntimeError(
                f"{target.name!r}: its shard was drawn by itself ({entry.func}), so the values would depend on the "
                "number of ranks: initialise the tensor before it is sharded, or by fastinit.init after "
                "fastinit.materialize; or say which part of a tensor it is, by shards="
            )


def repeated(draws: Mapping[Entry, Draw], seed: int) -> list[str]:
    """The names whose draws would repeat others: of these, or of their recording, materialised with the same seed."""
    first: dict[Draw, Entry] = {}
    names: dict[str, None] = {}
    for entry, (name, number) in draws.items():
        before = first.setdefault((name, number), entry)
        if before is not entry or entry.tape.taken.get((seed, name, number), entry) is not entry:
            names[name] = None
    return list(names)


def taking(draws: Mapping[Entry, Draw], seed: int) -> list[Callable[[], object]]:
    """Calls that note, on each recording, which draws are materialised."""
    taken: dict[Tape, dict[tuple[int, str, int], Entry]] = {}
    for entry, (name, number) in draws.items():
        taken.setdefault(entry.tape, {})[seed, name, number] = entry
    return [partial(tape.taken.update, more) for tape, more in taken.items()]


def dependencies(value: Value) -> Sequence[Entry]:
    """The entries that the contents of `value` depend on, in the order recorded."""
    writes = value.storage.writes
    if writes and covers_all(writes[-1]):
        return writes[-1:]
    return closure([need(value)])


def _stream_name(name: str, names: Callable[[str], str] | None) -> str:
    canonical = canonical_name(name)
    if names is None:
        return canonical
    renamed = names(canonical)
    if not isinstance(renamed, str):
        raise TypeError(f"names({name!r}) must be a string, not {renamed!r}")
    return renamed


def _streams_taken(entry: Entry) -> int:
    initializer = recognize(entry)
    return 1 if initializer is None else initializer.draws
