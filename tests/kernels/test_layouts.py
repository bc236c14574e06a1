"""Regions, strides, batches and threads: where elements lie, and who computes them, never matters to their bits."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bits import REAL, SEED, STREAM, bits_of, check, dirty, expected, name_of, part_of, sizes_of

from torch_fastinit import _C
from torch_fastinit.codes import DTYPE_CODES, Kind
from torch_fastinit.initializers import (
    Bits,
    Constant,
    Dirac,
    Eye,
    Initializer,
    Mixture,
    Normal,
    Pattern,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from torch_fastinit.ops import Fill, Region, fill

FAR = TruncatedNormal(0.0, 1.0, 8.0, 9.0)
MIXTURE = Mixture(((0.5, Normal(0.0, 0.1)), (0.2, Constant(-0.7)), (0.3, Uniform(0.5, 1.0))))
ANY_SHAPE = [Uniform(), Normal(), TruncatedNormal(), FAR, MIXTURE]

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
def test_stores_that_bypass_the_caches(dtype: torch.dtype, start: int, isa: str) -> None:
    """From 64 MiB on. Such a store has to be aligned: from the second element on it is not."""
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

    def call(tensor: torch.Tensor) -> None:
        for _ in range(5):
            _C.fill_cpu([Fill(tensor, Normal(), SEED, STREAM)], DTYPE_CODES, 3, False, False)

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
        _C.fill_cpu([Fill(tensor, Normal(), 1, 2)], DTYPE_CODES, 4, False, False)
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


T = torch.empty(6, 4)
WORDS = torch.empty(6, 4, dtype=torch.int32)
NORMAL_RECIPE = [int(Kind.NORMAL), 1, 2, 2, 0, 0]

#: Lists as an op gets them: a tensor, the recipe, the parameters.
MALFORMED: dict[str, tuple[torch.Tensor, list[int], list[float]]] = {
    "no recipe": (T, [], []),
    "a cut recipe": (T, NORMAL_RECIPE[:-1], [0.0, 1.0]),
    "a recipe left over": (T, [*NORMAL_RECIPE, 3], [0.0, 1.0]),
    "too few parameters": (T, NORMAL_RECIPE, [0.0]),
    "parameters left over": (T, NORMAL_RECIPE, [0.0, 1.0, 2.0]),
    "a negative number of parameters": (T, [3, 1, 2, -1, 0, 0], []),
    "a huge number of parameters": (T, [3, 1, 2, 2**62, 0, 0], [0.0, 1.0]),
    "a negative number of dimensions": (T, [3, 1, 2, 2, -1, 0], [0.0, 1.0]),
    "a huge number of dimensions": (T, [3, 1, 2, 2, 2**62, 0, 6, 4], [0.0, 1.0]),
    "an offset of more than 66 bits": (WORDS, [0, 1, 2, 0, 0, 0, 0, 4], []),
    "a negative offset": (WORDS, [0, 1, 2, 0, 0, 0, 0, -1], []),
    "half an offset": (WORDS, [0, 1, 2, 0, 0, 0, 0], []),
    "an unknown kind": (T, [99, 1, 2, 2, 0, 0], [0.0, 1.0]),
    "a negative kind": (T, [-1, 1, 2, 2, 0, 0], [0.0, 1.0]),
    "a kind inside of the library": (T, [8, 1, 2, 0, 0, 0], []),
    "random numbers of an opaque dtype": (T.to(torch.int64), NORMAL_RECIPE, [0.0, 1.0]),
    "random numbers of int32": (WORDS, NORMAL_RECIPE, [0.0, 1.0]),
    "bits of float32": (T, [0, 1, 2, 0, 0, 0, 0, 0], []),
    "bits without an offset": (WORDS, [0, 1, 2, 0, 0, 0], []),
    "bits of parameters": (WORDS, [0, 1, 2, 3, 0, 0], [0.0, 0.0, 0.0]),
    "a normal of three parameters": (T, [3, 1, 2, 3, 0, 0], [0.0, 1.0, 2.0]),
    "a uniform of one": (T, [2, 1, 2, 1, 0, 0], [0.0]),
    "a truncated normal of two": (T, [4, 1, 2, 2, 0, 0], [0.0, 1.0]),
    "a constant of a parameter": (T, [1, 0, 0, 1, 0, 0], [1.0]),
    "sparse without its second stream": (T, [5, 1, 2, 2, 0, 0], [0.5, 1.0]),
    "sparse of a vector": (T[0], [5, 1, 2, 2, 0, 0, 3], [0.5, 1.0]),
    "sparse of int32": (WORDS, [5, 1, 2, 2, 0, 0, 3], [0.5, 1.0]),
    "eye of a vector": (T[0], [6, 0, 0, 0, 0, 0], []),
    "dirac of a matrix": (T, [7, 0, 0, 1, 0, 0], [1.0]),
    "dirac of no groups": (T.reshape(2, 3, 4), [7, 0, 0, 1, 0, 0], [0.0]),
    "dirac of NaN groups": (T.reshape(2, 3, 4), [7, 0, 0, 1, 0, 0], [float("nan")]),
    "dirac of endless groups": (T.reshape(2, 3, 4), [7, 0, 0, 1, 0, 0], [float("inf")]),
    "a region of another rank": (T, [3, 1, 2, 2, 1, 0, 24, 0], [0.0, 1.0]),
    "a region outside": (T, [3, 1, 2, 2, 2, 0, 7, 4, 2, 0], [0.0, 1.0]),
    "a region before the beginning": (T, [3, 1, 2, 2, 2, 0, 7, 4, -1, 0], [0.0, 1.0]),
    "a logical tensor smaller than its region": (T, [3, 1, 2, 2, 2, 0, 5, 4, 0, 0], [0.0, 1.0]),
    "a logical tensor of 2^64 elements": (T, [3, 1, 2, 2, 2, 0, 2**32, 2**32, 0, 0], [0.0, 1.0]),
    "a cut region": (T, [3, 1, 2, 2, 2, 0, 6, 4, 0], [0.0, 1.0]),
    "a negative number of steps": (T, [3, 1, 2, 2, 0, -1], [0.0, 1.0]),
    "steps without their draw": (T, [3, 1, 2, 2, 0, 1], [0.0, 1.0, 2.0]),
    "a step without its operand": (T, [3, 1, 2, 2, 0, 1, 0, 1, 0], [0.0, 1.0]),
    "a step of an unknown kind": (T, [3, 1, 2, 2, 0, 1, 0, 4, 0], [0.0, 1.0, 2.0]),
    "a step in an unknown dtype": (T, [3, 1, 2, 2, 0, 1, 0, 1, 7], [0.0, 1.0, 2.0]),
    "a step in float64 for float32": (T, [3, 1, 2, 2, 0, 2, 0, 1, 1, 0, 0], [0.0, 1.0, 2.0, 3.0]),
    "a draw in float64 for float32": (T, [3, 1, 2, 2, 0, 1, 1, 1, 0], [0.0, 1.0, 2.0]),
    "a draw in int32": (T, [3, 1, 2, 2, 0, 1, 6, 1, 0], [0.0, 1.0, 2.0]),
    "a program that ends in another dtype": (T, [3, 1, 2, 2, 0, 1, 0, 1, 3], [0.0, 1.0, 2.0]),
    "too many steps": (T, [3, 1, 2, 2, 0, 7, 0, *([1, 0] * 7)], [0.0, 1.0, *([2.0] * 7)]),
    "steps after a constant": (T, [1, 0, 0, 0, 0, 1, 0, 1, 0], [2.0]),
    "steps after sparse": (T, [5, 1, 2, 2, 0, 1, 3, 0, 1, 0], [0.5, 1.0, 2.0]),
    "steps of a dtype without arithmetic": (WORDS, [3, 1, 2, 2, 0, 1, 0, 1, 0], [0.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("batch", MALFORMED.values(), ids=[k.replace(" ", "_") for k in MALFORMED])
def test_malformed_batch(batch: tuple[torch.Tensor, list[int], list[float]]) -> None:
    tensor, recipe, params = batch
    tensor.fill_(7.0)
    with pytest.raises(ValueError, match=r"malformed (batch|fill): ."):
        torch.ops.fastinit.fill_batch_([tensor], recipe, params)
    assert bool((tensor == 7.0).all())


def test_a_bad_fill_stops_the_whole_batch() -> None:
    T.fill_(7.0)
    with pytest.raises(ValueError, match="malformed batch"):
        torch.ops.fastinit.fill_batch_([T, T], [*NORMAL_RECIPE, 99, 0, 0, 0, 0, 0], [0.0, 1.0])
    with pytest.raises(ValueError, match="malformed fill"):
        fill([Fill(T, Normal()), Fill(T, Normal(), region=Region((7, 4), (2, 0)))])
    assert bool((T == 7.0).all())


# What the C++ entry itself refuses: Python objects that no list describes.


@dataclasses.dataclass
class Described:
    """What C++ asks of a tensor."""

    shape: object = (6, 4)
    strides: object = (4, 1)
    size: int = 4
    dtype: torch.dtype = torch.float32

    def data_ptr(self) -> int:
        return T.data_ptr()

    def stride(self) -> object:
        return self.strides

    def element_size(self) -> int:
        return self.size


@dataclasses.dataclass
class Unknown(Initializer):
    kind: int  # type: ignore[misc]


def a_fill(tensor: object = T, initializer: object = Normal(), **kwargs: object) -> Fill:
    return Fill(tensor, initializer, **kwargs)  # type: ignore[arg-type]


REFUSED: dict[str, tuple[Fill, type[Exception]]] = {
    "a negative size": (a_fill(Described((-6, 4))), ValueError),
    "two negative sizes": (a_fill(Described((-6, -4))), ValueError),
    "fewer strides than sizes": (a_fill(Described(strides=(4,))), ValueError),
    "more strides than sizes": (a_fill(Described(strides=(4, 1, 1))), ValueError),
    "sizes that are no tuple": (a_fill(Described([6, 4])), TypeError),
    "an item of three bytes": (a_fill(Described(size=3, dtype=torch.int64), Pattern((0, 0))), ValueError),
    "an item of 2^32 + 4 bytes": (a_fill(Described(size=2**32 + 4, dtype=torch.int64), Pattern((0, 0))), ValueError),
    "an unknown kind": (a_fill(T, Unknown(99)), ValueError),
    "a negative kind": (a_fill(T, Unknown(-1)), ValueError),
    "a kind inside of the library": (a_fill(T, Unknown(int(Kind.DIAGONALS))), ValueError),
    "sparse without its second stream": (a_fill(T, Sparse(0.5)), ValueError),
    "an offset of more than 66 bits": (a_fill(WORDS, Bits(2**66)), ValueError),
    "a negative offset": (a_fill(WORDS, Bits(-1)), ValueError),
    "a region of fewer offsets": (a_fill(region=Region((6, 4), (0,))), ValueError),
    "a mixture of nothing": (a_fill(T, Mixture(())), ValueError),
    "a mixture of 257": (a_fill(T, Mixture(((1.0, Uniform()),) * 257)), ValueError),
    "a mixture without probability": (a_fill(T, Mixture(((0.0, Uniform()),))), ValueError),
    "a mixture with a negative one": (a_fill(T, Mixture(((2.0, Uniform()), (-1.0, Normal())))), ValueError),
    "a mixture with nan": (a_fill(T, Mixture(((float("nan"), Uniform()),))), ValueError),
    "a mixture of truncated normals": (a_fill(T, Mixture(((1.0, TruncatedNormal()),))), ValueError),
    "a mixture of integers": (a_fill(WORDS, Mixture(((1.0, Uniform()),))), ValueError),
    "a constant that was not made ready": (a_fill(T, Constant(1.0)), AttributeError),
    "a parameter that is no number": (a_fill(T, Normal("0", 1.0)), TypeError),  # type: ignore[arg-type]
    "a seed that is no integer": (a_fill(seed=1.5), TypeError),
    "no fill": (None, AttributeError),  # type: ignore[dict-item]
}


@pytest.mark.parametrize(("bad", "error"), REFUSED.values(), ids=[k.replace(" ", "_") for k in REFUSED])
def test_refused_fill(bad: Fill, error: type[Exception]) -> None:
    T.fill_(7.0)
    for call in (
        lambda fills: _C.fill_cpu(fills, DTYPE_CODES, 1, False, False),
        lambda fills: _C.lowered(fills, DTYPE_CODES),
    ):
        with pytest.raises(error):
            call([Fill(T, Normal()), bad])
    assert bool((T == 7.0).all())


@pytest.mark.parametrize("code", [7, 63, -1, 2**32])
def test_an_unknown_dtype_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match="malformed fill"):
        _C.fill_cpu([Fill(T, Normal())], {torch.float32: code}, 1, False, False)


@pytest.mark.parametrize("arguments", [(), ([],), ([], {}, 1, False), ([], {}, 1, False, False, 1), (3, {}, 1, 0, 0)])
def test_other_arguments_are_refused(arguments: tuple) -> None:
    with pytest.raises(TypeError):
        _C.fill_cpu(*arguments)


@pytest.mark.parametrize("count", [-(2**31), -1, 0])
def test_no_threads_is_one(count: int) -> None:
    tensor = dirty((6, 4), torch.float32)
    _C.fill_cpu([Fill(tensor, Normal(), SEED, STREAM)], DTYPE_CODES, count, False, False)
    np.testing.assert_array_equal(bits_of(tensor), expected(Normal(), (6, 4), torch.float32))


# A batch is any iterable. It is read 256 fills at a time, and other threads begin meanwhile.


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1024, 1300, 2100])
def test_a_batch_in_chunks_is_its_fills_one_by_one(count: int, threads: int) -> None:
    def fills(size: int) -> Iterator[Fill]:
        for n in range(count):
            tensors.append(dirty((size + n % 7,), torch.float32))
            yield Fill(tensors[-1], Normal(), SEED, STREAM + n)

    for size in (3, 300):  # 300: enough for a chunk to wake a thread
        tensors: list[torch.Tensor] = []
        _C.fill_cpu(fills(size), DTYPE_CODES, threads, True, False)
        assert len(tensors) == count
        for n, tensor in enumerate(tensors):
            alone = dirty(tensor.shape, torch.float32)
            fill([Fill(alone, Normal(), SEED, STREAM + n)])
            assert torch.equal(tensor, alone)


def test_tensors_that_only_the_batch_knows_live_until_they_are_filled() -> None:
    """Memory that went back while threads write to it would be other tensors' memory by then."""
    gone: list[int] = []

    def fills() -> Iterator[Fill]:
        for n in range(1500):
            tensor = torch.empty(300)
            weakref.finalize(tensor, gone.append, n)
            yield Fill(tensor, Normal(), 1, n)

    _C.fill_cpu(fills(), DTYPE_CODES, 3, True, False)
    assert sorted(gone) == list(range(1500))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_at_work_when_reading_has_failed(error: type[BaseException]) -> None:
    """Chunks that other threads have begun by then are finished first, so their memory may go."""
    tensors = [torch.zeros(20_000) for _ in range(700)]

    def fills() -> Iterator[Fill]:
        for n, tensor in enumerate(tensors):
            if n == 600:
                raise error
            yield Fill(tensor, Normal(), 1, n)

    with pytest.raises(error):
        _C.fill_cpu(fills(), DTYPE_CODES, 3, True, False)
    assert all(bool(tensor.any()) for tensor in tensors[:512])
    assert not any(bool(tensor.any()) for tensor in tensors[512:])
    for tensor in tensors:
        tensor.zero_()
    time.sleep(0.02)
    assert not any(bool(tensor.any()) for tensor in tensors)


def test_an_iterable_may_fill_others_meanwhile() -> None:
    """Python that runs in the middle of a batch can be a batch itself."""
    inner, outer = dirty((100,), torch.float32), [dirty((100,), torch.float32) for _ in range(300)]

    def fills() -> Iterator[Fill]:
        for n, tensor in enumerate(outer):
            fill([Fill(inner, Normal(), SEED, STREAM)])
            yield Fill(tensor, Normal(), SEED, STREAM + n)

    _C.fill_cpu(fills(), DTYPE_CODES, 2, False, False)
    assert torch.equal(inner, outer[0])
    assert not torch.equal(outer[0], outer[1])


def test_unknown_instruction_set() -> None:
    before = _C.instruction_set()
    with pytest.raises(ValueError, match="pdp11"):
        _C.set_instruction_set("pdp11")
    assert _C.instruction_set() == before
