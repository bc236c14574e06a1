"""torch's default generators, one a device, and their states.

Everything here calls the methods that `torch.Generator` has by itself, also while patches/generators.py redirects them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from torch_fastinit.forks import give_way, lock_before_forks

#: Default generators' states by device. Treat as immutable.
State = dict[torch.device, torch.Tensor]

_CPU = torch.device("cpu")
_get_state = torch.Generator.get_state
_set_state = torch.Generator.set_state


def generator_of(device: torch.device) -> torch.Generator:
    """The default generator that random operations on `device` use."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generator: torch.Generator = torch.cuda.default_generators[index]
        return generator
    return torch.default_generator


def _defaults() -> Iterator[tuple[torch.device, torch.Generator]]:
    """Those that exist: GPUs have theirs once CUDA is initialised."""
    yield _CPU, torch.default_generator
    if torch.cuda.is_initialized():
        for index, generator in enumerate(torch.cuda.default_generators):
            yield torch.device("cuda", index), generator


def is_default(generator: torch.Generator) -> bool:
    """Whether this is the generator of operations that name none."""
    return generator is torch.default_generator or (
        generator.device.type == "cuda" and any(generator is known for _, known in _defaults())
    )


def get_state(generator: torch.Generator) -> torch.Tensor:
    return _get_state(generator)


def states() -> State:
    """The states of all default generators."""
    return {device: _get_state(generator) for device, generator in _defaults()}


def restore(state: State) -> None:
    """Set the default generators that are in `state`."""
    for device, one in state.items():
        _set_state(generator_of(device), one)


def same_state(a: State, b: State) -> bool:
    """Whether the generators that are in both have the same states."""
    return all(torch.equal(one, b[device]) for device, one in a.items() if device in b)


#: Default generators belong to the process: held by whoever changes their states for a while.
lock = lock_before_forks()


@contextlib.contextmanager
def private_state(state: State) -> Iterator[None]:
    """Default generators with other states, restored afterwards; one thread at a time."""
    give_way()
    with lock:
        saved = states()
        restore(state)
        try:
            yield
        finally:
            restore(saved)
