"""Numbers that stand for things in the kernels and in the arguments of the ops.

`csrc/fill.h` and `triton_kernels/kernels.py` have the same ones; tests/kernels/test_codes.py holds them to this file.
"""

from __future__ import annotations

import enum

import torch


class Kind(enum.IntEnum):
    """A distribution."""

    BITS = 0
    CONSTANT = 1
    UNIFORM = 2
    NORMAL = 3
    TRUNCATED_NORMAL = 4
    SPARSE = 5
    EYE = 6
    DIRAC = 7
    MIXTURE = 8
    DIAGONALS = 9  # for the kernels alone: what `EYE` and `DIRAC` become


class Op(enum.IntEnum):
    """What a step does to a value."""

    CAST = 0
    MUL = 1
    ADD = 2
    DIV = 3


#: dtypes that the kernels write. A constant goes into any dtype, by its bit pattern: the code of the others is that of
#: `DType::opaque`, 64, plus the item size.
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
DTYPE_CODES: dict[torch.dtype, int] = {dtype: code for code, dtype in enumerate((*_DTYPES, torch.int32))}

#: As many steps as may follow a draw. (The kernels have room for one more, the draw's own rounding.)
MAX_STEPS = 5

#: As many components as a mixture may have. (The tables that CUDA launches take as arguments have room for so many.)
MAX_COMPONENTS = 256
