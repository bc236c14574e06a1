"""Running a plan: memory, fills, replays. Nothing here changes the module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch

from torch_fastinit.execution.progress import Progress
from torch_fastinit.initializers import Constant, Initializer, Normal
from torch_fastinit.ops import Fill, constant_of, fill
from torch_fastinit.orthogonal import COMPUTED_IN, haar, shape_of_normals, write_orthogonal
from torch_fastinit.planning.fills import Draw, PlannedFill
from torch_fastinit.planning.planner import Assignment, Copied, Filled, Replayed, Shared, Zeros
from torch_fastinit.planning.recognize import absorbed, recognize
from torch_fastinit.recording.generators import OwnGenerators
from torch_fastinit.recording.memory import FinalMemory, View, allocate, as_real, failure, poison
from torch_fastinit.recording.originals import ORTHOGONAL
from torch_fastinit.recording.replay import Call, Replay, closure, copy_of, freeze, from_state
from torch_fastinit.recording.tape import Entry, Storage, Value, need
from torch_fastinit.recording.tensor import Deferred
from torch_fastinit.stream import draw_stream, mixed_seed, stream_id

#: How many elements the matrices that are made together have: 16 MiB of float32.
STAGE = 1 << 22
#: How many bytes of fills are written between two looks at a progress bar.
BETWEEN_LOOKS = 1 << 28
#: The stream of a name's draw 0.
_first_stream = lru_cache(maxsize=1 << 12)(stream_id)


class Executor:
    """Computes the real tensors of a plan from the stream.

    `tensors` are the deferred tensors that `plan` is of, `draws` the names and numbers of their random draws.
    """

    def __init__(
        self, plan: Sequence[Assignment], tensors: Sequence[Deferred], seed: int, draws: Mapping[Entry, Draw]
    ) -> None:
        self.plan = plan
        self.tensors = tensors
        self.values = [tensor._value for tensor in tensors]
        self.seed = seed
        self.draws = draws
        self.reals: dict[int, torch.Tensor] = {}  # by the assignment's place in the plan
        #: Final memory of storages that keep their dtype: tensors that share it go on sharing it.
        self.final: dict[int, torch.Tensor] = {}
        self.passes: list[list[Fill]] = []  # the n-th fills of all tensors
        self.replays: dict[Storage, list[int]] = {}
        #: Orthogonal draws that are made together, by each of them; and those made before their turn.
        self.stages: dict[Entry, list[Entry]] = {}
        self.made: dict[Entry, torch.Tensor] = {}
        self.progress = Progress(False)

    def rehearse(self) -> list[torch.Tensor]:
        """What `run` would give, leaving this executor as it is."""
        return type(self)(self.plan, self.tensors, self.seed, self.draws).run()

    def run(self) -> list[torch.Tensor]:
        """One real tensor for each assignment."""
        for i, one in enumerate(self.plan):
            try:
                self._execute[type(one.source)](self, i, one)
            except Exception as error:
                raise self._failed(one, error) from error
        self._begin()
        for fills in self.passes:
            self._fill(fills)
        if self.replays:
            self._replay()
        return [self.reals[i] for i in range(len(self.plan))]

    def _begin(self) -> None:
        """Tell how many bytes will be written."""
        if self.progress.shown:
            filled = sum(fill.tensor.nbytes for fills in self.passes for fill in fills)
            self.progress.begin(filled + sum(self.plan[i].nbytes for some in self.replays.values() for i in some))

    def final_memory(self, reals: Sequence[torch.Tensor]) -> list[Callable[[], object]]:
        """Calls by which deferred tensors elsewhere that share storage with these become views of `reals`.

        To be made once these are real.
        """
        found: dict[Storage, FinalMemory] = {}
        for one, value, real in zip(self.plan, self.values, reals, strict=True):
            storage = value.storage
            if storage.final is None and storage.shared is None and storage not in found:
                memory = real.untyped_storage()
                same = one.dtype is one.view.dtype and one.device == storage.device
                found[storage] = FinalMemory(one.name, memory if same and memory.nbytes() >= storage.nbytes else None)
        return [partial(object.__setattr__, storage, "final", final) for storage, final in found.items()]

    def moved(self) -> list[Callable[[], object]]:
        """Calls that set the default generators to where `run` has moved them."""
        return []

    # --- one method for each kind of source ---------------------------------------------------------------------------

    def _share(self, i: int, one: Assignment) -> None:
        value = self.values[i]
        assert value.storage.shared is not None
        self.reals[i] = as_real(value.shadow, value.storage.shared).to(device=one.device, dtype=one.dtype)

    def _give(self, i: int, one: Assignment) -> None:
        value = self.values[i]
        captured = copy_of(value.storage)
        assert captured is not None
        self.reals[i] = as_real(value.shadow, captured).to(device=one.device, dtype=one.dtype)

    def _zero(self, i: int, one: Assignment) -> None:
        if one.shard is None:
            self.reals[i] = allocate(one.view.shape, one.view.stride, one.dtype, one.device).zero_()
            return
        self.reals[i], fresh = self._memory(i, one)
        if fresh:
            self.final[one.storage].zero_()

    def _replay_later(self, i: int, one: Assignment) -> None:
        self.replays.setdefault(self.values[i].storage, []).append(i)

    def _fill_later(self, i: int, one: Assignment) -> None:
        assert isinstance(one.source, Filled)
        real, fresh = self._memory(i, one)
        self.reals[i] = real
        if fresh:
            for number, planned in enumerate(one.source.fills):
                if number == len(self.passes):
                    self.passes.append([])
                self.passes[number].append(self._bind(planned, one, real))

    _execute: ClassVar[dict[type, Callable[[Any, int, Assignment], None]]] = {
        Shared: _share,
        Copied: _give,
        Zeros: _zero,
        Replayed: _replay_later,
        Filled: _fill_later,
    }

    # --- fills --------------------------------------------------------------------------------------------------------

    def _memory(self, i: int, one: Assignment) -> tuple[torch.Tensor, bool]:
        """Memory for a filled tensor, and whether it is the first to see that memory."""
        view = one.view
        if one.dtype is not view.dtype:
            if one.shard is None and not one.padding:  # a cast makes a tensor of its own
                return allocate(view.shape, view.stride, one.dtype, one.device), True
            base = self.final.get(one.storage)
            fresh = base is None
            if base is None:
                count = one.storage_nbytes // view.dtype.itemsize
                base = self.final[one.storage] = allocate((count,), (1,), one.dtype, one.device)
            return base.as_strided(view.shape, view.stride, view.offset), fresh
        base = self.final.get(one.storage)
        if base is not None:
            return as_real(self.values[i].shadow, base.untyped_storage()), False
        if one.whole:
            real = self.final[one.storage] = allocate(view.shape, view.stride, one.dtype, one.device)
            return real, True
        base = self.final[one.storage] = allocate((one.storage_nbytes,), (1,), torch.uint8, one.device)
        return as_real(self.values[i].shadow, base.untyped_storage()), True

    def _bind(self, planned: PlannedFill, one: Assignment, real: torch.Tensor) -> Fill:
        """The planned fill, of real memory."""
        view = planned.view
        same = view is one.view or (view.dtype is one.dtype and _same_place(view, one.view))
        if not same or real.is_conj() or real.is_neg():
            part = torch.empty(0, dtype=view.dtype, device=real.device)
            real = part.set_(real.untyped_storage(), view.offset, view.shape, view.stride)
        initializer = planned.initializer
        if isinstance(initializer, Constant):  # which the dtype may not hold: an error comes before anything is written
            initializer = constant_of(initializer, real, planned.box)
        bound = self._of_draw(real, initializer, planned.draw)
        bound.region = planned.box
        return bound

    def _of_draw(self, real: torch.Tensor, initializer: Initializer, draw: Draw | None) -> Fill:
        """The fill of `real` with an initializer that takes its words from `draw`."""
        if draw is None:
            return Fill(real, initializer)
        first, number = _first_stream(draw[0]), draw[1]
        second = draw_stream(first, number + 1) if initializer.draws == 2 else None
        return Fill(real, initializer, self.seed, draw_stream(first, number), second=second)

    def _fill(self, fills: Sequence[Fill]) -> None:
        devices: dict[torch.device, list[Fill]] = {}
        for one in fills:
            devices.setdefault(one.tensor.device, []).append(one)
        for together in devices.values():
            for some in _in_parts(together) if self.progress.shown else [together]:
                fill(some, fresh=True)
                self.progress.add(sum(one.tensor.nbytes for one in some) if self.progress.shown else 0)

    # --- replays ------------------------------------------------------------------------------------------------------

    def _replay(self) -> None:
        """Run what could not be filled: shards one by one, since each may need a whole logical tensor for a while."""
        alone = [storage for storage, some in self.replays.items() if any(self.plan[i].shard for i in some)]
        together = [storage for storage in self.replays if storage not in alone]
        for storages in (together, *([storage] for storage in alone)):
            self._replay_for(storages)

    def _replay_for(self, storages: Sequence[Storage]) -> None:
        entries = closure([need(self.values[i]) for storage in storages for i in self.replays[storage]])
        freeze([entry for entry in entries if entry.random and entry.seeded])
        done = {part for entry in entries for part in absorbed(entry)}
        self._run([entry for entry in entries if entry not in done], {one: self.replays[one] for one in storages})

    def _run(self, entries: Sequence[Entry], replays: Mapping[Storage, Sequence[int]]) -> None:
        """Run entries, and move and cast each tensor as soon as its storage is complete."""
        replay = Replay(self._randomness)
        self.stages = stages(entry for entry in entries if entry.func in ORTHOGONAL and entry.state is None)

        def done(storage: Storage) -> None:
            for i in replays.get(storage, ()):
                one, real = self.plan[i], replay.tensor(self.values[i])
                if one.dtype is not real.dtype or one.device != real.device:
                    alone = len(replays[storage]) == 1 or (one.shard is None and not one.padding)
                    real = real.to(device=one.device, dtype=one.dtype) if alone else self._together(one, real)
                self.reals[i] = real
                self.progress.add(one.nbytes)

        try:
            replay.run(entries, done)
            for storage, some in replays.items():
                if some[0] not in self.reals:
                    done(storage)
        except Exception as error:
            left = [i for some in replays.values() for i in some if i not in self.reals]
            if not left:
                message = f"an operation that was recorded, and whose result is lost, failed: {error}"
                raise failure(message, error) from error
            raise self._failed(self.plan[left[0]], error) from error

    def _together(self, one: Assignment, real: torch.Tensor) -> torch.Tensor:
        """`real` as it is asked for, by a cast or a move of all its storage: a shard, and the memory around it."""
        view, base = one.view, self.final.get(one.storage)
        if base is None:
            base = torch.empty(0, dtype=view.dtype, device=real.device).set_(real.untyped_storage())
            base = self.final[one.storage] = base.to(device=one.device, dtype=one.dtype)
        return base.as_strided(view.shape, view.stride, view.offset)

    def _randomness(self, entry: Entry, tensor: Callable[[Value], torch.Tensor], call: Call) -> Any:
        if entry.state is not None:
            return from_state(entry, tensor, call)
        draw = self.draws[entry]
        initializer = recognize(entry)
        if initializer is not None:
            return fill([self._of_draw(tensor(entry.writes[0]), initializer, draw)])
        if entry.func in ORTHOGONAL:
            return self._orthogonal(entry, tensor(entry.writes[0]))
        return call(OwnGenerators(mixed_seed(self.seed, draw_stream(_first_stream(draw[0]), draw[1]))))

    def _orthogonal(self, entry: Entry, tensor: torch.Tensor) -> torch.Tensor:
        if entry not in self.made:
            together = self.stages.get(entry, [entry])
            normals = tensor.new_empty(
                (len(together), *shape_of_normals(tensor)), dtype=COMPUTED_IN[tensor.dtype], requires_grad=False
            )
            fill([self._of_draw(one, Normal(), self.draws[of]) for one, of in zip(normals, together, strict=True)])
            made = haar(normals) if len(together) > 1 else haar(normals[0])[None]
            self.made.update(zip(together, made, strict=True))
        return write_orthogonal(tensor, entry.kwargs["gain"], self.made.pop(entry))

    def _failed(self, one: Assignment, error: Exception) -> Exception:
        return failure(
            f"{one.name!r} (shape {tuple(one.view.shape)}, {one.dtype}, {one.nbytes:,} bytes on {one.device}) could "
            f"not be materialised: {error}",
            error,
        )


def stages(entries: Iterable[Entry]) -> dict[Entry, list[Entry]]:
    """Orthogonal draws that one call makes, by each of them: of one shape, dtype and device, and not too large."""
    alike: dict[Any, list[list[Entry]]] = {}
    found: dict[Entry, list[Entry]] = {}
    for entry in entries:
        shadow = entry.writes[0].shadow
        if shadow.numel() == 0:
            continue
        shape = shape_of_normals(shadow)
        some = alike.setdefault((shape, COMPUTED_IN[shadow.dtype], entry.writes[0].storage.device), [[]])
        if (len(some[-1]) + 1) * math.prod(shape) > STAGE:
            some.append([])
        some[-1].append(entry)
        found[entry] = some[-1]
    return found


def _in_parts(fills: Sequence[Fill]) -> Iterator[list[Fill]]:
    """`fills` in order, in parts of not much more than `BETWEEN_LOOKS` bytes."""
    part: list[Fill] = []
    nbytes = 0
    for one in fills:
        part.append(one)
        nbytes += one.tensor.nbytes
        if nbytes >= BETWEEN_LOOKS:
            yield part
            part, nbytes = [], 0
    if part:
        yield part


def _same_place(a: View, b: View) -> bool:
    return a.offset == b.offset and a.shape == b.shape and a.stride == b.stride


def unwritten_elements(executor: Executor) -> dict[str, int]:
    """How many elements of each tensor depend on memory that nothing wrote: those that change with what was there."""
    results = []
    for byte in (0x00, 0xFF):
        poison(byte)
        try:
            results.append(executor.rehearse())
        finally:
            poison(None)
    counts: dict[str, int] = {}
    for one, a, b in zip(executor.plan, *results, strict=True):
        bits = [t.detach().contiguous().reshape(-1).view(torch.uint8).view(t.numel(), -1) for t in (a, b) if t.numel()]
        count = int((bits[0] != bits[1]).any(dim=1).sum()) if bits else 0
        if count:
            counts[one.name] = count
    return counts
