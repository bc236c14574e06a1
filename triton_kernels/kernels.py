"""The kernels: where values go. csrc/cuda_kernels.cuh has the same paths, but for one launch a fill here.

Integers travel as the halves or the bit patterns that they are (floating constants too), and none of them specialises a
kernel: it is compiled once for each distribution, dtype and kind of program. ``k`` is the distribution's constants in
the order of ``lowered``, ``p`` the operands of the steps after the draw, ``PROGRAM`` what they are (see ``run_steps``).
"""

import triton
import triton.language as tl
from triton.language import constexpr

from .distributions import (
    clamp,
    mixture,
    mixture64,
    normal_pair,
    normal_pair64,
    round_to,
    run_steps,
    run_steps64,
    to_float,
    truncated_normal,
    truncated_normal64,
    uniform64,
)
from .philox import philox

# The codes of torch_fastinit/codes.py.
BITS, CONSTANT, UNIFORM, NORMAL, TRUNCATED_NORMAL = (constexpr(n) for n in range(5))
SPARSE, MIXTURE, DIAGONALS, F64 = constexpr(5), constexpr(8), constexpr(9), constexpr(1)
# A form that csrc/fill.h does not have: near, where no element takes the tail.
NEAR_WITHOUT_TAIL = constexpr(3)

INTEGERS = [
    *(
        "offset",
        "count",
        "per_row",
        "first_lo",
        "first_hi",
        "seed_lo",
        "seed_hi",
        "stream_lo",
        "stream_hi",
        "threshold",
    ),
    *(f"c{n}" for n in range(12)),
    *(f"p{n}" for n in range(6)),
    *(f"{name}{n}" for name in ("size", "stride", "logical_stride") for n in range(3)),
    *("block_lo", "block_hi", "second_lo", "second_hi", "rows", "cols", "zeros", "row0", "col0", "part"),
    *("start", "groups", "group_step", "diagonal", "step", "low", "high", "skip", "per_row"),
]


@triton.jit
def unsigned(x):
    """The low 32 bits of an integer argument."""
    return tl.cast(x, tl.int64).to(tl.uint32)


@triton.jit
def wide(lo, hi):
    """A 64-bit word from its halves."""
    return (tl.cast(hi, tl.int64).to(tl.uint64) << 32) | unsigned(lo).to(tl.uint64)


@triton.jit
def constant(x, DTYPE: tl.constexpr):
    """A floating constant from its bit pattern."""
    if DTYPE == F64:
        return tl.cast(x, tl.int64).to(tl.float64, bitcast=True)
    else:
        return unsigned(x).to(tl.float32, bitcast=True)


@triton.jit
def constants(KIND: tl.constexpr, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, DTYPE: tl.constexpr):
    if KIND == MIXTURE:
        return c0, c1  # of no length: where they are, and how many
    else:
        return (
            constant(c0, DTYPE),
            constant(c1, DTYPE),
            constant(c2, DTYPE),
            constant(c3, DTYPE),
            constant(c4, DTYPE),
            constant(c5, DTYPE),
            constant(c6, DTYPE),
            constant(c7, DTYPE),
            constant(c8, DTYPE),
            constant(c9, DTYPE),
            constant(c10, DTYPE),
            constant(c11, DTYPE),
        )


@triton.jit
def operands(p0, p1, p2, p3, p4, p5, DTYPE: tl.constexpr):
    return (
        constant(p0, DTYPE),
        constant(p1, DTYPE),
        constant(p2, DTYPE),
        constant(p3, DTYPE),
        constant(p4, DTYPE),
        constant(p5, DTYPE),
    )


