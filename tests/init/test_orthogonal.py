"""`orthogonal_`: orthonormal to the last bits, uniform among all orthogonal matrices, eager and materialised alike."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit import init
from torch_fastinit.initializers import Normal
from torch_fastinit.ops import Fill, fill
from torch_fastinit.orthogonal import REFLECTED, haar, reflections
from torch_fastinit.stream import draw_stream, stream_id


def normals(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    fill([Fill(tensor, Normal(), seed)])
    return tensor


def error(q: torch.Tensor) -> float:
    """The largest element of |Q^H Q - I|, or |Q Q^H - I| for wide matrices."""
    q = q.to(torch.complex128 if q.is_complex() else torch.float64)
    gram = q @ q.mH if q.size(-2) < q.size(-1) else q.mH @ q
    return float((gram - torch.eye(gram.size(-1))).abs().max())


TOLERANCE = {
    torch.float32: 1.5e-6,
    torch.float64: 1e-13,
    torch.complex64: 1.5e-6,
    torch.complex128: 1e-13,
    torch.float16: 2e-3,  # the rounding of an entry: 2**-12 of entries whose squares add to 1
    torch.bfloat16: 2e-2,
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "shape", [(20, 20), (60, 10), (10, 60), (8, 3, 2, 2), (1, 5), (5, 1), (1, 1), (130, 97)], ids=str
)
def test_orthonormal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = init.orthogonal_(torch.empty(shape, dtype=dtype), gain=2.0)
    assert error(w.reshape(shape[0], -1) / 2) < TOLERANCE[dtype]


LARGE = [(95, 95), (96, 96), (257, 257), (300, 1200), (1200, 300), (2048, 2048), (2048, 512), (512, 2048)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large(shape: tuple[int, int], dtype: torch.dtype) -> None:
    assert error(init.orthogonal_(torch.empty(shape, dtype=dtype))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("block", [1, 3, 8, 128])
def test_reflections(block: int, dtype: torch.dtype) -> None:
    """Any block gives the same product: of one matrix, and of several."""
    for shape in ((1, 1), (1, 4), (5, 5), (7, 9), (12, 6, 6)):
        one, other = (reflections(normals(*shape, dtype=dtype), block=b) for b in (block, 2))
        assert one.shape == (*shape[:-2], shape[-1], shape[-2])
        assert error(one) < TOLERANCE[dtype]
        assert torch.allclose(one, other, rtol=0, atol=10 * TOLERANCE[dtype])


def test_long_complex_rows() -> None:
    """torch's norm of 5000 complex numbers is wrong in the sixth digit."""
    assert error(init.orthogonal_(torch.empty(97, 5000, dtype=torch.complex64))) < TOLERANCE[torch.complex64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_reflections_of_zeros(dtype: torch.dtype) -> None:
    """A vector of zeros, or that begins with one, comes about once in 2**30 rows: the result is orthonormal."""
    given = normals(4, 4, dtype=dtype)
    given[1] = 0
    given[2, 2] = 0
    given[3, 3] = 0
    assert error(reflections(given)) < TOLERANCE[dtype]


WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "reflections": lambda x: reflections(x, block=8),
    "haar": haar,
}


@pytest.mark.parametrize("way", WAYS)
def test_uniform(way: str) -> None:
    """Powers' traces are nearly independent normals: of Q^j with mean 1 for an even j, else 0, and variance j.

    Diaconis and Shahshahani (1994); the first two moments are exact from dimension 2j on. Five standard errors, nine
    statistics: the test fails by chance with probability 5.2e-6.
    """
    count, side = 20000, 24
    q = WAYS[way](normals(count, side, side, seed=7)).double()
    power = q
    for j in (1, 2, 3, 4):
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1)
        mean = 1 - j % 2
        assert abs(float(trace.mean()) - mean) < 5 * (j / count) ** 0.5, j
        assert abs(float(((trace - mean) ** 2).mean()) / j - 1) < 5 * (2 / count) ** 0.5, j
        power = power @ q
    negative = int((torch.linalg.det(q) < 0).sum())
    assert stats.binomtest(negative, count).pvalue > 5.7e-7


