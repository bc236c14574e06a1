"""Which backend serves a device: the only file that calls a compiled one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_fastinit import _C

__all__ = ["DTYPE_CODES", "backends", "fill_cpu"]

#: dtypes that the kernels write; csrc/fill.h has the same list. A constant goes into any dtype, by its bit pattern.
DTYPE_CODES: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.float8_e4m3fn: 4,
    torch.float8_e5m2: 5,
    torch.int32: 6,
}
#: Any other dtype: only a constant's bit pattern of so many bytes can be written. The code is this plus the item size.
OPAQUE_CODE = 64


def _describe(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Address, dtype code and layout of each tensor, as one flat list."""
    rows: list[int] = []
    for t in tensors:
        code = DTYPE_CODES.get(t.dtype, OPAQUE_CODE + t.element_size())
        rows += (t.data_ptr(), code, t.dim(), *t.shape, *t.stride())
    return rows


def fill_cpu(tensors: Sequence[torch.Tensor], recipe: Sequence[int], params: Sequence[float]) -> None:
    """Run a batch of fills on the CPU, on ``torch.get_num_threads()`` threads, without the GIL."""
    _C.fill_cpu(_describe(tensors), recipe, params, torch.get_num_threads())


def backends() -> dict[str, str]:
    """What serves each device type, and how it was built.

    Returns:
        A dictionary from device type to a description.

    Example:
        >>> import torch_fastinit as fastinit
        >>> sorted(fastinit.backends())
        ['cpu']
    """
    return {"cpu": f"C++ ({_C.instruction_set()})"}