@triton.jit
def values32(w, PAIR: tl.constexpr, KIND: tl.constexpr, FORM: tl.constexpr, PROGRAM: tl.constexpr, threshold, k, p):
    """Float32 bit patterns of two words, which are a pair of a normal."""
    w0, w1 = w
    if KIND == UNIFORM:
        e0 = (clamp(tl.fma(to_float(w0 >> 8), k[0], k[1]), k[2], k[3])).to(tl.uint32, bitcast=True)
        e1 = (clamp(tl.fma(to_float(w1 >> 8), k[0], k[1]), k[2], k[3])).to(tl.uint32, bitcast=True)
    elif KIND == NORMAL or KIND == SPARSE:
        even, odd = normal_pair(w0, w1)
        e0 = tl.fma(even, k[1], k[0]).to(tl.uint32, bitcast=True)
        e1 = tl.fma(odd, k[1], k[0]).to(tl.uint32, bitcast=True)
    elif KIND == TRUNCATED_NORMAL:
        e0 = truncated_normal(w0, threshold, FORM, k).to(tl.uint32, bitcast=True)
        e1 = e0
        if PAIR:
            e1 = truncated_normal(w1, threshold, FORM, k).to(tl.uint32, bitcast=True)
    elif KIND == MIXTURE:
        e0 = mixture(w0, FORM, k).to(tl.uint32, bitcast=True)
        e1 = e0
        if PAIR:
            e1 = mixture(w1, FORM, k).to(tl.uint32, bitcast=True)
    else:
        e0, e1 = w0, w1
    if PROGRAM != 0:
        e0, e1 = run_steps(e0, PROGRAM, p), run_steps(e1, PROGRAM, p)
    return e0, e1


@triton.jit
def values64(w, KIND: tl.constexpr, FORM: tl.constexpr, PROGRAM: tl.constexpr, threshold, k, p):
    """The two float64 bit patterns of a block."""
    w0, w1, w2, w3 = w
    if KIND == UNIFORM:
        e0, e1 = uniform64(w0, w1, k), uniform64(w2, w3, k)
    elif KIND == TRUNCATED_NORMAL:
        e0 = truncated_normal64(w0, w1, threshold, FORM, k)
        e1 = truncated_normal64(w2, w3, threshold, FORM, k)
    elif KIND == MIXTURE:
        e0, e1 = mixture64(w0, w1, FORM, k), mixture64(w2, w3, FORM, k)
    else:
        e0, e1 = normal_pair64(w0, w1, w2, w3, k)
    if PROGRAM != 0:
        e0, e1 = run_steps64(e0, PROGRAM, p), run_steps64(e1, PROGRAM, p)
    return e0.to(tl.uint64, bitcast=True), e1.to(tl.uint64, bitcast=True)


@triton.jit
def store(pointers, value, mask, BYTES: tl.constexpr):
    """The low bytes of a word."""
    if BYTES == 8:
        tl.store(pointers, value.to(tl.int64, bitcast=True), mask)
    elif BYTES == 4:
        tl.store(pointers, value.to(tl.int32, bitcast=True), mask)
    elif BYTES == 2:
        tl.store(pointers, value.to(tl.int16), mask)
    else:
        tl.store(pointers, value.to(tl.int8), mask)


