"""Statistics of real tensors, in one pass over their memory, by csrc/statistics.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_fastinit import _C
from torch_fastinit._torch import has_no_contents
from torch_fastinit.codes import DTYPE_CODES
from torch_fastinit.recording.memory import span

#: What the compiled pass reads where it lies. All else goes through torch, a chunk at a time, as float64.
_READ = {dtype: code for dtype, code in DTYPE_CODES.items() if dtype.is_floating_point}
_CHUNK = 1 << 22
#: A histogram is of about so many elements, evenly spread, in so many parts: odd, so that one is in the middle.
SAMPLE, BINS = 1 << 16, 49


@dataclass(slots=True)
class Statistics:
    """Of `count` elements; all but `zeros` and `nonfinite` are of the finite ones.

    `std` is of the elements as they are: divided by their number.
    """

    count: int
    mean: float
    std: float
    min: float
    max: float
    zeros: int
    nonfinite: int

    def __add__(self, other: Statistics) -> Statistics:
        """Of the elements of both."""
        n, m = self.count - self.nonfinite, other.count - other.nonfinite
        if n == 0 or m == 0:
            one, none = (other, self) if n == 0 else (self, other)
            return Statistics(
                one.count + none.count, one.mean, one.std, one.min, one.max, one.zeros, one.nonfinite + none.nonfinite
            )
        a, b = n / (n + m), m / (n + m)
        root, apart = math.sqrt(a * b), self.mean / 2 - other.mean / 2  # halves, whose difference is finite
        return Statistics(
            self.count + other.count,
            self.mean * a + other.mean * b,
            math.hypot(self.std * math.sqrt(a), other.std * math.sqrt(b), apart * 2 * root),
            min(self.min, other.min),
            max(self.max, other.max),
            self.zeros + other.zeros,
            self.nonfinite + other.nonfinite,
        )


def readable(tensor: torch.Tensor) -> str:
    """Why a tensor has no elements to be read; empty if it has."""
    if tensor.is_meta:
        return "on the meta device"
    if has_no_contents(tensor):
        return "it has no memory"
    if tensor.is_nested:
        return "it is nested"
    if tensor.layout is not torch.strided:
        return f"its layout is {str(tensor.layout).removeprefix('torch.')}"
    unread = f"its dtype is {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.is_quantized:
        return unread
    try:
        real = _real(tensor)
        if not _lies_ready(real):
            real = _copied(real.reshape(-1)[:1])
        there = real.data_ptr() != 0 or real.numel() == 0
    except (RuntimeError, TypeError):
        if tensor.dtype not in _READ:
            return unread
        there = False
    return "" if there else "it has no memory"


def statistics(tensors: Sequence[torch.Tensor]) -> list[Statistics]:
    """Of each tensor, any `readable` ones: a complex one as its real and imaginary parts."""
    reals = [_real(tensor) for tensor in tensors]
    direct = [i for i, real in enumerate(reals) if _lies_ready(real)]
    found: dict[int, Statistics] = dict(zip(direct, _of([reals[i] for i in direct]), strict=True))
    for i, real in enumerate(reals):
        if i not in found:
            total = Statistics(0, math.nan, math.nan, math.inf, -math.inf, 0, 0)
            for chunk in real.reshape(-1).split(_CHUNK):
                total += _of([_copied(chunk)])[0]
            found[i] = total
    return [found[i] for i in range(len(reals))]


def histograms(tensors: Sequence[torch.Tensor], ranges: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Counts of a sample of each tensor's elements by `BINS` equal parts of its range."""
    reals = [_real(tensor) for tensor in tensors]
    held = []
    for real in reals:
        if not _lies_ready(real):
            flat = real.reshape(-1)
            real = _copied(flat[:: max(1, len(flat) // SAMPLE)])
        held.append(real)
    return _C.histograms(_spans(held), list(ranges), BINS, SAMPLE, torch.get_num_threads())


def _of(reals: Sequence[torch.Tensor]) -> list[Statistics]:
    return [Statistics(*one) for one in _C.statistics(_spans(reals), torch.get_num_threads())]


def _spans(reals: Sequence[torch.Tensor]) -> list[tuple[int, int, int]]:
    return [(real.data_ptr(), real.numel(), _READ[real.dtype]) for real in reals]


def _real(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj().resolve_neg())
    return tensor.resolve_neg()


def _copied(real: torch.Tensor) -> torch.Tensor:
    return real.to(device="cpu", dtype=torch.float64).contiguous()


def _lies_ready(real: torch.Tensor) -> bool:
    return real.device.type == "cpu" and real.dtype in _READ and span(real)[2]
