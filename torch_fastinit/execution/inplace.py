"""`initialize`: rules for parameters that are real, planned as if they were deferred, and written where they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit._torch import increment_version, local_of, spec_of, storage_id
from torch_fastinit.execution.agreement import Agreement
from torch_fastinit.execution.executor import Executor
from torch_fastinit.execution.rules import record, refused
from torch_fastinit.ops import Fill, fill, refuse_inference_update
from torch_fastinit.planning.draws import assign_draws
from torch_fastinit.planning.fills import Draw
from torch_fastinit.planning.planner import Assignment, Planner
from torch_fastinit.planning.rules import Rule
from torch_fastinit.planning.tensors import Target, is_plain_meta
from torch_fastinit.planning.written import is_written
from torch_fastinit.recording.active import active, outside
from torch_fastinit.recording.context import deferred
from torch_fastinit.recording.memory import as_real, failure, overlaps
from torch_fastinit.recording.tape import Entry, Storage, Tape, Value
from torch_fastinit.recording.tensor import Deferred, as_subclass, wrap

aten = torch.ops.aten


class InPlaceExecutor(Executor):
    """Runs a plan in memory that there is: `onto` are the real tensors."""

    def __init__(
        self,
        plan: Sequence[Assignment],
        tensors: Sequence[Deferred],
        seed: int,
        draws: Mapping[Entry, Draw],
        onto: Sequence[torch.Tensor],
    ) -> None:
        super().__init__(plan, tensors, seed, draws)
        self._onto = onto
        self._seen: set[int] = set()
        self._computed: list[int] = []

    def compute(self) -> None:
        """Everything that may fail, and nothing that is written to the tensors."""
        for i, one in enumerate(self.plan):
            onto = self._onto[i]
            if overlaps(onto):
                raise RuntimeError(f"{one.name!r} cannot be written: some of its elements are one place in memory")
            try:
                self._execute[type(one.source)](self, i, one)
            except Exception as error:
                raise failure(f"{one.name!r} ({one.dtype}) cannot be written: {error}", error) from error
        if self.replays:
            self._replay()
        self._computed = [i for i, real in self.reals.items() if real is not self._onto[i]]
        for i in self._computed:  # it may be the memory of another tensor
            self.reals[i] = self.reals[i].clone()

    def write(self) -> None:
        for fills in self.passes:
            self._fill(fills)
        for i in self._computed:
            self._onto[i].copy_(self.reals[i])
        increment_version(self._onto)

    def _memory(self, i: int, one: Assignment) -> tuple[torch.Tensor, bool]:
        fresh = one.storage not in self._seen
        self._seen.add(one.storage)
        return self._onto[i], fresh

    def _fill(self, fills: Sequence[Fill]) -> None:
        devices: dict[torch.device, list[Fill]] = {}
        for one in fills:
            devices.setdefault(one.tensor.device, []).append(one)
        for together in devices.values():
            fill(together)


def initialize_in_place(
    targets: Sequence[Target], rules: Mapping[str, Rule], seed: int | None, names: Callable[[str], str] | None
) -> tuple[Sequence[Target], Sequence[Assignment]]:
    """Write what `rules` say to the real parameters among `targets`: all of them, or none. What was written, from what.

    It includes parameters that share memory with these."""
    ruled = [target for target in targets if (rule := rules.get(target.name)) and rule.value is not None]
    for target in ruled:
        _refuse(target, rules[target.name])
    memory = {_memory_of(target.tensor) for target in ruled}
    # Whoever shares memory with one of them is planned, too: a draw has the name of the first that sees it.
    parameters = [target for target in targets if target.role == "parameter" and _has_memory(target.tensor)]
    found = [target for target in parameters if _memory_of(target.tensor) in memory]
    with deferred():
        assert active.tape is not None
        stand_ins = _StandIns(active.tape)
        standing = [stand_ins.of(target) for target in found]
        agreement = Agreement(standing, seed)
        try:
            record({target.name: rules[target.name] for target in ruled}, standing)
            for target in standing:
                if target.name in rules and not stand_ins.knows(target):
                    reason = "it gives the parameter other memory, which a real one keeps: write to it instead"
                    raise refused(target, rules[target.name], reason)
        except BaseException as error:
            agreement.give_up(error)
            raise
    try:
        with outside():
            written = stand_ins.written()
            pairs = [
                (target, local_of(real.tensor) if spec_of(real.tensor) is not None else real.tensor)
                for target, real in zip(standing, found, strict=True)
                if target.tensor._value.storage in written  # type: ignore[attr-defined]
            ]
            planned = [target for target, _ in pairs]
            draws = assign_draws(planned, names)
            planner = Planner(draws)
            plan = planner.plan(planned)
            agreement.before(planned, plan, planner, draws)
            tensors = [target.tensor for target in planned]
            onto = [real.detach() for _, real in pairs]  # which shares its version
            executor = InPlaceExecutor(plan, tensors, agreement.seed, draws, onto)  # type: ignore[arg-type]
            executor.compute()
            deque(agreement.after(), maxlen=0)
            executor.write()
            increment_version([real.tensor for real in found if spec_of(real.tensor) is not None])
            return planned, plan
    except BaseException as error:
        agreement.give_up(error)
        raise


def _refuse(target: Target, rule: Rule) -> None:
    tensor = target.tensor
    if isinstance(tensor, UninitializedTensorMixin):
        raise refused(target, rule, "it has no shape yet: call the module once first")
    if isinstance(tensor, Deferred) or is_plain_meta(tensor):
        raise refused(target, rule, "it is not real yet: call fastinit.materialize(module, init=rules)")
    if hasattr(tensor, "__tensor_flatten__") and spec_of(tensor) is None:
        raise refused(target, rule, f"it is a {type(tensor).__name__} around other tensors")
    if not _has_memory(tensor):
        raise refused(target, rule, "it is sparse or nested")
    try:
        refuse_inference_update(tensor)
    except RuntimeError as error:
        raise refused(target, rule, error) from error


def _has_memory(tensor: torch.Tensor) -> bool:
    if isinstance(tensor, (Deferred, UninitializedTensorMixin)) or tensor.is_meta:
        return False
    if tensor.layout is not torch.strided or tensor.is_nested:
        return False
    return not hasattr(tensor, "__tensor_flatten__") or spec_of(tensor) is not None


def _memory_of(tensor: torch.Tensor) -> int:
    local = local_of(tensor) if spec_of(tensor) is not None else tensor
    return storage_id(local.untyped_storage())


class _StandIns:
    """Deferred tensors in place of real ones: views of one recorded storage where those share memory."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._storages: dict[int, Storage] = {}
        #: What each storage holds now, as its first entry, and the values that look at it.
        self._present: dict[Storage, tuple[Entry, list[Value]]] = {}

    def of(self, target: Target) -> Target:
        """`target` with its stand-in."""
        tensor, spec = target.tensor, spec_of(target.tensor)
        real = tensor if spec is None else local_of(tensor)
        with outside():
            value = self._value(real.detach())
            new = wrap(value)
            if isinstance(tensor, torch.nn.Parameter):
                new = as_subclass(new, type(tensor) if spec is None else torch.nn.Parameter, tensor.requires_grad)
            if spec is None:
                new.__dict__.update(tensor.__dict__)
                return replace(target, tensor=new)
            return replace(target, tensor=new, spec=spec, holder=tensor)

    def _value(self, real: torch.Tensor) -> Value:
        memory = real.untyped_storage()
        storage = self._storages.get(storage_id(memory))
        if storage is None:
            base = torch.empty(memory.nbytes(), dtype=torch.uint8, device="meta")
            storage = self._storages[storage_id(memory)] = Storage(base, real.device, self._tape)
            source = Value(base, Storage(base, real.device, self._tape))
            source.storage.captured = memory
            whole = Value(base, storage)
            entry = Entry(self._tape, aten.copy_.default, (whole, source), {}, writes=(whole,), overwrites=True)
            self._present[storage] = entry, []
        value = Value(as_real(real, storage.base.untyped_storage()), storage)
        self._present[storage][1].append(value)
        return value

    def knows(self, target: Target) -> bool:
        """Whether a stand-in still is in the memory that it was given."""
        value = getattr(target.tensor, "_value", None)
        return value is not None and value.storage in self._present

    def written(self) -> set[Storage]:
        """The storages that something was written to. They forget what they held, if nobody needs that."""
        found = set()
        for storage, (present, values) in self._present.items():
            if storage.shared is not None or len(storage.writes) > 1:
                found.add(storage)
                storage.writes.remove(present)
                if not all(is_written(value) for value in values):
                    storage.writes.insert(0, present)
        return found
