"""Regions, strides, batches and threads: where elements lie, and who computes them, never matters to their bits."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from bits import REAL, SEED, STREAM, bits_of, check, dirty, expected, name_of, part_of, sizes_of
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_fastinit import _C, backend
from torch_fastinit.initializers import (
    Bits,
    Constant,
    Dirac,
    Eye,
    Initializer,
    Kind,
    Normal,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from torch_fastinit.ops import Fill, fill

FAR = TruncatedNormal(0.0, 1.0, 8.0, 9.0)
ANY_SHAPE = [Uniform(), Normal(), TruncatedNormal(), FAR]

# A base that the view is part of, and the view: the base's other elements are the guard.
LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]] = {
    "transposed": ((70, 33), lambda t: t.T),
    "every third column": ((9, 200), lambda t: t[:, 1::3]),
    "every second row": ((31, 65), lambda t: t[::2]),
    "columns in the middle": ((9, 150), lambda t: t[:, 7:140]),
    "rows in the middle": ((9, 150), lambda t: t[2:7]),
    "one column": ((150, 9), lambda t: t[:, 4]),
    "from an odd address on": ((1001,), lambda t: t[1:]),
    "dimensions of one": ((3, 1, 70, 1), lambda t: t[:, :, :-1]),
    "expanded to one": ((70,), lambda t: t[1:].unsqueeze(0).expand(1, 69).unsqueeze(1).expand(1, 1, 69)),
    "permuted": ((5, 4, 3, 17), lambda t: t.permute(2, 0, 3, 1)),
    "permuted and sliced": ((6, 4, 3, 17), lambda t: t.permute(3, 1, 0, 2)[2:, :, 1::2]),
    "channels last": ((4, 5, 6, 7), lambda t: t.permute(0, 3, 1, 2)),
    "overlapping windows that do not overlap": ((100,), lambda t: t.as_strided((9, 10), (11, 1))),
    "nine dimensions": ((2, 3, 1, 2, 2, 1, 3, 2, 3), lambda t: t.permute(8, 1, 2, 0, 4, 5, 3, 7, 6)),
    "eleven dimensions, sliced": (
        (3, 2, 2, 3, 2, 2, 3, 2, 2, 2, 3),
        lambda t: t.permute(10, 3, 5, 1, 0, 9, 2, 7, 8, 4, 6)[1:, ..., 1::2],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda k: k.replace(" ", "_"))
@pytest.mark.parametrize("initializer", [*ANY_SHAPE, Constant(0.5)], ids=repr)
def test_any_strides_and_nothing_outside(initializer: Initializer, layout: str, isa: str) -> None:
    shape, view_of = LAYOUTS[layout]
    for dtype in REAL:
        base = dirty(shape, dtype)
        check(initializer, view_of(base))
        guarded = dirty(shape, dtype)
        view_of(guarded).copy_(view_of(base))
        np.testing.assert_array_equal(bits_of(base), bits_of(guarded))


def test_sparse_and_ones_in_any_strides() -> None:
    for dtype in REAL:
        for layout in ("transposed", "every third column", "every second row", "columns in the middle"):
            shape, view_of = LAYOUTS[layout]
            for initializer in (Sparse(0.6), Eye()):
                base, guarded = dirty(shape, dtype), dirty(shape, dtype)
                check(initializer, view_of(base))
                view_of(guarded).copy_(view_of(base))
                np.testing.assert_array_equal(bits_of(base), bits_of(guarded))
        check(Dirac(2), dirty((3, 5, 8, 3), dtype).permute(2, 1, 0, 3))


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 64, 100])
def test_guard_bytes(size: int, isa: str) -> None:
    # stores of whole tiles must not reach past either end, wherever the tensor begins in its memory
    for dtype, initializer, start in itertools.product(REAL, ANY_SHAPE, (0, 1, 5)):
        base = dirty((start + size + 300,), dtype)
        check(initializer, base[start : start + size])
        untouched = dirty(base.shape, dtype)
        for rest in (slice(0, start), slice(start + size, None)):
            np.testing.assert_array_equal(bits_of(base[rest]), bits_of(untouched[rest]))


@pytest.mark.parametrize("initializer", [*ANY_SHAPE, Constant(1.0)], ids=repr)
def test_no_dimensions_and_no_elements(initializer: Initializer) -> None:
    for dtype in REAL:
        check(initializer, dirty((), dtype))
        for shape in ((0,), (3, 0), (0, 3), (2, 0, 3)):
            check(initializer, torch.empty(shape, dtype=dtype))
        if isinstance(initializer, Normal):
            scalar = torch.empty((), dtype=torch.complex64)
            fill([Fill(scalar, initializer, SEED, STREAM)])
            np.testing.assert_array_equal(bits_of(scalar), expected(initializer, (), torch.complex64))


def test_no_elements_of_a_matrix() -> None:
    for shape in ((0, 3), (3, 0), (0, 0)):
        check(Eye(), torch.empty(shape))
        check(Sparse(0.5), torch.empty(shape))
    check(Dirac(), torch.empty(0, 2, 3))
    check(Dirac(), torch.empty(2, 0, 3))


# Splits: every dimension of a logical tensor is cut where Hypothesis says; each box is a fill of its own.


@st.composite
def splits(draw: st.DrawFn, dims: tuple[int, int], largest: int) -> tuple[tuple[int, ...], list[list[tuple[int, int]]]]:
    shape = tuple(draw(st.lists(st.integers(1, largest), min_size=dims[0], max_size=dims[1])))
    ends = []
    for size in shape:
        inner = draw(st.lists(st.integers(0, size), max_size=3))
        cuts = sorted({0, size, *inner})
        ends.append(list(itertools.pairwise(cuts)))
    return shape, [list(box) for box in itertools.product(*ends)]


def check_split(
    initializer: Initializer,
    shape: tuple[int, ...],
    boxes: list[list[tuple[int, int]]],
    dtype: torch.dtype,
    apart: bool,
) -> None:
    """The boxes, as tensors of their own or as parts of one, filled in one batch, are the whole tensor."""
    whole = dirty(shape, dtype)
    places = [tuple(slice(*ends) for ends in box) for box in boxes]
    parts = [dirty(sizes_of(box), dtype) if apart else whole[place] for box, place in zip(boxes, places, strict=True)]
    fill([part_of(part, shape, box, initializer) for part, box in zip(parts, boxes, strict=True)])
    if apart:
        for part, place in zip(parts, places, strict=True):
            whole[place] = part
    np.testing.assert_array_equal(bits_of(whole), expected(initializer, shape, dtype))


COUNT = settings(deadline=None, max_examples=60, derandomize=True)


@COUNT
@given(splits((1, 4), 12), st.sampled_from(ANY_SHAPE), st.sampled_from(REAL), st.booleans())
def test_any_split(split: tuple, initializer: Initializer, dtype: torch.dtype, apart: bool) -> None:
    check_split(initializer, *split, dtype, apart)


@COUNT
@given(splits((1, 2), 300), st.sampled_from(ANY_SHAPE), st.sampled_from(REAL), st.booleans())
def test_any_split_into_long_runs(split: tuple, initializer: Initializer, dtype: torch.dtype, apart: bool) -> None:
    check_split(initializer, *split, dtype, apart)


@COUNT
@given(splits((2, 2), 90), st.sampled_from([Sparse(0.3), Sparse(0.9), Eye()]), st.sampled_from(REAL), st.booleans())
def test_any_split_of_a_matrix(split: tuple, initializer: Initializer, dtype: torch.dtype, apart: bool) -> None:
    check_split(initializer, *split, dtype, apart)


@COUNT
@given(splits((3, 5), 6), st.integers(1, 3), st.sampled_from(REAL), st.booleans())
def test_any_split_of_a_kernel(split: tuple, groups: int, dtype: torch.dtype, apart: bool) -> None:
    shape, boxes = split
    check_split(Dirac(groups if shape[0] % groups == 0 else 1), shape, boxes, dtype, apart)


@COUNT
@given(splits((1, 3), 12), st.sampled_from([torch.complex64, torch.complex128]), st.booleans())
def test_any_split_of_a_complex_tensor(split: tuple, dtype: torch.dtype, apart: bool) -> None:
    check_split(Normal(0.5, 2.0), *split, dtype, apart)


@COUNT
@given(splits((1, 3), 12), st.integers(0, 2**66 - 1))
def test_any_split_of_raw_bits(split: tuple, offset: int) -> None:
    check_split(Bits(offset), *split, torch.int32, True)


# Threads. A batch is cut into pieces of 2^18 elements, and a thread is started for each 2^16.


def test_a_batch_of_everything_on_threads(threads: int, isa: str) -> None:
    plan: list[tuple[Initializer, tuple[int, ...], torch.dtype]] = [
        (Uniform(-1.0, 1.0), (70001,), torch.bfloat16),
        (Normal(), (257, 129), torch.float32),
        (Uniform(), (130003,), torch.float32),
        (Sparse(0.7), (300, 131), torch.float16),
        (TruncatedNormal(), (99, 101), torch.float64),
        (FAR, (1,), torch.float32),
        (Normal(), (3, 1000), torch.float8_e5m2),
        (Eye(), (65, 70), torch.float32),
        (Dirac(), (7, 5, 3), torch.float64),
        (Constant(0.25), (1000,), torch.float8_e4m3fn),
        (Normal(), (0, 3), torch.float32),
        (TruncatedNormal(0.0, 0.02), (), torch.float16),
    ]
    tensors = [dirty(shape, dtype) for _, shape, dtype in plan]
    fill([Fill(t, initializer, SEED, STREAM) for t, (initializer, _, _) in zip(tensors, plan, strict=True)])
    for tensor, (initializer, shape, dtype) in zip(tensors, plan, strict=True):
        np.testing.assert_array_equal(bits_of(tensor), expected(initializer, shape, dtype))


def test_many_small_tensors_on_threads(threads: int) -> None:
    tensors = [dirty((n % 97,), REAL[n % len(REAL)]) for n in range(3000)]
    fill([Fill(t, Normal(), SEED, STREAM + n) for n, t in enumerate(tensors)])
    for n in range(0, 3000, 61):
        want = expected(Normal(), tensors[n].shape, tensors[n].dtype, None, SEED, STREAM + n)
        np.testing.assert_array_equal(bits_of(tensors[n]), want)


PIECE = 2**16


@pytest.mark.parametrize(
    ("initializer", "dtype"),
    [(Uniform(), torch.bfloat16), (Normal(), torch.float32), (Normal(), torch.float64), (FAR, torch.float16)],
    ids=str,
)
def test_one_tensor_on_threads(initializer: Initializer, dtype: torch.dtype, threads: int, isa: str) -> None:
    # The tensor begins in the middle of a block and of a pair. The reference looks where pieces end.
    shape, first, size = (2**40,), 2**33 + 1003, 3 * PIECE + 77
    tensor = dirty((size,), dtype)
    fill([part_of(tensor, shape, [(first, first + size)], initializer)])
    got = bits_of(tensor)
    for seam in (0, PIECE, 2 * PIECE, 3 * PIECE, size):
        start, stop = max(seam - 300, 0), min(seam + 300, size)
        want = expected(initializer, shape, dtype, [(first + start, first + stop)])
        np.testing.assert_array_equal(got[start:stop], want)
    whole = dirty((size,), dtype)
    for start in range(0, size, 50021):  # the same in other portions, each on one thread
        stop = min(start + 50021, size)
        fill([part_of(whole[start:stop], shape, [(first + start, first + stop)], initializer)])
    np.testing.assert_array_equal(got, bits_of(whole))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("start", [0, 1])
def test_stores_past_the_caches(dtype: torch.dtype, start: int, isa: str) -> None:
    """From 64 MiB on, which a store past the caches has to be aligned for: from the second element on it is not."""
    tensor = torch.zeros((64 << 20) // dtype.itemsize + 1000, dtype=dtype)[start:]
    fill([Fill(tensor, Uniform(-1.0, 1.0), SEED, STREAM)])
    part = torch.empty(1 << 20, dtype=dtype)
    for first in range(0, tensor.numel(), 1 << 20):
        some = part[: tensor.numel() - first]
        fill([part_of(some, (tensor.numel(),), [(first, first + some.numel())], Uniform(-1.0, 1.0))])
        np.testing.assert_array_equal(bits_of(tensor[first : first + (1 << 20)]), bits_of(some))


def test_a_sparse_matrix_on_threads(threads: int) -> None:
    # pieces of 128 columns, the last one narrower
    check(Sparse(0.9), dirty((4096, 150), torch.float32))
    box = [(4000, 4096), (64, 150)]
    tensor = dirty(sizes_of(box), torch.float32)
    fill([part_of(tensor, (4096, 150), box, Sparse(0.9))])
    whole = expected(Sparse(0.9), (4096, 150), torch.float32)
    np.testing.assert_array_equal(bits_of(tensor), whole[4000:4096, 64:150])


def test_neighbours_of_all_sizes_on_threads(threads: int) -> None:
    """Threads take small fills together, and large ones (and the columns of sparse ones) in parts."""
    shapes = [(1,), (7,), (3 * PIECE,), (5,), (2, 700), (1,), (0, 4), (3, 300), (5000, 1), (PIECE,), (4096,), (1,)]
    fills, alone = [], []
    for n, shape in enumerate(shapes):
        initializer = Sparse(0.5) if len(shape) == 2 else Normal()
        fills.append(Fill(dirty(shape, torch.float32), initializer, SEED, STREAM + n))
        alone.append(dirty(shape, torch.float32))
        fill([Fill(alone[-1], initializer, SEED, STREAM + n)])  # on one thread, but for the large ones
    fill(fills)
    for one, other in zip(fills, alone, strict=True):
        assert torch.equal(one.tensor, other)


def test_calls_at_once_share_the_threads() -> None:
    """Eight callers, each with work for three threads: every one gets all of its own elements."""
    tensors = [dirty((3 * PIECE + n,), torch.float32) for n in range(8)]
    recipe = (int(Kind.NORMAL), SEED, STREAM - 2**64, 2, 0, 0)

    def call(tensor: torch.Tensor) -> None:
        for _ in range(5):
            _C.fill_cpu([tensor], backend.DTYPE_CODES, recipe, (0.0, 1.0), 3)

    callers = [threading.Thread(target=call, args=(t,)) for t in tensors]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for tensor in tensors:
        assert torch.equal(tensor[: 3 * PIECE], tensors[0][: 3 * PIECE])
    np.testing.assert_array_equal(bits_of(tensors[0][:1000]), expected(Normal(), (1000,), torch.float32))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_a_forked_process_has_threads_of_its_own() -> None:
    def digest() -> bytes:
        tensor = torch.empty(4 * PIECE)  # torch's own threads do not survive fork(): it must not fill this one
        _C.fill_cpu([tensor], backend.DTYPE_CODES, (int(Kind.NORMAL), 1, 2, 2, 0, 0), (0.0, 1.0), 4)
        return hashlib.sha256(tensor.numpy().tobytes()).digest()

    ours = digest()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork() beside threads, which is the point
        child = os.fork()
    if child == 0:
        signal.alarm(60)  # rather than wait for threads that only the parent has
        os.write(writing, digest())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        theirs = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert theirs == ours


# The floating-point mode of the caller.

SMALL = [
    Uniform(-1e-310, 1e-308),
    Uniform(-1e-40, 1e-38),
    Uniform(0.0, 1e-36),
    Normal(0.0, 1e-40),
    Normal(0.0, 1e-309),
    TruncatedNormal(0.0, 1e-21, 1.0, float("inf")),
    TruncatedNormal(0.0, 1e-310, -1e-309, 1e-309),
    TruncatedNormal(0.0, 1.0, 30.0, 39.0),
]


def fill_flushed(fills: list[Fill]) -> None:
    """Fill while the calling thread flushes subnormals, and see that it still does afterwards."""
    subnormal = torch.tensor([1e-39])
    assert torch.set_flush_denormal(True)
    try:
        fill(fills)
        flushing = (subnormal * 1.0).item() == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert flushing, "the caller's mode is gone"


@pytest.mark.parametrize("initializer", SMALL, ids=repr)
def test_flushed_subnormals_of_the_caller(initializer: Initializer, isa: str) -> None:
    tensors = [dirty((67,), dtype) for dtype in REAL]
    fill_flushed([Fill(t, initializer, SEED, STREAM) for t in tensors])
    for tensor in tensors:
        np.testing.assert_array_equal(
            bits_of(tensor), expected(initializer, (67,), tensor.dtype), name_of(tensor.dtype)
        )


def test_flushed_subnormals_of_the_caller_on_threads(threads: int) -> None:
    tensor = dirty((2 * PIECE + 100,), torch.float32)  # three pieces: threads inherit the mode of who starts them
    fill_flushed([Fill(tensor, Uniform(-1e-40, 1e-38), SEED, STREAM)])
    for start in (0, PIECE, 2 * PIECE):
        want = expected(Uniform(-1e-40, 1e-38), tensor.shape, torch.float32, [(start, start + 100)])
        np.testing.assert_array_equal(bits_of(tensor[start : start + 100]), want)


# What does not make sense is refused, by an exception and before anything is written.


def describe(tensor: torch.Tensor, code: int = 0) -> list[int]:
    return [tensor.data_ptr(), code, tensor.dim(), *tensor.shape, *tensor.stride()]


T = torch.empty(6, 4)
NORMAL_RECIPE = [int(Kind.NORMAL), 1, 2, 2, 0, 0]

MALFORMED = {
    "a cut layout": (describe(T)[:-1], NORMAL_RECIPE, [0.0, 1.0]),
    "an address alone": ([T.data_ptr()], NORMAL_RECIPE, [0.0, 1.0]),
    "a layout left over": ([*describe(T), 1], NORMAL_RECIPE, [0.0, 1.0]),
    "no recipe": (describe(T), [], []),
    "a cut recipe": (describe(T), NORMAL_RECIPE[:-1], [0.0, 1.0]),
    "a recipe left over": (describe(T), [*NORMAL_RECIPE, 3], [0.0, 1.0]),
    "too few parameters": (describe(T), NORMAL_RECIPE, [0.0]),
    "parameters left over": (describe(T), NORMAL_RECIPE, [0.0, 1.0, 2.0]),
    "a negative number of parameters": (describe(T), [3, 1, 2, -1, 0, 0], []),
    "a huge number of parameters": (describe(T), [3, 1, 2, 2**62, 0, 0], [0.0, 1.0]),
    "a negative number of dimensions": ([T.data_ptr(), 0, -1], NORMAL_RECIPE, [0.0, 1.0]),
    "a huge number of dimensions": ([T.data_ptr(), 0, 2**62, 6, 4], NORMAL_RECIPE, [0.0, 1.0]),
    "two negative sizes": ([T.data_ptr(), 0, 2, -6, -4, 4, 1], NORMAL_RECIPE, [0.0, 1.0]),
    "half a stream of more than 32 bits": (describe(T), [5, 1, 2, 4, 0, 0], [0.5, 1.0, 2.0**32, 0.0]),
    "half a stream that is no number": (describe(T), [5, 1, 2, 4, 0, 0], [0.5, 1.0, 0.0, float("nan")]),
    "an offset of more than 66 bits": (describe(T, 6), [0, 1, 2, 3, 0, 0], [0.0, 0.0, 4.0]),
    "a negative size": ([T.data_ptr(), 0, 2, -6, 4, 4, 1], NORMAL_RECIPE, [0.0, 1.0]),
    "an unknown kind": (describe(T), [99, 1, 2, 2, 0, 0], [0.0, 1.0]),
    "a negative kind": (describe(T), [-1, 1, 2, 2, 0, 0], [0.0, 1.0]),
    "a kind inside of the library": (describe(T), [8, 1, 2, 0, 0, 0], []),
    "an unknown dtype": (describe(T, 7), NORMAL_RECIPE, [0.0, 1.0]),
    "a negative dtype": (describe(T, -1), NORMAL_RECIPE, [0.0, 1.0]),
    "an item of three bytes": (describe(T, 64 + 3), [1, 0, 0, 0, 0, 0], []),
    "an item of 2^32 + 64 + 4 bytes": (describe(T, 2**32 + 64 + 4), [1, 0, 0, 0, 0, 0], []),
    "random numbers of an opaque dtype": (describe(T, 64 + 4), NORMAL_RECIPE, [0.0, 1.0]),
    "random numbers of int32": (describe(T, 6), NORMAL_RECIPE, [0.0, 1.0]),
    "bits of float32": (describe(T), [0, 1, 2, 3, 0, 0], [0.0, 0.0, 0.0]),
    "bits without an offset": (describe(T, 6), [0, 1, 2, 0, 0, 0], []),
    "a normal of three parameters": (describe(T), [3, 1, 2, 3, 0, 0], [0.0, 1.0, 2.0]),
    "a uniform of one": (describe(T), [2, 1, 2, 1, 0, 0], [0.0]),
    "a truncated normal of two": (describe(T), [4, 1, 2, 2, 0, 0], [0.0, 1.0]),
    "sparse without its second stream": (describe(T), [5, 1, 2, 2, 0, 0], [0.5, 1.0]),
    "sparse of a vector": (describe(T[0]), [5, 1, 2, 4, 0, 0], [0.5, 1.0, 0.0, 0.0]),
    "eye of a vector": (describe(T[0]), [6, 0, 0, 0, 0, 0], []),
    "dirac of a matrix": (describe(T), [7, 0, 0, 1, 0, 0], [1.0]),
    "dirac of no groups": (describe(T.reshape(2, 3, 4)), [7, 0, 0, 1, 0, 0], [0.0]),
    "dirac of NaN groups": (describe(T.reshape(2, 3, 4)), [7, 0, 0, 1, 0, 0], [float("nan")]),
    "a region of another rank": (describe(T), [3, 1, 2, 2, 1, 0, 24, 0], [0.0, 1.0]),
    "a region outside": (describe(T), [3, 1, 2, 2, 2, 0, 7, 4, 2, 0], [0.0, 1.0]),
    "a region before the beginning": (describe(T), [3, 1, 2, 2, 2, 0, 7, 4, -1, 0], [0.0, 1.0]),
    "a logical tensor smaller than its region": (describe(T), [3, 1, 2, 2, 2, 0, 5, 4, 0, 0], [0.0, 1.0]),
    "a logical tensor of 2^64 elements": (describe(T), [3, 1, 2, 2, 2, 0, 2**32, 2**32, 0, 0], [0.0, 1.0]),
    "a negative number of steps": (describe(T), [3, 1, 2, 2, 0, -1], [0.0, 1.0]),
    "steps without their draw": (describe(T), [3, 1, 2, 2, 0, 1], [0.0, 1.0, 2.0]),
    "a step without its operand": (describe(T), [3, 1, 2, 2, 0, 1, 0, 1, 0], [0.0, 1.0]),
    "a step of an unknown kind": (describe(T), [3, 1, 2, 2, 0, 1, 0, 4, 0], [0.0, 1.0, 2.0]),
    "a step in an unknown dtype": (describe(T), [3, 1, 2, 2, 0, 1, 0, 1, 7], [0.0, 1.0, 2.0]),
    "a step in float64 for float32": (describe(T), [3, 1, 2, 2, 0, 2, 0, 1, 1, 0, 0], [0.0, 1.0, 2.0, 3.0]),
    "a draw in float64 for float32": (describe(T), [3, 1, 2, 2, 0, 1, 1, 1, 0], [0.0, 1.0, 2.0]),
    "a draw in int32": (describe(T), [3, 1, 2, 2, 0, 1, 6, 1, 0], [0.0, 1.0, 2.0]),
    "a program that ends in another dtype": (describe(T), [3, 1, 2, 2, 0, 1, 0, 1, 3], [0.0, 1.0, 2.0]),
    "too many steps": (describe(T), [3, 1, 2, 2, 0, 7, 0, *([1, 0] * 7)], [0.0, 1.0, *([2.0] * 7)]),
    "steps after a constant": (describe(T), [1, 0, 0, 0, 0, 1, 0, 1, 0], [2.0]),
    "steps after sparse": (describe(T), [5, 1, 2, 4, 0, 1, 0, 1, 0], [0.5, 1.0, 0.0, 0.0, 2.0]),
    "steps of a dtype without arithmetic": (describe(T, 6), [3, 1, 2, 2, 0, 1, 0, 1, 0], [0.0, 1.0, 2.0]),
    "a cut region": (describe(T), [3, 1, 2, 2, 2, 0, 6, 4, 0], [0.0, 1.0]),
}


@pytest.mark.parametrize("batch", MALFORMED.values(), ids=[k.replace(" ", "_") for k in MALFORMED])
def test_malformed_batch(batch: tuple[list[int], list[int], list[float]]) -> None:
    T.fill_(7.0)
    layout, recipe, params = batch
    with pytest.raises(ValueError, match="malformed batch"):
        _C.fill_cpu(layout, None, recipe, params, 1)
    assert bool((T == 7.0).all())


def test_a_bad_fill_stops_the_whole_batch() -> None:
    T.fill_(7.0)
    with pytest.raises(ValueError, match="malformed batch"):
        _C.fill_cpu(describe(T) * 2, None, [*NORMAL_RECIPE, 99, 0, 0, 0, 0, 0], [0.0, 1.0], 1)
    assert bool((T == 7.0).all())


@pytest.mark.parametrize("count", [-(2**31), -1, 0])
def test_no_threads_is_one(count: int) -> None:
    tensor = dirty((6, 4), torch.float32)
    _C.fill_cpu(describe(tensor), None, [int(Kind.NORMAL), SEED, STREAM - 2**64, 2, 0, 0], [0.0, 1.0], count)
    np.testing.assert_array_equal(bits_of(tensor), expected(Normal(), (6, 4), torch.float32))


def test_unknown_instruction_set() -> None:
    before = _C.instruction_set()
    with pytest.raises(ValueError, match="pdp11"):
        _C.set_instruction_set("pdp11")
    assert _C.instruction_set() == before
