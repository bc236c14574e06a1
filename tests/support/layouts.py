"""Where a fill can lie: views of a buffer, boxes of a logical tensor. For comparing one backend with another.

Whole buffers are compared, so that an element outside of the view that was written shows too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from support.bits import REAL, SEED, STREAM, dirty

from torch_fastinit.initializers import (
    Bits,
    Constant,
    Dirac,
    Eye,
    Initializer,
    Mixture,
    Normal,
    Op,
    Program,
    Sparse,
    Step,
    TruncatedNormal,
    Uniform,
)
from torch_fastinit.ops import Fill, Region


@dataclass(frozen=True)
class Layout:
    """A view of a buffer, and the box of a logical tensor that it holds (by default the whole)."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    offset: int = 0
    shape: tuple[int, ...] | None = None
    box: tuple[int, ...] | None = None

    def buffer(self, dtype: torch.dtype) -> torch.Tensor:
        reach = sum((n - 1) * s for n, s in zip(self.sizes, self.steps, strict=True)) if 0 not in self.sizes else 0
        return dirty((self.offset + reach + 1 + 19,), dtype)

    @property
    def steps(self) -> tuple[int, ...]:
        return self.strides or torch.empty(self.sizes, device="meta").stride()

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer.as_strided(self.sizes, self.steps, self.offset)

    @property
    def region(self) -> Region | None:
        return None if self.shape is None else Region(self.shape, self.box or (0,) * len(self.shape))


LAYOUTS = {
    "an element": Layout(()),
    "nothing": Layout((3, 0, 2)),
    "less than 16 bytes of any dtype": Layout((1,)),
    "a ragged end": Layout((1003,)),
    "several chunks and a rest": Layout((20481,)),
    "an odd address": Layout((700,), offset=1),
    "an odd address, four elements on": Layout((700,), offset=4),
    "a box in phase with its address": Layout((500,), offset=5, shape=(4000,), box=(5,)),
    "a box out of phase": Layout((500,), shape=(4000,), box=(5,)),
    "rows": Layout((17, 32), shape=(37, 64), box=(3, 8)),
    "odd rows": Layout((17, 31), shape=(37, 61), box=(3, 5)),
    "rows with gaps": Layout((9, 16), strides=(24, 1)),
    "transposed": Layout((33, 20), strides=(1, 33)),
    "every other": Layout((301,), strides=(2,)),
    "a column": Layout((65, 1), shape=(65, 7), box=(0, 3)),
    "channels last": Layout((4, 6, 3, 5), strides=(90, 1, 30, 6)),
    "permuted, with a box": Layout((5, 4, 3), strides=(1, 16, 5), offset=3, shape=(9, 8, 7), box=(2, 3, 4)),
    "ten dimensions": Layout((2,) * 10, strides=tuple(3 * 2**n for n in (0, 9, 1, 8, 2, 7, 3, 6, 4, 5))),
    "across block 2^32": Layout((1500,), shape=(2**35,), box=(2**34 - 704,)),
    "across block 2^32, out of phase": Layout((1500,), shape=(2**35,), box=(2**34 - 701,)),
    "past 2^60": Layout((40, 30), shape=(2**40, 2**20), box=(2**40 - 40, 11)),
}

#: Columns of a matrix: rows of 16 bytes and more after a gap.
BOXES = {
    "wide rows": Layout((9, 616), shape=(20, 1232), box=(2, 16)),
    "rows with ragged ends": Layout((6, 75), strides=(96, 1), offset=5, shape=(9, 160), box=(1, 21)),
    "rows on either side of block 2^32": Layout((6, 160), shape=(2**23, 4112), box=(4177980, 3008)),
    "rows of 16 bytes": Layout((300, 4), shape=(400, 64), box=(50, 32)),
}

NEAR, FAR = TruncatedNormal(0.0, 1.0, -4.0, 1.5), TruncatedNormal(0.0, 1.0, 8.0, 9.0)
MIXTURE = Mixture(((0.5, Normal(0.0, 0.1)), (0.2, Constant(-0.7)), (0.3, Uniform(0.5, 1.0))))
ANY = (Uniform(-0.5, 0.25), Normal(-0.1, 0.5), NEAR, FAR, MIXTURE, Constant(0.3))
OFFSETS = (0, 3, 2**34 - 9, 2**66 - 200)


def initializers(layout: Layout) -> Iterator[Initializer]:
    """What can be written there: whatever the number of dimensions allows."""
    shape = layout.shape or layout.sizes
    yield from ANY
    if len(shape) == 2:
        yield Eye()
        if shape[0] < 1000:
            yield Sparse(0.4, 0.5)
    if 3 <= len(shape) <= 5:
        yield Dirac()


def batch(layout: Layout, buffers: list[torch.Tensor], dtypes: Sequence[torch.dtype] = REAL) -> list[Fill]:
    """Every initializer in every dtype with this layout: as one batch, with their buffers in the list given."""
    fills = []
    for dtype in dtypes:
        for initializer in initializers(layout):
            buffers.append(layout.buffer(dtype))
            fills.append(Fill(layout.view(buffers[-1]), initializer, SEED, STREAM, layout.region))
        for draw in (Uniform(-0.5, 0.25), Normal(-0.1, 0.5), NEAR):
            steps = (Step(Op.MUL, 0.1, dtype), Step(Op.ADD, 0.7, dtype))
            buffers.append(layout.buffer(dtype))
            fills.append(Fill(layout.view(buffers[-1]), Program(draw, dtype, steps), SEED, STREAM, layout.region))
    for offset in OFFSETS:
        buffers.append(layout.buffer(torch.int32))
        fills.append(Fill(layout.view(buffers[-1]), Bits(offset), SEED, STREAM, layout.region))
    for dtype in (torch.bool, torch.int64, torch.complex128):
        buffers.append(layout.buffer(dtype))
        fills.append(Fill(layout.view(buffers[-1]), Constant(True), 0, 0, layout.region))
    return fills


def raw(buffer: torch.Tensor) -> torch.Tensor:
    return buffer.view(torch.uint8).cpu()
