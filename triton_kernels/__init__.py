"""The fills in Triton, for GPUs that the compiled kernels do not serve: the same bits.

Knows nothing of the package around it. Integers of 64 bits and bit patterns of constants are its whole interface:
:func:`fill` takes what ``torch_fastinit._C.lowered`` gives.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from . import kernels

__all__ = ["fill"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SPARSE, _F64, _CONSTANT = kernels.SPARSE.value, kernels.F64.value, kernels.CONSTANT.value
_TRUNCATED_NORMAL = kernels.TRUNCATED_NORMAL.value
_MIXTURE = kernels.MIXTURE.value
_PATTERNED = (_CONSTANT, kernels.DIAGONALS.value)

#: Blocks of a tile, tiles of a program, elements of a program that takes them one by one.
BLOCK, TILES, ELEMENTS = 512, 8, 512
#: Blocks of a tile where rows are short.
ROW_BLOCKS = (512, 256, 128, 64, 32)
WARPS = 4
OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}

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


def _ceil_div(a: int, b: int) -> int:
    """`triton.cdiv`, which takes as long as a launch."""
    return -(-a // b)


def _halves(word: int) -> tuple[int, int]:
    return word & 0xFFFFFFFF, (word >> 32) & 0xFFFFFFFF


@functools.lru_cache(maxsize=1024)
def _patterns(count: int, values: tuple[float, ...], f64: bool) -> tuple[int, ...]:
    """Bit patterns of floating constants, padded with zeros to ``count``."""
    padded = (*values, *(0.0,) * (count - len(values)))
    return struct.unpack(f"<{count}{'q' if f64 else 'i'}", struct.pack(f"<{count}{'d' if f64 else 'f'}", *padded))


def _constants(f: Fill) -> tuple[int, ...]:
    """The distribution's constants, then the operands of the steps after the draw."""
    f64 = f["dtype"] == _F64
    if f["kind"] == _MIXTURE:
        return (f["table"].data_ptr(), len(f["components"]), *(0,) * 16)
    operands = tuple([operand for _, _, operand in f["program"]])
    return _patterns(12, tuple(f.get("constants", ())), f64) + _patterns(6, operands, f64)


def _table(f: Fill, device: torch.device) -> torch.Tensor:
    """A mixture's components as the kernels read them: six words each, two of them integers."""
    wide = f["dtype"] == _F64
    given, words = ("<2q4d", "<6q") if wide else ("<2i4f", "<6i")
    rows = [struct.unpack(words, struct.pack(given, *component)) for component in f["components"]]
    return torch.tensor(rows, dtype=torch.int64 if wide else torch.int32).to(device, non_blocking=True)


def _program(f: Fill) -> int:
    """The steps after the draw, as one number: what they are, without their operands."""
    return sum((1 + op + 4 * dtype) << (6 * n) for n, (op, dtype, _) in enumerate(f["program"]))


def _form(f: Fill) -> int:
    """How truncated normals are made; NEAR_WITHOUT_TAIL where no word gives a tail probability that takes the tail.

    The tail begins where -2 log(4 p (1 - p)) > 10 (docs/stream.md, section 7), that is below exp(-5) = 0.006738. The
    least p of a side is its base: step and t are not negative, and p is at most 1/2. The margin is a thousand times
    what rounding and the logarithm's polynomial can do.
    """
    form: int = f.get("form", 0)
    if f["kind"] == _TRUNCATED_NORMAL and form == 0:
        least = min(f["constants"][5:7])
        if 4.0 * least * (1.0 - least) > 0.0068:
            return kernels.NEAR_WITHOUT_TAIL.value  # type: ignore[no-any-return]
    return form


def _key(f: Fill) -> tuple[int, ...]:
    return (*_halves(f["seed"]), *_halves(f["stream"]))


#: Compiled kernels, ready to be launched: to look one up takes Triton several times as long as the launch.
_compiled: dict[tuple[Any, ...], Any] = {}


def _launch(
    kernel: Any,
    grid: tuple[int, int, int],
    to: torch.Tensor,
    integers: tuple[int, ...],
    *fixed: Any,
    warps: int = WARPS,
) -> None:
    """Launch ``kernel`` with its arguments in order; ``fixed`` are those that it is compiled for."""
    # All else that Triton compiles for: the device, and whether the memory starts at a multiple of 16 bytes. (Integers
    # do not specialise a kernel.)
    known = (kernel, to.device, to.dtype, to.data_ptr() % 16 == 0, fixed)
    compiled = _compiled.get(known)
    if compiled is not None:
        compiled[grid](to, *integers, *fixed)
        return
    compiled = kernel[grid](to, *integers, *fixed, **{**OPTIONS, "num_warps": warps})
    if compiled is not None:  # the interpreter compiles nothing
        _compiled[known] = compiled


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
    if f["kind"] == _MIXTURE:
        # Its memory goes back to torch's allocator after the launches, which gives it to nothing that runs before them.
        f = {**f, "table": _table(f, tensor.device)}
    if f["kind"] == _SPARSE:
        _sparse(to, offset, f)
    elif f["kind"] == _CONSTANT and f["strides"] == (1,):
        low, bits = f["pattern"][0], 8 * f["item_size"]
        low &= (1 << bits) - 1
        to[offset : offset + f["sizes"][0]].fill_(low - (low >> (bits - 1) << bits))
    elif f["kind"] not in _PATTERNED and f["strides"] == (1,) and f["logical_strides"] == (1,):
        _run(to, offset, f)
    elif f["kind"] in _PATTERNED or not _rows(to, offset, f):
        for start, sizes, strides, logical_strides, first in _boxes(f):
            _scattered(to, offset + start, sizes, strides, logical_strides, first, f)


