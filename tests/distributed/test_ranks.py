"""The harness itself: what comes back from ranks, and what is said when some fail, die or hang."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from support.fake_ranks import on_fake_ranks
from support.ranks import Ranks, RanksFailedError


class Pair:
    """Of this module: pickled by name, both ways."""

    def __init__(self, first: int, second: int) -> None:
        self.first, self.second = first, second


def gathered(value: Pair) -> tuple[Pair, torch.Tensor, int]:
    own = torch.tensor([float(dist.get_rank() + value.first)])
    dist.all_reduce(own)
    return Pair(dist.get_rank(), value.second), own, torch.get_num_threads()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_return_values(ranks: Ranks, world: int) -> None:
    found = ranks.run(world, gathered, Pair(10, 7))
    assert [pair.first for pair, _, _ in found] == list(range(world))
    assert all(pair.second == 7 and threads == 1 for pair, _, threads in found)
    total = sum(range(10, 10 + world))
    assert all(own.tolist() == [total] for _, own, _ in found)


def raises_on(rank: int) -> None:
    print(f"here is {dist.get_rank()}")
    if dist.get_rank() == rank:
        raise ValueError(f"rank {rank} will not")
    dist.barrier()


def test_a_rank_that_raises(ranks: Ranks) -> None:
    with pytest.raises(RanksFailedError) as caught:
        ranks.run(2, raises_on, 1)
    message = str(caught.value)
    assert "rank 1 of 2: Traceback" in message and "ValueError: rank 1 will not" in message
    assert "It printed:" in message
    assert "\nhere is 1" in message
    assert "rank 0 of 2: Traceback" in message  # whose peer has gone


def test_ranks_that_raise_what_is_no_exception(ranks: Ranks) -> None:
    with pytest.raises(RanksFailedError, match="KeyboardInterrupt"):
        ranks.run(1, interrupts)


def interrupts() -> None:
    raise KeyboardInterrupt


def dies(by: int) -> None:
    if dist.get_rank() == 0:
        os.kill(os.getpid(), by)


def test_a_rank_that_dies(ranks: Ranks) -> None:
    with pytest.raises(RanksFailedError, match="rank 0 of 2: died with SIGKILL"):
        ranks.run(2, dies, int(signal.SIGKILL))
    with pytest.raises(RanksFailedError, match=r"rank 0 of 1: died with SIGSEGV(.|\n)*Fatal Python error"):
        ranks.run(1, dies, int(signal.SIGSEGV))


def hangs() -> int:
    if dist.get_rank() == 0:
        dist.barrier()  # nobody else comes
    return os.getpid()


def test_a_rank_that_hangs_is_killed_and_shows_where(ranks: Ranks) -> None:
    start = time.monotonic()
    with pytest.raises(RanksFailedError) as caught:
        ranks.run(2, hangs, timeout=1.0, group_timeout=60.0)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "rank 0 of 2: did not end in time" in message and "in hangs" in message
    assert "rank 1" not in message
    (pid,) = ranks.run(1, hangs)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_functions_that_no_worker_can_import(ranks: Ranks) -> None:
    with pytest.raises(ValueError, match="is not at the top level of a module"):
        ranks.run(1, lambda: None)


def test_what_cannot_be_pickled(ranks: Ranks) -> None:
    with pytest.raises(RanksFailedError, match=r"(?i)pickle"):
        ranks.run(1, gives_a_lambda)


def gives_a_lambda() -> object:
    return lambda: None


def test_a_run_is_cheap(ranks: Ranks) -> None:
    """The best of several: a run of 4 ranks takes a fraction of a second."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        ranks.run(4, gathered, Pair(0, 0))
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0, times


def test_every_rank_of_a_fake_group() -> None:
    found = on_fake_ranks((2, 3), lambda mesh: tuple(mesh.get_coordinate() or ()))
    assert found == {rank: divmod(rank, 3) for rank in range(6)}
    assert list(on_fake_ranks((512, 8), lambda mesh: mesh.shape, ranks=(0, 4095))) == [0, 4095]
    assert not dist.is_initialized()
