"""A truncated normal that cuts nothing is the normal (docs/stream.md, section 7)."""

from __future__ import annotations

import math

import pytest
import torch
from support.bits import REAL, SEED, STREAM, bits_of, dirty, expected, name_of

from torch_fastinit import init
from torch_fastinit.initializers import Initializer, Normal, Op, Program, Step, TruncatedNormal
from torch_fastinit.ops import Fill, fill

DTYPES = pytest.mark.parametrize("dtype", REAL, ids=name_of)
#: The most distant normals, in deviations.
RADIUS = {torch.float64: float.fromhex("0x1.2b0d8931175afp+3")}
SHAPE = (33, 65)


def written(initializer: Initializer, dtype: torch.dtype) -> torch.Tensor:
    tensor = dirty(SHAPE, dtype)
    fill([Fill(tensor, initializer, SEED, STREAM)])
    return tensor


def same(a: Initializer, b: Initializer, dtype: torch.dtype) -> bool:
    here, there = (bits_of(written(initializer, dtype)) for initializer in (a, b))
    assert (here == expected(a, SHAPE, dtype)).all()
    return bool((here == there).all())


@DTYPES
@pytest.mark.parametrize("mean, std", [(0.0, 0.02), (0.0, 1.0), (-0.05, 0.03)])
def test_up_to_the_last_value(mean: float, std: float, dtype: torch.dtype) -> None:
    """The bounds may be the most distant values themselves, and not the values before these."""
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    z, s, m = torch.tensor([RADIUS.get(dtype, float.fromhex("0x1.aa449ap+2")), std, mean], dtype=arithmetic).double()
    ends = (torch.stack([-z, z]) * s + m).to(arithmetic).to(dtype)
    a, b = ends.tolist()
    assert same(TruncatedNormal(mean, std, a, b), Normal(mean, std), dtype)
    assert same(TruncatedNormal(mean, std, -math.inf, math.inf), Normal(mean, std), dtype)
    # The values beside them, nearer to 0 that lies between: one less of the magnitude in the pattern.
    pattern = ends.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    above, below = (pattern - 1).view(dtype).tolist()
    assert a < above and below < b
    assert not same(TruncatedNormal(mean, std, above, b), Normal(mean, std), dtype)
    assert not same(TruncatedNormal(mean, std, a, below), Normal(mean, std), dtype)


def test_a_program_draws_the_normal_where_its_draw_cuts_nothing() -> None:
    """The bounds hold in the draw's dtype: 6.66 deviations round to more than 6.65 in bfloat16."""
    steps = (Step(Op.MUL, 0.1, torch.bfloat16),)
    normal, wide, close = (
        Program(draw, torch.bfloat16, steps)
        for draw in (Normal(), TruncatedNormal(0, 1, -6.7, 6.7), TruncatedNormal(0, 1, -6.65, 6.65))
    )
    assert same(wide, normal, torch.bfloat16)
    assert not same(close, normal, torch.bfloat16)


@DTYPES
def test_trunc_normal_of_init(dtype: torch.dtype) -> None:
    """The usual call, with bounds of 100 deviations."""
    a, b = torch.empty(SHAPE, dtype=dtype), torch.empty(SHAPE, dtype=dtype)
    init.trunc_normal_(a, std=0.02, generator=torch.Generator().manual_seed(1))
    init.normal_(b, std=0.02, generator=torch.Generator().manual_seed(1))
    assert (bits_of(a) == bits_of(b)).all()