def test_entries_of_unitary_matrices() -> None:
    """|q|^2 of an entry of a Haar-distributed unitary matrix of n rows is Beta(1, n - 1), its phase uniform."""
    q = reflections(normals(20000, 3, 3, dtype=torch.complex64), block=2)
    for i, j in ((0, 0), (1, 2), (2, 2)):
        entry = q[:, i, j]
        assert stats.kstest(entry.abs().double() ** 2, stats.beta(1, 2).cdf).pvalue > 1e-6
        assert stats.kstest(entry.angle().double(), stats.uniform(-torch.pi, 2 * torch.pi).cdf).pvalue > 1e-6


@pytest.fixture
def medium():
    """float32 products in bfloat16, where the processor has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def test_products_stay_float32(medium: None) -> None:
    """Whatever the process asks for, by setting or by autocast; and it is asked for again afterwards."""
    matmul = torch.backends.mkldnn.matmul
    assert matmul.fp32_precision == "bf16"
    w = torch.empty(256, 256)
    seen = []

    def many() -> None:
        for _ in range(5):
            seen.append(error(init.orthogonal_(w.clone())))

    threads = [threading.Thread(target=many) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        many()
    assert len(seen) == 20 and max(seen) <= TOLERANCE[torch.float32]
    assert matmul.fp32_precision == "bf16" and torch.get_float32_matmul_precision() == "medium"


def test_any_strides() -> None:
    torch.manual_seed(0)
    expected = init.orthogonal_(torch.empty(8, 4, 3, 3))
    torch.manual_seed(0)
    w = torch.empty(8, 4, 3, 3).to(memory_format=torch.channels_last)
    assert torch.equal(init.orthogonal_(w), expected)


def test_compiled() -> None:
    """A compiler sees one op, and so rounds nothing in another way."""
    compiled = torch.compile(init.orthogonal_, fullgraph=True, backend="aot_eager")
    for shape in ((8, 5), (100, 128)):
        torch.manual_seed(3)
        expected = init.orthogonal_(torch.empty(shape), gain=0.5)
        torch.manual_seed(3)
        assert torch.equal(compiled(torch.empty(shape), gain=0.5), expected)


class Layers(nn.Module):
    """Matrices of one shape, between others, in two dtypes; tall and wide ones are made together."""

    def __init__(self, count: int) -> None:
        super().__init__()
        side = REFLECTED + 4
        for i in range(count):
            for name, shape, dtype in (
                ("square", (side, side), torch.float32),
                ("tall", (2 * side, side), torch.float32),
                ("wide", (side, 2 * side), torch.bfloat16),
                ("small", (5, 7), torch.float32),
            ):
                setattr(self, f"{name}{i}", nn.Parameter(torch.empty(shape, dtype=dtype)))
                init.orthogonal_(getattr(self, f"{name}{i}").data, gain=1 + i)


@pytest.mark.parametrize("stage, expected_calls", [(1, 12), (50_000, 5), (1 << 22, 3)])
def test_made_together(stage: int, expected_calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a matrix is made depends on its shape and dtype alone, its values on its name: alone or in a stage."""
    monkeypatch.setattr("torch_fastinit.execution.executor.STAGE", stage)
    calls = []
    monkeypatch.setattr("torch_fastinit.execution.executor.haar", lambda x: calls.append(x.shape) or haar(x))
    with fastinit.deferred():
        model = Layers(3)
    fastinit.materialize(model, seed=5)
    assert sum(shape[0] if len(shape) == 3 else 1 for shape in calls) == 12
    assert len(calls) == expected_calls
    for name, parameter in model.named_parameters():
        rows, columns = parameter.shape
        given = torch.empty(min(rows, columns), max(rows, columns))
        fill([Fill(given, Normal(), 5, draw_stream(stream_id(name), 0))])
        alone = haar(given) * (1 + int(name[-1]))
        expected = (alone if rows >= columns else alone.mT).to(parameter.dtype)
        assert torch.allclose(parameter, expected, rtol=2**-7 if parameter.dtype is torch.bfloat16 else 0, atol=5e-6), (
            name
        )
