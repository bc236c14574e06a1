"""`replay="torch"`: the real tensors as eager construction would have made them, bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from torch_fastinit.execution.executor import Executor
from torch_fastinit.planning.planner import Copied, Shared, Zeros
from torch_fastinit.recording.generators import OwnGenerators, generator_of, same_state, set_state, states
from torch_fastinit.recording.replay import Call, closure
from torch_fastinit.recording.tape import Entry, Tape, Value, need
from torch_fastinit.recording.tensor import Deferred


class ParityExecutor(Executor):
    """Runs every random operation, in order, by torch."""

    def run(self) -> list[torch.Tensor]:
        needs = [need(value) for value in self.values]
        tapes = {value.storage.tape for value in self.values} | {entry.tape for entry in closure(needs)}
        self._check(tapes)
        for i, one in enumerate(self.plan):
            if isinstance(one.source, (Shared, Copied, Zeros)):
                self._execute[type(one.source)](self, i, one)
            else:
                self._replay_later(i, one)
        draws = [entry for tape in tapes for entry in tape.draws]
        entries = closure([need(self.values[i]) for some in self.replays.values() for i in some], draws)
        self._generators = OwnGenerators(states())
        self._begin()
        self._run(entries, self.replays)
        return [self.reals[i] for i in range(len(self.plan))]

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
        ours = {id(tensor) for tensor in self.tensors}
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

    def _randomness(self, entry: Entry, tensor: Callable[[Value], torch.Tensor], call: Call) -> Any:
        return call(self._generators)

    def moved(self) -> list[Callable[[], object]]:
        return [partial(set_state, generator_of(device), state) for device, state in self._generators.states().items()]


def _deferred_parameters(tapes: set[Tape]) -> Iterator[Deferred]:
    """Parameters anywhere in the process whose values depend on these tapes' draws."""
    for thing in gc.get_objects():
        if type(thing) is not Deferred or not thing.__dict__.get("_is_param"):
            continue
        value = thing._value
        if value.storage.tape in tapes and any(entry.random for entry in closure([need(value)])):
            yield thing
