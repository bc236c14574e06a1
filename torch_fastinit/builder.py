"""Running a plan: memory, fills, replays. Nothing here changes the module."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from torch_fastinit.generators import generator_of, get_state, restore, same_state, states
from torch_fastinit.initializers import Initializer, Normal
from torch_fastinit.lowering import FillStep, lowered
from torch_fastinit.ops import Fill, fill
from torch_fastinit.originals import ORTHOGONAL
from torch_fastinit.orthogonal import orthogonal
from torch_fastinit.planner import Work
from torch_fastinit.replay import Replay, allocate, closure, freeze, from_state, poisoned
from torch_fastinit.stream import draw_stream, mixed_seed
from torch_fastinit.tape import Entry, Storage, Tape, Value, as_real, need
from torch_fastinit.tensor import Deferred


class Builder:
    """Computes the real tensors of a plan from the stream."""

    def __init__(self, works: Sequence[Work], key: int, streams: dict[Entry, tuple[int, int]]):
        self.works = works
        self.key = key
        self.streams = streams
        self.reals: dict[int, torch.Tensor] = {}
        #: Final memory of storages that keep their dtype: tensors that share it go on sharing it.
        self.final: dict[Storage, torch.Tensor] = {}

    def rehearse(self) -> list[torch.Tensor]:
        """What :meth:`build` would give, leaving torch's generators and this builder as they are."""
        state = states()
        try:
            return type(self)(self.works, self.key, self.streams).build()
        finally:
            restore(state)

    def build(self) -> list[torch.Tensor]:
        """One real tensor for each piece of work."""
        waves: list[list[Fill]] = []
        replays: dict[Storage, list[Work]] = {}
        for work in self.works:
            try:
                self._allocate(work, waves, replays)
            except Exception as error:
                raise self._failed(work, error) from error
        for wave in waves:
            self._fill(wave)
        if replays:
            self._replay(replays)
        return [self.reals[id(work)] for work in self.works]

    def _allocate(self, work: Work, waves: list[list[Fill]], replays: dict[Storage, list[Work]]) -> None:
        value, shadow = work.value, work.value.shadow
        if work.how == "shared":
            shared = value.storage.shared
            assert shared is not None
            self.reals[id(work)] = as_real(shadow, shared).to(device=work.device, dtype=work.dtype)
        elif work.steps is None:
            replays.setdefault(value.storage, []).append(work)
        elif work.how == "zeros":
            real = allocate(shadow.shape, shadow.stride(), work.dtype, work.device)
            self.reals[id(work)] = real.zero_()
        else:
            real, fresh = self._memory(work)
            self.reals[id(work)] = real
            if fresh:
                level = 0
                for step in work.steps:
                    if not step.entry.random or step.entry in self.streams:  # others are no tensor's
                        if level == len(waves):
                            waves.append([])
                        waves[level].append(self._place(work, step, real))
                        level += 1

    def _memory(self, work: Work) -> tuple[torch.Tensor, bool]:
        """Memory for a filled tensor, and whether it is the first to see that memory."""
        value, shadow = work.value, work.value.shadow
        if work.dtype is not shadow.dtype:  # a cast makes a tensor of its own
            return allocate(shadow.shape, shadow.stride(), work.dtype, work.device), True
        base = self.final.get(value.storage)
        if base is not None:
            return as_real(shadow, base.untyped_storage()), False
        if value.whole:
            real = self.final[value.storage] = allocate(shadow.shape, shadow.stride(), work.dtype, work.device)
            return real, True
        base = self.final[value.storage] = allocate((value.storage.nbytes,), (1,), torch.uint8, work.device)
        return as_real(shadow, base.untyped_storage()), True

    def _place(self, work: Work, step: FillStep, real: torch.Tensor) -> Fill:
        # A step that fills the very tensor that it was recorded on has its layout.
        if step.entry.writes[0] is not work.value or step.dtype is not work.dtype:
            part = torch.empty(0, dtype=step.dtype, device=real.device)
            real = part.set_(real.untyped_storage(), step.offset, step.shape, step.stride)
        return self._of_draw(real, step.initializer, step.entry)

    def _of_draw(self, real: torch.Tensor, initializer: Initializer, entry: Entry) -> Fill:
        """The fill of ``real`` that a recorded draw is (streams are nothing to one that is not random)."""
        if not initializer.draws:
            return Fill(real, initializer)
        first, number = self.streams[entry]
        second = draw_stream(first, number + 1) if initializer.draws == 2 else None
        return Fill(real, initializer, self.key, draw_stream(first, number), second=second)

    def _fill(self, wave: list[Fill]) -> None:
        devices: dict[torch.device, list[Fill]] = {}
        for one in wave:
            devices.setdefault(one.tensor.device, []).append(one)
        for fills in devices.values():
            fill(fills, fresh=True)

    def _replay(self, replays: dict[Storage, list[Work]]) -> None:
        """Run what could not be filled."""
        entries = closure([need(work.value) for works in replays.values() for work in works])
        freeze([entry for entry in entries if entry.random and entry.seeded])
        self._run(entries, replays)

    def _run(self, entries: Sequence[Entry], replays: dict[Storage, list[Work]]) -> None:
        """Run entries, and move and cast each tensor as soon as its storage is complete."""
        replay = Replay(self._randomness)

        def done(storage: Storage) -> None:
            for work in replays.get(storage, ()):
                real = replay.tensor(work.value)
                if work.dtype is not real.dtype or work.device != real.device:
                    real = real.to(device=work.device, dtype=work.dtype)
                self.reals[id(work)] = real

        try:
            replay.run(entries, done)
            for storage, works in replays.items():
                if id(works[0]) not in self.reals:
                    done(storage)
        except Exception as error:
            left = [work for works in replays.values() for work in works if id(work) not in self.reals]
            raise self._failed(left[0], error) from error

    def _randomness(self, entry: Entry, tensor: Callable[[Value], torch.Tensor], call: Callable[[], Any]) -> Any:
        if entry.state is not None:
            return from_state(entry, tensor, call)
        initializer = lowered(entry)
        if initializer is not None:
            return fill([self._of_draw(tensor(entry.writes[0]), initializer, entry)])
        if entry.func in ORTHOGONAL:
            return orthogonal(
                tensor(entry.writes[0]),
                entry.kwargs["gain"],
                lambda matrix: fill([self._of_draw(matrix, Normal(), entry)]),
            )
        generator = generator_of(entry.device)
        saved = get_state(generator)
        generator.manual_seed(mixed_seed(self.key, draw_stream(*self.streams[entry])))
        try:
            return call()
        finally:
            generator.set_state(saved)

    def _failed(self, work: Work, error: Exception) -> RuntimeError:
        size = work.value.shadow.numel() * torch.empty((), dtype=work.dtype, device="meta").element_size()
        return RuntimeError(
            f"{work.target.name!r} (shape {tuple(work.value.shadow.shape)}, {work.dtype}, {size:,} bytes on "
            f"{work.device}) could not be materialised: {error}"
        )


