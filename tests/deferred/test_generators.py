"""Generators of several devices at once, with CPU generators in the place of those of two GPUs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit.recording.generators import OwnGenerators, generator_of, restore, same_state, states

CUDA0, CUDA1 = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def gpus(monkeypatch):
    generators = tuple(torch.Generator().manual_seed(i) for i in range(2))
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    return generators


def on(device):
    """A layer that seems to have been built on a GPU, whose weight is drawn again there."""
    layer = nn.Linear(3, 3)
    layer.weight._value.storage.device = device
    nn.init.normal_(layer.weight)
    return layer


def test_states(gpus):
    assert generator_of(torch.device("cpu")) is torch.default_generator
    assert [generator_of(d) for d in (CUDA0, CUDA1, torch.device("cuda"))] == [gpus[0], gpus[1], gpus[1]]
    before = states()
    assert list(before) == [torch.device("cpu"), CUDA0, CUDA1]
    other = torch.Generator().manual_seed(9)
    own = OwnGenerators({CUDA1: other.get_state()})
    assert torch.equal(own.run(torch.rand, (3,), {"generator": gpus[1]}), torch.rand(3, generator=other))
    own.run(torch.rand, (3,), {"generator": gpus[0]})
    own.run(torch.rand, (3,), {})
    assert list(own.states()) == [CUDA1, CUDA0, torch.device("cpu")]
    assert not any(torch.equal(before[device], state) for device, state in own.states().items())
    assert same_state(before, states())
    torch.rand(3, generator=gpus[0])
    assert not same_state(before, states())
    assert same_state({CUDA1: before[CUDA1]}, states())  # of those that both know
    restore(before)
    assert same_state(before, states())


def test_parity_needs_every_generator_where_it_was(gpus):
    with fastinit.deferred():
        layer = nn.Linear(3, 3)
    start = states()
    torch.rand(3, generator=gpus[1])
    with pytest.raises(RuntimeError, match="has moved since"):
        fastinit.materialize(layer, replay="torch")
    restore(start)
    fastinit.materialize(layer, replay="torch")
    assert same_state({d: s for d, s in start.items() if d.type == "cuda"}, states())


def test_the_first_draw_on_a_gpu_takes_its_state(gpus, monkeypatch):
    """Where CUDA is initialised by a draw in the context, what was known before gets its generators, too."""
    initialised = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(initialised))
    monkeypatch.setattr(torch.cuda, "init", lambda: initialised.append(True))
    with fastinit.deferred():
        layer = nn.Linear(3, 3)
        tape = layer.weight._value.storage.tape
        assert list(tape.snapshot) == [torch.device("cpu")]
        moved = on(CUDA0)
    assert initialised
    assert list(tape.snapshot) == [torch.device("cpu"), CUDA0, CUDA1]
    assert torch.equal(tape.snapshot[CUDA0], gpus[0].get_state())
    fastinit.materialize(nn.ModuleList([layer, moved]), device="cpu", seed=0)


def test_seeds_of_one_device_and_of_all(gpus):
    with fastinit.deferred():
        tape = nn.Linear(1, 1).weight._value.storage.tape
        torch.default_generator.manual_seed(3)
        assert [tape.seeds(d) for d in (torch.device("cpu"), CUDA0)] == [True, False]
        tape.seeded.add(CUDA1)
        assert [tape.seeds(d) for d in (CUDA0, CUDA1, torch.device("cuda"))] == [False, True, True]
        torch.manual_seed(3)
        assert all(tape.seeds(d) for d in (torch.device("cpu"), CUDA0, CUDA1, torch.device("cuda")))
        layer = on(CUDA1)
    assert layer.weight._value.storage.writes[-1].determined
