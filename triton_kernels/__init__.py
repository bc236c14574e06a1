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


def _launch(kernel: Any, grid: tuple[int, int, int], to: torch.Tensor, integers: tuple[int, ...], *fixed: Any) -> None:
    """Launch ``kernel`` with its arguments in order; ``fixed`` are those that it is compiled for."""
    # All else that Triton compiles for: the device, and whether the memory starts at a multiple of 16 bytes. (Integers
    # do not specialise a kernel.)
    known = (kernel, to.device, to.dtype, to.data_ptr() % 16 == 0, fixed)
    compiled = _compiled.get(known)
    if compiled is not None:
        compiled[grid](to, *integers, *fixed)
        return
    compiled = kernel[grid](to, *integers, *fixed, **OPTIONS)
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
            programs = _ceil_div(count, BLOCK * per)
        _launch_run(to, origin, skip, count, block, programs, tiles, aligned, f)
        done += count - skip


def _launch_run(
    to: torch.Tensor, origin: int, skip: int, count: int, block: int, programs: int, tiles: int, aligned: bool, f: Fill
) -> None:
    integers = (origin, skip, count, *_halves(block), *_key(f), f.get("threshold", 0), *_constants(f))
    fixed = (f["kind"], f["dtype"], f["item_size"], _form(f), _program(f), BLOCK, tiles, aligned)
    _launch(kernels.run, (programs, 1, 1), to, integers, *fixed)


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