class TorchBuilder(Builder):
    """Computes the real tensors as eager construction would have: every random operation, in order, by torch."""

    def build(self) -> list[torch.Tensor]:
        tapes = {work.value.storage.tape for work in self.works}
        tapes |= {entry.tape for entry in closure([need(work.value) for work in self.works])}
        self._check(tapes)
        replays: dict[Storage, list[Work]] = {}
        for work in self.works:
            if work.how in ("shared", "zeros"):
                self._allocate(work, [], replays)
            else:
                replays.setdefault(work.value.storage, []).append(work)
        draws = [entry for tape in tapes for entry in tape.draws]
        entries = closure([need(work.value) for works in replays.values() for work in works], draws)
        saved = states()
        try:
            self._run(entries, replays)
        except BaseException:
            restore(saved)
            raise
        return [self.reals[id(work)] for work in self.works]

    def _check(self, tapes: set[Tape]) -> None:
        state = states()
        for tape in tapes:
            if not same_state(tape.snapshot, state):
                raise RuntimeError(
                    'replay="torch" needs torch\'s default generator as it was when fastinit.deferred() was entered, '
                    "but it has moved since: materialize before drawing other random numbers, or call "
                    "torch.manual_seed() with the seed from before"
                )
        if len(tapes) > 1 and any(entry.state is not None for tape in tapes for entry in tape.draws):
            raise RuntimeError(
                'replay="torch" cannot join several fastinit.deferred() contexts when one of them has read random '
                "values: build the whole module in one context"
            )
        ours = {id(work.target.tensor) for work in self.works}
        others = [t for t in _deferred_parameters(tapes) if id(t) not in ours]
        if others:
            gc.collect()
            others = [t for t in _deferred_parameters(tapes) if id(t) not in ours]
        if others:
            raise RuntimeError(
                f'replay="torch" runs a whole fastinit.deferred() context, but {len(others)} parameters from it, the '
                f"first of shape {tuple(others[0].shape)}, are not part of this module and not yet materialised: "
                "materialize one module that holds all of them, or build each in a context of its own"
            )

    def _randomness(self, entry: Entry, tensor: Callable[[Value], torch.Tensor], call: Callable[[], Any]) -> Any:
        return call()


def _deferred_parameters(tapes: set[Tape]) -> Iterator[Deferred]:
    """Parameters anywhere in the process whose values depend on these tapes' draws."""
    for thing in gc.get_objects():
        if type(thing) is not Deferred or not thing.__dict__.get("_is_param"):
            continue
        value = thing._value
        if value.storage.tape in tapes and any(entry.random for entry in closure([need(value)])):
            yield thing


def unwritten_elements(build: Callable[[], list[torch.Tensor]], works: Sequence[Work]) -> dict[str, int]:
    """How many elements of each tensor depend on memory that nothing wrote: those that change with what was there."""
    results = []
    for byte in (0x00, 0xFF):
        with poisoned(byte):
            results.append(build())
    counts: dict[str, int] = {}
    for work, a, b in zip(works, *results, strict=True):
        bits = [t.detach().contiguous().reshape(-1).view(torch.uint8).view(t.numel(), -1) for t in (a, b) if t.numel()]
        count = int((bits[0] != bits[1]).any(dim=1).sum()) if bits else 0
        if count:
            counts[work.target.name] = count
    return counts
