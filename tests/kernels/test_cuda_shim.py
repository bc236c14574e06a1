"""csrc/cuda.cu as ordinary C++, with blocks and threads as loops: the same bits as the CPU backend and the reference.

tests/support/cuda_shim/cuda_runtime.h is the CUDA runtime there. What only a GPU can show is in test_gpu.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from kernels.test_kernels import FAR_BOXES
from support.bits import REAL, SEED, STREAM, bits_of, check, check_box, dirty, expected
from support.layouts import LAYOUTS, Layout, batch, raw
from support.parameters import EMPTY, MIXTURES, NORMAL, PROGRAMS, TRUNCATED, UNIFORM
from support.wire import to_wire

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

ROOT = Path(__file__).resolve().parents[2]
# Arithmetic as in the build; undefined behaviour (a misaligned store, an overflow) ends the process.
FLAGS = (
    "-std=c++17 -O1 -shared -fPIC -ffp-contract=off -fno-strict-aliasing -Wno-unknown-pragmas "
    "-fsanitize=undefined -fsanitize-undefined-trap-on-error"
)


class State(ctypes.Structure):
    """``Shim`` of cuda_runtime.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("devices", "current", "launches", "launched_on", "without_code")),
        ("stream", ctypes.c_size_t),
        *((name, ctypes.c_int) for name in ("next_launch", "driver")),
    ]


class Shim:
    """The compiled kernels."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.shim_fill.restype = ctypes.c_char_p
        self.library.shim_cuda_error.restype = ctypes.c_char_p
        self.library.shim_state.restype = ctypes.POINTER(State)
        self.state: State = self.library.shim_state().contents
        self.device, self.stream = 0, 0

    def fill(self, fills: Iterable[Fill], fresh: bool = False) -> None:
        _, rows, recipe, params = to_wire(fills)
        lists = (
            *((ctypes.c_int64 * len(rows))(*rows), ctypes.c_size_t(len(rows))),
            *((ctypes.c_int64 * len(recipe))(*recipe), ctypes.c_size_t(len(recipe))),
            *((ctypes.c_double * len(params))(*params), ctypes.c_size_t(len(params))),
        )
        message = self.library.shim_fill(*lists, ctypes.c_int(self.device), ctypes.c_size_t(self.stream))
        if message is not None:
            raise RuntimeError(message.decode())

    def provider(self) -> backend.Provider:
        return backend.Provider("shim", "csrc/cuda.cu", self.fill, lambda device: "")


@pytest.fixture(scope="session")
def compiled() -> Path:
    """The shared library, kept between runs under the hash of what it is made of."""
    sources = [p for p in sorted((ROOT / "csrc").rglob("*.[ch]*")) if p.is_file()]
    sources += [*sorted((ROOT / "tests" / "support" / "cuda_shim").iterdir()), ROOT / "tests" / "support" / "wire.h"]
    machine = ["-mfma"] if "x86" in os.uname().machine else []
    command = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS.split(), *machine]
    key = hashlib.sha256(b"\0".join([repr(command).encode(), *(path.read_bytes() for path in sources)])).hexdigest()
    target = ROOT / "build" / "cuda_shim" / f"{key[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        shim = ROOT / "tests" / "support" / "cuda_shim"
        inputs = [str(shim / "shim.cpp"), str(ROOT / "csrc" / "lower.cpp")]
        subprocess.run([*command, f"-I{shim}", *inputs, "-o", str(part)], check=True)
        part.replace(target)
    return target


@pytest.fixture
def shim(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Shim:
    """Fills of CPU tensors go through csrc/cuda.cu."""
    shim = Shim(compiled)
    for name, value in {"devices": 2, "current": 0, "launches": 0, "next_launch": 0, "driver": 0}.items():
        setattr(shim.state, name, value)
    monkeypatch.setitem(backend.serving, "cpu", shim.provider())
    return shim


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=[name.replace(" ", "_") for name in LAYOUTS])
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
