"""What one tensor is like, as plain data and as text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from torch_fastinit.planning.fold import short_name


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many of a sample of a tensor's elements lie in each of equal parts of [low, high], and how many would.

    What lies outside is counted in the first or last part. `shares` are the expected shares of all; they, and
    `expected`, are empty where nothing was promised.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    shares: tuple[float, ...] = ()

    @property
    def expected(self) -> tuple[float, ...]:
        total = sum(self.counts)
        return tuple(share * total for share in self.shares)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one tensor is like, and what it was to be.

    `mean`, `std`, `min` and `max` are of the finite elements, `zeros` and `nonfinite` are counts; of a complex tensor,
    they are of its real and imaginary parts. `promise` says what was written; `expected_mean`, `expected_std`,
    `expected_zeros`, `low` and `high` (bounds of every value) follow from it, and are None where nothing was promised,
    or nothing that has a distribution. `faults` says what is off; it is empty where nothing is. `note` says why a
    tensor has no statistics, or which part of it this is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    count: int
    mean: float = math.nan
    std: float = math.nan
    min: float = math.nan
    max: float = math.nan
    zeros: int = 0
    nonfinite: int = 0
    promise: str = ""
    expected_mean: float | None = None
    expected_std: float | None = None
    expected_zeros: float | None = None
    low: float | None = None
    high: float | None = None
    faults: tuple[str, ...] = ()
    note: str = ""
    tied: tuple[str, ...] = ()
    histogram: Histogram | None = None


HEADINGS = ("name", "shape", "dtype", "mean", "std", "min", "max", "zeros", "not finite", "promise", "off")


def cells(row: Measured) -> tuple[str, ...]:
    """A row as text, under `HEADINGS`."""
    share = row.zeros / row.count if row.count else 0.0
    numbers = ("",) * 6
    if not math.isnan(row.mean) or row.nonfinite:
        zeros = "0" if not row.zeros else f"{share:.3%}"
        numbers = (_short(row.mean), _short(row.std), _short(row.min), _short(row.max), zeros, f"{row.nonfinite:,}")
    return (
        row.name + (f" (= {', '.join(row.tied)})" if row.tied else ""),
        "x".join(map(str, row.shape)) or ("scalar" if row.count else ""),
        short_name(row.dtype),
        *numbers,
        row.promise,
        "; ".join((*row.faults, *filter(None, [row.note]))),
    )


def _short(x: float) -> str:
    return f"{x:.4g}"