@triton.jit(do_not_specialize=INTEGERS)
def run(
    to,
    offset: "i64",
    skip: "i64",
    count: "i64",
    per_row: "i64",
    stride0: "i64",
    logical_stride0: "i64",
    block_lo: "i64",
    block_hi: "i64",
    seed_lo: "i64",
    seed_hi: "i64",
    stream_lo: "i64",
    stream_hi: "i64",
    threshold: "i64",
    c0: "i64",
    c1: "i64",
    c2: "i64",
    c3: "i64",
    c4: "i64",
    c5: "i64",
    c6: "i64",
    c7: "i64",
    c8: "i64",
    c9: "i64",
    c10: "i64",
    c11: "i64",
    p0: "i64",
    p1: "i64",
    p2: "i64",
    p3: "i64",
    p4: "i64",
    p5: "i64",
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    BYTES: tl.constexpr,
    FORM: tl.constexpr,
    PROGRAM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Rows of ``count`` neighbouring elements, ``per_row`` programs a row; each has tiles of whole blocks.

    The first element lies at ``offset``, and ``skip`` elements into its block; all blocks of a row share the high half
    of their number. ALIGNED: every row begins with a block, at a multiple of 16 elements, and is whole tiles.
    """
    PER: tl.constexpr = 2 if DTYPE == F64 else 4
    s0, s1, t0, t1 = unsigned(seed_lo), unsigned(seed_hi), unsigned(stream_lo), unsigned(stream_hi)
    limit = tl.cast(threshold, tl.int64).to(tl.int32)
    k = constants(KIND, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, DTYPE)
    p = operands(p0, p1, p2, p3, p4, p5, DTYPE)
    row = tl.cast(tl.program_id(0) // tl.cast(per_row, tl.int32), tl.int64)
    tile = (tl.program_id(0) - row * per_row) * TILES * BLOCK
    first = skip + row * logical_stride0  # from the beginning of the first row's first block
    hi = unsigned(block_hi)
    blocks = unsigned(block_lo) + (first // PER + tile).to(tl.uint32) + tl.arange(0, BLOCK).to(tl.uint32)
    base = tl.cast(offset, tl.int64) + row * stride0 - first % PER + tile * PER
    if ALIGNED:
        base = tl.multiple_of(base, 16)
    pointers = to + base + tl.arange(0, PER * BLOCK)
    at = tile * PER + tl.arange(0, PER * BLOCK) - first % PER  # in the row
    for _ in range(TILES):
        w0, w1, w2, w3 = philox(blocks, hi, s0, s1, t0, t1)
        if DTYPE == F64:
            a, b = values64((w0, w1, w2, w3), KIND, FORM, PROGRAM, limit, k, p)
            e = tl.interleave(a, b)
        else:
            a, b = values32((w0, w1), True, KIND, FORM, PROGRAM, limit, k, p)
            c, d = values32((w2, w3), True, KIND, FORM, PROGRAM, limit, k, p)
            a, b, c, d = round_to(a, DTYPE), round_to(b, DTYPE), round_to(c, DTYPE), round_to(d, DTYPE)
            e = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
        if ALIGNED:
            store(pointers, e, None, BYTES)
        else:
            store(pointers, e, (at >= 0) & (at < count), BYTES)
        blocks += tl.full((), BLOCK, tl.uint32)
        pointers += PER * BLOCK
        at += PER * BLOCK


@triton.jit
def place(item, size1, size2, stride0, stride1, stride2, logical_stride0, logical_stride1, logical_stride2):
    """Where the items of a region with three dimensions lie, and their logical indices from its first element."""
    n1, n2 = tl.cast(size1, tl.int64), tl.cast(size2, tl.int64)
    i2 = item % n2
    rest = item // n2
    i1 = rest % n1
    i0 = rest // n1
    return i0 * stride0 + i1 * stride1 + i2 * stride2, (
        i0 * logical_stride0 + i1 * logical_stride1 + i2 * logical_stride2
    ).to(tl.uint64)


@triton.jit
def values_at(
    index,
    base,
    seed,
    stream,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    FORM: tl.constexpr,
    PROGRAM: tl.constexpr,
    limit,
    k,
    p,
):
    """The bit pattern of each element by itself; ``base`` is the block where index 0 lies."""
    PER: tl.constexpr = 2 if DTYPE == F64 else 4
    block = index // PER + base
    w0, w1, w2, w3 = philox(block.to(tl.uint32), (block >> 32).to(tl.uint32), seed[0], seed[1], stream[0], stream[1])
    odd = (index & 1) != 0
    if DTYPE == F64:
        a, b = values64((w0, w1, w2, w3), KIND, FORM, PROGRAM, limit, k, p)
        return tl.where(odd, b, a)
    else:
        late = (index & 2) != 0
        a, b = tl.where(late, w2, w0), tl.where(late, w3, w1)
        if KIND != NORMAL and KIND != SPARSE:
            a = tl.where(odd, b, a)  # one word an element
            b = a
        a, b = values32((a, b), False, KIND, FORM, PROGRAM, limit, k, p)
        if KIND == NORMAL or KIND == SPARSE:
            a = tl.where(odd, b, a)
        return round_to(a, DTYPE)


@triton.jit(do_not_specialize=INTEGERS)
def scattered(
    to,
    offset: "i64",
    count: "i64",
    size1: "i64",
    size2: "i64",
    stride0: "i64",
    stride1: "i64",
    stride2: "i64",
    logical_stride0: "i64",
    logical_stride1: "i64",
    logical_stride2: "i64",
    first_lo: "i64",
    first_hi: "i64",
    block_lo: "i64",
    block_hi: "i64",
    seed_lo: "i64",
    seed_hi: "i64",
    stream_lo: "i64",
    stream_hi: "i64",
    threshold: "i64",
    c0: "i64",
    c1: "i64",
    c2: "i64",
    c3: "i64",
    c4: "i64",
    c5: "i64",
    c6: "i64",
    c7: "i64",
    c8: "i64",
    c9: "i64",
    c10: "i64",
    c11: "i64",
    p0: "i64",
    p1: "i64",
    p2: "i64",
    p3: "i64",
    p4: "i64",
    p5: "i64",
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    BYTES: tl.constexpr,
    FORM: tl.constexpr,
    PROGRAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Any layout of up to three dimensions, element by element."""
    item = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    where, index = place(
        item, size1, size2, stride0, stride1, stride2, logical_stride0, logical_stride1, logical_stride2
    )
    e = values_at(
        index + wide(first_lo, first_hi),
        wide(block_lo, block_hi),
        (unsigned(seed_lo), unsigned(seed_hi)),
        (unsigned(stream_lo), unsigned(stream_hi)),
        KIND,
        DTYPE,
        FORM,
        PROGRAM,
        tl.cast(threshold, tl.int64).to(tl.int32),
        constants(KIND, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, DTYPE),
        operands(p0, p1, p2, p3, p4, p5, DTYPE),
    )
    store(to + tl.cast(offset, tl.int64) + where, e, item < count, BYTES)


@triton.jit(do_not_specialize=INTEGERS)
def patterned(
    to,
    offset: "i64",
    count: "i64",
    size1: "i64",
    size2: "i64",
    stride0: "i64",
    stride1: "i64",
    stride2: "i64",
    logical_stride0: "i64",
    logical_stride1: "i64",
    logical_stride2: "i64",
    first_lo: "i64",
    first_hi: "i64",
    low: "i64",
    start: "i64",
    groups: "i64",
    group_step: "i64",
    diagonal: "i64",
    step: "i64",
    KIND: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One bit pattern everywhere, or where the diagonals are: ``groups`` of ``diagonal`` ones each."""
    item = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    where, index = place(
        item, size1, size2, stride0, stride1, stride2, logical_stride0, logical_stride1, logical_stride2
    )
    e = tl.zeros([BLOCK], tl.int64) + low
    if KIND == DIAGONALS:
        past = (index + wide(first_lo, first_hi)).to(tl.int64) - start
        group = tl.minimum(past // group_step, groups - 1)
        rest = past - group * group_step
        one = (past >= 0) & (groups > 0) & (rest % step == 0) & (rest // step < diagonal)
        e = tl.where(one, e, 0)
    if BYTES == 4:
        store(to + tl.cast(offset, tl.int64) + where, e.to(tl.uint32), item < count, BYTES)
    else:
        store(to + tl.cast(offset, tl.int64) + where, e, item < count, BYTES)


@triton.jit(do_not_specialize=INTEGERS)
def sparse(
    to,
    offset: "i64",
    size0: "i64",
    size1: "i64",
    stride0: "i64",
    stride1: "i64",
    rows: "i64",
    cols: "i64",
    zeros: "i64",
    row0: "i64",
    col0: "i64",
    part: "i64",
    seed_lo: "i64",
    seed_hi: "i64",
    stream_lo: "i64",
    stream_hi: "i64",
    second_lo: "i64",
    second_hi: "i64",
    c0: "i64",
    c1: "i64",
    DTYPE: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Knuth's Algorithm S down each column: a program has some columns, and of those rows its own part to write."""
    seed = (unsigned(seed_lo), unsigned(seed_hi))
    values = (unsigned(stream_lo), unsigned(stream_hi))
    choices = (unsigned(second_lo), unsigned(second_hi))
    k = (constant(c0, DTYPE), constant(c1, DTYPE))
    column = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    begin = tl.cast(row0, tl.int64) + tl.cast(tl.program_id(1), tl.int64) * part
    end = tl.minimum(begin + part, tl.cast(row0, tl.int64) + size0)
    left = tl.zeros([BLOCK], tl.uint32) + unsigned(zeros)
    index = (column + col0).to(tl.uint64)
    base = tl.zeros([BLOCK], tl.uint64)
    pointers = to + tl.cast(offset, tl.int64) + (begin - row0) * stride0 + column * stride1
    limit = tl.full((), 0, tl.int32)
    for row in range(0, end):
        w = values_at(index, base, seed, choices, BITS, 0, 0, 0, limit, k, k)
        high = ((w.to(tl.uint64) * (tl.cast(rows, tl.int64) - row).to(tl.uint64)) >> 32).to(tl.uint32)
        zero = high < left
        left -= zero.to(tl.uint32)
        if row >= begin:
            e = values_at(index, base, seed, values, SPARSE, DTYPE, 0, 0, limit, k, k)
            store(pointers, tl.where(zero, tl.zeros_like(e), e), column < size1, BYTES)
            pointers += stride0
        index += tl.cast(cols, tl.int64).to(tl.uint64)
