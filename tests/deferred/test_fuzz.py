"""2,000 random constructors, each compared with eager construction: bit for bit in parity mode, and in metadata."""

from __future__ import annotations

import gc
import math
import warnings

import pytest
import torch
from support.comparison import check_metadata, initialised, same_bits
from support.programs import OPERATIONS, Step, construct, program, smallest

import torch_fastinit as fastinit

PROGRAMS, BATCHES = 2000, 10


@pytest.fixture(autouse=True)
def young():
    """Parity mode looks through all that Python's collector knows: leave it the programs' objects alone."""
    gc.collect()
    gc.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    gc.unfreeze()


def difference(steps: list[Step]) -> str:
    """What is not as in eager construction, if anything."""
    torch.manual_seed(1)
    eager, expected = construct(steps)
    end = torch.get_rng_state()
    torch.manual_seed(1)
    start = torch.get_rng_state()
    try:
        with fastinit.deferred():
            ours, reads = construct(steps)
    except Exception as error:
        return f"construction raises {type(error).__name__}: {error}"
    if not torch.equal(start, torch.get_rng_state()):
        return "construction moves torch's generator"
    if not same(reads, expected):
        which = next((i for i, pair in enumerate(zip(reads, expected, strict=False)) if not same(*pair)), None)
        return f"reads {reads if which is None else reads[which]}, not {expected if which is None else expected[which]}"
    try:
        fastinit.materialize(ours, replay="torch")
        if not torch.equal(end, torch.get_rng_state()):
            return "the generator ends elsewhere"
        a, b = initialised(eager), initialised(ours)
        for name, t in a.items():
            if not same_bits(t, b[name]):
                return f"{name} is {b[name]}, not {t}"
        for name, item in vars(eager).items():
            if isinstance(item, list) and not same_bits(item[0], vars(ours)[name][0]):
                return f"{name} is {vars(ours)[name][0]}, not {item[0]}"
        check_metadata(eager, ours, all_strides=False)  # meta functions of arithmetic differ in those of size 1
    except AssertionError as error:
        return f"metadata: {str(error)[:300]}"
    except Exception as error:
        return f"materialize raises {type(error).__name__}: {str(error)[:300]}"
    return ""


def same(a: object, b: object) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)))


def kind(text: str) -> str:
    return " ".join(text.split()[:4])


def report(seed: int, steps: list[Step]) -> str:
    """A failing program, made small, with what its steps make."""
    first = kind(difference(steps))
    steps = smallest(steps, lambda some: kind(difference(some)) == first)
    lines: list[str] = []
    torch.manual_seed(1)
    construct(steps, lines.append)
    return "\n  ".join([f"program {seed}: {difference(steps)}", *lines, repr(steps)])


@pytest.mark.parametrize("batch", range(BATCHES))
def test_programs_like_eager(batch):
    for seed in range(batch, PROGRAMS, BATCHES):
        steps = program(seed)
        if difference(steps):
            pytest.fail(report(seed, steps))


def test_the_grammar():
    """It has enough in it, and most of it works: an operation that always raises would look at nothing."""
    assert len(OPERATIONS) >= 60
    failed: dict[str, int] = {}
    worked = 0
    for seed in range(300):
        _, reads = construct(program(seed))
        errors = [item[0] for item in reads if isinstance(item, tuple) and len(item) == 2 and item[0] in OPERATIONS]
        worked += len(program(seed)) - len(errors)
        for name in errors:
            failed[name] = failed.get(name, 0) + 1
    assert sum(failed.values()) < worked / 20, failed


def test_a_failing_program_becomes_small():
    steps = [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)]
    assert smallest(steps, lambda some: {("b", 2), ("e", 5)} <= set(some)) == [("b", 2), ("e", 5)]
