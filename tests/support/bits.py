"""Comparing what the compiled kernels write with tests/support/reference.py, bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from support import reference

from torch_fastinit.initializers import Initializer
from torch_fastinit.ops import Fill, Region, fill

SEED, STREAM = 0x0123456789ABCDEF, 0xFEDCBA9876543210

REAL = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}

#: (start, stop) in every dimension.
Box = Sequence[tuple[int, int]]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    """The bit patterns of a tensor, as tests/support/reference.py gives them."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.contiguous().view(UNSIGNED[tensor.element_size()]).numpy()


def dirty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor whose every byte is 0xA5, so that an element that was not written shows."""
    tensor = torch.empty(shape, dtype=dtype)
    tensor.reshape(-1).view(torch.uint8).fill_(0xA5)
    return tensor


@functools.cache
def _expected(
    initializer: Initializer, _repr: str, shape: tuple[int, ...], dtype: str, box: tuple | None, where: tuple
) -> np.ndarray:
    region = None if box is None else [slice(*ends) for ends in box]
    seed, stream, second = where
    return reference.fill(initializer, shape, dtype, seed, stream, second, region)


def expected(
    initializer: Initializer,
    shape: Sequence[int],
    dtype: torch.dtype,
    box: Box | None = None,
    seed: int = SEED,
    stream: int = STREAM,
    second: int | None = None,
) -> np.ndarray:
    """The reference's bits, computed once a process."""
    box = None if box is None else tuple(tuple(ends) for ends in box)
    key = repr(initializer)  # 0.0 == -0.0
    return _expected(initializer, key, tuple(shape), name_of(dtype), box, (seed, stream, second))


def part_of(tensor: torch.Tensor, shape: Sequence[int], box: Box, initializer: Initializer) -> Fill:
    """The fill of ``tensor`` with a box of a logical tensor."""
    return Fill(tensor, initializer, SEED, STREAM, Region(tuple(shape), tuple(start for start, _ in box)))


def sizes_of(box: Box) -> list[int]:
    return [stop - start for start, stop in box]


def check(initializer: Initializer, tensor: torch.Tensor) -> None:
    """A fill of the whole tensor, in the layout that it has, has the reference's bits."""
    fill([Fill(tensor, initializer, SEED, STREAM)])
    np.testing.assert_array_equal(bits_of(tensor), expected(initializer, tensor.shape, tensor.dtype))


def check_box(initializer: Initializer, shape: Sequence[int], box: Box, dtype: torch.dtype) -> None:
    """A fill of a box of a logical tensor has the reference's bits."""
    tensor = dirty(sizes_of(box), dtype)
    fill([part_of(tensor, shape, box, initializer)])
    np.testing.assert_array_equal(bits_of(tensor), expected(initializer, shape, dtype, box))
