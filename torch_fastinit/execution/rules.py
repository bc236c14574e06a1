"""Rules (`materialize(init=)`), recorded on the parameters that they match as a constructor's own writes are."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit._torch import spec_of
from torch_fastinit.execution.meta import Reset, logical_stand_in, shard
from torch_fastinit.planning.rules import Rule, RuleSet, match
from torch_fastinit.planning.tensors import Target, is_plain_meta, targets_of
from torch_fastinit.planning.written import is_written
from torch_fastinit.recording.active import active
from torch_fastinit.recording.context import deferred
from torch_fastinit.recording.memory import failure
from torch_fastinit.recording.tape import Storage
from torch_fastinit.recording.tensor import Deferred, become


class Preparation:
    """What `reset=` and `init=` record on a module before it is planned.

    Whatever `run` raises, and whatever follows, `settle` is to be called in the end: it takes all of that back, unless
    the calls of `keep` were made.
    """

    def __init__(self, module: torch.nn.Module, targets: Sequence[Target], reset: bool, init: RuleSet | None) -> None:
        self._module = module
        self._targets = targets
        self.rules = {} if init is None else match(init, module, targets)
        refuse_real(self.rules, targets)
        ruled = {name for name, rule in self.rules.items() if rule.value is not None}
        self._reset = Reset(module, targets, None if reset else ruled)
        self._journal: Journal | None = None
        self._kept: list[bool] = []
        #: Settle for what was recorded. Functions of C.
        self.keep: list[Callable[[], object]] = [self._reset.keep, functools.partial(self._kept.append, True)]

    def run(self, device: torch.device | None) -> Sequence[Target]:
        """Record, and return what the tensors of the module are then."""
        if self._reset:
            self._reset.run(device, functools.partial(self._record, device))
            return targets_of(self._module)
        self._record(device)
        return self._targets

    def _record(self, device: torch.device | None) -> None:
        if self.rules:
            targets = targets_of(self._module) if self._reset else self._targets
            self._journal = Journal(targets)
            record(self.rules, targets, device)

    def writers(self, tensor: torch.Tensor) -> str:
        """The methods that a tensor's values come from."""
        return self._reset.writers(tensor) if self._reset else ""

    def settle(self) -> None:
        """Make the module what it was, unless that was to be kept. Twice does no more than once."""
        if self._journal is not None and not self._kept:
            self._journal.undo()
        if self._reset:
            self._reset.settle()


class Journal:
    """What the recordings of `targets` are now, to make them so again."""

    def __init__(self, targets: Sequence[Target]) -> None:
        tensors = [target.tensor for target in targets if isinstance(target.tensor, Deferred)]
        self._tensors = [(tensor, tensor._value, tensor.requires_grad) for tensor in tensors]
        storages = dict.fromkeys(tensor._value.storage for tensor in tensors)
        self._storages = [(one, list(one.writes), list(one.reads), _fields(one)) for one in storages]
        tapes = dict.fromkeys(storage.tape for storage in storages)
        if active.tape is not None:
            tapes[active.tape] = None
        self._tapes = [(tape, list(tape.draws), list(tape.checkpoints)) for tape in tapes]
        self._states = [(entry, entry.state) for _, draws, _ in self._tapes for entry in draws]

    def undo(self) -> None:
        for tape, draws, checkpoints in self._tapes:
            tape.draws[:], tape.checkpoints[:] = draws, checkpoints
        for entry, state in self._states:
            entry.state = state
        for storage, writes, reads, fields in self._storages:
            storage.writes[:], storage.reads[:] = writes, reads
            storage.cache, storage.captured, storage._shared, storage.final, storage.like, storage.part_of = fields
        for tensor, value, requires_grad in self._tensors:
            if isinstance(tensor, Deferred):  # else it has become real meanwhile
                if tensor._value is not value:
                    become(tensor, value)
                if tensor.is_leaf and tensor.requires_grad is not requires_grad:
                    tensor.requires_grad_(requires_grad)


def _fields(storage: Storage) -> tuple[Any, ...]:
    return storage.cache, storage.captured, storage._shared, storage.final, storage.like, storage.part_of


def refuse_real(rules: Mapping[str, Rule], targets: Sequence[Target]) -> None:
    """Raise if a rule would do nothing, since all that it matches is real."""
    waiting: set[str] = set()
    real: list[Rule] = []
    for target in targets:
        rule, tensor = rules.get(target.name), target.tensor
        if rule is None or rule.value is None:
            continue
        if isinstance(tensor, Deferred) or is_plain_meta(tensor):
            waiting.add(rule.key)
        elif hasattr(tensor, "__tensor_flatten__") and spec_of(tensor) is None:
            raise refused(target, rule, f"it is a {type(tensor).__name__} around other tensors")
        else:
            real.append(rule)
    for rule in real:
        if rule.key not in waiting:
            raise ValueError(
                f"init[{rule.key}]: all parameters that it matches are real already, and materialize() leaves these "
                "alone; fastinit.initialize(module, rules) writes to them"
            )


def record(rules: Mapping[str, Rule], targets: Sequence[Target], device: torch.device | None = None) -> None:
    """Let the rules write to the deferred tensors among `targets` whose names they are for."""
    with deferred(), torch.no_grad():
        assert active.tape is not None
        for target in targets:
            if isinstance(target.tensor, Deferred):  # blocks that are materialised one by one are still told apart
                active.tape.taken = target.tensor._value.storage.tape.taken
                break
        for target in targets:
            rule = rules.get(target.name)
            if rule is None or rule.value is None or not isinstance(target.tensor, Deferred):
                continue
            try:
                _record(target, rule, device)
            except Exception as error:
                raise refused(target, rule, error) from error


def _record(target: Target, rule: Rule, device: torch.device | None) -> None:
    tensor = target.tensor
    if isinstance(tensor, UninitializedTensorMixin):
        raise RuntimeError("it has no shape yet: call the module once, and then fastinit.initialize")
    if tensor._value.storage.shared is not None:  # type: ignore[attr-defined]
        raise RuntimeError("the constructor has given its memory to others, who would see it change: write to it there")
    if target.spec is None:
        _write(tensor, rule.value)
        return
    assert target.holder is not None
    logical = logical_stand_in(target.holder, device)
    _write(logical, rule.value)
    if logical._value.storage.writes or logical._value.storage.shared is not None:
        if not is_written(logical._value):
            raise RuntimeError("it is sharded, and the rule reads it, or does not write all of it: write it whole")
        shard(target, logical)


def _write(tensor: torch.Tensor, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        tensor.copy_(value)
    elif isinstance(value, numbers.Number):
        tensor.fill_(value)  # type: ignore[call-overload]
    else:
        before, count = tensor._value, len(tensor._value.storage.writes)  # type: ignore[attr-defined]
        result = value(tensor)
        after = tensor._value  # type: ignore[attr-defined]
        untouched = after is before and after.storage.shared is None and len(after.storage.writes) == count
        if untouched and result is not None and result is not tensor and tensor.numel():
            raise TypeError(
                f"it returned a {type(result).__name__} and wrote nothing: an initialiser fills its tensor in place"
            )


def refused(target: Target, rule: Rule, why: object) -> Exception:
    message = f"{target.name!r} could not be initialised by init[{rule.key}]: {why}"
    return failure(message, why) if isinstance(why, Exception) else RuntimeError(message)
