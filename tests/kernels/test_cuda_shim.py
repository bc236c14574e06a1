"""csrc/cuda.cu as ordinary C++ (tests/support/shim.py): the same bits as the CPU backend and the reference.

What only a GPU can show is in test_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kernels.test_kernels import FAR_BOXES
from support.bits import REAL, SEED, STREAM, bits_of, check, check_box, dirty, expected
from support.layouts import BOXES, LAYOUTS, Layout, batch, raw
from support.parameters import EMPTY, MIXTURES, NORMAL, PROGRAMS, TRUNCATED, UNIFORM
from support.shim import Shim, built

from torch_fastinit import backend
from torch_fastinit.initializers import (
    Constant,
    Eye,
    Initializer,
    Normal,
    Pattern,
    Program,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from torch_fastinit.ops import Fill, Region, fill

ALL = LAYOUTS | BOXES


@pytest.fixture(scope="session")
def compiled() -> Path:
    return built()


@pytest.fixture
def shim(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Shim:
    """Fills of CPU tensors go through csrc/cuda.cu."""
    shim = Shim(compiled)
    for name in ("current", "launches", "next_launch", "driver", "skip", "words", "chunk", "plain"):
        setattr(shim.state, name, 0)
    shim.state.devices = 2
    shim.paths()
    monkeypatch.setitem(backend.serving, "cpu", shim.provider())
    return shim


@pytest.mark.parametrize("layout", ALL.values(), ids=[name.replace(" ", "_") for name in ALL])
def test_layouts(layout: Layout, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    fill(batch(layout, theirs))
    shim = Shim(compiled)
    monkeypatch.setitem(backend.serving, "cpu", shim.provider())
    work = batch(layout, ours)
    fill(work)
    for f, a, b in zip(work, ours, theirs, strict=True):
        assert torch.equal(raw(a), raw(b)), (f.initializer, f.tensor.dtype)


GROUPS = {"uniform": UNIFORM, "normal": NORMAL, "truncated_normal": TRUNCATED, "empty": EMPTY, "mixture": MIXTURES}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", REAL)
def test_same_bits_as_the_reference(group: str, dtype: torch.dtype, shim: Shim) -> None:
    for initializer in GROUPS[group].values():
        check(initializer, dirty((31, 37), dtype))  # as in test_kernels, where the reference was computed


@pytest.mark.parametrize("initializer", PROGRAMS.values(), ids=[name.replace(" ", "_") for name in PROGRAMS])
def test_programs(initializer: Program, shim: Shim) -> None:
    check(initializer, dirty((31, 37), initializer.steps[-1].dtype))


@pytest.mark.parametrize(("shape", "box"), FAR_BOXES)
def test_far_out(shape: tuple[int, ...], box: tuple, shim: Shim) -> None:
    for initializer in (Uniform(), Normal(), TruncatedNormal(), TRUNCATED["8 to 9"], MIXTURES["spike and slab"]):
        for dtype in REAL:
            check_box(initializer, shape, box, dtype)


# Several parts of a column (64 rows or more each), with a rest, and a box of rows, whose scan starts above it.
@pytest.mark.parametrize("shape", [(1, 5), (7, 1), (300, 9), (131, 64)])
def test_sparse(shape: tuple[int, int], shim: Shim) -> None:
    for dtype in REAL:
        check(Sparse(0.7, 0.5), dirty(shape, dtype))
    rows, columns = shape
    check_box(Sparse(0.7, 0.5), (rows + 10, columns + 3), ((4, 4 + rows), (1, 1 + columns)), torch.float32)


def test_far_out_of_a_matrix(shim: Shim) -> None:
    check_box(Sparse(0.5), (6, 2**34), ((2, 6), (2**34 - 150, 2**34)), torch.float32)
    check_box(Eye(), (2**31, 2**31), ((2**31 - 2, 2**31), (2**31 - 65, 2**31)), torch.float16)


def test_a_model_takes_one_launch_for_200_tensors(shim: Shim) -> None:
    tensors = [torch.empty(4 + 4 * (n % 40)) for n in range(1000)]
    initializers: list[Initializer] = [Normal(0.0, 0.02), Uniform(), TruncatedNormal(), Constant(1.0)]
    fill([Fill(t, initializers[n % 4], SEED, n) for n, t in enumerate(tensors)])
    assert 1 < shim.state.launches <= 1000 // 200
    assert all(torch.equal(t, torch.ones_like(t)) for t in tensors[3::4])
    for n in (0, 1, 2, 500, 998):
        again = torch.empty_like(tensors[n])
        fill([Fill(again, initializers[n % 4], SEED, n)])
        assert torch.equal(tensors[n], again)


def columns(initializer: Initializer, dtype: torch.dtype, sizes: tuple[int, int], at: tuple[int, int]) -> Fill:
    return Fill(torch.empty(sizes, dtype=dtype), initializer, SEED, STREAM, Region((2**23, 4112), at))


def test_columns_go_as_boxes(shim: Shim) -> None:
    for dtype in REAL:
        for initializer in (Uniform(), Normal(), TruncatedNormal(), TruncatedNormal(0.0, 1.0, -4.0, 1.5)):
            fill([columns(initializer, dtype, (6, 160), (5, 16))])
            assert shim.paths() == {"box": 1}, (initializer, dtype)
    fill([columns(Normal(), torch.float32, (6, 162), (5, 15))])  # at an odd address, which no 16 bytes may begin
    assert shim.paths() == {"rows": 1}
    fill([columns(Normal(), torch.float32, (6, 160), (4177980, 3008))])  # row 3 crosses block 2^32
    assert shim.paths() == {"box": 2, "run": 2}


def test_what_needs_neither_tail_nor_placing(shim: Shim) -> None:
    """Counted where elements can be in the tail, or the mean is no float32; bits are compared elsewhere."""
    for initializer, plain in (
        (TruncatedNormal(), 1),
        (TruncatedNormal(0.0, 1.0, -2.9, 2.9), 1),
        (TruncatedNormal(0.0, 1.0, -3.0, 2.0), 0),
        (TruncatedNormal(0.0, 1.0, -2.0, 3.0), 0),
        (TruncatedNormal(1e6 + 0.01, 0.001, 1e6, 1e6 + 0.02), 0),
        (TRUNCATED["8 to 9"], 0),
        (Normal(), 0),
    ):
        shim.state.plain = 0
        check(initializer, dirty((1024,), torch.float32))
        assert shim.state.plain == plain, initializer


def test_chunks_are_as_large_as_the_batch_allows(shim: Shim) -> None:
    """One tensor or many, it is the batch that has to have work for a whole device."""
    shim.state.skip = -1  # nothing is written, so this is address space and no memory
    whole = torch.empty(2**31)
    for tensors, chunk in (
        ([whole[: 2**20]], 1024),
        ([whole[: 2**26]], 2048),
        ([whole[: 2**27]], 4096),
        ([whole], 8192),
        (list(whole.split(2**21)), 8192),
    ):
        fill([Fill(t, Normal(), SEED, n) for n, t in enumerate(tensors)])
        assert shim.state.chunk == chunk, (len(tensors), tensors[0].numel())


def test_addresses_past_2_to_the_32(shim: Shim) -> None:
    """Of a buffer of 8 GiB, of which only what is written becomes memory."""
    whole = torch.empty(2**31)
    shim.state.skip = 2**16 - 2  # all blocks but the last two of a run of 8,192 times 16 bytes each
    initializers = (Normal(), TruncatedNormal(), Uniform())
    for initializer in initializers:
        fill([Fill(whole, initializer, SEED, STREAM)])
        assert shim.paths() == {"run": 1}
        end = dirty((2**16,), torch.float32)
        check_end = Fill(end, initializer, SEED, STREAM, Region((2**31,), (2**31 - 2**16,)))
        shim.state.skip = 0
        fill([check_end])
        shim.state.skip = 2**16 - 2
        shim.paths()
        assert torch.equal(raw(whole[-(2**16) :]), raw(end))
    shim.state.skip = 0
    far = 2**29 - 64  # elements, nearly 2 GiB
    for strides, paths in (((far, 1), {"box": 1}), ((1, far // 16), {"rows": 1}), ((far + 1, 1), {"rows": 1})):
        view = whole.as_strided((4, 64), strides)
        for initializer in initializers:
            fill([Fill(view, initializer, SEED, STREAM, Region((10, 128), (3, 32)))])
            assert shim.paths() == paths
            here = dirty((4, 64), torch.float32)
            fill([Fill(here, initializer, SEED, STREAM, Region((10, 128), (3, 32)))])
            shim.paths()
            assert torch.equal(view, here)
        fill([Fill(view, Constant(0.5))])
        assert bool((view == 0.5).all())
        fill([Fill(view, Sparse(0.5), SEED, STREAM)])
        here = dirty((4, 64), torch.float32)
        fill([Fill(here, Sparse(0.5), SEED, STREAM)])
        assert torch.equal(view, here)
        shim.paths()


def test_a_small_batch_has_a_small_table(shim: Shim) -> None:
    initializers = [Normal(), Uniform(), TruncatedNormal(), Constant(0.5)]
    sizes = []
    for n in range(1, 40):
        ours = [dirty((37,), torch.float32)[1:] for _ in range(n)]
        fill([Fill(t, initializers[k % 4], SEED, k) for k, t in enumerate(ours)])
        sizes.append(shim.state.words)
        for k, t in enumerate(ours):
            alone = torch.empty(36)
            fill([Fill(alone, initializers[k % 4], SEED, k)])
            assert torch.equal(t, alone)
    assert shim.state.launches == sum(range(1, 40)) + 39
    assert sorted(sizes) == sizes  # first small ones, then large ones
    assert set(sizes) == {127, 4095}


@pytest.mark.parametrize("initializer", [NORMAL["gpt"], TRUNCATED["default"], Sparse(0.9), Eye()], ids=repr)
def test_any_one_fill_has_a_small_table(initializer: Initializer, shim: Shim) -> None:
    fill([Fill(torch.empty(67, 41), initializer, SEED, STREAM)])
    assert shim.state.words == 127


def test_float64_truncated_normals_too(shim: Shim) -> None:
    fill([Fill(torch.empty(8, dtype=torch.float64), TruncatedNormal(), SEED, n) for n in range(1000)])
    assert shim.state.launches <= 1000 // 200


def test_largest_entries_fill_a_table_exactly(shim: Shim) -> None:
    # eight dimensions that cannot be merged, with the most constants that there are
    sizes, strides = (1, *(2,) * 8), (1, *(3**n for n in range(8, 0, -1)))
    buffers = [dirty((2 * 3**9,), torch.float64) for _ in range(130)]
    tensors = [b.as_strided(sizes, strides) for b in buffers]
    fill([Fill(t, TruncatedNormal(), SEED, n) for n, t in enumerate(tensors)])
    assert shim.state.launches > 1
    for n in (0, 88, 89, 129):
        again = torch.empty(sizes, dtype=torch.float64)
        fill([Fill(again, TruncatedNormal(), SEED, n)])
        assert torch.equal(tensors[n], again)


def test_a_table_holds_the_largest_mixture(shim: Shim) -> None:
    sizes, strides = (1, *(2,) * 8), (1, *(3**n for n in range(8, 0, -1)))
    tensors = [dirty((2 * 3**9,), torch.float64).as_strided(sizes, strides) for _ in range(5)]
    largest = MIXTURES["as many as there may be"]
    fill([Fill(t, largest, SEED, n) for n, t in enumerate(tensors)])
    assert shim.state.launches > 1
    for n, tensor in enumerate(tensors):
        np.testing.assert_array_equal(bits_of(tensor), expected(largest, sizes, torch.float64, stream=n))


def test_device_and_stream(shim: Shim) -> None:
    shim.device, shim.stream = 1, 0x1234
    fill([Fill(torch.empty(5), Normal(), SEED, STREAM)])
    assert (shim.state.launched_on, shim.state.stream, shim.state.current) == (1, 0x1234, 0)


def refused(shim: Shim, change: Callable[[], None]) -> str:
    change()
    with pytest.raises(RuntimeError) as caught:
        fill([Fill(torch.empty(5), Normal(), SEED, STREAM)])
    shim.device = 0
    assert shim.state.current == 0  # the caller's device, whatever happened
    return str(caught.value)


def test_errors_name_their_cause(shim: Shim) -> None:
    message = refused(shim, lambda: setattr(shim.state, "next_launch", 2))
    assert message == "CUDA: launching a table of fills: out of memory (cudaErrorMemoryAllocation)"
    message = refused(shim, lambda: setattr(shim, "device", 7))
    assert message == "CUDA: choosing the device: invalid device ordinal (cudaErrorInvalidDevice)"
    misaligned = torch.empty(9, dtype=torch.uint8)[1:].as_strided((8,), (1,))
    with pytest.raises(RuntimeError, match="not aligned to their size"):
        shim.fill([Fill(Misaligned(misaligned), Pattern((0, 0)))])  # type: ignore[arg-type]


class Misaligned:
    """Describes itself as two floats at an odd address, which no tensor of torch's own making has."""

    dtype, shape = torch.float32, (2,)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def data_ptr(self) -> int:
        return self.tensor.data_ptr()

    def stride(self) -> tuple[int]:
        return (1,)

    def element_size(self) -> int:
        return 4


def test_what_is_in_the_way_is_named(shim: Shim) -> None:
    why = shim.library.shim_cuda_error
    assert why(0) == why(1) == b""
    shim.state.without_code = 1
    assert why(0) == b""
    assert why(1) == b"no kernel image is available for execution on the device"
    assert shim.state.current == 0
    shim.state.driver = 35
    assert b"driver version is insufficient" in why(0)
    shim.state.driver, shim.state.devices = 0, 0
    assert why(0) == b"no CUDA device 0"


def test_region_of_a_batch(shim: Shim) -> None:
    # a sharded tensor: every rank's rows, as one batch
    parts = [dirty((16, 8), torch.bfloat16) for _ in range(4)]
    fill([Fill(p, Normal(), SEED, STREAM, Region((64, 8), (16 * n, 0))) for n, p in enumerate(parts)])
    whole = dirty((64, 8), torch.bfloat16)
    fill([Fill(whole, Normal(), SEED, STREAM)])
    assert torch.equal(torch.cat(parts), whole)
