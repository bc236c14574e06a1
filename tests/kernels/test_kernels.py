"""Every distribution in every dtype, on every instruction set, against tests/support/reference.py: the same bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import reference
from support.bits import REAL, SEED, STREAM, bits_of, check, check_box, dirty, expected, name_of, part_of
from support.parameters import ALL, EMPTY, INF, MIXTURES, NORMAL, PROGRAMS, TRUNCATED, UNIFORM

from torch_fastinit import init
from torch_fastinit.initializers import (
    Constant,
    Dirac,
    Eye,
    Initializer,
    Normal,
    Program,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from torch_fastinit.ops import Fill, Region, fill


def cases(group: dict[str, Initializer]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("initializer", group.values(), ids=[k.replace(" ", "_") for k in group])


# 1147 elements: no multiple of anything, several tiles of the widest lanes and a rest, and a row of 37 cuts each tile.
SHAPE = (31, 37)


@cases({f"{type(v).__name__.lower()}: {k}": v for g in (UNIFORM, NORMAL, TRUNCATED, MIXTURES) for k, v in g.items()})
def test_same_bits(initializer: Initializer, isa: str) -> None:
    for dtype in REAL:
        check(initializer, dirty(SHAPE, dtype))


@cases(EMPTY)
def test_empty_interval(initializer: Initializer) -> None:
    for dtype in REAL:
        check(initializer, dirty((5,), dtype))


@cases(PROGRAMS)
def test_programs(initializer: Program, isa: str) -> None:
    check(initializer, dirty(SHAPE, initializer.steps[-1].dtype))


@cases({k: v for k, v in NORMAL.items() if k != "past the largest float32"} | {"uniform": Uniform(-1.0, 3.0)})
def test_complex(initializer: Initializer, isa: str) -> None:
    for dtype in (torch.complex64, torch.complex128):
        tensor = torch.empty(SHAPE, dtype=dtype)
        fill([Fill(tensor, initializer, SEED, STREAM)])
        np.testing.assert_array_equal(bits_of(tensor), expected(initializer, SHAPE, dtype))


# One element; just less than, exactly and just more than tiles of 16 to 256; many tiles and a rest.
SIZES = [1, 2, 3, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 255, 257, 1000]


@cases(
    {"uniform": Uniform(), "normal": Normal(), "near": TruncatedNormal(), "far": TRUNCATED["8 to 9"]}
    | {"mixture": MIXTURES["d2l"]}
)
def test_sizes(initializer: Initializer, isa: str) -> None:
    for dtype in REAL:
        whole = expected(initializer, (max(SIZES),), dtype)
        for size in SIZES:
            tensor = dirty((size,), dtype)
            fill([Fill(tensor, initializer, SEED, STREAM)])
            np.testing.assert_array_equal(bits_of(tensor), whole[:size])


# Rows of elements, as shards by columns have them: narrower than a block, about a block, about a tile, more. The rows
# of the logical tensor are 2**34 - 10 elements apart: the high half of the block number changes between and in them.
WIDTHS = [1, 2, 3, 5, 16, 61, 64, 130, 259, 1030]


@pytest.mark.parametrize("width", WIDTHS)
@cases({"uniform": Uniform(), "normal": Normal(), "near": TruncatedNormal(), "program": PROGRAMS["scaled"]})
def test_narrow_rows(initializer: Initializer, width: int, isa: str) -> None:
    shape, rows = (9, 2**34 - 10), 7
    for dtype in REAL if not initializer.steps else [torch.float32]:
        for first in (0, 3, 2**34 - 10 - width):
            check_box(initializer, shape, ((1, 1 + rows), (first, first + width)), dtype)
            # and the same rows lying across memory
            tensor = dirty((width, rows), dtype).t()
            fill([part_of(tensor, shape, [(1, 1 + rows), (first, first + width)], initializer)])
            want = expected(initializer, shape, dtype, ((1, 1 + rows), (first, first + width)))
            np.testing.assert_array_equal(bits_of(tensor), want)


# A word of all zeros, of all ones, of one but zero and of one but all ones, in stream 0 of seed 0, found by search. At
# the first, a pair of a float32 normal has its largest radius, and the cosine of its angle is 0.994.
EXTREME_WORDS = {12922966362: 0x00000000, 6153212237: 0xFFFFFFFF, 11600211447: 0x00000001, 1124989170: 0xFFFFFFFE}


@pytest.mark.parametrize("n", EXTREME_WORDS)
def test_extreme_words(n: int, isa: str) -> None:
    assert reference.words(0, 0, n, 1) == [EXTREME_WORDS[n]]
    box = ((n - 3, n + 4),)
    for initializer in (ALL | MIXTURES).values():
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
            tensor = dirty((7,), dtype)
            fill([Fill(tensor, initializer, 0, 0, Region((2**34,), (n - 3,)))])
            want = expected(initializer, (2**34,), dtype, box, seed=0, stream=0)
            np.testing.assert_array_equal(bits_of(tensor), want)


def test_float32_normals_reach_six_and_a_half_sigma() -> None:
    tensor = torch.empty(1)
    fill([Fill(tensor, Normal(), 0, 0, Region((2**34,), (12922966362,)))])
    assert 6.6 < tensor.item() < 6.67
    first = reference.radius32(np.array([0], dtype=np.uint32))
    assert abs(first.item() - math.sqrt(64 * math.log(2))) < 1e-6
    last = reference.radius64(*np.zeros((2, 1), dtype=np.uint32))
    assert abs(last.item() - math.sqrt(126 * math.log(2))) < 1e-14


def limits_in(dtype: torch.dtype, values: torch.Tensor) -> tuple[float, float]:
    return values.double().min().item(), values.double().max().item()


@cases(UNIFORM)
def test_bounds_of_a_uniform_hold_in_the_dtype(initializer: Uniform) -> None:
    for dtype in REAL:
        if reference.bounds(initializer.a, initializer.b, name_of(dtype), initializer.a != initializer.b) is None:
            continue  # test_same_bits and test_empty_interval have these
        tensor = torch.empty(3000, dtype=dtype)
        fill([Fill(tensor, initializer, SEED, STREAM)])
        low, high = limits_in(dtype, tensor)
        assert initializer.a <= low
        assert high < initializer.b or initializer.a == initializer.b


@cases(TRUNCATED)
def test_bounds_of_a_truncated_normal_hold_in_the_dtype(initializer: TruncatedNormal) -> None:
    for dtype in REAL:
        if reference.bounds(initializer.a, initializer.b, name_of(dtype), False) is None:
            continue
        tensor = torch.empty(3000, dtype=dtype)
        fill([Fill(tensor, initializer, SEED, STREAM)])
        low, high = limits_in(dtype, tensor)
        assert initializer.a <= low
        assert high <= initializer.b


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_subnormal=True)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(a=numbers(-1e6, 1e6), width=numbers(0.0, 1e6), dtype=st.sampled_from(REAL))
def test_any_uniform(a: float, width: float, dtype: torch.dtype) -> None:
    check(Uniform(a, a + width), dirty((67,), dtype))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    alpha=numbers(-50.0, 50.0) | st.just(-INF),
    width=st.floats(1e-9, 60.0) | st.just(INF),
    mean=numbers(-10.0, 10.0),
    std=st.floats(1e-6, 100.0),
    dtype=st.sampled_from(REAL),
)
def test_any_truncated_normal(alpha: float, width: float, mean: float, std: float, dtype: torch.dtype) -> None:
    a = mean + std * alpha
    b = INF if width == INF else mean + std * (max(alpha, -50.0) + width)
    check(TruncatedNormal(mean, std, a, b), dirty((67,), dtype))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_sparse(sparsity: float, isa: str) -> None:
    # 131 columns: two tiles and a rest for every lane width; 1 row: all or nothing; 1 column: runs of one
    for shape in ((31, 131), (1, 5), (7, 1)):
        for dtype in REAL:
            check(Sparse(sparsity, 0.5), dirty(shape, dtype))


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (3, 70), (70, 3), (129, 65)])
def test_eye(shape: tuple[int, int]) -> None:
    for dtype in REAL:
        check(Eye(), dirty(shape, dtype))
        if dtype.itemsize > 1:  # torch has no eye_ of float8
            tensor = init.eye_(dirty(shape, dtype))
            assert torch.equal(tensor, torch.nn.init.eye_(dirty(shape, dtype)))


# More inputs than outputs and fewer, in the whole and in a group; even kernels, whose middle is right of the centre.
DIRAC = [
    ((3, 3, 3), 1),
    ((6, 2, 4), 3),
    ((4, 5, 2, 3), 2),
    ((8, 1, 3, 3), 4),
    ((2, 3, 3, 2, 5), 1),
    ((6, 3, 1, 1, 1), 2),
]


@pytest.mark.parametrize(("shape", "groups"), DIRAC)
def test_dirac(shape: tuple[int, ...], groups: int) -> None:
    for dtype in REAL:
        check(Dirac(groups), dirty(shape, dtype))
        if dtype.itemsize > 1:
            tensor = init.dirac_(dirty(shape, dtype), groups)
            assert torch.equal(tensor, torch.nn.init.dirac_(dirty(shape, dtype), groups))


CONSTANT_DTYPES = [
    *REAL,
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.complex64, torch.complex128),
]


@pytest.mark.parametrize("value", [0, 1, 1.0, 0.1, -0.0, True, 100, 1 / 3])
@pytest.mark.parametrize("dtype", CONSTANT_DTYPES, ids=name_of)
def test_constant(dtype: torch.dtype, value: float) -> None:
    for shape in ((), (1,), (3, 21), (65,)):
        tensor = dirty(shape, dtype)
        fill([Fill(tensor, Constant(value))])
        assert_same(tensor, torch.empty(shape, dtype=dtype).fill_(value))
        if dtype in REAL:
            check(Constant(value), tensor)


@pytest.mark.parametrize("value", [1j, complex(math.inf, -0.0), complex(-1.5, math.nan)])
def test_complex_constant(value: complex) -> None:
    for dtype in (torch.complex64, torch.complex128):
        tensor = dirty((3, 5), dtype)
        fill([Fill(tensor, Constant(value))])
        assert_same(tensor, torch.empty(3, 5, dtype=dtype).fill_(value))


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    np.testing.assert_array_equal(bits_of(ours), bits_of(theirs))


def test_nan_is_nan_in_every_dtype() -> None:
    for dtype in REAL:
        tensor = torch.zeros(67, dtype=dtype)
        fill([Fill(tensor, Normal(math.nan, 1.0), SEED, STREAM)])
        assert bool(tensor.float().isnan().all())


def test_eager_fill_is_draw_0_of_stream_0_of_its_seed() -> None:
    torch.manual_seed(7)
    seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None).item())
    torch.manual_seed(7)
    tensor = init.normal_(dirty((65,), torch.float32), 0.5, 2.0)
    np.testing.assert_array_equal(bits_of(tensor), expected(Normal(0.5, 2.0), (65,), torch.float32, None, seed, 0))
    torch.manual_seed(7)
    tensor = init.sparse_(dirty((20, 30), torch.float32), 0.4)
    np.testing.assert_array_equal(bits_of(tensor), expected(Sparse(0.4), (20, 30), torch.float32, None, seed, 0))


def test_second_stream_of_a_sparse_fill() -> None:
    tensor = dirty((20, 30), torch.float64)
    fill([Fill(tensor, Sparse(0.4), SEED, STREAM, None, 99)])
    np.testing.assert_array_equal(
        bits_of(tensor), expected(Sparse(0.4), (20, 30), torch.float64, None, SEED, STREAM, 99)
    )


# Far out: past element 2^33, across 2^34 (where the words of a float32 stream pass block 2^32), and at 2^60 and 2^62.
FAR_BOXES = [
    ((2**20, 2**15), ((2**20 - 3, 2**20), (101, 172))),
    ((2**35,), ((2**34 - 700, 2**34 + 700),)),
    ((2**35,), ((2**33 - 700, 2**33 + 700),)),
    ((5, 2**33 + 1, 3), ((2, 5), (2**33 - 20, 2**33 + 1), (1, 3))),
    ((2**40, 2**20), ((2**40 - 2, 2**40), (5, 170))),
    ((2**62,), ((2**62 - 333, 2**62),)),
]


@pytest.mark.parametrize(("shape", "box"), FAR_BOXES)
def test_far_out(shape: tuple[int, ...], box: tuple, isa: str) -> None:
    for initializer in (Uniform(), Normal(), TruncatedNormal(), TRUNCATED["8 to 9"], MIXTURES["spike and slab"]):
        for dtype in REAL:
            check_box(initializer, shape, box, dtype)


def test_far_out_of_a_matrix() -> None:
    # sparse scans the rows above, so this one is far out by its columns
    check_box(Sparse(0.5), (6, 2**34), ((2, 6), (2**34 - 150, 2**34)), torch.float32)
    check_box(Sparse(0.5), (6, 2**34), ((3, 4), (2**33, 2**33 + 70)), torch.float64)
    check_box(Eye(), (2**20, 2**21), ((2**20 - 9, 2**20), (2**20 - 20, 2**20 + 3)), torch.bfloat16)
    check_box(Eye(), (2**31, 2**31), ((2**31 - 2, 2**31), (2**31 - 65, 2**31)), torch.float16)
    box = ((4090, 4096), (4088, 4095), (30, 34), (31, 33))
    check_box(Dirac(), (4096, 4096, 64, 64), box, torch.float32)
    assert expected(Dirac(), (4096, 4096, 64, 64), torch.float32, box).any()
    box = ((2050, 2054), (0, 7), (31, 34), (32, 33))
    check_box(Dirac(2), (4096, 4096, 64, 64), box, torch.float32)
    assert expected(Dirac(2), (4096, 4096, 64, 64), torch.float32, box).any()


def test_far_out_of_a_complex_tensor() -> None:
    tensor = torch.empty(300, dtype=torch.complex64)
    fill([Fill(tensor, Normal(), SEED, STREAM, Region((2**35,), (2**33 - 100,)))])
    box = ((2**33 - 100, 2**33 + 200),)
    np.testing.assert_array_equal(bits_of(tensor), expected(Normal(), (2**35,), torch.complex64, box))
