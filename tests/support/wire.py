"""Fills over a wire, to programs that have the kernels but no Python (tests/support/wire.h)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from torch_fastinit.codes import DTYPE_CODES
from torch_fastinit.ops import Fill, encode

OPAQUE = 64


def rows(tensor: torch.Tensor) -> list[int]:
    """Address, dtype, dimensions, sizes and strides."""
    code = DTYPE_CODES.get(tensor.dtype, OPAQUE + tensor.element_size())
    return [tensor.data_ptr(), code, len(tensor.shape), *tensor.shape, *tensor.stride()]


def to_wire(fills: Iterable[Fill]) -> tuple[list[torch.Tensor], list[int], list[int], list[float]]:
    """The tensors, and the three lists that `from_wire` takes."""
    tensors, recipe, params = encode(fills)
    return tensors, [number for tensor in tensors for number in rows(tensor)], recipe, params
