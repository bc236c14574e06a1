from collections.abc import Iterable, Sequence
from typing import Any

# `fills` are what `torch_fastinit.ops.ready` gives; `codes` is a dictionary from dtypes, and a dtype that it lacks is
# one of so many bytes. RuntimeError, as torch raises it, for a tensor whose elements share memory; ValueError for a
# fill that makes no sense.

def fill_cpu(fills: Iterable[Any], codes: dict[Any, int], threads: int, fresh: bool, huge_pages: bool) -> None:
    """Run fills on `threads` threads; without the GIL, unless they are few and small.

    Threads begin with the first fills while this one goes on reading. Nobody writes any more when it returns or raises;
    what came before a fill that is refused, 256 fills at a time, may have been written then.

    `fresh` says that the memory is probably new, `huge_pages` asks the system for those, for large tensors.
    """

def lowered(fills: Iterable[Any], codes: dict[Any, int]) -> list[dict[str, Any]]:
    """The fills, their layouts merged and every constant derived: csrc/fill.h, as dictionaries."""

def has_cuda() -> bool:
    """Whether this build has CUDA kernels; if not, the two functions below are missing."""

def cuda_error(device: int) -> str:
    """Why this machine cannot run the CUDA kernels; empty if it can."""

def fill_cuda(fills: Iterable[Any], codes: dict[Any, int], device: int, stream: int) -> None:
    """Enqueue fills on a CUDA stream; RuntimeError, which names the cause, if CUDA refuses."""

# A span is elements that lie next to one another: their address, how many there are, and the code of their dtype, a
# floating-point one. ValueError for any other code.

# A histogram counts finite elements by `bins` equal parts of a range, of about `most` elements, evenly spread. What
# lies outside of the range is counted in the part nearest to it.

def statistics(
    spans: Sequence[tuple[int, int, int]],
    ranges: Sequence[tuple[float, float] | None],
    bins: int,
    most: int,
    threads: int,
) -> list[tuple[int, float, float, float, float, int, int, tuple[int, ...]]]:
    """Of each span: count, mean, standard deviation, least, largest, zeros, not finite, histogram, if it has a range.

    Mean, deviation and bounds are of the finite elements. The bits are the same on any number of threads.
    """

def histograms(
    spans: Sequence[tuple[int, int, int]], ranges: Sequence[tuple[float, float]], bins: int, most: int, threads: int
) -> list[tuple[int, ...]]:
    """Of each span: its histogram."""

def instruction_set() -> str:
    """The instruction set in use."""

def instruction_sets() -> list[str]:
    """The instruction sets that this machine and this build have, best first."""

def set_instruction_set(name: str) -> None:
    """Use this one of `instruction_sets()` from now on; ValueError if it is not among them."""
