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
_Span = tuple[int, int, int]
#: A histogram is of about so many elements, evenly spread, in so many parts: odd, so that one is in the middle.
SAMPLE, BINS = 1 << 16, 49


@dataclass(slots=True)
class Statistics:
    """Of `count` elements; all but `zeros` and `nonfinite` are of the finite ones.

    `std` is of the elements as they are: divided by their number. `parts` is a histogram, if one was made meanwhile.
    """

    count: int
    mean: float
    std: float
    min: float
    max: float
    zeros: int
    nonfinite: int
    parts: tuple[int, ...] = ()

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


@dataclass(slots=True)
class Elements:
    """The elements of a tensor, as real numbers, or why there are none to be read.

    Those of a complex one are its real and imaginary parts. `span` is where they lie (address, number, dtype's code),
    if the compiled pass can read them there.
    """

    why: str
    real: torch.Tensor
    span: _Span | None = None

    @staticmethod
    def of(tensor: torch.Tensor) -> Elements:
        """Those of any tensor."""
        if tensor.is_meta:
            return Elements("on the meta device", tensor)
        if has_no_contents(tensor):
            return Elements("it has no memory", tensor)
        if tensor.is_nested:
            return Elements("it is nested", tensor)
        if tensor.layout is not torch.strided:
            return Elements(f"its layout is {str(tensor.layout).removeprefix('torch.')}", tensor)
        if tensor.is_quantized:
            return Elements(_of_dtype(tensor), tensor)
        try:
            real = _real(tensor)
            ready = real.dtype in _READ and real.device.type == "cpu" and span(real)[2]
            some = real if ready else _copied(real.reshape(-1)[:1])
            address, count = some.data_ptr(), real.numel()
        except (RuntimeError, TypeError):
            return Elements("it has no memory" if tensor.dtype in _READ else _of_dtype(tensor), tensor)
        if address == 0 and count > 0:
            return Elements("it has no memory", tensor)
        return Elements("", real, (address, count, _READ[real.dtype]) if ready else None)


def _of_dtype(tensor: torch.Tensor) -> str:
    return f"its dtype is {str(tensor.dtype).removeprefix('torch.')}"


def statistics(all_elements: Sequence[Elements], ranges: Sequence[tuple[float, float] | None]) -> list[Statistics]:
    """What each of these, which can be read, are like; of a span with a range, in passing, its histogram."""
    ready = [(one.span, bounds) for one, bounds in zip(all_elements, ranges, strict=True) if one.span is not None]
    found = iter(_of([one for one, _ in ready], [bounds for _, bounds in ready]))
    return [next(found) if one.span is not None else _in_chunks(one.real) for one in all_elements]


def histograms(all_elements: Sequence[Elements], ranges: Sequence[tuple[float, float]]) -> list[tuple[int, ...]]:
    """Counts of a sample of each of these by `BINS` equal parts of its range."""
    copies = [_copied(_sample(one.real)) for one in all_elements if one.span is None]
    copied = map(_span, copies)
    spans = [one.span if one.span is not None else next(copied) for one in all_elements]
    return _C.histograms(spans, ranges, BINS, SAMPLE, torch.get_num_threads())


def _in_chunks(real: torch.Tensor) -> Statistics:
    total = Statistics(0, math.nan, math.nan, math.inf, -math.inf, 0, 0)
    for chunk in real.reshape(-1).split(_CHUNK):
        copy = _copied(chunk)
        total += _of([_span(copy)], [None])[0]
    return total


def _sample(real: torch.Tensor) -> torch.Tensor:
    flat = real.reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLE)]


def _of(spans: Sequence[_Span], ranges: Sequence[tuple[float, float] | None]) -> list[Statistics]:
    return [Statistics(*one) for one in _C.statistics(spans, ranges, BINS, SAMPLE, torch.get_num_threads())]


def _span(real: torch.Tensor) -> _Span:
    return real.data_ptr(), real.numel(), _READ[real.dtype]


def _real(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj().resolve_neg())
    return tensor.resolve_neg()


def _copied(real: torch.Tensor) -> torch.Tensor:
    return real.to(device="cpu", dtype=torch.float64).contiguous()
