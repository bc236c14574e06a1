"""The fills in Triton, for GPUs that the compiled kernels do not serve: the same bits.

Knows nothing of the package around it. Integers of 64 bits and bit patterns of constants are its whole interface:
:func:`fill` takes what ``torch_fastinit._C.lowered`` gives.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import triton

from . import kernels

__all__ = ["fill"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SPARSE, _F64 = kernels.SPARSE.value, kernels.F64.value
_PATTERNED = (kernels.CONSTANT.value, kernels.DIAGONALS.value)

#: Blocks of a tile, tiles of a program, elements of a program that takes them one by one.
BLOCK, TILES, ELEMENTS = 512, 8, 512
#: A narrow dtype's tile is larger, so that a thread still writes 16 bytes at a time.
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}

Fill = Mapping[str, Any]


def fill(tensors: Sequence[torch.Tensor], fills: Sequence[Fill]) -> None:
    """Run lowered fills of ``tensors``, on the current device and stream; waits for nothing."""
    for f in fills:
        tensor = tensors[f["tensor"]]
        if f["item_size"] == 16:  # a constant: its halves
            low, high = f["pattern"]
            for pattern, place in ((low, 0), (high, 8)):
                half = dict(f, item_size=8, pattern=(pattern, 0), data=f["data"] + place)
                half["strides"] = tuple(2 * stride for stride in f["strides"])
                _fill_one(tensor, half)
        else:
            _fill_one(tensor, f)


def _halves(word: int) -> tuple[int, int]:
    return word & 0xFFFFFFFF, (word >> 32) & 0xFFFFFFFF


def _pattern(value: float, f64: bool) -> int:
    return int(
        struct.unpack("<q", struct.pack("<d", value))[0] if f64 else struct.unpack("<i", struct.pack("<f", value))[0]
    )


def _constants(f: Fill) -> dict[str, int]:
    return _patterns("c", 12, f.get("constants", ()), f)


def _program(f: Fill) -> dict[str, int]:
    """The steps after the draw: what they are, as one number, and their operands."""
    digits = [1 + op + 4 * dtype for op, dtype, _ in f["program"]]
    operands = _patterns("p", 6, [operand for _, _, operand in f["program"]], f)
    return {"PROGRAM": sum(digit << (6 * n) for n, digit in enumerate(digits)), **operands}


def _patterns(letter: str, count: int, values: Sequence[float], f: Fill) -> dict[str, int]:
    padded = [*values, *[0.0] * (count - len(values))]
    return {f"{letter}{n}": _pattern(value, f["dtype"] == _F64) for n, value in enumerate(padded)}


def _key(f: Fill) -> dict[str, int]:
    (seed_lo, seed_hi), (stream_lo, stream_hi) = _halves(f["seed"]), _halves(f["stream"])
    return {"seed_lo": seed_lo, "seed_hi": seed_hi, "stream_lo": stream_lo, "stream_hi": stream_hi}


def _boxes(f: Fill) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...], int]]:
    """The fill as regions of three dimensions: offset, sizes, strides, logical strides, first logical index."""
    sizes, strides, logical_strides = f["sizes"], f["strides"], f["logical_strides"]
    if len(sizes) <= 3:
        pad = 3 - len(sizes)
        yield 0, (1,) * pad + sizes, (0,) * pad + strides, (0,) * pad + logical_strides, f["first"]
        return
    for i in range(sizes[0]):
        inner = {"sizes": sizes[1:], "strides": strides[1:], "logical_strides": logical_strides[1:]}
        inner["first"] = f["first"] + i * logical_strides[0]
        for offset, *box in _boxes(inner):
            yield (offset + i * strides[0], *box)  # type: ignore[misc]


def _fill_one(tensor: torch.Tensor, f: Fill) -> None:
    # The storage as integers, whatever the tensor is: an address becomes an index.
    to = torch.empty(0, dtype=_INTEGERS[f["item_size"]], device=tensor.device)
    to.set_(tensor.untyped_storage())
    offset = (f["data"] - to.data_ptr()) // f["item_size"]
    if f["kind"] == _SPARSE:
        _sparse(to, offset, f)
    elif f["kind"] not in _PATTERNED and f["strides"] == (1,) and f["logical_strides"] == (1,):
        _run(to, offset, f)
    else:
        for start, sizes, strides, logical_strides, first in _boxes(f):
            _scattered(to, offset + start, sizes, strides, logical_strides, first, f)


def _run(to: torch.Tensor, offset: int, f: Fill) -> None:
    """Neighbours: whole tiles where an address allows 16 bytes at a time, then what is left, under a mask."""
    per = 2 if f["dtype"] == _F64 else 4
    size, first = f["sizes"][0], f["first"]
    done = 0
    while done < size:
        index = first + done
        block = (f["first_block"] + index // per) & (2**64 - 1)
        skip = index % per
        # No further than the next change of the block number's high half.
        count = min(size - done + skip, (2**32 - (block & 0xFFFFFFFF)) * per)
        origin = offset + done - skip
        aligned = skip == 0 and origin * f["item_size"] % 16 == 0 and origin % 16 == 0 and to.data_ptr() % 16 == 0
        tile = BLOCK * TILES * per
        programs = count // tile
        if aligned and programs > 0:
            count = programs * tile
            tiles = TILES
        else:
            aligned = False
            tiles = 1
            # Up to where whole tiles can start, if there are any.
            programs = triton.cdiv(count, BLOCK * per)
        _launch_run(to, origin, skip, count, block, programs, tiles, aligned, f)
        done += count - skip


def _launch_run(
    to: torch.Tensor, origin: int, skip: int, count: int, block: int, programs: int, tiles: int, aligned: bool, f: Fill
) -> None:
    block_lo, block_hi = _halves(block)
    kernels.run[(programs,)](
        to,
        origin,
        skip,
        count,
        block_lo,
        block_hi,
        **_key(f),
        threshold=f.get("threshold", 0),
        **_constants(f),
        **_program(f),
        KIND=f["kind"],
        DTYPE=f["dtype"],
        BYTES=f["item_size"],
        FORM=f.get("form", 0),
        BLOCK=BLOCK,
        TILES=tiles,
        ALIGNED=aligned,
        **OPTIONS,
    )


def _scattered(
    to: torch.Tensor,
    offset: int,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    logical_strides: tuple[int, ...],
    first: int,
    f: Fill,
) -> None:
    count = sizes[0] * sizes[1] * sizes[2]
    grid = (triton.cdiv(count, ELEMENTS),)
    first_lo, first_hi = _halves(first)
    where = {
        "size1": sizes[1],
        "size2": sizes[2],
        **{f"stride{n}": stride for n, stride in enumerate(strides)},
        **{f"logical_stride{n}": stride for n, stride in enumerate(logical_strides)},
        "first_lo": first_lo,
        "first_hi": first_hi,
        "KIND": f["kind"],
        "BYTES": f["item_size"],
        "BLOCK": ELEMENTS,
    }
    if f["kind"] in _PATTERNED:
        low = f["pattern"][0]
        names = ("start", "groups", "group_step", "diagonal", "step")
        diagonals = dict(zip(names, f.get("diagonals", (0, 0, 1, 0, 1)), strict=True))
        kernels.patterned[grid](to, offset, count, low=low - (low >> 63 << 64), **where, **diagonals, **OPTIONS)
        return
    block_lo, block_hi = _halves(f["first_block"])
    kernels.scattered[grid](
        to,
        offset,
        count,
        block_lo=block_lo,
        block_hi=block_hi,
        threshold=f.get("threshold", 0),
        DTYPE=f["dtype"],
        FORM=f.get("form", 0),
        **where,
        **_key(f),
        **_constants(f),
        **_program(f),
        **OPTIONS,
    )


def _sparse(to: torch.Tensor, offset: int, f: Fill) -> None:
    # Parts of a column: enough to fill a device; the shorter they are, the more often the words above are drawn again.
    block, threads, shortest = 128, 1 << 16, 64
    rows, columns = f["sizes"]
    parts = max(1, min(threads // columns, rows // shortest))
    part = triton.cdiv(rows, parts)
    *matrix, second = f["sparse"]
    second_lo, second_hi = _halves(second)
    constants = _constants(f)
    kernels.sparse[(triton.cdiv(columns, block), triton.cdiv(rows, part))](
        to,
        offset,
        rows,
        columns,
        *f["strides"],
        **dict(zip(("rows", "cols", "zeros", "row0", "col0"), matrix, strict=True)),
        part=part,
        **_key(f),
        second_lo=second_lo,
        second_hi=second_hi,
        c0=constants["c0"],
        c1=constants["c1"],
        DTYPE=f["dtype"],
        BYTES=f["item_size"],
        BLOCK=block,
        **{"num_warps": 4, "enable_fp_fusion": False},
    )