def _run(to: torch.Tensor, offset: int, f: Fill) -> None:
    """Neighbours: whole tiles where an address allows 16 bytes at a time, then what is left, under a mask."""
    per = 2 if f["dtype"] == _F64 else 4
    size, first = f["sizes"][0], f["first"]
    done = 0
    while done < size:
        block, skip = _block_of(f, first + done)
        # No further than the next change of the block number's high half.
        count = min(size - done, (2**32 - (block & 0xFFFFFFFF)) * per - skip)
        start = offset + done
        tiles = count // (BLOCK * TILES * per)
        if skip == 0 and tiles > 0 and _is_aligned(to, start, f):
            count = tiles * BLOCK * TILES * per
            _launch_run(to, start, skip, block, f, 1, count, tiles, tiles=TILES, aligned=True)
        else:
            _launch_run(to, start, skip, block, f, 1, count, _ceil_div(skip + count, BLOCK * per))
        done += count


def _rows(to: torch.Tensor, offset: int, f: Fill) -> bool:
    """Rows of neighbours, if this is what a fill is, and they are long enough for it; False without a launch if not."""
    per = 2 if f["dtype"] == _F64 else 4
    if len(f["sizes"]) != 2 or f["strides"][1] != 1 or f["logical_strides"][1] != 1:
        return False
    (rows, count), stride, logical_stride = f["sizes"], f["strides"][0], f["logical_strides"][0]
    (block, skip), (last, _) = _block_of(f, f["first"]), _block_of(f, f["first"] + (rows - 1) * logical_stride + count)
    in_step = logical_stride % per == 0
    blocks = _ceil_div((skip if in_step else per - 1) + count, per)
    if blocks < ROW_BLOCKS[-1] // 2 or block >> 32 != last >> 32:
        return False
    # The largest tile that overshoots a row by a quarter of it at most.
    tile = next((n for n in ROW_BLOCKS if 4 * n * _ceil_div(blocks, n) <= 5 * blocks), ROW_BLOCKS[-1])
    programs = _ceil_div(blocks, tile)
    whole = in_step and skip == 0 and count == programs * tile * per
    aligned = whole and _is_aligned(to, offset, f) and stride * f["item_size"] % 16 == 0 and stride % 16 == 0
    _launch_run(to, offset, skip, block, f, rows, count, programs, stride, logical_stride, width=tile, aligned=aligned)
    return True


def _block_of(f: Fill, index: int) -> tuple[int, int]:
    """The number of the block where a logical index lies, and how many elements it is into it."""
    per = 2 if f["dtype"] == _F64 else 4
    return (f["first_block"] + index // per) & (2**64 - 1), index % per


def _is_aligned(to: torch.Tensor, offset: int, f: Fill) -> bool:
    return offset * f["item_size"] % 16 == 0 and offset % 16 == 0 and to.data_ptr() % 16 == 0


def _launch_run(
    to: torch.Tensor,
    offset: int,
    skip: int,
    block: int,
    f: Fill,
    rows: int,
    count: int,
    per_row: int,
    stride: int = 0,
    logical_stride: int = 0,
    *,
    width: int = BLOCK,
    tiles: int = 1,
    aligned: bool = False,
) -> None:
    where = (offset, skip, count, per_row, stride, logical_stride, *_halves(block))
    integers = (*where, *_key(f), f.get("threshold", 0), *_constants(f))
    fixed = (f["kind"], f["dtype"], f["item_size"], _form(f), _program(f), width, tiles, aligned)
    _launch(kernels.run, (rows * per_row, 1, 1), to, integers, *fixed, warps=max(1, WARPS * width // BLOCK))


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
    grid = (_ceil_div(count, ELEMENTS), 1, 1)
    where = (offset, count, sizes[1], sizes[2], *strides, *logical_strides, *_halves(first))
    if f["kind"] in _PATTERNED:
        low = f["pattern"][0]
        integers = (*where, low - (low >> 63 << 64), *f.get("diagonals", (0, 0, 1, 0, 1)))
        _launch(kernels.patterned, grid, to, integers, f["kind"], f["item_size"], ELEMENTS)
        return
    integers = (*where, *_halves(f["first_block"]), *_key(f), f.get("threshold", 0), *_constants(f))
    fixed = (f["kind"], f["dtype"], f["item_size"], _form(f), _program(f), ELEMENTS)
    _launch(kernels.scattered, grid, to, integers, *fixed)


def _sparse(to: torch.Tensor, offset: int, f: Fill) -> None:
    # Parts of a column: enough to fill a device; the shorter they are, the more often the words above are drawn again.
    block, threads, shortest = 128, 1 << 16, 64
    rows, columns = f["sizes"]
    parts = max(1, min(threads // columns, rows // shortest))
    part = _ceil_div(rows, parts)
    *matrix, second = f["sparse"]
    grid = (_ceil_div(columns, block), _ceil_div(rows, part), 1)
    integers = (offset, rows, columns, *f["strides"], *matrix, part, *_key(f), *_halves(second), *_constants(f)[:2])
    _launch(kernels.sparse, grid, to, integers, f["dtype"], f["item_size"], block)
